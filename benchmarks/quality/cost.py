"""Effective density: all multiply-adds of a method over those of dense attention, which takes ``2 N D`` for each query.

A query-key pair costs D multiply-adds for its logit and D for its value. Sums, exponentials and sorting are not counted.
"""

from __future__ import annotations

from dataclasses import replace

from .. import pack
from ..position_blocks import BLOCK

pack.load()
from svg_ear.kernels import Settings  # noqa: E402
from svg_ear.kernels.counts import cluster_counts  # noqa: E402


def effective_density(settings: Settings, tokens: int, exact: float, call: int, clustered: float = 1.0) -> float:
    """Of one call of the pack: exact pairs, centroids of the rest, probe and k-means.

    Args:
        settings: how it was routed.
        tokens: video tokens.
        exact: share of the pairs that were computed exactly.
        call: how many calls came before it with the same clusters.
        clustered: the part of the batch that has clusters of its own.
    """
    return exact + _around(settings, tokens) + clustered * _clustering(settings, tokens, call)


def with_effective_density(settings: Settings, tokens: int, target: float, calls: int) -> Settings:
    """``settings`` with the share of exact pairs that makes the mean effective density of ``calls`` calls the ``target``.

    Raises ValueError where the rest alone costs as much.
    """
    clustering = sum(_clustering(settings, tokens, call) for call in range(calls)) / calls
    exact = target - _around(settings, tokens) - clustering
    if exact <= 0:
        raise ValueError(
            f"probe, centroids and k-means of {settings} cost {target - exact:.3f} of {tokens} tokens, so {target} cannot be met"
        )
    return replace(settings, density=exact)


def sol_attn_density(tokens: int, exact: float, token_aug: int) -> float:
    """Of ``comfy_kitchen.sol_attn``: ``exact`` share, routing by block means, and what its rows share of the rest.

    With ``token_aug`` the mean query of each block visits every token, logit and value; without, every pooled block.
    """
    routing = 0.5 / BLOCK**2
    shared = 1 / BLOCK if token_aug else 1 / BLOCK**2
    return exact + routing + shared


def position_blocks_density(exact: float) -> float:
    """Of position blocks with a pooled term for each row: ``exact`` share, routing by block means, pooled blocks."""
    return exact + 0.5 / BLOCK**2 + 1 / BLOCK


def _around(settings: Settings, tokens: int) -> float:
    """Centroids of the skipped clusters, and the probe."""
    groups, clusters = cluster_counts(tokens, settings)
    tail = clusters / tokens if settings.compensates else 0.0
    if settings.weights_centroids:
        probe = groups / tokens
    elif settings.compensates and settings.probe_score == "error":
        probe = groups / (2 * tokens)
    else:
        probe = groups * clusters / (2 * tokens**2)
    return tail + probe


def _clustering(settings: Settings, tokens: int, call: int) -> float:
    """Distances of every token to the centroids it is compared with, each half a pair, and of centroids to each other."""
    if call % settings.recluster_every:
        return 0.0
    iterations = settings.kmeans_next if call else settings.kmeans_first
    return sum(_distances(settings, tokens, count, iterations, call == 0) for count in cluster_counts(tokens, settings)) / (2 * tokens**2)


def _distances(settings: Settings, tokens: int, count: int, iterations: int, from_scratch: bool) -> int:
    """How many distances one k-means takes."""
    if not 0 < settings.kmeans_candidates < count:
        return iterations * tokens * count
    compared_with_all = int(from_scratch)
    near = tokens * settings.kmeans_candidates + count**2
    return compared_with_all * tokens * count + (iterations - compared_with_all) * near
