"""Why an attention call stays dense: names for the report and the log, sentences and remedies for the user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .words import Text


@dataclass(frozen=True)
class Reason:
    """One way to be refused.

    Attributes:
        name: short and stable; the report, the log and the documentation use it.
        sentence: what was found.
        remedy: what the user can change, empty where nothing should be.
        by_design: follows from the user's own settings or from what the method is for; strict mode lets it pass.
    """

    name: str
    sentence: str
    remedy: str = ""
    by_design: bool = False

    def __str__(self):
        return f"{self.name}: {self.sentence}"


class StrictModeError(RuntimeError):
    """A refusal that the user did not ask for, in strict mode."""

    def __init__(self, reason: Reason):
        super().__init__(
            f"SVG-EAR cannot run this attention call sparse ({reason}) {reason.remedy} Switch strict off to let such calls run dense."
        )
        self.reason = reason


CROSS_ATTENTION = Reason("cross-attention", "Queries and keys are different tokens, as in attention to the text.", by_design=True)
OTHER_STREAM = Reason("other-stream", "Attention of what runs beside the video, such as its audio, or between the two.", by_design=True)
GUIDE_QUERIES = Reason(
    "guide-queries",
    "Queries of guides whose strength is not 1: each has weights of its own for the keys of the video.",
    "Set the strength of the guides to 1, then they are routed with the video.",
    by_design=True,
)
TOKEN_REFINER = Reason("token-refiner", "Attention outside the video blocks, such as the refiner of the text tokens.", by_design=True)
FULL_PRECISION = Reason("full-precision", "The model asks for full precision in this call, which sparse attention is not.", by_design=True)
SHORT_SEQUENCE = Reason(
    "short-sequence",
    "The sequence is shorter than min_tokens, where dense attention is faster.",
    "Lower min_tokens (SVG-EAR GPU Check finds the right number for this GPU), or use a larger resolution or more frames.",
    by_design=True,
)
WARM_UP_STEP = Reason(
    "warm-up-step",
    "One of the first steps, kept dense by dense_first_steps.",
    "Lower dense_first_steps, or set warm_up_density, for instance to 0.35.",
    by_design=True,
)
LAST_STEPS = Reason(
    "last-steps",
    "One of the last steps, kept dense by dense_last_steps.",
    "Lower dense_last_steps of SVG-EAR Schedule.",
    by_design=True,
)
OUTSIDE_WINDOW = Reason(
    "outside-window",
    "The step lies outside start_percent to end_percent.",
    "Widen start_percent and end_percent of SVG-EAR Schedule.",
    by_design=True,
)
DENSE_BLOCK = Reason("dense-block", "The layer is listed in dense_blocks.", "Shorten dense_blocks.", by_design=True)

UNKNOWN_ARCHITECTURE = Reason(
    "unknown-architecture",
    "The model is not one whose tokens SVG-EAR understands.",
    "Use a model that SVG-EAR understands, or bypass the node for this one.",
)
NOT_VIDEO = Reason("not-video", "The model is not working on a video latent.", "Use a video model and a video latent.")
UNKNOWN_TOKENS = Reason(
    "unknown-tokens",
    "The sequence does not fit the size of the video, so the video tokens in it cannot be told from the others.",
    "Remove nodes that add tokens to the sequence or cut it.",
)
REPEATED_TOKENS = Reason(
    "repeated-tokens",
    "The sequence that the GPUs share is longer than the video and its padding, as with references or poses, which every GPU may repeat.",
    "Remove the reference latent or the pose, or run this model on one GPU.",
)
RING_ATTENTION = Reason(
    "ring-attention",
    "With a ring degree above 1 a GPU has a part of the keys at a time, and SVG-EAR needs all tokens of a head.",
    "Set ring_degree to 1 and ulysses_degree to the number of GPUs.",
)
PARTIAL_QUERIES = Reason(
    "partial-queries",
    "The queries are fewer than the keys, in a model of which SVG-EAR does not know that it asks for its attention in parts.",
    "Remove nodes that split the attention, or bypass the node for this model.",
)
UNKNOWN_BLOCK = Reason(
    "unknown-block",
    "Something runs the model in its own way, which does not tell which of its blocks is running.",
    "Remove nodes that replace the model's own pass over its blocks, as some caches do.",
)
NEVER_ASKED = Reason(
    "never-asked",
    "The model ran without asking for its attention.",
    "Use a stock sampler and the model's own attention: some samplers and models bring attention that no node can replace. With raylight "
    "use SVG-EAR for raylight.",
)
COMPILED_WITHOUT = Reason(
    "compiled-without",
    "torch.compile had compiled the model while SVG-EAR was not there, and such code never asks for its attention.",
    "The compiled code was thrown away and is made again with SVG-EAR in it, once. To spare that, restart ComfyUI and queue with SVG-EAR "
    "from the first run on.",
)
UNKNOWN_STEP = Reason(
    "unknown-step",
    "The sampler does not tell a falling noise schedule, so the steps that should stay dense are not known.",
    "Use a stock sampler, or set dense_first_steps to 0 and disconnect SVG-EAR Schedule.",
)
NOT_CALIBRATED = Reason(
    "not-calibrated",
    "The calibration has nothing for this layer or this noise level.",
    "Load the calibration of this model and of this part of the denoising, or calibrate again with the same nodes.",
)
CALIBRATED_PART = Reason(
    "calibrated-part",
    "A calibration is of all queries of the video at once, and this model asks for its attention frame by frame.",
    "Disconnect SVG-EAR Load Calibration and choose a preset.",
)
HEAD_DIM = Reason("head-dim", "The head dimension is neither 64 nor 128.", "Use a model with head dimension 64 or 128.")
DTYPE = Reason("dtype", "The tensors are not float16, bfloat16 or float32.", "Choose another compute type for the model.")
DEVICE = Reason("device", "The device cannot run SVG-EAR.", "Run on a CUDA or ROCm GPU, or on the CPU.")
TRAINING = Reason("training", "Gradients are wanted, and the sparse path has none.", "Train on the MODEL before the SVG-EAR node.")
GROUPED_QUERY = Reason("grouped-query", "Several query heads share a key head, which is not supported.", "Bypass the node for this model.")
UNKNOWN_OPTION = Reason(
    "unknown-option",
    "The attention call has an option whose meaning SVG-EAR does not know.",
    "Update the pack, or bypass the node that adds the option.",
)
MASK_VARIES = Reason(
    "mask-varies-over-queries",
    "The attention mask differs between queries or between heads.",
    "Remove the node that adds an attention mask.",
)
MASK_WEIGHTS = Reason(
    "mask-weights-keys",
    "The attention mask weights keys of the video instead of showing or hiding them.",
    "Remove the node that adds an attention mask.",
)
MASK_HIDES_VIDEO = Reason("mask-hides-video", "The attention mask hides video tokens.", "Remove the node that adds an attention mask.")
OUT_OF_MEMORY = Reason(
    "out-of-memory",
    "The GPU had no memory left for this call.",
    "Set memory_limit_mb, or use fewer frames or a lower resolution.",
)
KERNEL_FAILED = Reason(
    "kernel-failed",
    "Triton could not compile or launch a kernel.",
    "Triton needs a C compiler and a cache folder that can be written to (TRITON_CACHE_DIR); update Triton and the GPU driver, then "
    "queue again. Everything stays dense in this run.",
)
KERNEL_WRONG = Reason(
    "kernel-wrong",
    "A kernel gives wrong results on this GPU.",
    "Update the GPU driver and Triton, or bypass the node, and please report the card and this line. Everything stays dense in this run.",
)


def unknown_architecture(model_class: str, known: Sequence[str]) -> Reason:
    """:data:`UNKNOWN_ARCHITECTURE` of a certain model, with the names of the models that are ``known``."""
    return replace(
        UNKNOWN_ARCHITECTURE,
        sentence=Text("The model ({model}) is not one whose tokens SVG-EAR understands.", model=model_class),
        remedy=Text("Use one of these models, or bypass the node for this one: {known}.", known=", ".join(known)),
    )


def kernel_failed(error: str) -> Reason:
    """:data:`KERNEL_FAILED` with what was said."""
    return replace(KERNEL_FAILED, sentence=Text("Triton could not compile or launch a kernel ({error}).", error=error))


def kernel_wrong(found: str) -> Reason:
    """:data:`KERNEL_WRONG` with what was found."""
    return replace(KERNEL_WRONG, sentence=Text("A kernel gives wrong results on this GPU ({found}).", found=found))


def kernels_untested(error: str) -> Reason:
    """:data:`KERNEL_WRONG` of kernels that nothing can be said about, because of ``error``."""
    return replace(KERNEL_WRONG, sentence=Text("The kernels could not be tested on this GPU ({error}).", error=error))


# What only the user's schedule keeps dense: such calls could run sparse as they are.
SCHEDULED = (WARM_UP_STEP, LAST_STEPS, OUTSIDE_WINDOW, DENSE_BLOCK)
REASONS = {reason.name: reason for reason in tuple(globals().values()) if isinstance(reason, Reason)}
