"""Whether the kernels compute on a GPU what they should, tried on small calls."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from types import ModuleType

import torch
from torch import Tensor

from .arguments import stages_for
from .blocks import block_count
from .device import on_device
from .hollow import HollowCall
from .numerics import rounding
from .pipeline import sparse_attention
from .settings import CALIBRATED, BlockRouting, SequenceLayout, Settings
from .state import ClusterState, KeptClusters
from .types import Clusters

# How far a stage may be off, in roundings of its inputs: at the worst element, over the root mean square of all. The largest of a million
# elements is five times that, and is rounded as it leaves; weights, and what stands for a skipped cluster, are rounded on the way. Correct
# kernels are 3 to 10 off in Triton's interpreter. In bfloat16, which rounds most, 16 are 3 % of the root mean square.
ROUNDINGS = 16
# Of the probe's tables, whose largest elements are many times the mean, and squares: correct ones are up to 14 off.
TABLE_ROUNDINGS = 64
# Stages that return nothing: they write their last argument.
WRITING = ("attend", "attend_dense")
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
INTERPRETER = _Size(items=1, heads=2, text=35, video=151, more_text=3, groups=3, clusters=37, block=32)


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

        The second call starts from the clusters of the first, and in both the second batch item takes those of the first. Waits for what
        it launches, and not for what else the device has to do.

        Raises whatever Triton raises where it cannot compile or launch, and RuntimeError where it cannot run at all.
        """
        try:
            with on_device(self.device), _own_stream(self.device):
                inputs, state = self._inputs()
                stages = _Checked(*(stages_for(inputs[0], name) for name in ("triton", "torch")), rounding(self.dtype, self.device))
                owners = [0] * self._size.items
                for limit in MEMORY_LIMITS:
                    sparse_attention(*inputs, **self._call(limit), state=state, owners=owners, implementation=stages)
        except _Wrong as wrong:
            return str(wrong)
        return None

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
        Logits are those of independent points: attention is spread over all keys, so that none may be left out.
        """
        size, generator = self._size, torch.Generator().manual_seed(0)

        def normal(*shape: int, items: int = size.items) -> Tensor:
            return torch.randn(items, size.heads, *shape, self.head_dim, generator=generator)

        def around(points: Tensor) -> Tensor:
            # Uneven: the square makes the first clusters large and the last ones small, some empty.
            choice = (torch.rand(1, size.heads, size.video, generator=generator).square() * points.shape[2]).long()
            members = points.gather(2, choice[..., None].expand(-1, -1, -1, self.head_dim)) + 0.2 * normal(size.video)
            return torch.cat((normal(size.text), members, normal(size.more_text)), dim=2)

        groups, clusters = 1.5 * normal(size.groups, items=1), normal(size.clusters, items=1)
        # Tokens first in memory, as models have them.
        inputs = [
            tensor.to(self.device, self.dtype).transpose(1, 2).contiguous().transpose(1, 2)
            for tensor in (around(groups), around(clusters), normal(size.text + size.video + size.more_text))
        ]
        near = [(points + 0.05 * normal(points.shape[2], items=1)).to(self.device, self.dtype) for points in (groups, clusters)]
        return inputs, ClusterState(items={0: KeptClusters(*near, None, None)})


def _own_stream(device: torch.device) -> AbstractContextManager:
    """A stream whose small kernels are not kept waiting by the large ones of others."""
    return torch.cuda.stream(torch.cuda.Stream(device, priority=-1)) if device.type == "cuda" else nullcontext()


class _Wrong(Exception):
    """A stage is off; nothing that it made is handed on."""


class _Checked:
    """Stages that compute with one package and compare with the other, given the same inputs. Raises :class:`_Wrong`."""

    # By which a state tells calls of one package from those of another.
    __name__ = "checked"

    def __init__(self, stages: ModuleType, exact: ModuleType, rounding: float):
        self.stages, self.exact, self.rounding = stages, exact, rounding

    def __getattr__(self, name: str) -> Callable:
        stage = getattr(self.stages, name)
        if name == "working_bytes":
            return stage

        def checked(*args, **kwargs):
            if name in WRITING:
                return self._write(name, *args)
            found, expected = stage(*args, **kwargs), getattr(self.exact, name)(*args, **kwargs)
            for field, (one, other) in _fields(found, expected).items():
                self._compare(f"{name}.{field}" if field else name, one, other)
            return found

        return checked

    def _write(self, name: str, *args) -> None:
        *given, output = args
        # Rows that no program writes must not be right by chance.
        output.fill_(torch.nan)
        expected = torch.empty_like(output)
        getattr(self.stages, name)(*given, output)
        getattr(self.exact, name)(*given, expected)
        self._compare(name, output, expected)

    def _compare(self, name: str, found: Tensor, expected: Tensor) -> None:
        allowed = (TABLE_ROUNDINGS if name.startswith("probe") else ROUNDINGS) * self.rounding
        difference = _difference(found, expected)
        # A difference that is no number is not below anything.
        if not difference <= allowed:
            raise _Wrong(f"{name} is off by {difference:.2g} of its size, where {allowed:.2g} is rounding")


def _fields(found: object, expected: object) -> dict[str, tuple[Tensor, Tensor]]:
    """The tensors that both packages hand on, by name; clusters in clusters are not compared again."""
    if isinstance(expected, Tensor):
        return {"": (found, expected)}
    names = [*vars(expected), *(("offsets",) if isinstance(expected, Clusters) else ())]
    pairs = {name: (getattr(found, name), getattr(expected, name)) for name in names}
    return {name: pair for name, pair in pairs.items() if all(isinstance(part, Tensor) for part in pair)}


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference of two elements over the root mean square of those expected; infinite for a choice that is another."""
    if not expected.is_floating_point():
        return 0.0 if torch.equal(found.long(), expected.long()) else torch.inf
    found, expected = found.double(), expected.double()
    same = found == expected
    difference = torch.where(same, 0.0, (found - expected).abs()).max()
    finite = torch.where(expected.isfinite(), expected, 0.0)
    return (difference / finite.square().mean().sqrt().clamp(min=1e-30)).item()
