"""What happened where in a sampler run: density and error of every call, and the routing of a few chosen ones."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy
import torch
from torch import Tensor

from ...kernels import RoutedHeads, Statistics
from ...kernels.statistics import LARGEST_ERROR
from .reasons import Reason
from .routed import HeadRouting, error_of_code, head_routing
from .selection import Selection


@dataclass(frozen=True)
class Place:
    """Where in a run an attention call happens.

    Attributes:
        layer, layers: number of the transformer block over all block lists, and how many there are.
        step: step of the sampler call, from 0.
        sparse_steps: the steps of the sampler call that may run sparse.
        branches: name of the conditioning that each batch item belongs to.
        grid: frames, rows and columns of the video's patches when they are exactly the routed tokens, else None.
    """

    layer: int
    layers: int
    step: int
    sparse_steps: tuple[int, ...]
    branches: tuple[str, ...]
    grid: tuple[int, int, int] | None


@dataclass(frozen=True)
class MapChoice:
    """Which calls have their routing recorded: ``None`` chooses a few spread evenly, an empty selection none.

    Attributes:
        layers, steps, heads: what was chosen.
        dense_layers: layers that never run sparse, which the automatic choice avoids.
        limit: bytes that the maps of all kept runs may take.
    """

    layers: Selection | None
    steps: Selection | None
    heads: Selection | None
    dense_layers: Selection
    limit: int

    def heads_at(self, place: Place, heads: int) -> list[int]:
        """The heads to record at ``place``, of ``heads``."""
        sparse_layers = [layer for layer in range(place.layers) if not self.dense_layers.selects(layer, place.layers)]
        if not _chosen(self.layers, place.layer, place.layers, _spread(sparse_layers, 3)):
            return []
        steps = 1 + max((place.step, *place.sparse_steps))
        if not _chosen(self.steps, place.step, steps, _spread(place.sparse_steps, 3)):
            return []
        automatic = _spread(range(heads), 2)
        return [head for head in range(heads) if _chosen(self.heads, head, heads, automatic)]


def _chosen(selection: Selection | None, number: int, count: int, automatic: list[int]) -> bool:
    return number in automatic if selection is None else selection.selects(number, count)


def _spread(numbers: Sequence[int], count: int) -> list[int]:
    """The first, the last and ones evenly between them."""
    last = len(numbers) - 1
    return sorted({numbers[round(last * part / max(count - 1, 1))] for part in range(count)}) if numbers else []


@dataclass(frozen=True)
class RoutingMap:
    """The routing of one head in one call, on the host.

    Attributes:
        layer, step, branch, head: where.
        exact: bool ``[G, C]``; errors: float32 ``[G, C]``, relative error of the group's output if the block is estimated.
        query_labels, key_labels: int ``[N]``, group and cluster of each video token.
        grid: frames, rows, columns of the tokens, or None.
    """

    layer: int
    step: int
    branch: str
    head: int
    exact: numpy.ndarray
    error_codes: numpy.ndarray
    query_labels: numpy.ndarray
    key_labels: numpy.ndarray
    grid: tuple[int, int, int] | None

    @property
    def errors(self) -> numpy.ndarray:
        return error_of_code(self.error_codes)

    @property
    def group_sizes(self) -> numpy.ndarray:
        """Int ``[G]``: queries in each group."""
        return numpy.bincount(self.query_labels, minlength=self.exact.shape[0])

    @property
    def cluster_sizes(self) -> numpy.ndarray:
        """Int ``[C]``: keys in each cluster."""
        return numpy.bincount(self.key_labels, minlength=self.exact.shape[1])

    @property
    def key_shares(self) -> numpy.ndarray:
        """Float ``[C]``: share of the queries that see the keys of each cluster exactly."""
        return self.group_sizes.astype("float32") @ self.exact.astype("float32") / len(self.query_labels)

    @property
    def density(self) -> float:
        """Share of the query-key pairs that were computed exactly."""
        return float(self.key_shares @ self.cluster_sizes / len(self.key_labels))

    def nbytes(self) -> int:
        """Bytes held."""
        return sum(part.nbytes for part in (self.exact, self.error_codes, self.query_labels, self.key_labels))


@dataclass(frozen=True)
class TraceRecord:
    """What happened where in a finished run.

    Attributes:
        layers: transformer blocks of the model; 0 when no call was located.
        sparse: (branch, layer, step) -> float32 ``[2, H]``: density and estimated error of each head, NaN where they are not finite.
        dense: (layer, step) -> why the call stayed dense.
        maps: recorded routing.
        maps_left_out: chosen maps that the memory limit had no room for.
    """

    layers: int = 0
    sparse: dict[tuple[str, int, int], numpy.ndarray] = field(default_factory=dict)
    dense: dict[tuple[int, int], Reason] = field(default_factory=dict)
    maps: tuple[RoutingMap, ...] = ()
    maps_left_out: int = 0

    @property
    def branches(self) -> list[str]:
        """Names of the conditionings, ``cond`` first."""
        return sorted({branch for branch, _, _ in self.sparse})

    def nbytes(self) -> int:
        """Bytes that the maps hold."""
        return sum(recorded.nbytes() for recorded in self.maps)


class Trace:
    """A run's trace in the making. Safe for one thread per device.

    What is recorded stays on its device until :meth:`finish`: reading it earlier would make the host wait for the GPU.
    """

    def __init__(self, choice: MapChoice | None = None):
        self._choice = choice
        self._layers = 0
        self._calls: list[tuple[Place, Tensor]] = []
        self._dense: dict[tuple[int, int], Reason] = {}
        self._maps: dict[tuple[str, int, int, int], tuple[HeadRouting, tuple[int, int, int] | None]] = {}
        self._bytes = 0
        self._left_out = 0
        self._lock = threading.Lock()

    def observer(self, place: Place, heads: int) -> Callable[[RoutedHeads], None] | None:
        """What ``sparse_attention`` should call with the routing of a call at ``place``; None for most calls."""
        wanted = self._choice.heads_at(place, heads) if self._choice is not None and self._choice.limit else []
        if not wanted:
            return None

        def observe(routed: RoutedHeads):
            branch = place.branches[routed.item]
            for head in wanted:
                key = (branch, place.layer, place.step, head)
                # Of several evaluations of a step (second-order samplers, context windows) the first is shown.
                if head in routed.heads and key not in self._maps:
                    self._keep(key, head_routing(routed, head), place.grid)

        return observe

    def _keep(self, key: tuple, routing: HeadRouting, grid: tuple[int, int, int] | None) -> None:
        with self._lock:
            if self._bytes + routing.nbytes() > self._choice.limit:
                self._left_out += 1
            elif key not in self._maps:
                self._maps[key] = (routing, grid)
                self._bytes += routing.nbytes()

    def count_sparse(self, statistics: Statistics, place: Place) -> None:
        """Keep the figures of one sparse call."""
        figures = torch.stack((statistics.density, statistics.estimated_error))
        with self._lock:
            self._layers = place.layers
            self._calls.append((place, figures))

    def count_dense(self, layer: int, layers: int, step: int, reason: Reason) -> None:
        """Remember why the video's own attention stayed dense in a layer and step."""
        with self._lock:
            self._layers = layers
            self._dense[layer, step] = reason

    @property
    def sparse_calls(self) -> int:
        return len(self._calls)

    def finish(self) -> tuple[TraceRecord, tuple[float, float] | None, int]:
        """The record, means of density and error over the calls (None without any), and how many calls were not finite.

        Waits for the devices. Calls that are not finite count neither in means nor in cells.
        """
        figures = _to_host([tensor for _, tensor in self._calls])
        cells = defaultdict(list)
        for (place, _), values in zip(self._calls, figures):
            for item, branch in enumerate(place.branches):
                cells[branch, place.layer, place.step].append(values[:, item])
        maps = tuple(
            RoutingMap(layer, step, branch, head, *(_numpy(part) for part in _parts(routing)), grid)
            for (branch, layer, step, head), (routing, grid) in self._maps.items()
        )
        record = TraceRecord(
            # More than the model has where it counts its blocks otherwise than its lists.
            layers=max(self._layers, 1 + max((layer for *_, layer, _ in (*cells, *self._dense)), default=-1)),
            sparse={key: _mean(values).numpy() for key, values in cells.items()},
            dense=self._dense,
            maps=maps,
            maps_left_out=self._left_out,
        )
        means = [_finite(values).double().flatten(1).mean(1) for values in figures]
        finite = [pair for pair in means if pair.isfinite().all()]
        return record, tuple(torch.stack(finite).mean(0).tolist()) if finite else None, len(means) - len(finite)


def _finite(values: Tensor) -> Tensor:
    """Density and error ``[2, ...]``, NaN where there is no estimate of the error: see ``LARGEST_ERROR`` of the kernels."""
    return values.where((values.isfinite() & (values < LARGEST_ERROR)).all(0), torch.nan)


def _mean(calls: list[Tensor]) -> Tensor:
    """The mean of the calls ``[2, H]`` of one place; of calls with other heads than the first none is taken."""
    return torch.stack([_finite(values) for values in calls if values.shape == calls[0].shape]).nanmean(0)


def _to_host(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors on the CPU, with one copy for all that agree in shape and device."""
    groups = defaultdict(list)
    for position, tensor in enumerate(tensors):
        groups[tensor.device, tensor.shape].append(position)
    found: list[Tensor] = [torch.empty(0)] * len(tensors)
    for positions in groups.values():
        for position, values in zip(positions, torch.stack([tensors[position] for position in positions]).cpu()):
            found[position] = values
    return found


def _parts(routing: HeadRouting) -> tuple[Tensor, ...]:
    return routing.exact, routing.errors, routing.query_labels, routing.key_labels


def _numpy(tensor: Tensor) -> numpy.ndarray:
    return tensor.cpu().numpy()
