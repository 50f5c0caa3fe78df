"""The settings node: how attention is routed with preset custom."""

from __future__ import annotations

from comfy_api.latest import io

from ..kernels import Settings
from ..kernels.settings import BUDGETS, CALIBRATED, METHODS, PROBE_SCORES
from .inputs import SettingsType, Widgets, refuse_unknown
from .patch.options import CustomSettings

TOOLTIPS = {
    "method": (
        "svg-ear estimates the skipped pairs from cluster averages; svg2 drops them, which saves little time and is less exact. "
        "Keep svg-ear unless you compare."
    ),
    "budget": (
        "density spends the same share in every group of queries; top-p spends until top_p of the estimated attention is "
        "covered, so that the time varies with the content."
    ),
    "top_p": "With budget top-p: share of the attention to cover. Higher is slower and closer to dense.",
    "min_share": "Floor of the exact share of each group of queries. Raise it when some regions come out wrong while others are fine.",
    "query_clusters": (
        "Groups of queries that share their exact keys; 0 chooses from the length. More groups follow the content more closely "
        "and use the GPU less well."
    ),
    "key_clusters": (
        "Groups of keys that are computed or estimated together; 0 chooses from the length. More is finer and costs more to cluster."
    ),
    "kmeans_first": "Clustering iterations in a layer's first sparse step. More is slower at the start and gives tighter groups.",
    "kmeans_next": "Clustering iterations in the steps after, which start from the groups before. 1 or 2 is enough.",
    "kmeans_candidates": (
        "How many groups each token is compared with when it is clustered again, those nearest to its last one: a power of two "
        "from 16 on. 0 compares with all, as published, and is slower."
    ),
    "recluster_every": (
        "Cluster a layer anew every so many evaluations; samplers such as heun evaluate twice a step. Higher saves time and "
        "lets the groups age."
    ),
    "weighted_centroids": (
        "Estimate with averages that each group of queries weights by its own attention, which makes its mean query exact: "
        "closer to dense for little time. Off takes plain averages, as published."
    ),
    "key_metric": (
        "Group queries by how differently they see the keys, so that one choice of exact keys fits a whole group: closer to "
        "dense for little time. Off groups by plain distance, as published."
    ),
    "probe_score": (
        "How the blocks to compute exactly are ranked: by the error that estimating them would make, or by their share of the "
        "attention (mass), however well averages fit it."
    ),
}


class SVGEARCustomSettings(io.ComfyNode):
    """Routing in all its details, for SVG-EAR Sparse Attention."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        widgets = Widgets(Settings, TOOLTIPS)
        return io.Schema(
            node_id="SVGEARCustomSettings",
            display_name="SVG-EAR Custom Settings",
            category="model/patch",
            search_aliases=["SVG2", "k-means attention", "sparse attention settings"],
            description=(
                "How SVG-EAR Sparse Attention groups tokens, and which blocks it computes exactly: for comparing methods. Connect it "
                "to settings there, with preset custom. Its defaults are those of the presets."
            ),
            inputs=[
                widgets.choice("method", tuple(method for method in METHODS if method != CALIBRATED)),
                widgets.choice("budget", BUDGETS),
                widgets.share("top_p"),
                widgets.share("min_share"),
                widgets.count("query_clusters", 0, 65536),
                widgets.count("key_clusters", 0, 65536),
                widgets.count("kmeans_first", 1, 100),
                widgets.count("kmeans_next", 1, 100),
                widgets.count("kmeans_candidates", 0, 1024),
                widgets.count("recluster_every", 1, 100),
                widgets.switch("weighted_centroids"),
                widgets.switch("key_metric"),
                widgets.choice("probe_score", PROBE_SCORES),
            ],
            outputs=[SettingsType.Output(display_name="settings", tooltip="For settings of SVG-EAR Sparse Attention.")],
        )

    # One input, for the reason given in attention.py.
    @classmethod
    def validate_inputs(cls, kmeans_candidates=Settings.kmeans_candidates) -> bool | str:
        if kmeans_candidates is None:
            return True
        try:
            CustomSettings.of(kmeans_candidates=kmeans_candidates)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, **widgets) -> io.NodeOutput:
        refuse_unknown(cls, widgets)
        return io.NodeOutput(CustomSettings.of(**widgets))
