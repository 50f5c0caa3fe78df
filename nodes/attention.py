"""The SVG-EAR node: settings -> patched MODEL."""

from __future__ import annotations

from functools import partial

from comfy_api.latest import io

from ..kernels.settings import BUDGETS, METHODS, PROBE_SCORES
from .attention_texts import TOOLTIPS
from .calibrating.profiles import ProfileType
from .patch.compiled import uncompiled
from .patch.identity import require_model
from .patch.options import CUSTOM, PRESETS, Options
from .patch.override import Patch
from .patch.patching import patched, tell
from .recording.record import ATTACHMENT

DEFAULTS = Options()


def _combo(name, choices, advanced=True):
    return io.Combo.Input(
        name, options=list(choices), default=getattr(DEFAULTS, name), optional=True, tooltip=TOOLTIPS[name], advanced=advanced or None
    )


def _share(name, advanced=True):
    limits = {"min": 0.0, "max": 1.0, "step": 0.01, "round": 0.001}
    return io.Float.Input(name, default=getattr(DEFAULTS, name), optional=True, tooltip=TOOLTIPS[name], advanced=advanced or None, **limits)


def _count(name, least, most):
    return io.Int.Input(name, default=getattr(DEFAULTS, name), min=least, max=most, optional=True, tooltip=TOOLTIPS[name], advanced=True)


def _switch(name):
    return io.Boolean.Input(name, default=getattr(DEFAULTS, name), optional=True, tooltip=TOOLTIPS[name], advanced=True)


def _numbers(name):
    return io.String.Input(name, default=getattr(DEFAULTS, name), optional=True, tooltip=TOOLTIPS[name], advanced=True)


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
                io.Model.Input("model", tooltip=TOOLTIPS["model"]),
                _combo("preset", (*PRESETS, CUSTOM), advanced=False),
                _share("density", advanced=False),
                _combo("method", METHODS),
                _combo("budget", BUDGETS),
                _share("top_p"),
                _share("min_share"),
                _count("query_clusters", 0, 65536),
                _count("key_clusters", 0, 65536),
                _count("kmeans_first", 1, 100),
                _count("kmeans_next", 1, 100),
                _count("kmeans_candidates", 0, 1024),
                _count("recluster_every", 1, 100),
                _switch("weighted_centroids"),
                _switch("key_metric"),
                _combo("probe_score", PROBE_SCORES),
                _share("start_percent"),
                _share("end_percent"),
                _count("dense_first_steps", -1, 10000),
                _count("dense_last_steps", 0, 10000),
                _numbers("dense_blocks"),
                _count("min_tokens", 0, 1048576),
                _count("memory_limit_mb", 0, 1048576),
                _switch("strict"),
                _switch("verbose"),
                _numbers("record_layers"),
                _numbers("record_steps"),
                _numbers("record_heads"),
                _count("record_limit_mb", 0, 65536),
                _switch("compensate"),
                ProfileType.Input("profile", optional=True, tooltip=TOOLTIPS["profile"]),
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
