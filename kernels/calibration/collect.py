"""What dense runs tell about where attention goes, added up over prompts."""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy
import torch
from torch import Tensor

from ..blocks import BLOCK, block_count
from ..pipeline import conditioning_of, stages_for
from ..types import Conditioning, SequenceLayout
from .bits import VoteCounts, pack
from .profile import ModelIdentity, Profile
from .selection import REPEATING_COSINE, repetition, select_blocks
from .sharing import SAME_MASK, share_masks
from .thresholds import Thresholds

# A layer, and the number of the call within it where a layer attends more than once.
Site = tuple[int, int]
# A site and a step, counted from 0.
Spot = tuple[Site, int]


@dataclass
class Gathered:
    """Votes and repetition of the heads at one spot.

    Attributes:
        votes: of the packed masks ``[H, n, ceil(n / 8)]``.
        cosines: of the heads, one array ``[H]`` a vote.
    """

    votes: VoteCounts = field(default_factory=VoteCounts)
    cosines: list[numpy.ndarray] = field(default_factory=list)

    def add(self, packed: numpy.ndarray, cosines: numpy.ndarray) -> None:
        """Count one prompt."""
        self.votes.add(packed)
        self.cosines.append(cosines)


class Calibration:
    """Adds up dense runs of one model at one size and schedule. Safe for one thread per device.

    Every batch item of every evaluation is a vote. A run counts when it is finished, so that one cut short leaves no trace.

    Args:
        energy: attention that the kept blocks of the last steps must hold, 0 to 1; 0 takes the published value.
        every: look at every n-th step only; the steps between take the nearest. Time and memory shrink likewise.
        memory_limit: bytes of host memory that masks may take.
        repeating: mark heads whose output repeats, of which only the anchor blocks are computed.

    Attributes:
        runs: finished runs.
    """

    def __init__(self, energy: float = 0.0, every: int = 1, memory_limit: int | None = None, repeating: bool = True):
        if not 0 <= energy <= 1:
            raise ValueError(f"energy is {energy}; it is a share of the attention and must lie between 0 and 1 (0: as published)")
        if every < 1:
            raise ValueError(f"every is {every}; look at every step (1), every second (2) and so on")
        self.energy, self.every, self.memory_limit, self.repeating = energy, every, memory_limit, repeating
        self.runs = 0
        self.spots: dict[Spot, Gathered] = defaultdict(Gathered)
        self.schedule: tuple[float, ...] | None = None
        self.tokens: int | None = None
        self.thresholds: Thresholds | None = None

    def start(self, schedule: Sequence[float], progress: Sequence[float] | None = None) -> CalibrationRun:
        """A new run.

        Args:
            schedule: falling noise levels, one for each step and the last one reached.
            progress: where in the whole denoising each step begins, 0 to 1; None spreads the steps over all of it.

        Raises ValueError for a schedule that is not that of the runs before.
        """
        schedule = tuple(schedule)
        if len(schedule) < 2 or any(high <= low for high, low in zip(schedule, schedule[1:])):
            raise ValueError(f"the schedule is {schedule}; a calibration needs the falling noise levels of at least one step")
        if self.schedule not in (None, schedule):
            raise ValueError(
                f"this calibration has {len(self.schedule) - 1} steps from {self.schedule[0]:.4g} to {self.schedule[-1]:.4g}, and this "
                f"run {len(schedule) - 1} from {schedule[0]:.4g} to {schedule[-1]:.4g} or others between: "
                "use the sampler settings of the runs before, or begin a new calibration"
            )
        steps = len(schedule) - 1
        return CalibrationRun(self, schedule, tuple(progress) if progress else tuple(step / steps for step in range(steps)))

    def profile(self, model: ModelIdentity, grid: tuple[int, int, int], same_mask: float = SAME_MASK) -> Profile:
        """What the finished runs agree on.

        Args:
            model: what was calibrated.
            grid: frames, rows and columns of its tokens.
            same_mask: neighbouring steps whose masks have a Jaccard index above this share one.

        Raises ValueError when nothing was gathered.
        """
        if not self.spots:
            raise ValueError("nothing was gathered: finish at least one run with attention calls that can run sparse")
        sites, steps = (sorted(set(parts)) for parts in zip(*self.spots))
        missing = [(site, step) for site in sites for step in steps if (site, step) not in self.spots]
        if missing:
            raise ValueError(f"layer {missing[0][0][0]} was not seen in step {missing[0][1]}: gather runs without caches that skip layers")
        masks: list[numpy.ndarray] = []
        shape = len(steps), len(sites), len(self.spots[sites[0], steps[0]].cosines[0])
        index, repeats = numpy.zeros(shape, numpy.int32), numpy.zeros(shape, bool)
        for i_site, site in enumerate(sites):
            kept = numpy.stack([self.spots[site, step].votes.majority() for step in steps])
            for head in range(shape[2]):
                own, members = share_masks(kept[:, head], same_mask)
                index[:, i_site, head] = members + len(masks)
                masks += own
            for i_step, step in enumerate(steps):
                cosines = numpy.stack(self.spots[site, step].cosines)
                repeats[i_step, i_site] = [self.repeating and median(head) > REPEATING_COSINE for head in cosines.T.tolist()]
        return Profile(
            model=model,
            grid=grid,
            tokens=self.tokens,
            block=BLOCK,
            sigmas=tuple(self.schedule[step] for step in steps),
            last_sigma=self.schedule[-1],
            steps=len(self.schedule) - 1,
            sites=tuple(sites),
            thresholds=self.thresholds,
            prompts=self.runs,
            index=index,
            repeats=repeats,
            masks=numpy.stack(masks),
        )

    def merge(self, run: CalibrationRun) -> None:
        """Count a finished run."""
        while run.found:
            spot, found = run.found.popitem()
            for packed, cosines in found:
                self.spots[spot].add(packed, cosines)
        self.runs += 1
        self.schedule, self.tokens, self.thresholds = run.schedule, run.tokens, run.thresholds


