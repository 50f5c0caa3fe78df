"""How much arithmetic a call asks for, counted in query-key pairs: each takes 4 * head_dim FLOP (QK and PV)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import pack
from ..position_blocks import routed_blocks
from .inputs import HEAD_DIM

pack.load()
from svg_ear.kernels import RoutedHeads  # noqa: E402
from svg_ear.kernels.tuning import Tiles  # noqa: E402

FLOP_PER_PAIR = 4 * HEAD_DIM
# Keys of an entry in the list of exact rows.
GRANULE = 16


@dataclass(frozen=True)
class Pairs:
    """Query-key pairs of one call, all heads.

    Attributes:
        exact: pairs of tokens computed exactly, conditioning keys among them.
        tail: pairs of a query and the centroid of a cluster that it does not see exactly.
        processed: what the attention kernel multiplies for them: rows and keys in whole tiles, runs of exact keys in whole
            granules, and where clusters are compensated every centroid, those of exact clusters too.
    """

    exact: int = 0
    tail: int = 0
    processed: int = 0

    @property
    def useful(self) -> int:
        """Pairs that the result needs."""
        return self.exact + self.tail

    def __add__(self, other: Pairs) -> Pairs:
        return Pairs(self.exact + other.exact, self.tail + other.tail, self.processed + other.processed)


def routed_pairs(routed: RoutedHeads, conditioning: int, shapes: tuple[Tiles, ...], compensated: bool) -> Pairs:
    """Pairs of the video queries of ``routed`` over video keys, ``conditioning`` keys, and centroids where ``compensated``.

    Waits for the GPU.
    """
    rows = routed.query_groups.sizes.long()
    sizes, exact = routed.key_clusters.sizes.long(), routed.routing.exact
    keys = (exact * sizes[:, :, None]).sum(-1) + conditioning
    centroids = compensated * (~exact & (sizes > 0)[:, :, None]).sum(-1)
    all_centroids = compensated * sizes.shape[-1]
    listed = sum(_up(count, shapes[0].keys) for count in (_granules(exact, sizes) * GRANULE, all_centroids, conditioning))
    return Pairs(*(int((rows * columns).sum()) for columns in (keys, centroids)), int((_in_tiles(rows, shapes) * listed).sum()))


def _in_tiles(rows: Tensor, shapes: tuple[Tiles, ...]) -> Tensor:
    """Rows of the tiles that groups of ``rows`` rows are cut into."""
    tall, short = shapes[0].rows, shapes[-1].rows
    if tall == short:
        return _up(rows, tall)
    whole = (rows + tall - 1 - short) // tall * tall
    return whole + _up((rows - whole).clamp(min=0), short)


def _granules(exact: Tensor, sizes: Tensor) -> Tensor:
    """int64 ``[B, H, G]``: granules that cover the exact clusters, when clusters that follow each other are one run."""
    open_ = exact | (sizes == 0)[:, :, None]
    run = (open_ & ~pad(open_, (1, 0))[..., :-1]).cumsum(-1)
    lengths = torch.zeros_like(run).scatter_add_(-1, (run - 1).clamp(min=0), exact * sizes[:, :, None])
    return (_up(lengths, GRANULE) // GRANULE).sum(-1)


def _up(value, multiple: int):
    """``value`` rounded up."""
    return -(-value // multiple) * multiple


def sol_attn_share(q: Tensor, k: Tensor, tau: float, always: int = 0) -> float:
    """Share of the key blocks that Sol-Attn's published rule (arXiv 2607.24027) computes exactly.

    A block of 64 keys is exact for a block of 64 queries when the score of their means exceeds ``tau`` standard deviations
    of such scores, when both are neighbours, or when one of them is among the first ``always`` blocks. The tokens that
    ``token_aug`` adds are not counted: at most 256 a query block.

    Args:
        q, k: ``[1, H, L, D]``.
    """
    exact = total = 0
    # One head at a time: at 256k tokens the scores of all take gigabytes.
    for head in range(q.shape[1]):
        chosen = routed_blocks(q[:, head : head + 1], k[:, head : head + 1], tau)
        chosen[..., :always, :] = chosen[..., :always] = True
        exact, total = exact + chosen.sum(), total + chosen.numel()
    return float(exact / total)
