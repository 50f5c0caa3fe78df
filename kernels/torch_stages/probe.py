"""The error that skipping each block would make, seen from the query centroids."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Conditioning, Probe, SortedKeys, Summaries
from .chunks import row_slices
from .cluster import segment_sum
from .quantize import dequantized


def probe_tokens(
    centroids: Tensor, sorted_keys: SortedKeys, conditioning: Conditioning, summaries: Summaries, weighted: bool, scale: float
) -> Probe:
    """Squared error of compensating every key cluster by its plain means, from all its keys.

    ``E_ij = sum_t |exp(a_t) v_t - exp(c) v_j|^2 = sum e^2a |v|^2 - 2 e^c sum e^a <v, v_j> + n e^2c |v_j|^2`` with
    ``a_t = s q_i.k_t`` and ``c = s q_i.k_j``, over the squared denominator of dense attention at the centroid.

    Args:
        centroids: float ``[B, H, G, D]``, means of the query groups.
        sorted_keys, conditioning, summaries: all visible keys and what is known of their clusters.
        weighted: whether compensation will be by centroids weighted for each group, whose mass is the true one.
        scale: factor of the logits.
    """
    keys, sizes = sorted_keys.keys, sorted_keys.clusters.sizes
    centroids, conditioning, summaries = dequantized(centroids, sorted_keys, conditioning, summaries)
    # A factor of the keys, which are many, as one of the queries.
    key_queries = centroids if sorted_keys.quantized is None else centroids * sorted_keys.quantized.key_scales[:, :, None, None]
    mean_norms = summaries.value_means.square().sum(-1)[:, :, None]
    shape = centroids.shape[:3]
    found = Probe(
        errors=centroids.new_empty(*shape, sizes.shape[-1]),
        masses=centroids.new_empty(*shape, sizes.shape[-1]),
        output_norms=centroids.new_empty(shape),
    )
    for rows in row_slices(shape[2], shape[0] * shape[1] * keys.shape[2], keys.device):
        logits = scaled_logits(key_queries[:, :, rows], keys, scale)
        extra = conditioning_logits(centroids[:, :, rows], conditioning, scale)
        log_denominators = torch.logaddexp(logits.logsumexp(-1), extra.logsumexp(-1))
        weights = logits.sub_(log_denominators[..., None]).exp_()
        extra = extra.sub_(log_denominators[..., None]).exp_()
        by_key = weights.transpose(-1, -2).contiguous()
        centroid_weights, mean_masses = _centroid_weights(centroids[:, :, rows], summaries, scale, log_denominators)
        masses = segment_sum(by_key, sizes).transpose(-1, -2) if weighted else mean_masses
        found.masses[:, :, rows] = masses
        found.output_norms[:, :, rows] = output_norms(masses, extra, summaries, conditioning)
        crossed = segment_sum(by_key * summaries.value_dots[..., None], sizes).transpose(-1, -2)
        squared = segment_sum(by_key.square_().mul_(summaries.value_norms[..., None]), sizes).transpose(-1, -2)
        errors = squared - 2 * centroid_weights * crossed + mean_masses * centroid_weights * mean_norms
        found.errors[:, :, rows] = errors.clamp_(min=0)
    return found


def probe_centroids(centroids: Tensor, conditioning: Conditioning, summaries: Summaries, scale: float) -> Probe:
    """Squared error of dropping every key cluster, as far as the centroids tell: ``E_ij = |n exp(c) v_j|^2``.

    All that SVG2 looks at: keys are seen through their centroids only, so the denominator is an estimate too.
    """
    extra = conditioning_logits(centroids, conditioning, scale)
    logits = scaled_logits(centroids, summaries.key_means, scale) + summaries.log_sizes[:, :, None]
    log_denominators = torch.cat((logits, extra), dim=-1).logsumexp(-1)
    masses = (logits - log_denominators[..., None]).exp_()
    extra = (extra - log_denominators[..., None]).exp_()
    errors = masses.square() * summaries.value_means.square().sum(-1)[:, :, None]
    return Probe(errors, masses, output_norms(masses, extra, summaries, conditioning))


def output_norms(masses: Tensor, extra: Tensor, summaries: Summaries, conditioning: Conditioning) -> Tensor:
    """Squared norm of each mean query's output by plain mean values, from the masses of its key clusters and of the conditioning."""
    return (masses @ summaries.value_means + extra @ conditioning.values.to(extra.dtype)).square().sum(-1)


def _centroid_weights(centroids: Tensor, summaries: Summaries, scale: float, log_denominators: Tensor) -> tuple[Tensor, Tensor]:
    """``exp(c)``, and ``n exp(c)`` which is zero for an empty cluster, both over the denominator."""
    logits = scaled_logits(centroids, summaries.key_means, scale) - log_denominators[..., None]
    occupied = summaries.log_sizes.isfinite()[:, :, None]
    weights = torch.where(occupied, logits, -torch.inf).exp_()
    return weights, weights * summaries.log_sizes.exp()[:, :, None]


def conditioning_logits(queries: Tensor, conditioning: Conditioning, scale: float) -> Tensor:
    """The logits of the keys that are exact for every query, biases among them."""
    logits = scaled_logits(queries, conditioning.keys, scale)
    return logits if conditioning.biases is None else logits + conditioning.biases[:, :, None]


def scaled_logits(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """``scale * queries @ keys^T`` in the dtype of the queries, without a wide copy of all keys."""
    queries = scale * queries
    if keys.dtype == queries.dtype:
        return queries @ keys.transpose(-1, -2)
    logits = queries.new_empty(*queries.shape[:3], keys.shape[2])
    for rows in row_slices(keys.shape[2], keys.shape[0] * keys.shape[1] * keys.shape[3], keys.device):
        torch.matmul(queries, keys[:, :, rows].to(queries.dtype).transpose(-1, -2), out=logits[..., rows])
    return logits
