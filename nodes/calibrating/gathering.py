"""Dense sampling that a calibration learns from."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor

from ...kernels.calibration import Calibration, CalibrationRun, ModelIdentity, Profile
from ..patch.call import AttentionCall
from ..patch.evaluation import Evaluation
from ..patch.failures import failure
from ..patch.identity import model_identity
from ..patch.options import Options, RecordingOptions
from ..patch.override import Patch, logger
from ..patch.schedule import Schedule
from ..patch.state import StateKey
from ..recording.reasons import Reason
from ..recording.summary import cause, in_words
from ..recording.words import Joined, Text, counted

LENGTH_CHANGES = Text(
    "Not gathered: the number of tokens changes within the run, as in context windows of different lengths. Switch causal_window_fix of "
    "the context windows off and make all windows of one length, or calibrate without them."
)
FRAME_BY_FRAME = Text("Not gathered: the model asks for its attention frame by frame, and a calibration is of all queries at once.")
KEYS_WEIGHTED = Text(
    "Not gathered: a mask gives keys weights, as guides do whose strength is not 1. Set the strength of the guides to 1, or calibrate "
    "without them."
)
# Attachment of a patched MODEL under which its CalibratingPatch is found.
CALIBRATION = "svg_ear_calibration"


class CalibratingPatch(Patch):
    """Runs every call dense, and shows those that could run sparse to a calibration.

    Args:
        calibration: what learns.
        min_tokens: shorter sequences are not looked at.
        tell: shows a line of text on the node.

    Attributes:
        trouble: why the last run was not counted, None when it was.
    """

    name = Text("SVG-EAR Calibrate")

    def __init__(self, calibration: Calibration, min_tokens: int, tell: Callable[[str], None] = lambda text: None):
        super().__init__(Options(dense_first_steps=0, dense_blocks="", min_tokens=min_tokens, recording=RecordingOptions(limit_mb=0)), tell)
        self.calibration = calibration
        self._gathering: CalibrationRun | None = None
        # Two devices may make their first call at once.
        self._starting = threading.Lock()
        self.trouble: str | None = None
        # Why the run that goes on cannot be counted, None while it can.
        self._spoiled: str | None = None
        # What was calibrated, and where.
        self._profiled: tuple[ModelIdentity, torch.device] | None = None

    def outer_sample(self, executor, *args, **kwargs):
        """Wrap a whole sampler run: count it when it ends well."""
        self.run = self.new_run(executor.class_obj, kwargs.get("latent_shapes"))
        outer, self._gathering, self._spoiled = self._gathering, None, None
        result = None
        try:
            result = executor(*args, **kwargs)
            if self._gathering is not None and not self._spoiled:
                self._gathering.finish()
                self.tell(f"{counted(self.calibration.runs, 'run')} gathered")
        finally:
            run, counts, self._gathering, self._schedule = self.run, self._gathering is not None and not self._spoiled, outer, None
            record = run.finish(result)
            self.recorder.add(record)
            # After an error or an interrupt that is the reason, which the user knows.
            self.trouble = None if counts or not record.completed else self._spoiled or Text("Not looked at: {cause}", cause=cause(record))
        if self.trouble and not self._spoiled:
            self._warn(self.trouble)
        return result

    def _warn(self, text: str) -> None:
        logger.warning("calibrating: %s", text)
        # There is room for the first sentence only.
        self.tell(text.split(". ")[0])

    def found(self) -> Profile:
        """What the finished runs agree on; ValueError when nothing was gathered."""
        if self._profiled is None:
            raise ValueError(
                "nothing was gathered: connect the MODEL of SVG-EAR Calibrate to the sampler and to this node, with no SVG-EAR Sparse "
                "Attention behind it, and check that the video has at least min_tokens tokens"
            )
        return self.calibration.profile(*self._profiled)

    def _attend(self, call: AttentionCall, key: StateKey, evaluation: Evaluation, dense: Callable[[], Tensor]) -> Tensor | Reason:
        output = dense()
        schedule = self._schedule[1]
        if not schedule.sigmas:
            raise ValueError("the sampler tells no falling noise schedule, so steps cannot be told apart: calibrate with a stock sampler")
        with self._starting:
            if self._gathering is None:
                self._gathering = self._start(call, key, evaluation, schedule)
            if len(key.layouts[0].video) != self._gathering.tokens:
                self._spoil(LENGTH_CHANGES)
            if evaluation.is_frame(call):
                self._spoil(FRAME_BY_FRAME)
            elif evaluation.routed(call).biases is not None:
                self._spoil(KEYS_WEIGHTED)
        if self._gathering.wants(evaluation.step) and not self._spoiled:
            try:
                self._observe(call, key, evaluation, output)
            except Exception as error:
                reason = failure(error)
                if reason is None:
                    raise
                self._spoil(Text("Not gathered: {cause}", cause=in_words(reason)))
        return output

    def _spoil(self, why: str) -> None:
        """Look at nothing more in this run, which then does not count."""
        if not self._spoiled:
            self._spoiled = why
            self._warn(why)

    def _start(self, call: AttentionCall, key: StateKey, evaluation: Evaluation, schedule: Schedule) -> CalibrationRun:
        run = self.calibration.start(
            schedule.sigmas,
            evaluation.grid,
            tokens=len(key.layouts[0].video),
            progress=schedule.progress,
            heads=call.heads * evaluation.block.layers,
        )
        self.tell(f"Looking at {len(run.looked_at)} of {counted(len(schedule.progress), 'step')}")
        return run

    def _observe(self, call: AttentionCall, key: StateKey, evaluation: Evaluation, output: Tensor) -> None:
        layouts = key.layouts * call.shape[0] if len(key.layouts) == 1 else key.layouts
        heads_first = output if call.skip_output_reshape else output.unflatten(-1, (call.heads, call.head_dim)).transpose(1, 2)
        q, k, _ = call.split_heads()
        block = evaluation.block
        self._gathering.observe(
            block.site,
            evaluation.step,
            *(q, k, heads_first),
            layouts=layouts,
            scale=call.options.get("scale"),
        )
        self._profiled = model_identity(evaluation.model, call.heads, call.head_dim), q.device
        if block.layer == 0:
            self.tell(f"Gathering at {counted(len(self._gathering.looked_at), 'step')}, last at {evaluation.step + 1}")


def find_calibration(model) -> CalibratingPatch | None:
    """The calibration that a MODEL carries, None without one."""
    return model.get_attachment(CALIBRATION)


def what_is_missing(patch: CalibratingPatch, runs: int) -> str:
    """Why there are fewer than ``runs`` runs, and what to do."""
    later = patch.recorder.taken_over_by
    what = (
        Text("A later node took over: bypass the {node} behind SVG-EAR Calibrate, and queue again.", node=later)
        if later
        else patch.trouble or Text("Queue again with another prompt and seed.")
    )
    gathered = Text("{gathered} of {runs} gathered.", gathered=patch.calibration.runs, runs=counted(runs, "run"))
    return Joined(" ", (gathered, what))
