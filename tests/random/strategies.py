"""What is drawn of the kernels: tensors that are hard on arithmetic, layouts, settings, calls."""

from dataclasses import dataclass, field, replace

import torch
from hypothesis import strategies as st
from svg_ear.kernels import BlockRouting, SequenceLayout, Settings
from svg_ear.kernels.blocks import block_count

KINDS = ("normal", "topics", "large logits", "one huge token", "constants", "next to nothing", "duplicates")


def hard_tensors(kind, shape, seed, dtype):
    """q, k, v ``[B, H, L, D]`` of one of :data:`KINDS`."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def number(below):
        return int(torch.randint(below, (1,), generator=generator))

    q, k, v = (normal(*shape) for _ in range(3))
    tokens = shape[2]
    if kind == "topics":
        topic = torch.randint(6, (tokens,), generator=generator)
        centers = 2 * normal(*shape[:2], 6, shape[3])[:, :, topic]
        q, k, v = (centers + 0.5 * tensor for tensor in (q, k, v))
    elif kind == "large logits":
        q = q * 60 / (q @ k.mT * shape[3] ** -0.5).abs().max()
    elif kind == "one huge token":
        (q, k, v)[number(3)][:, :, number(tokens)] *= 300
    elif kind == "constants":
        same = 1 + number(7)
        q, k, v = (tensor[:, :, :1].expand(shape).clone() if same >> place & 1 else tensor for place, tensor in enumerate((q, k, v)))
    elif kind == "next to nothing":
        q, k, v = (tensor * 10.0 ** -(2 + number(7)) for tensor in (q, k, v))
    elif kind == "duplicates":
        source = torch.randint(1 + tokens // 8, (tokens,), generator=generator)
        k, v = k[:, :, source], v[:, :, source]
        q = q[:, :, source] if number(2) else q
    return tuple(tensor.to(dtype) for tensor in (q, k, v))


def strided(tensor, layout):
    """The same values with other strides."""
    if layout == "tokens first":
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "apart":
        return tensor.repeat_interleave(2, dim=-1)[..., ::2]
    if layout == "one head for all":
        return tensor[:, :1].expand(tensor.shape)
    if layout == "a part of more":
        return torch.nn.functional.pad(tensor, (0, 0, 1, 2, 0, 0))[:, :, 1:-2]
    return tensor


@st.composite
def settings_of(draw, counts):
    """Settings that are valid, with one of ``counts`` for groups and clusters."""
    share = st.sampled_from((0.0, 0.03, 0.1, 0.3, 0.8, 1.0))
    count = st.sampled_from(counts)
    return Settings(
        method=draw(st.sampled_from(("svg-ear", "svg-ear", "svg2", "calibrated"))),
        budget=draw(st.sampled_from(("density", "density", "top-p"))),
        density=draw(share),
        top_p=draw(share),
        min_share=draw(st.sampled_from((0.0, 0.0, 0.2, 1.0))),
        query_clusters=draw(count),
        key_clusters=draw(count),
        kmeans_first=draw(st.integers(1, 3)),
        kmeans_next=draw(st.integers(1, 2)),
        kmeans_candidates=draw(st.sampled_from((0, 16, 32))),
        recluster_every=draw(st.integers(1, 3)),
        weighted_centroids=draw(st.booleans()),
        key_metric=draw(st.booleans()),
        probe_score=draw(st.sampled_from(("error", "mass"))),
        compensate=draw(st.booleans()),
        precision=draw(st.sampled_from(("full", "full", "int8"))),
    )


@dataclass(frozen=True)
class Call:
    """Some calls with one state.

    Attributes:
        shape, dtype, kinds, seed, strides: of k and v, and of q but for its length; every call has other values.
        queries: the length of q.
        layouts: one for each batch item.
        weighs: whether the conditioning keys have biases.
        shares: how many calls with other queries share the keys of each call.
        settings, blocks, scale, memory_limit: as of ``sparse_attention``.
        calls: how many follow each other.
    """

    shape: tuple[int, int, int, int]
    queries: int
    dtype: torch.dtype
    kinds: tuple[str, ...]
    seed: int
    strides: str
    layouts: tuple[SequenceLayout, ...]
    weighs: bool
    shares: int
    settings: Settings
    blocks: BlockRouting | None = field(repr=False)
    scale: float | None
    memory_limit: int | None

    def tensors(self, number, sharing=0):
        """q, k and v of call number ``number``, with the queries of the ``sharing``-th call that shares its keys."""
        batch, heads, length, dim = self.shape
        shape = (batch, heads, max(length, self.queries), dim)
        q, k, v = hard_tensors(self.kinds[number], shape, self.seed + number, self.dtype)
        if sharing:
            q = hard_tensors(self.kinds[number], shape, self.seed + number + 1000 * sharing, self.dtype)[0]
        return tuple(strided(tensor[:, :, :count], self.strides) for tensor, count in ((q, self.queries), (k, length), (v, length)))

    def biases(self, number):
        """Those of call number ``number``, zero at the video's keys, some of which hide theirs."""
        if not self.weighs:
            return None
        generator = torch.Generator().manual_seed(self.seed + number)
        batch, heads, length, _ = self.shape
        found = 3 * torch.randn(batch if self.seed % 2 else 1, heads if self.seed % 3 else 1, length, generator=generator)
        found = torch.where(found < -5, -torch.inf if self.seed % 5 else torch.finfo(torch.float32).min, found)
        for layout in self.layouts:
            found[:, :, layout.video.start : layout.video.stop] = 0
        return found


