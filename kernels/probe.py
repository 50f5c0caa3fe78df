"""The error that skipping each block would make, seen from the query centroids."""

from __future__ import annotations

import torch
from torch import Tensor

from .chunks import row_slices
from .cluster import segment_sum
from .types import Conditioning, Probe, SortedKeys, Summaries


def probe_tokens(
    centroids: Tensor, sorted_keys: SortedKeys, conditioning: Conditioning, summaries: Summaries, scale: float
) -> Probe:
    """Squared error of compensating every key cluster, from all its keys (design §1, equation of step 3).

    ``E_pj = sum_t |exp(a_t) v_t - exp(c) v_j|^2 = sum e^2a |v|^2 - 2 e^c sum e^a <v, v_j> + n e^2c |v_j|^2`` with
    ``a_t = s q_p·k_t`` and ``c = s q_p·k_j``, exponents relative to the largest logit of the centroid.

    Args:
        centroids: float ``[B, H, P, D]``, means of the probe groups.
        sorted_keys, conditioning, summaries: all visible keys and what stands for their clusters.
        scale: factor of the logits.
    """
    dtype = centroids.dtype
    keys, values = sorted_keys.keys.to(dtype), sorted_keys.values.to(dtype)
    extra_keys, extra_values = conditioning.keys.to(dtype), conditioning.values.to(dtype)
    sizes = sorted_keys.clusters.sizes
    mean_norms = summaries.value_means.square().sum(-1)[:, :, None]
    batch, heads, count = centroids.shape[:3]
    parts = []
    for rows in row_slices(count, batch * heads * keys.shape[2], keys.device):
        logits = scale * centroids[:, :, rows] @ keys.transpose(-1, -2)
        extra = scale * centroids[:, :, rows] @ extra_keys.transpose(-1, -2)
        peaks = torch.cat((logits, extra), dim=-1).amax(-1)
        weights = (logits - peaks[..., None]).exp_()
        extra = (extra - peaks[..., None]).exp_()
        numerators = weights @ values + extra @ extra_values
        denominators = weights.sum(-1) + extra.sum(-1)
        by_key = weights.transpose(-1, -2).contiguous()
        crossed = segment_sum(by_key * summaries.value_dots[..., None], sizes).transpose(-1, -2)
        squared = segment_sum(by_key.square_().mul_(summaries.value_norms[..., None]), sizes).transpose(-1, -2)
        centroid_weights, masses = _centroid_weights(centroids[:, :, rows], summaries, scale, peaks)
        errors = squared - 2 * centroid_weights * crossed + masses * centroid_weights * mean_norms
        parts.append((errors.clamp_(min=0), masses, peaks, numerators, denominators))
    return Probe(*(torch.cat(tensors, dim=2) for tensors in zip(*parts)))


def probe_centroids(centroids: Tensor, conditioning: Conditioning, summaries: Summaries, scale: float) -> Probe:
    """Squared error of dropping every key cluster, as far as the centroids tell: ``E_pj = |n exp(c) v_j|^2``.

    All that SVG2 looks at: keys are seen through their centroids only, so the dense output is an estimate too.
    """
    extra = scale * centroids @ conditioning.keys.to(centroids.dtype).transpose(-1, -2)
    logits = scale * centroids @ summaries.key_means.transpose(-1, -2) + summaries.log_sizes[:, :, None]
    peaks = torch.cat((logits, extra), dim=-1).amax(-1)
    masses = (logits - peaks[..., None]).exp_()
    extra = (extra - peaks[..., None]).exp_()
    numerators = masses @ summaries.value_means + extra @ conditioning.values.to(centroids.dtype)
    errors = masses.square() * summaries.value_means.square().sum(-1)[:, :, None]
    return Probe(errors, masses, peaks, numerators, masses.sum(-1) + extra.sum(-1))


def _centroid_weights(centroids: Tensor, summaries: Summaries, scale: float, peaks: Tensor) -> tuple[Tensor, Tensor]:
    """``exp(c)``, and ``n exp(c)`` which is zero for an empty cluster, both relative to ``exp(peaks)``."""
    logits = scale * centroids @ summaries.key_means.transpose(-1, -2) - peaks[..., None]
    occupied = summaries.log_sizes.isfinite()[:, :, None]
    weights = torch.where(occupied, logits, -torch.inf).exp_()
    return weights, weights * summaries.log_sizes.exp()[:, :, None]
