"""The error that skipping each block would make, seen from the query centroids."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Conditioning, Probe, SortedKeys, Summaries
from .chunks import row_slices
from .cluster import segment_sum


def probe_tokens(centroids: Tensor, sorted_keys: SortedKeys, conditioning: Conditioning, summaries: Summaries, scale: float) -> Probe:
    """Squared error of compensating every key cluster, from all its keys (design §1, equation of step 3).

    ``E_pj = sum_t |exp(a_t) v_t - exp(c) v_j|^2 = sum e^2a |v|^2 - 2 e^c sum e^a <v, v_j> + n e^2c |v_j|^2`` with
    ``a_t = s q_p.k_t`` and ``c = s q_p.k_j``, over the squared denominator of dense attention at the centroid.

    Args:
        centroids: float ``[B, H, P, D]``, means of the probe groups.
        sorted_keys, conditioning, summaries: all visible keys and what stands for their clusters.
        scale: factor of the logits.
    """
    keys, sizes = sorted_keys.keys, sorted_keys.clusters.sizes
    mean_norms = summaries.value_means.square().sum(-1)[:, :, None]
    shape = centroids.shape[:3]
    found = Probe(
        errors=centroids.new_empty(*shape, sizes.shape[-1]),
        masses=centroids.new_empty(*shape, sizes.shape[-1]),
        outputs=torch.empty_like(centroids),
        log_denominators=centroids.new_empty(shape),
    )
    for rows in row_slices(shape[2], shape[0] * shape[1] * keys.shape[2], keys.device):
        logits = _logits(centroids[:, :, rows], keys, scale)
        extra = _logits(centroids[:, :, rows], conditioning.keys, scale)
        peaks = torch.cat((logits, extra), dim=-1).amax(-1)
        weights = logits.sub_(peaks[..., None]).exp_()
        extra = extra.sub_(peaks[..., None]).exp_()
        inverse = 1 / (weights.sum(-1) + extra.sum(-1))[..., None]
        weights, extra = weights.mul_(inverse), extra.mul_(inverse)
        log_denominators = peaks - inverse.squeeze(-1).log()
        found.log_denominators[:, :, rows] = log_denominators
        found.outputs[:, :, rows] = _weighted_sum(weights, sorted_keys.values) + _weighted_sum(extra, conditioning.values)
        by_key = weights.transpose(-1, -2).contiguous()
        crossed = segment_sum(by_key * summaries.value_dots[..., None], sizes).transpose(-1, -2)
        squared = segment_sum(by_key.square_().mul_(summaries.value_norms[..., None]), sizes).transpose(-1, -2)
        centroid_weights, masses = _centroid_weights(centroids[:, :, rows], summaries, scale, log_denominators)
        errors = squared - 2 * centroid_weights * crossed + masses * centroid_weights * mean_norms
        found.masses[:, :, rows], found.errors[:, :, rows] = masses, errors.clamp_(min=0)
    return found


def probe_centroids(centroids: Tensor, conditioning: Conditioning, summaries: Summaries, scale: float) -> Probe:
    """Squared error of dropping every key cluster, as far as the centroids tell: ``E_pj = |n exp(c) v_j|^2``.

    All that SVG2 looks at: keys are seen through their centroids only, so the dense output is an estimate too.
    """
    extra = _logits(centroids, conditioning.keys, scale)
    logits = _logits(centroids, summaries.key_means, scale) + summaries.log_sizes[:, :, None]
    log_denominators = torch.cat((logits, extra), dim=-1).logsumexp(-1)
    masses = (logits - log_denominators[..., None]).exp_()
    extra = (extra - log_denominators[..., None]).exp_()
    outputs = masses @ summaries.value_means + _weighted_sum(extra, conditioning.values)
    errors = masses.square() * summaries.value_means.square().sum(-1)[:, :, None]
    return Probe(errors, masses, outputs, log_denominators)


def _centroid_weights(centroids: Tensor, summaries: Summaries, scale: float, log_denominators: Tensor) -> tuple[Tensor, Tensor]:
    """``exp(c)``, and ``n exp(c)`` which is zero for an empty cluster, both over the denominator."""
    logits = _logits(centroids, summaries.key_means, scale) - log_denominators[..., None]
    occupied = summaries.log_sizes.isfinite()[:, :, None]
    weights = torch.where(occupied, logits, -torch.inf).exp_()
    return weights, weights * summaries.log_sizes.exp()[:, :, None]


def _logits(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """``scale * queries @ keys^T`` in the dtype of the queries, without a wide copy of all keys."""
    queries = scale * queries
    if keys.dtype == queries.dtype:
        return queries @ keys.transpose(-1, -2)
    logits = queries.new_empty(*queries.shape[:3], keys.shape[2])
    for rows in row_slices(keys.shape[2], keys.shape[0] * keys.shape[1] * keys.shape[3], keys.device):
        torch.matmul(queries, keys[:, :, rows].to(queries.dtype).transpose(-1, -2), out=logits[..., rows])
    return logits


def _weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """``weights @ values`` in the dtype of the weights, without a wide copy of all values."""
    if values.dtype == weights.dtype:
        return weights @ values
    total = weights.new_zeros(*weights.shape[:3], values.shape[3])
    for rows in row_slices(values.shape[2], values.shape[0] * values.shape[1] * values.shape[3], values.device):
        total += weights[..., rows] @ values[:, :, rows].to(weights.dtype)
    return total
