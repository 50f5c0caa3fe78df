"""The SVG-EAR node: settings -> patched MODEL."""

from __future__ import annotations

from functools import partial

from comfy_api.latest import io

from ..kernels.settings import BUDGETS, METHODS, PROBE_SCORES
from .calibrating.profiles import ProfileType
from .patch.compiled import uncompiled
from .patch.identity import require_model
from .patch.options import CUSTOM, PRESETS, Options
from .patch.override import Patch
from .patch.patching import patched, tell
from .recording.record import ATTACHMENT

DEFAULTS = Options()


def _combo(name, choices, tooltip, **rest):
    return io.Combo.Input(name, options=list(choices), default=getattr(DEFAULTS, name), optional=True, tooltip=tooltip, **rest)


def _share(name, tooltip, **rest):
    return io.Float.Input(
        name,
        default=getattr(DEFAULTS, name),
        min=0.0,
        max=1.0,
        step=0.01,
        round=0.001,
        optional=True,
        tooltip=tooltip,
        **rest,
    )


def _count(name, minimum, maximum, tooltip):
    return io.Int.Input(name, default=getattr(DEFAULTS, name), min=minimum, max=maximum, optional=True, tooltip=tooltip, advanced=True)


def _switch(name, tooltip):
    return io.Boolean.Input(name, default=getattr(DEFAULTS, name), optional=True, tooltip=tooltip, advanced=True)


def _numbers(name, tooltip):
    return io.String.Input(name, default=getattr(DEFAULTS, name), optional=True, advanced=True, tooltip=tooltip)