class CalibrationRun:
    """One dense run of which a :class:`Calibration` learns; see :meth:`Calibration.start`.

    Attributes:
        schedule, progress: see there.
        tokens: video tokens, known from the first call on.
        thresholds: as they follow from the number of tokens and steps.
        found: packed masks and cosines of every spot.
    """

    def __init__(self, calibration: Calibration, schedule: tuple[float, ...], progress: tuple[float, ...]):
        self.calibration, self.schedule, self.progress = calibration, schedule, progress
        self.tokens: int | None = calibration.tokens
        self.thresholds: Thresholds | None = calibration.thresholds
        self.found: dict[Spot, list[tuple[numpy.ndarray, numpy.ndarray]]] = defaultdict(list)
        self._lock = threading.Lock()

    def wants(self, step: int) -> bool:
        """Whether calls of this step are to be observed."""
        return step % self.calibration.every == 0

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
        sites: int | None = None,
        implementation: str | None = None,
    ) -> None:
        """Learn from one dense call. Waits for the device.

        Args:
            site, step: where it happened.
            q, k: ``[B, H, L, D]``, RoPE applied.
            output: dense attention of them, ``[B, H, L, D]``.
            layouts: which tokens are video, one for each batch item.
            scale: factor of the logits; None is ``D ** -0.5``.
            sites: how many sites there are about, to tell early what memory it takes.
            implementation: see :func:`~..pipeline.sparse_attention`.

        Raises ValueError for another number of video tokens than before, and MemoryError when the masks would not fit.
        """
        stages = stages_for(q, implementation)
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        self._begin(*q.shape[:2], len(layouts[0].video), sites)
        threshold = self.thresholds.at(self.progress[step])
        for item, layout in enumerate(layouts):
            own, video = slice(item, item + 1), slice(layout.video.start, layout.video.stop)
            conditioning: Conditioning = conditioning_of(k[own], k[own], layout)
            energies = stages.block_energies(q[own, :, video], k[own, :, video], conditioning, BLOCK, scale)
            packed = pack(torch.cat([select_blocks(head, threshold) for head in energies[0].split(1)]))
            cosines = repetition(output[item, :, video], BLOCK)
            found = packed.cpu().numpy(), cosines.float().cpu().numpy()
            with self._lock:
                self.found[site, step].append(found)

    def finish(self) -> None:
        """Count this run; call it when the run has ended well."""
        self.calibration.merge(self)

    def _begin(self, items: int, heads: int, tokens: int, sites: int | None) -> None:
        with self._lock:
            if self.tokens not in (None, tokens):
                raise ValueError(
                    f"this calibration is of {self.tokens} video tokens and the call has {tokens}: "
                    "use the size and length of the runs before, or begin a new calibration"
                )
            if self.thresholds is None:
                published = Thresholds.published(tokens, self._all_steps())
                self.thresholds = published.ending_at(self.calibration.energy) if self.calibration.energy else published
            self.tokens = tokens
            own = max(map(len, self.found.values()), default=0) + items
        limit = self.calibration.memory_limit
        if limit is None or sites is None:
            return
        count = block_count(tokens, BLOCK)
        looked_at = math.ceil((len(self.schedule) - 1) / self.calibration.every)
        # The masks of the run that is going on, one for each batch item, and the planes of all votes.
        before = max((gathered.votes.votes for gathered in self.calibration.spots.values()), default=0)
        needed = (own + (before + own).bit_length()) * looked_at * sites * heads * count * math.ceil(count / 8)
        if needed > limit:
            raise MemoryError(
                f"calibrating every {self.calibration.every} of {len(self.schedule) - 1} steps takes about {needed / 2**30:.1f} GB of host "
                f"memory, and {limit / 2**30:.1f} GB are allowed: raise every, or the limit"
            )

    def _all_steps(self) -> int:
        """Steps of the whole denoising, of which a sampler may do a part."""
        steps = len(self.progress)
        return round((steps - 1) / max(self.progress[-1] - self.progress[0], 1e-6)) if steps > 1 else steps
