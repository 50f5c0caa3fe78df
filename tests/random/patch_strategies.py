"""What is drawn of a patched model: runs of a sampler, evaluations in them, attention calls in those."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st


def mostly(usual, *others, times=10):
    """``usual``, ``times`` times as often as each of the ``others``."""
    return st.sampled_from((usual,) * times + others)


@dataclass(frozen=True)
class Attended:
    """One attention call inside an evaluation of a diffusion model.

    Attributes:
        tokens, key_tokens, heads, head_dim, batch, dtype, seed: of q, k and v.
        skip_reshape, skip_output_reshape, options: as ComfyUI's attention functions take them.
        mask: shape and kind of the mask, None without one.
        gradients: which of q, k and v want them.
        key_heads: fewer than ``heads`` where several query heads share one.
        broken: whether some of q is no number.
        block, block_type: where the model says it is.
    """

    tokens: int
    key_tokens: int
    heads: int
    head_dim: int
    batch: int
    dtype: torch.dtype
    seed: int
    skip_reshape: bool
    skip_output_reshape: bool
    options: dict
    mask: tuple[tuple[int, ...], str] | None
    gradients: tuple[bool, bool, bool]
    key_heads: int
    broken: bool
    block: int | None
    block_type: str

    def tensors(self):
        """q, k and v in the layout that the call says."""
        generator = torch.Generator().manual_seed(self.seed)

        def tensor(tokens, heads, gradient):
            given = torch.randn(self.batch, heads, tokens, self.head_dim, generator=generator).to(self.dtype)
            given = given if self.skip_reshape else given.transpose(1, 2).flatten(2)
            return given.requires_grad_(gradient)

        counts = ((self.tokens, self.heads), (self.key_tokens, self.key_heads), (self.key_tokens, self.key_heads))
        q, k, v = (tensor(*count, gradient) for count, gradient in zip(counts, self.gradients))
        if self.broken and self.tokens:
            with torch.no_grad():
                q[..., 0, :5] = float("nan")
        return q, k, v

    def read_mask(self):
        """The mask itself."""
        if self.mask is None:
            return None
        shape, kind = self.mask
        hidden = torch.rand(shape, generator=torch.Generator().manual_seed(self.seed)) < 0.1
        if kind == "all shown":
            hidden = torch.zeros_like(hidden)
        elif kind == "text hidden":
            hidden[:] = False
            hidden[..., : min(2, shape[-1])] = True
        if kind in ("bool", "all shown"):
            return ~hidden
        low = -1.0 if kind == "weights" else float("-inf") if kind == "infinite" else torch.finfo(self.dtype).min
        return torch.zeros(shape, dtype=self.dtype).masked_fill(hidden, low)


@dataclass(frozen=True)
class Evaluated:
    """One evaluation of the diffusion model: at which step, on what latent, and the attention calls in it."""

    step: int
    shape: tuple[int, ...]
    attended: tuple[Attended, ...]
    transformer_options: dict


@dataclass(frozen=True)
class SamplerRun:
    """A run of a sampler with a patched model.

    Attributes:
        model, patch_size: the diffusion model; ``...`` leaves the patch size as it is, None has the attribute missing.
        widgets: of the node.
        schedule: kind of the schedule.
        evaluations: in turn.
        result: what the sampler returns.
    """

    model: str
    patch_size: object
    widgets: dict
    schedule: str
    evaluations: tuple[Evaluated, ...]
    result: str


WIDGETS = {
    "density": (0.2, 1.0, 0.01),
    "preset": ("balanced", "fast", "few-step"),
    "dense_blocks": ("", "", "0", "-1", "0-9"),
    "dense_first_steps": (0, 0, 1, -1, 100),
    "warm_up_density": (-1.0, 0.0, 0.4, 1.0),
    "dense_last_steps": (0, 0, 2),
    "start_percent": (0.0, 0.0, 0.3),
    "end_percent": (1.0, 1.0, 0.5),
    "min_tokens": (0, 0, 50),
    "memory_limit_mb": (0, 1),
    "precision": ("auto", "full", "int8"),
    "record_layers": ("auto", "", "0-99"),
    "record_steps": ("auto", "0-99"),
    "record_heads": ("auto", "0-9", ""),
    "record_limit_mb": (64, 0),
}
# Block and type of it, which LTX does not name; models call attention outside of their blocks too.
BLOCKS = {
    "wan": ((0, "double"), (1, "double"), (3, "double"), (None, "double")),
    "hunyuan": ((0, "double"), (1, "double"), (0, "single"), (2, "single"), (None, "double")),
    "ltx": ((0, "double"), (1, "double"), (1, "double"), (None, "double")),
    "unknown": ((0, "double"), (None, "double")),
}
SHAPES = (
    (1, 16, 2, 6, 8),
    (1, 16, 3, 8, 16),
    (1, 4, 1, 6, 6),
    (2, 16, 2, 7, 5),
    (1, 16, 8, 8),
    (1, 16, 2, 0, 4),
    (1, 16, 128),
    (1, 16, 3, 2, 2, 2),
)


@st.composite
def attended_calls(draw, model, tokens, heads, dtype, seed):
    """An attention call of about so many tokens."""
    text = 9 if model == "hunyuan" else 0
    tokens = draw(mostly(tokens + text, tokens, tokens + 7, 1))
    batch = draw(st.sampled_from((1, 2)))
    heads = draw(mostly(heads, 3 - heads))
    key_tokens = tokens if draw(mostly(True, False)) else draw(st.integers(1, 12))
    grouped = draw(mostly(False, True)) and heads > 1
    options = draw(mostly({}, {"scale": None}, {"scale": 0.05}, {"scale": 1.0}, times=3))
    options = options | ({"enable_gqa": True} if grouped else {})
    odd = ({"low_precision_attention": False}, {"attn_precision": torch.float32}, {"window": 3}, {"causal": False})
    options = options | draw(mostly({}, *odd, times=20))
    gradients = mostly((False,) * 3, (True,) * 3, (True, False, False), (False, True, False), (False, False, True), times=30)
    shapes = [(1, key_tokens), (1, 1, key_tokens), (batch, 1, 1, key_tokens), (batch, heads, tokens, key_tokens)]
    shapes += [(tokens, key_tokens), (batch, 1, key_tokens)]
    mask = draw(mostly(None, *shapes))
    block, block_type = draw(st.sampled_from(BLOCKS[model]))
    # The second is of a model that has more blocks than it says.
    block = draw(mostly(block, 17))
    return Attended(
        tokens=tokens,
        key_tokens=key_tokens,
        heads=heads,
        head_dim=draw(mostly(64, 128, 128, 32)),
        batch=batch,
        dtype=draw(mostly(dtype, torch.float32, torch.float16)),
        seed=seed,
        skip_reshape=grouped or draw(st.booleans()),
        skip_output_reshape=draw(st.booleans()),
        options=options,
        mask=mask and (mask, draw(st.sampled_from(("bool", "all shown", "text hidden", "lowest", "infinite", "weights")))),
        gradients=draw(gradients),
        key_heads=1 if grouped else heads,
        broken=draw(mostly(False, True)),
        block=block,
        block_type=block_type,
    )


@st.composite
def sampler_runs(draw):
    """Runs of a sampler."""
    model = draw(st.sampled_from(("wan", "wan", "wan", "hunyuan", "hunyuan", "ltx", "ltx", "unknown")))
    patch_size, shape = draw(mostly(..., (1, 1, 1), [2, 2, 2], (2, 2), 2, None)), draw(mostly(*SHAPES, times=12))
    patch = {"wan": (1, 2, 2), "hunyuan": (1, 2, 2)}.get(model, (1, 1, 1)) if patch_size is ... else patch_size or (1, 1, 1)
    patch = patch if isinstance(patch, (tuple, list)) else (patch,) * 3
    tokens = 1
    for size, step in zip(shape[2:], patch):
        tokens *= max(1, -(-size // step))
    kinds = (torch.float16, torch.bfloat16, torch.float64)
    dtype, heads, seed = draw(mostly(torch.float32, *kinds, times=4)), draw(st.sampled_from((2, 1))), draw(st.integers(0, 2**31))
    odd = st.dictionaries(
        st.sampled_from(("context_window", "uuids", "patches_replace", "cond_or_uncond", "other", "sigmas")),
        st.integers(0, 3),
        max_size=2,
    )
    evaluations = tuple(
        Evaluated(
            step=draw(st.integers(0, 4)),
            shape=shape,
            attended=tuple(draw(st.lists(attended_calls(model, min(tokens, 400), heads, dtype, seed), min_size=1, max_size=3))),
            transformer_options=draw(odd),
        )
        for _ in range(draw(st.integers(1, 3)))
    )
    return SamplerRun(
        model=model,
        patch_size=patch_size,
        widgets=draw(st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in WIDGETS.items()})),
        schedule=draw(mostly("falling", "rising", "missing", "two sigmas", "many")),
        evaluations=evaluations,
        result=draw(mostly("latent", "nan", "half", "tuple", "list", "dict")),
    )
