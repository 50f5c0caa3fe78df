"""What a call is handed, checked and completed before any stage runs."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType

import torch
from torch import Tensor

from .blocks import block_count
from .device import unavailable_reason
from .numerics import ceil_div, compute_dtype
from .settings import CALIBRATED, INT8, BlockRouting, SequenceLayout, Settings
from .strides import readable

IMPLEMENTATIONS = ("torch", "triton")
# Bytes. Chunks of fewer heads would leave a short sequence waiting for launches.
LEAST_GPU_MEMORY = 512 * 2**20


def stages_for(q: Tensor, implementation: str | ModuleType | None) -> ModuleType:
    """The package whose functions compute the stages; what is no name is taken for one."""
    if not isinstance(implementation, str | None):
        return implementation
    implementation = implementation or ("torch" if q.device.type == "cpu" else "triton")
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation is {implementation!r}; choose one of {', '.join(IMPLEMENTATIONS)}")
    if implementation == "triton":
        if q.dtype == torch.float64:
            raise ValueError("q, k, v are float64, which the Triton kernels do not compute; pass implementation='torch'")
        reason = unavailable_reason(q.device)
        if reason is not None:
            raise RuntimeError(f"the Triton kernels cannot run: {reason}")
    return importlib.import_module(f".{implementation}_stages", __package__)


def layouts_of(q: Tensor, layouts: SequenceLayout | Sequence[SequenceLayout] | None) -> list[SequenceLayout]:
    """One layout for each batch item; None routes all tokens."""
    if layouts is None:
        layouts = SequenceLayout(range(q.shape[2]))
    return [layouts] * q.shape[0] if isinstance(layouts, SequenceLayout) else list(layouts)


def owners_of(layouts: list[SequenceLayout], owners: Sequence[int] | None) -> list[int]:
    """For each batch item the one whose clusters it takes; None is its own."""
    batch = len(layouts)
    owners = list(range(batch) if owners is None else owners)
    if len(owners) != batch or any(owner not in range(batch) or owners[owner] != owner for owner in owners):
        raise ValueError(
            f"owners are {owners} for {batch} batch items; name for each item one that is its own owner, such as {[0] * batch}"
        )
    if any(_places(layouts[owner]) != _places(layout) for owner, layout in zip(owners, layouts)):
        raise ValueError(f"owners are {owners} of items whose video lies elsewhere: {layouts}; let each item be its own")
    return owners


def alike(layouts: list[SequenceLayout], owners: list[int]) -> list[range]:
    """Runs of batch items whose video lies at the same place, and whose owners are as far away: those are clustered together."""
    found: list[range] = []
    for item, layout in enumerate(layouts):
        first = found[-1].start if found else item
        if found and _places(layouts[first]) == _places(layout) and owners[first] - first == owners[item] - item:
            found[-1] = range(first, item + 1)
        else:
            found.append(range(item, item + 1))
    return found


def check_tensors(q: Tensor, k: Tensor, v: Tensor, layouts: list[SequenceLayout]) -> None:
    """Raise ValueError unless shapes, dtypes, devices and layouts fit together."""
    named = all(layout.queries is not None for layout in layouts)
    if q.dim() != 4 or k.shape != v.shape or q.shape != (*k.shape[:2], q.shape[2] if named else k.shape[2], *k.shape[3:]):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (q, k, v))
        raise ValueError(
            f"q, k, v have shapes {shapes}; self-attention needs three equal [B, H, L, D], "
            "and another L of q needs layouts that name the queries"
        )
    if not (q.dtype == k.dtype == v.dtype and q.is_floating_point() and q.device == k.device == v.device):
        kinds = ", ".join(f"{tensor.dtype} on {tensor.device}" for tensor in (q, k, v))
        raise ValueError(f"q, k, v are {kinds}; they need one floating dtype on one device")
    if len(layouts) != q.shape[0]:
        raise ValueError(f"{len(layouts)} layouts for {q.shape[0]} batch items; pass one for all or one each")
    for layout in layouts:
        last = max(span.stop for span in (layout.video, *layout.conditioning))
        if last > k.shape[2]:
            raise ValueError(f"{layout} reaches position {last}, but the sequence has {k.shape[2]} tokens")
        if layout.routed_queries.stop > q.shape[2]:
            raise ValueError(f"{layout} reaches query {layout.routed_queries.stop}, but there are {q.shape[2]}")
    if len({(len(layout.video), len(layout.routed_queries)) for layout in layouts}) > 1:
        raise ValueError(f"batch items differ in their number of video tokens: {layouts}; split the batch")


def biases_of(k: Tensor, biases: Tensor | None) -> Tensor | None:
    """``biases`` as ``[B, H, L]`` in the dtype of sums; raise ValueError where they do not fit the keys."""
    if biases is None:
        return None
    batch, heads, length, _ = k.shape
    if biases.dim() != 3 or biases.shape[0] not in (1, batch) or biases.shape[1] not in (1, heads) or biases.shape[2] != length:
        raise ValueError(f"biases are {tuple(biases.shape)}; these keys need [{batch} or 1, {heads} or 1, {length}]")
    if not biases.is_floating_point() or biases.device != k.device:
        raise ValueError(f"biases are {biases.dtype} on {biases.device}; they need a floating dtype on {k.device}")
    return readable(biases.to(compute_dtype(k.dtype))).expand(batch, heads, length)


def settings_for(q: Tensor, settings: Settings, layouts: list[SequenceLayout], blocks: BlockRouting | None) -> Settings:
    """The settings with the counts of ``blocks``, which have to fit the call."""
    if (settings.method == CALIBRATED) != (blocks is not None):
        given = "no blocks" if blocks is None else "blocks"
        raise ValueError(f"method is {settings.method!r} and {given} are given; pass blocks with method {CALIBRATED!r} and with no other")
    if blocks is None:
        return settings
    if any(layout.routed_queries != layout.video for layout in layouts):
        raise ValueError(f"method {CALIBRATED!r} knows blocks of queries that are the keys' positions, and these are not: {layouts}")
    count = block_count(len(layouts[0].video), blocks.size)
    if tuple(blocks.exact.shape) != (q.shape[1], count, count) or blocks.exact.device != q.device:
        raise ValueError(
            f"exact blocks are {tuple(blocks.exact.shape)} on {blocks.exact.device}; {q.shape[1]} heads and {len(layouts[0].video)} video "
            f"tokens in blocks of {blocks.size} need {(q.shape[1], count, count)} on {q.device}"
        )
    labels, needed = blocks.labels, (q.shape[1], len(layouts[0].video))
    if labels is not None and (tuple(labels.shape) != needed or labels.device != q.device):
        raise ValueError(f"labels of blocks are {tuple(labels.shape)} on {labels.device}; this call needs {needed} on {q.device}")
    return replace(settings, query_clusters=count, key_clusters=count)


def chunks_for(
    q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, settings: Settings, memory: int | None, stages: ModuleType, sharing: bool
) -> tuple[int, bool]:
    """Heads of one chunk, as many as ``memory`` bytes allow, in chunks of about one size; and whether sorted keys stay."""
    heads, tokens = k.shape[1], len(layout.video)
    if memory is None:
        memory = working_memory(2 * (k.nbytes + v.nbytes) if sharing else q.nbytes + k.nbytes + v.nbytes, q.device)
    of_keys, of_head = stages.key_bytes(k, tokens, settings), stages.table_bytes(k, len(layout.routed_queries), tokens, settings)
    of_all_keys = k.shape[0] * heads * of_keys
    # In int8 they come with the queries of the call.
    stays = sharing and settings.precision != INT8 and of_all_keys + of_head <= memory
    if stays:
        memory -= of_all_keys
    else:
        of_head += of_keys
    most = max(1, min(heads, memory // of_head))
    return ceil_div(heads, ceil_div(heads, most)), stays


def working_memory(nbytes: int, device: torch.device, ranks: int = 1) -> int:
    """Bytes of working memory of a call of ``nbytes`` of q, k and v where nobody says how many.

    Where ``ranks`` GPUs share the heads of a call each may take what one would for all of them: with few heads in a chunk a kernel fills
    the GPU less, and there are as many chunks as of all heads.
    """
    return max(3 * ranks * nbytes // 4, LEAST_GPU_MEMORY if device.type == "cuda" else 0)


def _places(layout: SequenceLayout) -> tuple[range, range]:
    """Where the video is, as keys and as queries."""
    return layout.video, layout.routed_queries
