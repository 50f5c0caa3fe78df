"""What dense runs tell about where attention goes, added up over prompts."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy
import torch
from torch import Tensor

from ..block_shapes import SHAPES, block_orders
from ..blocks import BLOCK, block_count
from ..pipeline import conditioning_of, stages_for
from ..torch_stages.cluster import gather_rows
from ..types import SequenceLayout
from .bits import pack
from .budgets import Budget, Density, Thresholds
from .profile import ModelIdentity, Profile
from .selection import REPEATING_COSINE, repetition
from .sharing import SAME_MASK, share_masks

# A layer, and the number of the call within it where a layer attends more than once.
Site = tuple[int, int]
# A site and a step, counted from 0.
Spot = tuple[Site, int]

# Heads whose tokens are put into block order together.
HEADS_AT_ONCE = 4


@dataclass
class Seen:
    """What was seen at one spot.

    Attributes:
        energies: float16 ``[shapes, H, n, n]`` on the CPU, summed over batch items and prompts.
        cosines: of the heads for each shape, one array ``[shapes, H]`` for every batch item of every prompt.
    """

    energies: Tensor
    cosines: list[numpy.ndarray] = field(default_factory=list)

    def add(self, other: Seen) -> None:
        """Add what others saw."""
        self.energies += other.energies
        self.cosines += other.cosines


class Calibration:
    """Adds up dense runs of one model at one size and schedule. Safe for one thread per device.

    A run counts when it is finished, so that one cut short leaves no trace.

    Args:
        density: share of the blocks of every row that is kept; 0 keeps what ``energy`` says.
        energy: with a density of 0, the attention that the kept blocks of the last steps must hold, 0 to 1; 0 takes the
            published value.
        looks: how many steps to look at, spread over the schedule; the others take the nearest.
        memory_limit: bytes of host memory that energies may take; there are fewer looks where it does not suffice.
        repeating: mark heads whose output repeats, of which only the anchor blocks are computed.
        shapes: of blocks, of which every head gets the one that suits it best: some of :data:`~..block_shapes.SHAPES`.

    Attributes:
        runs: finished runs.
    """

    def __init__(
        self,
        density: float = 0.2,
        energy: float = 0.0,
        looks: int = 5,
        memory_limit: int | None = None,
        repeating: bool = False,
        shapes: Sequence[str] = tuple(SHAPES),
    ):
        for name, value in (("density", density), ("energy", energy)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; it is a share and must lie between 0 and 1")
        if looks < 1:
            raise ValueError(f"looks is {looks}; look at one step or more")
        if not shapes or set(shapes) - SHAPES.keys():
            raise ValueError(f"shapes are {tuple(shapes)}; choose some of {', '.join(SHAPES)}")
        self.density, self.energy, self.looks, self.memory_limit, self.repeating = density, energy, looks, memory_limit, repeating
        # Numbers of the shapes, in ascending order so that the plainest one wins a tie.
        self.shapes = [number for number, name in enumerate(SHAPES) if name in shapes]
        self.runs = 0
        self.spots: dict[Spot, Seen] = {}
        self.last: CalibrationRun | None = None

    def start(
        self,
        schedule: Sequence[float],
        grid: tuple[int, int, int],
        progress: Sequence[float] | None = None,
        heads: int | None = None,
    ) -> CalibrationRun:
        """A new run.

        Args:
            schedule: falling noise levels, one for each step and the last one reached.
            grid: frames, rows and columns of the video's tokens.
            progress: where in the whole denoising each step begins, 0 to 1; None spreads the steps over all of it.
            heads: how many there are about, in all layers, to tell what memory a look takes; None does not ask.

        Raises ValueError for a schedule or a grid that is not that of the runs before, and MemoryError where not even one look
        fits into the memory.
        """
        schedule, grid = tuple(schedule), tuple(grid)
        if len(schedule) < 2 or any(high <= low for high, low in zip(schedule, schedule[1:])):
            raise ValueError(f"the schedule is {schedule}; a calibration needs the falling noise levels of at least one step")
        steps = len(schedule) - 1
        known = self.last
        if known is None:
            looked_at = self._looked_at(steps, grid, heads)
        else:
            looked_at = known.looked_at
            if known.schedule != schedule:
                raise ValueError(
                    f"this calibration has {len(known.schedule) - 1} steps from {known.schedule[0]:.4g} to {known.schedule[-1]:.4g}, and "
                    f"this run {steps} from {schedule[0]:.4g} to {schedule[-1]:.4g} or others between: "
                    "use the sampler settings of the runs before, or begin a new calibration"
                )
            if known.grid != grid:
                raise ValueError(
                    f"this calibration is of {known.grid} tokens (frames, rows, columns), and this run has {grid}: "
                    "use the size and length of the runs before, or begin a new calibration"
                )
        return CalibrationRun(self, schedule, grid, tuple(progress) if progress else tuple(i / steps for i in range(steps)), looked_at)

    def profile(self, model: ModelIdentity, device: torch.device | None = None, same_mask: float = SAME_MASK) -> Profile:
        """What the finished runs agree on.

        Args:
            model: what was calibrated.
            device: where to compute; None is the CPU, which takes minutes for a large model.
            same_mask: neighbouring steps whose masks have a Jaccard index above this share one.

        Raises ValueError when nothing was gathered.
        """
        if not self.spots:
            raise ValueError("nothing was gathered: finish at least one run with attention calls that can run sparse")
        sites, steps = (sorted(set(parts)) for parts in zip(*self.spots))
        missing = [(site, step) for site in sites for step in steps if (site, step) not in self.spots]
        if missing:
            raise ValueError(f"layer {missing[0][0][0]} was not seen in step {missing[0][1]}: gather runs without caches that skip layers")
        last, heads = self.last, len(self.spots[sites[0], steps[0]].energies[0])
        table = len(steps), len(sites), heads
        index, repeats, masks = numpy.zeros(table, numpy.int32), numpy.zeros(table, bool), []
        shapes = numpy.zeros(table[1:], numpy.uint8)
        for i_site, site in enumerate(sites):
            spots = [self.spots[site, step] for step in steps]
            best, kept = self._kept(spots, [last.progress[step] for step in steps], last.budget, device)
            shapes[i_site] = numpy.array(self.shapes)[best]
            for head in range(heads):
                own, members = share_masks(kept[:, head], same_mask)
                index[:, i_site, head] = members + len(masks)
                masks += own
                for i_step, spot in enumerate(spots):
                    cosines = [cosine[best[head], head] for cosine in spot.cosines]
                    repeats[i_step, i_site, head] = self.repeating and median(cosines) > REPEATING_COSINE
        return Profile(
            model=model,
            grid=last.grid,
            tokens=math.prod(last.grid),
            block=BLOCK,
            sigmas=tuple(last.schedule[step] for step in steps),
            last_sigma=last.schedule[-1],
            steps=len(last.schedule) - 1,
            sites=tuple(sites),
            budget=last.budget,
            prompts=self.runs,
            shapes=shapes,
            index=index,
            repeats=repeats,
            masks=numpy.stack(masks),
        )

    def budget(self, tokens: int, steps: int) -> Budget:
        """What is kept of a video of ``tokens`` in a denoising of ``steps``."""
        if self.density:
            return Density(self.density)
        published = Thresholds.published(tokens, steps)
        return published.ending_at(self.energy) if self.energy else published

    def merge(self, run: CalibrationRun) -> None:
        """Count a finished run."""
        while run.seen:
            spot, seen = run.seen.popitem()
            if spot in self.spots:
                self.spots[spot].add(seen)
            else:
                self.spots[spot] = seen
        self.runs += 1
        self.last = run

    def _kept(
        self, spots: Sequence[Seen], progress: Sequence[float], budget: Budget, device: torch.device | None
    ) -> tuple[numpy.ndarray, numpy.ndarray]:
        """The place of every head's shape, int64 ``[H]``, and its packed masks uint8 ``[S, H, n, ceil(n / 8)]``.

        The shape is the same in all steps, so that steps can share masks.
        """
        costs, masks = 0, []
        for spot, at in zip(spots, progress):
            of_shapes = []
            for energies in spot.energies:
                energies = energies.to(device).float() / len(spot.cosines)
                kept = budget.select(energies, at)
                of_shapes.append((budget.cost(energies, kept).cpu(), pack(kept).cpu()))
            shape_costs, shape_masks = (torch.stack(parts) for parts in zip(*of_shapes))
            costs = costs + shape_costs
            masks.append(shape_masks)
        best = costs.argmin(0)
        heads = torch.arange(len(best))
        return best.numpy(), torch.stack([of_shapes[best, heads] for of_shapes in masks]).numpy()

    def _looked_at(self, steps: int, grid: tuple[int, int, int], heads: int | None) -> frozenset[int]:
        looks = min(self.looks, steps)
        if self.memory_limit is not None and heads is not None:
            # Those of the runs before, and those of the run that goes on.
            look = 2 * len(self.shapes) * heads * block_count(math.prod(grid), BLOCK) ** 2 * torch.float16.itemsize
            looks = min(looks, self.memory_limit // look)
            if looks == 0:
                raise MemoryError(
                    f"looking at one step takes about {look / 2**30:.1f} GB of host memory, and {self.memory_limit / 2**30:.1f} GB are "
                    "allowed: raise the limit, or take raster blocks only, which need a third"
                )
        return frozenset((2 * look + 1) * steps // (2 * looks) for look in range(looks))


class CalibrationRun:
    """One dense run of which a :class:`Calibration` learns; see :meth:`Calibration.start`.

    Attributes:
        schedule, grid, progress: see there.
        looked_at: the steps that are.
        budget: what is kept.
        seen: what was seen at every spot.
    """

    def __init__(
        self,
        calibration: Calibration,
        schedule: tuple[float, ...],
        grid: tuple[int, int, int],
        progress: tuple[float, ...],
        looked_at: frozenset[int],
    ):
        self.calibration, self.schedule, self.grid, self.progress, self.looked_at = calibration, schedule, grid, progress, looked_at
        self.budget = calibration.budget(math.prod(grid), len(schedule) - 1)
        self.seen: dict[Spot, Seen] = {}
        self._lock = threading.Lock()

    def wants(self, step: int) -> bool:
        """Whether calls of this step are to be observed."""
        return step in self.looked_at

    def observe(
        self,
        site: Site,
        step: int,
        q: Tensor,
        k: Tensor,
        output: Tensor,
        *,
        layouts: Sequence[SequenceLayout],
        scale: float | None = None,
        implementation: str | None = None,
    ) -> None:
        """Learn from one dense call. Waits for the device.

        Args:
            site, step: where it happened.
            q, k: ``[B, H, L, D]``, RoPE applied.
            output: dense attention of them, ``[B, H, L, D]``.
            layouts: which tokens are video, one for each batch item.
            scale: factor of the logits; None is ``D ** -0.5``.
            implementation: see :func:`~..pipeline.sparse_attention`.

        Raises ValueError for another number of video tokens than the grid has.
        """
        if len(layouts[0].video) != math.prod(self.grid):
            raise ValueError(
                f"this calibration is of {math.prod(self.grid)} video tokens and the call has {len(layouts[0].video)}: "
                "use the size and length of the runs before, or begin a new calibration"
            )
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        orders = block_orders(self.grid, BLOCK)[self.calibration.shapes].to(q.device)
        for item, layout in enumerate(layouts):
            parts = []
            for first in range(0, q.shape[1], HEADS_AT_ONCE):
                some = [tensor[item : item + 1, first : first + HEADS_AT_ONCE] for tensor in (q, k, output)]
                parts.append(self._look(*some, layout, orders, scale, implementation))
            energies, cosines = (torch.cat(part, dim=1) for part in zip(*parts))
            seen = Seen(energies, [cosines.numpy()])
            with self._lock:
                if known := self.seen.get((site, step)):
                    known.add(seen)
                else:
                    self.seen[site, step] = seen

    def finish(self) -> None:
        """Count this run; call it when the run has ended well."""
        self.calibration.merge(self)

    def _look(
        self, q: Tensor, k: Tensor, output: Tensor, layout: SequenceLayout, orders: Tensor, scale: float, implementation: str | None
    ) -> tuple[Tensor, Tensor]:
        """Energies float16 ``[shapes, h, n, n]`` and cosines float ``[shapes, h]`` of some heads ``[1, h, L, D]``, on the CPU."""
        stages = stages_for(q, implementation)
        queries, keys, outputs = (tensor[:, :, layout.video.start : layout.video.stop] for tensor in (q, k, output))
        denominators = stages.log_denominators(queries, keys, conditioning_of(k, k, layout), scale)
        energies, cosines = [], []
        for order in orders:
            places = order.expand(1, q.shape[1], -1)
            arranged = (gather_rows(tensor, places) for tensor in (queries, keys))
            found = stages.block_energies(*arranged, denominators[..., order], BLOCK, scale)
            energies.append(found[0].half().cpu())
            if self.calibration.repeating:
                cosines.append(repetition(gather_rows(outputs, places)[0], BLOCK).float().cpu())
            else:
                cosines.append(torch.zeros(q.shape[1]))
        return torch.stack(energies), torch.stack(cosines)
