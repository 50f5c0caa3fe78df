"""Whether the kernels compute on a GPU what they should, tried on small calls."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import stages_for
from .blocks import block_count
from .device import on_device
from .hollow import HollowCall
from .numerics import rounding, weighed_in
from .pipeline import sparse_attention
from .settings import CALIBRATED, INT8, BlockRouting, SequenceLayout, Settings
from .state import ClusterState, KeptClusters
from .types import Clusters, ExactRows, Part, Routing, Summaries

# How far a stage may be off, in roundings of its operands, of what it should give: the norm of a piece over the norm of that piece.
# Inputs and centroids are numbers that products do not round, and what is compared with is float64: what is left are the roundings of
# weights, of what stands for a cluster, and of the output. On an H200 right kernels are at most 2 off, and the mildest fault that is
# planted 43 in bfloat16, which rounds most.
ROUNDINGS = 16
# Elements of a piece: few, so that a missing tile shows among thousands of rows; many, so that chance averages out.
PIECE = 64
# Pieces that are smaller than this part of a tensor's root mean square are measured against that: nothing hangs on them.
LEAST_PIECE = 0.1
# A prime that is none of the counts of groups and clusters.
UNLIKE_ANY_COUNT = 61
# Stages that return nothing: they write their last argument.
WRITING = ("attend", "attend_dense")
# Stages that only sum, in float32: they are held to the roundings of float16 in any dtype, or one value too many in a mean goes unseen.
SUMMING = ("summarize",)
# Stages whose choice is the same only where they rank the same numbers.
CHOOSING = ("route", "route_given")
# Bytes: all heads at once, then one after the other.
MEMORY_LIMITS = (2**40, 1)


@dataclass(frozen=True)
class _Size:
    """Size of the calls: no loop may end before its second round, and no tile, group or cluster be just full.

    Attributes:
        items, heads: of the batch, and of each item.
        text, video, more_text: tokens.
        groups, clusters: of queries and of keys, and blocks of how many tokens where those are given.
    """

    items: int
    heads: int
    text: int
    video: int
    more_text: int
    groups: int
    clusters: int
    block: int


GPU = _Size(items=2, heads=2, text=70, video=4997, more_text=19, groups=23, clusters=141, block=128)
# Triton's interpreter has smaller tiles, and takes its time.
INTERPRETER = _Size(items=1, heads=2, text=35, video=151, more_text=3, groups=3, clusters=43, block=32)


@dataclass(frozen=True)
class SelfTest:
    """Two small calls that run the kernels of other calls, and no others, as those do.

    Attributes:
        device, dtype, settings, head_dim: those of the calls to come.
        text: whether they have tokens beside the video.
    """

    device: torch.device
    dtype: torch.dtype
    settings: Settings
    head_dim: int = 128
    text: bool = True

    def run(self) -> str | None:
        """What the Triton kernels compute wrongly, None where every stage gives what the torch stage gives for the same inputs.

        See :meth:`measure` for how it is found, and what is raised.
        """
        for name, off in self.measure().items():
            if off > 1:
                how = f"off by {off:.2g} times what rounding explains" if off < torch.inf else "no number, or another choice"
                return f"{name} is {how}"
        return None

    def measure(self) -> dict[str, float]:
        """How far each result of each stage is off at most, as a multiple of what is allowed; the first that is wrong is the last.

        The second call starts from the clusters of the first, and in both the second batch item takes those of the first. Waits for what
        it launches, and not for what else the device has to do.

        Raises whatever Triton raises where it cannot compile or launch, and RuntimeError where it cannot run at all.
        """
        with on_device(self.device), _own_stream(self.device):
            inputs, state = self._inputs()
            stages = _Checked(
                *(stages_for(inputs[0], name) for name in ("triton", "torch")), self._exact_in_products, self._products_dtype, self.device
            )
            owners = [0] * self._size.items
            try:
                for limit in MEMORY_LIMITS:
                    sparse_attention(*inputs, **self._call(limit), state=state, owners=owners, implementation=stages)
            except _Wrong:
                pass
        return stages.off

    def hollow(self) -> list[HollowCall]:
        """The calls without data, to find what they launch."""
        inputs, _ = self._inputs()
        return [HollowCall.like(*inputs, **self._call(limit)) for limit in MEMORY_LIMITS]

    @property
    def _size(self) -> _Size:
        size = INTERPRETER if self.device.type == "cpu" else GPU
        return size if self.text else replace(size, text=0, more_text=0)

    def _call(self, memory_limit: int) -> dict:
        """The keywords of a call."""
        size, settings, blocks = self._size, self.settings, None
        video, length = range(size.text, size.text + size.video), size.text + size.video + size.more_text
        if settings.method == CALIBRATED:
            count = block_count(size.video, size.block)
            exact = torch.rand(size.heads, count, count, generator=torch.Generator().manual_seed(1)) < 0.4
            blocks = BlockRouting(exact.to(self.device), size.block)
        else:
            settings = replace(settings, query_clusters=size.groups, key_clusters=size.clusters, kmeans_next=2)
        layouts = SequenceLayout(video, (range(0, size.text), range(video.stop, length)) if self.text else ())
        return {"settings": settings, "layouts": layouts, "blocks": blocks, "memory_limit": memory_limit}

    def _inputs(self) -> tuple[list[Tensor], ClusterState]:
        """q, k, v ``[B, H, L, D]``, and the state of a call before that had clusters near theirs.

        Video tokens lie so near to points so far apart that rounding moves none to another cluster, in clusters of one token up to many.
        Logits are those of independent points: attention is spread over all keys, so that none may be left out. Keys have an offset
        in common, as those of models have.
        """
        size, generator = self._size, torch.Generator().manual_seed(0)

        def normal(*shape: int, items: int = size.items) -> Tensor:
            return torch.randn(items, size.heads, *shape, self.head_dim, generator=generator)

        def around(points: Tensor) -> Tensor:
            # Uneven: the square makes some clusters large and some small or empty, and the factor puts them anywhere.
            count = points.shape[2]
            choice = (torch.rand(1, size.heads, size.video, generator=generator).square() * count).long() * UNLIKE_ANY_COUNT % count
            members = points.gather(2, choice[..., None].expand(-1, -1, -1, self.head_dim)) + 0.2 * normal(size.video)
            return torch.cat((normal(size.text), members, normal(size.more_text)), dim=2)

        groups, clusters = 1.5 * normal(size.groups, items=1), normal(size.clusters, items=1) + normal(1, items=1)
        # Tokens first in memory, as models have them.
        inputs = [
            self._exact_in_products(tensor.to(self.device, self.dtype)).transpose(1, 2).contiguous().transpose(1, 2)
            for tensor in (around(groups), around(clusters), normal(size.text + size.video + size.more_text))
        ]
        near = [(points + 0.05 * normal(points.shape[2], items=1)).to(self.device, self.dtype) for points in (groups, clusters)]
        return inputs, ClusterState(items={0: KeptClusters(*near, None, None)})

    def _exact_in_products(self, tensor: Tensor) -> Tensor:
        """``tensor`` rounded to what products take as it is, in the dtype that it has: tf32 has the bits of float16."""
        if self._products_dtype == torch.float32:
            return tensor.half().to(tensor.dtype) if self.device.type == "cuda" else tensor
        return tensor.to(self._products_dtype).to(tensor.dtype)

    @property
    def _products_dtype(self) -> torch.dtype:
        """The narrowest dtype of what is multiplied."""
        weighed = weighed_in(self.dtype, self.device)
        return weighed if self.settings.precision == INT8 and weighed == torch.bfloat16 else self.dtype


def _own_stream(device: torch.device) -> AbstractContextManager:
    """A stream whose small kernels are not kept waiting by the large ones of others."""
    return torch.cuda.stream(torch.cuda.Stream(device, priority=-1)) if device.type == "cuda" else nullcontext()


class _Wrong(Exception):
    """A stage is off; nothing that it made is handed on."""


class _Checked:
    """Stages that compute with one package and compare with the other in float64, given the same inputs. Raises :class:`_Wrong`.

    Attributes:
        stages, exact: the two packages.
        on_grid: rounds a tensor to what products take as it is.
        dtype, device: of the operands.
        off: how far each result was off at most, see :func:`_off`, as a multiple of what is allowed.
    """

    # By which a state tells calls of one package from those of another.
    __name__ = "checked"

    def __init__(
        self, stages: ModuleType, exact: ModuleType, on_grid: Callable[[Tensor], Tensor], dtype: torch.dtype, device: torch.device
    ):
        self.stages, self.exact, self.on_grid, self.dtype, self.device = stages, exact, on_grid, dtype, device
        self.off: dict[str, float] = {}

    def __getattr__(self, name: str) -> Callable:
        stage = getattr(self.stages, name)
        if name in ("key_bytes", "table_bytes"):
            return stage

        def checked(*args, **kwargs):
            if name in WRITING:
                return self._write(name, *args)
            found = stage(*args, **kwargs)
            if name not in CHOOSING:
                args, kwargs = _exactly(args), _exactly(kwargs)
            for field, pair in _fields(found, getattr(self.exact, name)(*args, **kwargs)).items():
                self._compare(f"{name}.{field}" if field else name, *pair)
            if isinstance(found, Routing):
                # Only kernels list rows; they have to be those of the exact blocks, each once.
                labels = args[1].sorted_labels[:, :, None].expand(-1, -1, found.exact.shape[2], -1)
                self._compare(f"{name}.rows", _times_listed(found.rows, labels.shape[-1]), found.exact.gather(-1, labels))
            return self._rounded(found)

        return checked

    def _write(self, name: str, *args) -> None:
        *given, output = args
        # Rows that no program writes must not be right by chance.
        output.fill_(torch.nan)
        expected = torch.empty_like(output, dtype=torch.float64)
        getattr(self.stages, name)(*given, output)
        getattr(self.exact, name)(*_exactly(given), expected)
        self._compare(name, output, expected)

    def _compare(self, name: str, found: Tensor, expected: Tensor) -> None:
        dtype = torch.float16 if name.startswith(SUMMING) else self.dtype
        off = _off(found, expected) / (ROUNDINGS * rounding(dtype, self.device))
        self.off[name] = max(off, self.off.get(name, 0.0))
        if off > 1:
            raise _Wrong(name)

    def _rounded(self, made: object) -> object:
        """What a stage has made with the operands of later products rounded, which both packages then see alike."""
        if isinstance(made, Clusters):
            centroids = self.on_grid(made.centroids)
            return made.with_centroids(centroids, None if made.rounded is None else centroids.to(made.rounded.dtype))
        if isinstance(made, Summaries):
            return replace(made, value_means=self.on_grid(made.value_means))
        return made


def _exactly(given: object) -> object:
    """What a stage is given, with float64 for every floating dtype."""
    if isinstance(given, Tensor):
        return given.double() if given.is_floating_point() else given
    if isinstance(given, (tuple, list)):
        return type(given)(map(_exactly, given))
    if isinstance(given, dict):
        return {name: _exactly(value) for name, value in given.items()}
    # The clusters of all heads, where these are of some: nothing that the torch stages ask for.
    if isinstance(given, Part):
        return None
    if is_dataclass(given):
        return replace(given, **{entry.name: _exactly(getattr(given, entry.name)) for entry in fields(given)})
    return given


def _fields(found: object, expected: object) -> dict[str, tuple[Tensor, Tensor]]:
    """The tensors that both packages hand on, by name; clusters in clusters are not compared again."""
    if isinstance(expected, Tensor):
        return {"": (found, expected)}
    names = [*vars(expected), *(("offsets",) if isinstance(expected, Clusters) else ())]
    pairs = {name: (getattr(found, name), getattr(expected, name)) for name in names}
    return {name: pair for name, pair in pairs.items() if all(isinstance(part, Tensor) for part in pair)}


def _times_listed(rows: ExactRows, tokens: int) -> Tensor:
    """int32 ``[B, H, G, N]``: how often each sorted key is among ``rows``."""
    within = torch.arange(32, device=rows.entries.device)
    listed = torch.arange(rows.entries.shape[-1], device=within.device) < rows.counts[..., None]
    listed = listed[..., None] & (within < (rows.entries & 31)[..., None])
    places = ((rows.entries >> 5)[..., None] + within).clamp(0, tokens - 1)
    found = torch.zeros(*rows.counts.shape, tokens, dtype=torch.int32, device=within.device)
    return found.scatter_add_(-1, places.flatten(-2), listed.flatten(-2).int())


def _off(found: Tensor, expected: Tensor) -> float:
    """The largest norm of the difference of two pieces over that of the one expected; infinite for a choice that is another."""
    if expected.dtype == torch.int8:
        # A sum in another order may round to the next integer.
        return 0.0 if ((found.int() - expected.int()).abs() <= 1).all().item() else torch.inf
    if not expected.is_floating_point():
        return 0.0 if torch.equal(found.long(), expected.long()) else torch.inf
    found, expected = found.double(), expected.double()
    difference = torch.where(found == expected, 0.0, found - expected)
    expected = torch.where(expected.isfinite(), expected, 0.0)
    least = LEAST_PIECE * expected.square().mean().sqrt() * PIECE**0.5
    off = _norms(difference) / _norms(expected).clamp(min=least).clamp(min=1e-30)
    # What is no number is as far off as can be.
    return off.nan_to_num(nan=torch.inf, posinf=torch.inf).amax().item()


def _norms(values: Tensor) -> Tensor:
    """The norms of pieces of the last dimension."""
    return F.pad(values, (0, -values.shape[-1] % PIECE)).unflatten(-1, (-1, PIECE)).norm(dim=-1)