class SVGEARAttention(io.ComfyNode):
    """Patches a MODEL so that its video self-attention runs sparse."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SVGEARAttention",
            display_name="SVG-EAR Sparse Attention",
            category="model/patch",
            search_aliases=["sparse attention", "Sparse VideoGen", "SVG2", "speed up video"],
            description=(
                "Sparse attention for Wan, HunyuanVideo and LTX-Video: of the attention between video tokens only the part "
                "that matters is computed exactly, the rest is estimated from cluster averages. No training. "
                "Put it last before the sampler. Of two such nodes in a row the later one counts alone. "
                "Connect SVG-EAR Report behind the sampler to see what it did."
            ),
            inputs=[
                io.Model.Input("model", tooltip="A video model: Wan 2.1 or 2.2, HunyuanVideo 1.0 or 1.5, or LTX-Video."),
                _combo(
                    "preset",
                    (*PRESETS, CUSTOM),
                    "Trades speed against closeness to dense attention: quality computes 20 % of the pairs exactly (37 to 39 dB PSNR "
                    "against the dense clip on our own small model without CFG), balanced 10 % (33 to 35 dB), fast 5 % (29 to 30 dB); "
                    "few-step is for 4 to 8 step models (lightning, turbo): 30 % and no dense warm-up (38 to 39 dB). "
                    "A preset sets everything from method to probe_score; those inputs count only with custom.",
                ),
                _share(
                    "density",
                    "Share of the query-key pairs computed exactly. Lower is faster and further from dense; 0 takes the "
                    "preset's. Try 0.1 first, raise it when details or motion suffer. Counts with every preset.",
                ),
                _combo(
                    "method",
                    METHODS,
                    "svg-ear estimates the skipped pairs from cluster averages; svg2 drops them, which saves little "
                    "time and is less exact. calibrated computes the blocks of a calibration without any search; it needs a profile. "
                    "Keep svg-ear unless you compare. Only with preset custom.",
                    advanced=True,
                ),
                _combo(
                    "budget",
                    BUDGETS,
                    "density spends the same share in every group of queries; top-p spends until top_p of the estimated "
                    "attention is covered, so that the time varies with the content. Only with preset custom.",
                    advanced=True,
                ),
                _share(
                    "top_p",
                    "With budget top-p: share of the attention to cover. Higher is slower and closer to dense. Only with preset custom.",
                    advanced=True,
                ),
                _share(
                    "min_share",
                    "Floor of the exact share of each group of queries. Raise it when some regions come out wrong while "
                    "others are fine. Only with preset custom.",
                    advanced=True,
                ),
                _count(
                    "query_clusters",
                    0,
                    65536,
                    "Groups of queries that share their exact keys; 0 chooses from the length. More groups follow the "
                    "content more closely and use the GPU less well. Only with preset custom.",
                ),
                _count(
                    "key_clusters",
                    0,
                    65536,
                    "Groups of keys that are computed or estimated together; 0 chooses from the length. More is finer "
                    "and costs more to cluster. Only with preset custom.",
                ),
                _count(
                    "kmeans_first",
                    1,
                    100,
                    "Clustering iterations in a layer's first sparse step. More is slower at the start and gives tighter "
                    "groups. Only with preset custom.",
                ),
                _count(
                    "kmeans_next",
                    1,
                    100,
                    "Clustering iterations in the steps after, which start from the groups before. 1 or 2 is enough. "
                    "Only with preset custom.",
                ),
                _count(
                    "kmeans_candidates",
                    0,
                    1024,
                    "How many groups each token is compared with when it is clustered again, those nearest to its last one: a power of "
                    "two from 16 on. 0 compares with all, as published, and is slower. Only with preset custom.",
                ),
                _count(
                    "recluster_every",
                    1,
                    100,
                    "Cluster a layer anew every so many evaluations; samplers such as heun evaluate twice a step. Higher saves "
                    "time and lets the groups age. "
                    "Only with preset custom.",
                ),
                _switch(
                    "weighted_centroids",
                    "Estimate with averages that each group of queries weights by its own attention, which makes its mean query exact: "
                    "closer to dense for little time. Off takes plain averages, as published. Only with preset custom.",
                ),
                _switch(
                    "key_metric",
                    "Group queries by how differently they see the keys, so that one choice of exact keys fits a whole group: closer to "
                    "dense for little time. Off groups by plain distance, as published. Only with preset custom.",
                ),
                _combo(
                    "probe_score",
                    PROBE_SCORES,
                    "How the blocks to compute exactly are ranked: by the error that estimating them would make, or by their share of "
                    "the attention (mass), however well averages fit it. Only with preset custom.",
                    advanced=True,
                ),
                _share(
                    "start_percent",
                    "Stay dense before this part of the denoising. Raise it when the composition differs too much from "
                    "dense. Usually dense_first_steps is enough.",
                    advanced=True,
                ),
                _share(
                    "end_percent",
                    "Stay dense after this part of the denoising. Lower it when fine detail suffers.",
                    advanced=True,
                ),
                _count(
                    "dense_first_steps",
                    -1,
                    10000,
                    "Steps at the start of the denoising that stay dense; they settle the composition, and each costs "
                    "full time. -1 is automatic: a fifth of the sampler's steps, at least 1, none with preset few-step. "
                    "A sampler that continues another (the second expert of Wan 2.2) counts the steps before it as done.",
                ),
                _count(
                    "dense_last_steps",
                    0,
                    10000,
                    "Steps at the end of the denoising that stay dense. Rarely worth their time; try 1 when textures suffer.",
                ),
                _numbers(
                    "dense_blocks",
                    "Layers that stay dense, such as 0, 1, 38-39; negative numbers count from the last layer (-1); "
                    "empty for none. The first layer is sensitive and one layer costs little, so keep 0.",
                ),
                _count(
                    "min_tokens",
                    0,
                    1048576,
                    "Sequences with fewer tokens stay dense, because there dense attention is the faster one.",
                ),
                _count(
                    "memory_limit_mb",
                    0,
                    1048576,
                    "Working memory of one attention call in MB; 0 is automatic (half the size of q, k and v). Lower it "
                    "when memory runs out, at some cost in speed.",
                ),
                _switch(
                    "strict",
                    "Stop with an error when attention cannot run sparse for a reason that is not one of your settings, "
                    "instead of running it dense.",
                ),
                _switch("verbose", "Log every reason why attention stays dense, also those that follow from the settings."),
                _numbers(
                    "record_layers",
                    "Layers whose routing SVG-EAR Routed Blocks can show, such as 1, 20, -1; auto takes the first, a middle and "
                    "the last sparse one, empty none. Density and error are recorded for every layer anyway.",
                ),
                _numbers(
                    "record_steps",
                    "Steps whose routing is recorded, counted from 0 in each sampler; auto takes the first, a "
                    "middle and the last sparse one.",
                ),
                _numbers("record_heads", "Heads whose routing is recorded; auto takes the first and the last."),
                _count(
                    "record_limit_mb",
                    0,
                    65536,
                    "Host memory that the recorded routing of the last runs of this node may take, in MB (while sampling it lies on the "
                    "GPU). At 720p one layer, step and head takes about 1.5 MB. 0 records none.",
                ),
                _switch(
                    "compensate",
                    "With method calibrated: estimate the skipped pairs from block averages. Off drops them, as published: faster and "
                    "further from dense. Only with preset custom.",
                ),
                ProfileType.Input(
                    "profile",
                    optional=True,
                    tooltip="A calibration of SVG-EAR Load Calibration, for method calibrated with preset custom.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with sparse attention.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(
        cls,
        preset=DEFAULTS.preset,
        density=DEFAULTS.density,
        method=DEFAULTS.method,
        budget=DEFAULTS.budget,
        start_percent=DEFAULTS.start_percent,
        end_percent=DEFAULTS.end_percent,
        dense_blocks=DEFAULTS.dense_blocks,
        record_layers=DEFAULTS.record_layers,
        record_steps=DEFAULTS.record_steps,
        record_heads=DEFAULTS.record_heads,
    ) -> bool | str:
        given = {
            "preset": preset,
            "density": density,
            "method": method,
            "budget": budget,
            "start_percent": start_percent,
            "end_percent": end_percent,
            "dense_blocks": dense_blocks,
            "record_layers": record_layers,
            "record_steps": record_steps,
            "record_heads": record_heads,
        }
        # Values that come over a link are not known yet; execute checks them.
        if None in given.values():
            return True
        try:
            Options(**given).settings()
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, model, profile=None, **widgets) -> io.NodeOutput:
        options = Options(**widgets)
        options.check_profile(profile is not None)
        if profile is not None:
            require_model(profile, uncompiled(model.model.diffusion_model))
        patch = Patch(options, partial(tell, cls.hidden.unique_id), profile)
        model = patched(model, patch)
        model.set_attachments(ATTACHMENT, patch.recorder)
        return io.NodeOutput(model)