@st.composite
def calls(draw, dtypes, dims, most_tokens=200, most_calls=3, most_heads=3, most_items=2, counts=(0, 1, 3, 7, 24, 1000)):
    """Calls of ``sparse_attention`` that fit together."""
    batch, heads = draw(st.integers(1, most_items)), draw(st.integers(1, most_heads))
    lengths = [length for length in (1, 2, 3, 16, 17, 63, 64, 65, 113) if length <= most_tokens]
    tokens = draw(st.sampled_from(lengths) | st.integers(1, most_tokens))
    gap = st.sampled_from((0, 0, 1, 6))
    layouts, length = [], 0
    for _ in range(batch):
        position, spans = draw(gap), []
        for _ in range(draw(st.integers(0, 2))):
            spans.append(range(position, position + draw(st.sampled_from((0, 1, 5, 9)))))
            position = spans[-1].stop + draw(gap)
        video = range(position, position + tokens)
        position = video.stop + draw(gap)
        for _ in range(draw(st.integers(0, 1))):
            spans.append(range(position, position + draw(st.sampled_from((0, 3)))))
            position = spans[-1].stop
        layouts.append(SequenceLayout(video, tuple(spans)))
        length = max(length, position + draw(gap))
    settings, queries = draw(settings_of(counts)), length
    if settings.method != "calibrated" and draw(st.booleans()):
        routed = draw(st.sampled_from((tokens, 1)) | st.integers(1, most_tokens))
        starts = [draw(gap) for _ in layouts]
        layouts = [replace(layout, queries=range(start, start + routed)) for start, layout in zip(starts, layouts)]
        queries = max(starts) + routed + draw(gap)
    seed, scale = draw(st.integers(0, 2**31)), draw(st.sampled_from((None, None, 0.0, 0.05, 1.0, -0.1)))
    return Call(
        shape=(batch, heads, length, draw(st.sampled_from(dims))),
        queries=queries,
        dtype=draw(st.sampled_from(dtypes)),
        kinds=tuple(draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=most_calls))),
        seed=seed,
        strides=draw(st.sampled_from(("heads first", "tokens first", "apart", "one head for all", "a part of more"))),
        layouts=tuple(layouts),
        weighs=draw(st.booleans()),
        shares=draw(st.sampled_from((0, 0, 1, 2))),
        settings=settings,
        blocks=draw(blocks_of(heads, tokens, seed)) if settings.method == "calibrated" else None,
        # Which int8 refuses.
        scale=abs(scale) if scale and settings.precision == "int8" else scale,
        memory_limit=draw(st.sampled_from((None, 1, 1 << 40))),
    )


@st.composite
def blocks_of(draw, heads, tokens, seed):
    """Blocks that a calibration could name."""
    generator = torch.Generator().manual_seed(seed)
    size = draw(st.sampled_from((1, 5, 16, 128)) | st.integers(1, tokens))
    # Tables of single tokens are large.
    size = max(size, tokens // 40)
    count = block_count(tokens, size)
    exact = torch.rand(heads, count, count, generator=generator) < draw(st.sampled_from((0.0, 0.2, 0.7, 1.0)))
    labels = None
    if draw(st.booleans()):
        order = torch.stack([torch.randperm(tokens, generator=generator) for _ in range(heads)])
        labels = torch.empty_like(order).scatter_(1, order, (torch.arange(tokens) // size).expand(heads, -1)).int()
    return BlockRouting(exact, size, tuple(sorted(draw(st.sets(st.integers(0, heads - 1))))), labels)
