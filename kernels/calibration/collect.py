"""What dense runs tell about where attention goes, added up over prompts."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy
import torch
from torch import Tensor

from ..arguments import stages_for
from ..block_shapes import SHAPES, block_orders
from ..blocks import BLOCK, block_count
from ..device import on_device
from ..settings import SequenceLayout
from ..surroundings import conditioning_of
from ..torch_stages.cluster import gather_rows
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
        count: how many of them.
        cosines: of the heads for each shape, an array ``[shapes, H]`` for each of them where repetition is looked for.
    """

    energies: Tensor
    count: int
    cosines: list[numpy.ndarray]

    def __add__(self, other: Seen) -> Seen:
        # Not in place: tensors of an inference mode that has ended cannot be changed.
        return Seen(self.energies + other.energies, self.count + other.count, self.cosines + other.cosines)


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
        *,
        tokens: int | None = None,
        progress: Sequence[float] | None = None,
        heads: int | None = None,
    ) -> CalibrationRun:
        """A new run.

        Args:
            schedule: falling noise levels, one for each step and the last one reached.
            grid: frames, rows and columns of the video's tokens.
            tokens: how many of them there are, if not those of the grid: with reference frames beside it blocks can only be raster.
            progress: where in the whole denoising each step begins, 0 to 1; None spreads the steps over all of it.
            heads: how many there are about, in all layers, to tell what memory a look takes; None does not ask.

        Raises ValueError for a schedule, a grid or a number of tokens that is not that of the runs before, and MemoryError where
        not even one look fits into the memory.
        """
        schedule, grid = tuple(schedule), tuple(grid)
        tokens = math.prod(grid) if tokens is None else tokens
        if len(schedule) < 2 or any(high <= low for high, low in zip(schedule, schedule[1:])):
            raise ValueError(f"the schedule is {schedule}; a calibration needs the falling noise levels of at least one step")
        steps = len(schedule) - 1
        shapes = self.shapes if tokens == math.prod(grid) else [list(SHAPES).index("raster")]
        known = self.last
        if known is None:
            looked_at = self._looked_at(steps, tokens, shapes, heads)
        else:
            looked_at = known.looked_at
            if known.schedule != schedule:
                raise ValueError(
                    f"this calibration has {len(known.schedule) - 1} steps from {known.schedule[0]:.4g} to {known.schedule[-1]:.4g}, and "
                    f"this run {steps} from {schedule[0]:.4g} to {schedule[-1]:.4g} or others between: "
                    "use the sampler settings of the runs before, or begin a new calibration"
                )
            if (known.grid, known.tokens) != (grid, tokens):
                raise ValueError(
                    f"this calibration is of {known.tokens} tokens in {known.grid} (frames, rows, columns), and this run has {tokens} in "
                    f"{grid}: use the size and length of the runs before, or begin a new calibration"
                )
        progress = tuple(progress) if progress else tuple(step / steps for step in range(steps))
        return CalibrationRun(self, schedule, grid, tokens, progress, looked_at, shapes)

    def profile(self, model: ModelIdentity, device: torch.device | None = None) -> Profile:
        """What the finished runs agree on.

        Args:
            model: what was calibrated.
            device: where to compute; None is the CPU, which takes minutes for a large model.

        Raises ValueError when nothing was gathered.
        """
        if not self.spots:
            raise ValueError("nothing was gathered: finish at least one run with attention calls that can run sparse")
        sites, steps = (sorted(set(parts)) for parts in zip(*self.spots))
        missing = [(site, step) for site in sites for step in steps if (site, step) not in self.spots]
        if missing:
            raise ValueError(f"layer {missing[0][0][0]} was not seen in step {missing[0][1]}: gather runs without caches that skip layers")
        last, heads = self.last, self.spots[sites[0], steps[0]].energies.shape[1]
        budget = self._budget(last)
        table = len(steps), len(sites), heads
        index, repeats, masks = numpy.zeros(table, numpy.int32), numpy.zeros(table, bool), []
        shapes = numpy.zeros(table[1:], numpy.uint8)
        for i_site, site in enumerate(sites):
            spots = [self.spots[site, step] for step in steps]
            best, kept = _kept(spots, [last.progress[step] for step in steps], budget, device)
            shapes[i_site] = numpy.array(last.shapes)[best]
            for head in range(heads):
                own, members = share_masks(kept[:, head], SAME_MASK)
                index[:, i_site, head] = members + len(masks)
                masks += own
                for i_step, spot in enumerate(spots):
                    cosines = [of_item[best[head], head] for of_item in spot.cosines]
                    repeats[i_step, i_site, head] = bool(cosines) and median(cosines) > REPEATING_COSINE
        return Profile(
            model=model,
            grid=last.grid,
            tokens=last.tokens,
            block=BLOCK,
            first_sigma=last.schedule[0],
            sigmas=tuple(last.schedule[step] for step in steps),
            last_sigma=last.schedule[-1],
            steps=len(last.schedule) - 1,
            sites=tuple(sites),
            budget=budget,
            prompts=self.runs,
            shapes=shapes,
            index=index,
            repeats=repeats,
            masks=numpy.stack(masks),
        )

    def merge(self, run: CalibrationRun) -> None:
        """Count a finished run."""
        while run.seen:
            spot, seen = run.seen.popitem()
            self.spots[spot] = self.spots[spot] + seen if spot in self.spots else seen
        self.runs += 1
        self.last = run

    def _budget(self, run: CalibrationRun) -> Budget:
        if self.density:
            return Density(self.density)
        published = Thresholds.published(run.tokens, run.all_steps())
        return published.ending_at(self.energy) if self.energy else published

    def _looked_at(self, steps: int, tokens: int, shapes: Sequence[int], heads: int | None) -> frozenset[int]:
        looks = min(self.looks, steps)
        if self.memory_limit is not None and heads is not None:
            # Those of the runs before, and those of the run that goes on.
            look = 2 * len(shapes) * heads * block_count(tokens, BLOCK) ** 2 * torch.float16.itemsize
            looks = min(looks, self.memory_limit // look)
            if looks == 0:
                fewer = f", or take raster blocks only, which need 1/{len(shapes)} of it" if len(shapes) > 1 else ""
                raise MemoryError(
                    f"looking at one step takes about {look / 2**30:.1f} GB of host memory, and {self.memory_limit / 2**30:.1f} GB are "
                    f"allowed: raise the limit{fewer}"
                )
        return frozenset((2 * look + 1) * steps // (2 * looks) for look in range(looks))


def _kept(
    spots: Sequence[Seen], progress: Sequence[float], budget: Budget, device: torch.device | None
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """The place of every head's shape, int64 ``[H]``, and its packed masks uint8 ``[S, H, n, ceil(n / 8)]``.

    The shape is the same in all steps, so that steps can share masks.
    """
    costs, masks = 0, []
    for spot, at in zip(spots, progress):
        of_shapes = []
        for energies in spot.energies:
            energies = energies.to(device).float() / spot.count
            kept = budget.select(energies, at)
            of_shapes.append((budget.cost(energies, kept).cpu(), pack(kept).cpu()))
        shape_costs, shape_masks = (torch.stack(parts) for parts in zip(*of_shapes))
        costs = costs + shape_costs
        masks.append(shape_masks)
    best = costs.argmin(0)
    heads = torch.arange(len(best))
    return best.numpy(), torch.stack([of_shapes[best, heads] for of_shapes in masks]).numpy()


class CalibrationRun:
    """One dense run of which a :class:`Calibration` learns; see :meth:`Calibration.start`.

    Attributes:
        schedule, grid, tokens, progress: see there.
        looked_at: the steps that are.
        shapes: numbers of the shapes of blocks that are looked at.
        seen: what was seen at every spot.
    """

    def __init__(
        self,
        calibration: Calibration,
        schedule: tuple[float, ...],
        grid: tuple[int, int, int],
        tokens: int,
        progress: tuple[float, ...],
        looked_at: frozenset[int],
        shapes: Sequence[int],
    ):
        self.calibration, self.schedule, self.grid, self.tokens, self.progress = calibration, schedule, grid, tokens, progress
        self.looked_at, self.shapes = looked_at, shapes
        self.seen: dict[Spot, Seen] = {}
        self._lock = threading.Lock()

    def all_steps(self) -> int:
        """Steps of the whole denoising, of which a sampler may do a part."""
        steps = len(self.progress)
        return round((steps - 1) / max(self.progress[-1] - self.progress[0], 1e-6)) if steps > 1 else steps

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

        Raises ValueError for another number of video tokens than the run has.
        """
        if len(layouts[0].video) != self.tokens:
            raise ValueError(
                f"this run is of {self.tokens} video tokens and the call has {len(layouts[0].video)}: "
                "calibrate without nodes that change the number of tokens on the way, such as context windows"
            )
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        orders = self._orders().to(q.device)
        for item, layout in enumerate(layouts):
            parts = []
            for first in range(0, q.shape[1], HEADS_AT_ONCE):
                some = [tensor[item : item + 1, first : first + HEADS_AT_ONCE] for tensor in (q, k, output)]
                with on_device(q.device):
                    parts.append(self._look(*some, layout, orders, scale, implementation))
            energies, cosines = (torch.cat(part, dim=1) for part in zip(*parts))
            seen = Seen(energies, 1, [cosines.numpy()] if self.calibration.repeating else [])
            with self._lock:
                known = self.seen.get((site, step))
                self.seen[site, step] = seen if known is None else known + seen

    def finish(self) -> None:
        """Count this run; call it when the run has ended well."""
        self.calibration.merge(self)

    def _orders(self) -> Tensor:
        """int64 ``[shapes, N]``: tokens in the order of the blocks of each shape."""
        if self.tokens == math.prod(self.grid):
            return block_orders(self.grid, BLOCK)[self.shapes]
        return torch.arange(self.tokens)[None]

    def _look(
        self, q: Tensor, k: Tensor, output: Tensor, layout: SequenceLayout, orders: Tensor, scale: float, implementation: str | None
    ) -> tuple[Tensor, Tensor]:
        """Energies float16 ``[shapes, h, n, n]`` and cosines float ``[shapes, h]`` of some heads ``[1, h, L, D]``, on the CPU.

        Cosines are zeros where repetition is not looked for.
        """
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
