"""One attention call of a diffusion model: sparse where it can be, otherwise as it was."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ... import kernels
from ...kernels import Settings
from ...kernels.settings import INT8
from ..recording import reasons
from ..recording.reasons import Reason, StrictModeError
from ..recording.record import Recorder, Run
from ..recording.size import VideoSize
from ..recording.summary import UNRELATED, headline, status
from ..recording.words import Text
from .allocations import unrecorded
from .blocks import naming_blocks
from .call import AttentionCall
from .compiled import COMPILED, is_compiled, uncompiled
from .decision import decide
from .dense import dense_attention
from .evaluation import OVERRIDE, Block, Evaluation, read_evaluation
from .expectation import expected_call
from .failures import distrust, failure
from .guides import guide_tokens
from .identity import require_grid, require_model
from .lengths import Lengths, measured_in_int8
from .options import Options
from .preparation import Preparations
from .schedule import Schedule
from .sequence import ARCHITECTURES, Routed, find_architecture, packed_segments, video_grid
from .state import StateKey, StateStore
from .wording import advice, in_words

logger = logging.getLogger("svg_ear")

EVALUATION = "svg_ear"
# What is compiled in this process, whoever compiled it.
_PREPARATIONS = Preparations()


class Patch:
    """The SVG-EAR patch of a MODEL and the state of the run that uses it.

    :meth:`apply_model` wraps each evaluation of the diffusion model and puts :attr:`override` on top of whatever
    attention override is there by then, so a later node cannot replace it unnoticed; the override works only inside
    such an evaluation. Nothing is written to the MODEL's own ``transformer_options``, so nothing can chain to itself.
    """

    # The node that makes such patches.
    name = Text("SVG-EAR Sparse Attention")

    def __init__(self, options: Options, tell: Callable[[str], None] = lambda text: None):
        """``tell`` shows a line of text on the node."""
        self.options = options
        self.profile = options.profile
        self.tell = tell
        self.settings = options.settings()
        self.map_choice = options.recorded()
        self.recorder = Recorder(self.map_choice.limit)
        self.states = StateStore()
        self.lengths = Lengths(options)
        self.run = Run(self.map_choice)
        self._schedule: tuple[Tensor | None, Schedule] | None = None
        # Whether the sampler call that is running begins the denoising.
        self._begins = False
        # One function object for all calls: torch.compile would otherwise compile anew for each.
        self.override = torch.compiler.disable(self._attention)

    def compile_early(self, patcher) -> None:
        """Begin to compile for the model of ComfyUI's ``patcher``, as far as its calls can be told before it runs. Returns at once."""
        # What a calibration computes depends on the step.
        call = None if self.profile else expected_call(patcher, self.settings, self.options.memory_limit())
        if call is not None:
            self.lengths.prepare(call.device)
            query = call.inputs[0]
            for precision in self.lengths.precisions(call.device, query.shape[1], measured_in_int8(query.dtype, query.shape[3])):
                _PREPARATIONS.expect(replace(call, settings=replace(self.settings, precision=precision)))

    def memory_limit(self, call: AttentionCall) -> int | None:
        """Bytes of working memory of a sparse call, None where the kernels choose."""
        return self.options.memory_limit()

    def outer_sample(self, executor, *args, **kwargs):
        """Wrap a whole sampler run, ``outer_sample(noise, latent_image, ...)``: record it."""
        outer, self.run = self.run, self.new_run(executor.class_obj, kwargs.get("latent_shapes"))
        outer_states, self.states = self.states, StateStore()
        self._begins = _is_empty(kwargs["latent_image"] if "latent_image" in kwargs else args[1] if len(args) > 1 else None)
        result = None
        try:
            result = executor(*args, **kwargs)
            if self.options.strict and not self.run.evaluations:
                raise StrictModeError(reasons.NEVER_ASKED)
        finally:
            finished, self.run, self.states, self._schedule = self.run, outer, outer_states, None
            record = finished.finish(result)
            self.recorder.add(record)
            logger.info(headline(record))
            self.tell(status(record))
        return result

    def new_run(self, guider, latent_shapes: Sequence[Sequence[int]] | None) -> Run:
        """What a sampler run of ``guider`` is recorded in; ``latent_shapes`` are those of a packed latent.

        Raises ValueError for a model that is compiled as a whole, before anything is sampled.
        """
        compiling = getattr(guider, "model_options", {}).get(COMPILED) or {}
        if compiling.get("fullgraph"):
            raise ValueError(
                "a compile node before or after SVG-EAR has fullgraph on, which allows no code that is not compiled, and sparse attention "
                "is such: switch fullgraph off, or bypass one of the two nodes"
            )
        run = Run(self.map_choice)
        run.latent_shapes, self.lengths = latent_shapes, Lengths(self.options)
        return run

    def cleanup(self, *args, **kwargs):
        """End of a run, also after an error: nothing stays on the device."""
        self.run.state_bytes = max(self.run.state_bytes, self.states.nbytes())
        self.states.clear()
        if self.profile is not None:
            self.profile.forget_devices()

    def apply_model(self, executor, *args, **kwargs):
        """Wrap one evaluation of the diffusion model: ``apply_model(x, t, ..., transformer_options, ...)``.

        Where nothing can run sparse the options stay as they were, so that nothing is lost that an override stands in the way of.
        """
        args = list(args)
        holder, place = (kwargs, "transformer_options") if "transformer_options" in kwargs else (args, 5)
        transformer_options = dict(holder[place])
        self.run.evaluate()
        evaluation = self._evaluation(executor.class_obj, args[0], transformer_options, kwargs)
        if isinstance(evaluation, Reason):
            self._report(evaluation)
            return executor(*args, **kwargs)
        transformer_options[EVALUATION] = evaluation
        transformer_options[OVERRIDE] = self.override
        if not evaluation.architecture.names_blocks:
            transformer_options = naming_blocks(transformer_options, evaluation.architecture.layers(evaluation.model))
        holder[place] = transformer_options
        with self._timed(evaluation, args[0].device):
            result = executor(*args, **kwargs)
        self._check_asked(evaluation, executor.class_obj.diffusion_model)
        return result

    def _timed(self, evaluation: Evaluation, device: torch.device):
        """Takes the time of an evaluation in a dense step."""
        if evaluation.step_reason is None:
            return nullcontext()
        return self.run.dense_step(evaluation.step, device).stage("step", device)

    def _evaluation(self, base_model, x: Tensor, transformer_options: dict, conditions: dict) -> Evaluation | Reason:
        """The evaluation of a model that is given ``conditions`` beside its latent, or why nothing in it can run sparse."""
        model = uncompiled(base_model.diffusion_model)
        architecture = find_architecture(model)
        if architecture is None:
            return reasons.unknown_architecture(type(model).__name__, [known.name for known in ARCHITECTURES])
        self.run.architecture = architecture.name
        # Packed audio-video latents come flat, with the shapes of their parts beside them, video first.
        latent_shapes = conditions.get("latent_shapes")
        grid = video_grid(tuple(latent_shapes[0] if latent_shapes else x.shape), model)
        if grid is None:
            return reasons.NOT_VIDEO
        schedule = self._schedule_of(transformer_options.get("sample_sigmas"), base_model.model_sampling)
        self.run.steps, self.run.settings = schedule.steps, in_words(self.options, schedule.steps)
        inner = transformer_options.get(OVERRIDE)
        evaluation = read_evaluation(model, architecture, grid, transformer_options, schedule, None if inner is self.override else inner)
        evaluation.run, evaluation.states = self.run, self.states
        evaluation.segments, evaluation.guides = packed_segments(conditions), guide_tokens(conditions)
        self.run.advise(advice(self.options, schedule.whole_steps), evaluation.is_guided)
        # The windows of a longer video do not say how long it is.
        if not evaluation.context_window:
            patch, latent_format = getattr(model, "patch_size", None) or (1, 1, 1), getattr(base_model, "latent_format", None)
            evaluation.size = VideoSize.of(evaluation.own_grid, patch, latent_format, architecture.rhythm)
        return evaluation

    def _schedule_of(self, sample_sigmas: Tensor | None, model_sampling) -> Schedule:
        """The schedule of the sampler call that is running; reads the sigmas from their device when they are new."""
        known = self._schedule
        if known is None or known[0] is not sample_sigmas:
            sigmas = sample_sigmas.flatten().tolist() if isinstance(sample_sigmas, Tensor) else None
            known = (sample_sigmas, Schedule(sigmas, model_sampling.percent_to_sigma, self.options, self._begins))
            self._schedule = known
        return known[1]

    def _check_asked(self, evaluation: Evaluation, diffusion_model) -> None:
        """Notice a model that asks for no attention, in its first evaluation: later ones may be skipped by a cache."""
        if evaluation.calls:
            self.run.attend(evaluation.step)
        if self.run.asked or self.run.evaluations > 1 + self.run.recompiled:
            return
        if self.run.recompiled or not is_compiled(diffusion_model):
            self._report(reasons.NEVER_ASKED)
            return
        # ComfyUI's compile nodes guard nothing in transformer_options, so that code made without an override is used for ever.
        self.run.recompiled = True
        torch.compiler.reset()
        self._note(reasons.COMPILED_WITHOUT)

    def _attention(self, func, *args, **kwargs):
        transformer_options = kwargs.get("transformer_options") or {}
        evaluation: Evaluation | None = transformer_options.get(EVALUATION)
        # After an error in the thread of another device a run is over while this one goes on.
        if evaluation is None or evaluation.run is not self.run:
            return func(*args, **kwargs)
        call = AttentionCall.of(*args, **kwargs)
        with unrecorded(call.q.device):
            return self._attended(func, args, kwargs, call, evaluation)

    def _attended(self, func: Callable[..., Tensor], args: tuple, kwargs: dict, call: AttentionCall, evaluation: Evaluation) -> Tensor:
        """The output of a call of ``func`` inside an evaluation."""
        transformer_options = kwargs["transformer_options"]
        evaluation.block = None
        evaluation.calls += 1
        dense = partial(self._dense, func, args, kwargs, call, evaluation)
        least = self.lengths.least(call.q.device, call.heads)
        found = decide(call, evaluation, transformer_options, self.options, least.tokens)
        if found not in UNRELATED:
            self.run.see(evaluation.length_of(call), evaluation.size, least.tokens, least.origin)
        if not isinstance(found, Reason):
            found = self.run.failed(call.q.device) or self._attend(call, found, evaluation, dense)
        if not isinstance(found, Reason):
            return found

        self._report(found, evaluation.block or evaluation.named_block(transformer_options), evaluation.step)
        if found in reasons.SCHEDULED:
            self._compile_ahead(call, evaluation)
        return dense(found)

    def _dense(
        self,
        func: Callable[..., Tensor],
        args: tuple,
        kwargs: dict,
        call: AttentionCall,
        evaluation: Evaluation,
        reason: Reason | None = None,
    ) -> Tensor:
        """The output of a call of ``func`` that stays dense, for ``reason`` where it has one."""
        dense, device = dense_attention(func, args, kwargs, call, evaluation, reason), call.q.device
        with self.run.timer.dense(device, call.shape).stage("dense", device) if reason in reasons.SCHEDULED else nullcontext():
            output = dense()
        if reason not in UNRELATED:
            self.run.count_attention(dense.name)
        return output

    def _attend(self, call: AttentionCall, key: StateKey, evaluation: Evaluation, dense: Callable[[], Tensor]) -> Tensor | Reason:
        """The output of a call that can run sparse, or the reason why it stays dense after all; ``dense`` computes that."""
        blocks = None
        if self.profile is not None:
            if evaluation.sigma is None:
                return reasons.UNKNOWN_STEP
            require_grid(self.profile, evaluation.grid, len(key.layouts[0].video))
            require_model(self.profile, evaluation.model, call.shape)
            if evaluation.is_frame(call):
                return reasons.CALIBRATED_PART
            blocks = self.profile.routing(evaluation.block.site, evaluation.sigma, call.q.device)
            if blocks is None:
                return reasons.NOT_CALIBRATED
        routed = evaluation.routed(call)
        place = evaluation.place(evaluation.block, key.layouts[0], call.shape[0])
        # Blocks that share a number with another one (VACE) have no maps of their own, and single frames make none.
        is_mapped = (key.ordinal == 0 or key.block_index is None) and not evaluation.is_frame(call)
        observe = self.run.trace.observer(place, call.heads) if is_mapped else None
        state = evaluation.states.get(key, evaluation.step)
        own = self._settings(call, routed)
        settings = own if evaluation.density is None else replace(own, density=evaluation.density)
        try:
            wrong = self._wait_for_kernels(call, routed, own, blocks)
            if wrong is not None:
                return self._give_up(call.q.device, wrong)
            result = kernels.sparse_attention(
                *(*call.tensors(), settings),
                layouts=key.layouts if len(key.layouts) > 1 else key.layouts[0],
                biases=routed.biases,
                blocks=blocks,
                state=state,
                shared=evaluation.shared_keys(call, evaluation.block),
                owners=evaluation.owners(call.shape[0], key.layouts),
                scale=call.options.get("scale"),
                memory_limit=self.memory_limit(call),
                # A layer's first call clusters anew, with other kernels than those after it.
                timer=self.run.timer.sparse(call.q.device, call.shape, kind=state.calls == 0),
                observe=observe,
            )
        except Exception as error:
            reason = failure(error)
            if reason is None:
                raise
            logger.debug("%s on %s", reason.name, call.q.device, exc_info=error)
            evaluation.states.clear(key.device)
            evaluation.forget_keys()
            return reason if reason is reasons.OUT_OF_MEMORY else self._give_up(call.q.device, reason)
        narrowed = call.dtype if call.dtype != call.q.dtype else None
        evaluation.run.count_sparse(result.statistics, place, narrowed, settings.precision == INT8)
        return call.arrange(result.output)

    def _give_up(self, device: torch.device, reason: Reason) -> Reason:
        """Run everything dense on ``device`` until the run ends, for ``reason``."""
        self.run.fail(device, reason)
        self.tell(f"{reason.name}, running dense")
        return reason

    def _compile_ahead(self, call: AttentionCall, evaluation: Evaluation) -> None:
        """Begin to compile for the sparse calls to come, beside a call that the schedule keeps dense."""
        # A calibration may know nothing of the step of this call; then the first sparse one begins it.
        if self.profile is None and any(step >= evaluation.step for step in evaluation.sparse_steps):
            routed = evaluation.routed(call)
            settings = self._settings(call, routed)
            _PREPARATIONS.begin(call, routed.layouts, settings, None, self.memory_limit(call), routed.biases)

    def _settings(self, call: AttentionCall, routed: Routed) -> Settings:
        """Those of a sparse call, but for the density of its step."""
        layout = routed.layouts[0]
        # Nor were calibrations measured in int8, nor calls of a part of the queries, which could not have their sorted keys in common.
        measured = measured_in_int8(call.dtype, call.q.shape[-1]) and self.profile is None and layout.queries is None
        precision = self.lengths.precision(call.q.device, call.heads, len(layout.video), measured)
        return replace(self.settings, precision=precision)

    def _wait_for_kernels(
        self, call: AttentionCall, routed: Routed, settings: Settings, blocks: kernels.BlockRouting | None
    ) -> Reason | None:
        """Have the kernels of a sparse call ready and tested; why they must not run. Raises a :func:`failure` of the test."""
        _PREPARATIONS.begin(call, routed.layouts, settings, blocks, self.memory_limit(call), routed.biases)
        prepared = _PREPARATIONS.finish(call.q.device, self.tell)
        self.run.timer.wait_for_kernels(prepared.seconds)
        return distrust(prepared.wrong)

    def _report(self, reason: Reason, block: Block | None = None, step: int = 0) -> None:
        """Note why a call, or a whole evaluation, stayed dense, and refuse that in strict mode."""
        if self.options.strict and not reason.by_design:
            raise StrictModeError(reason)
        self._note(reason, block, step)

    def _note(self, reason: Reason, block: Block | None = None, step: int = 0) -> None:
        """Count a reason, at its block where it has one, and log it once a run."""
        if reason not in UNRELATED and block is not None:
            self.run.trace.count_dense(block.layer, block.layers, step, reason)
        if self.run.count_dense(reason):
            logger.log(logging.DEBUG if reason.by_design else logging.WARNING, "dense attention: %s %s", reason, reason.remedy)


def _is_empty(latent_image) -> bool:
    """Whether sampling begins from nothing but noise."""
    return isinstance(latent_image, Tensor) and not latent_image.any()
