"""Build API-format workflows.

    graph = Graph()
    model = graph.add("UNETLoader", unet_name="wan21_t2v.safetensors", weight_dtype="default")
    graph.add("SVGEARTestModelFacts", model=model[0])
    client.run(graph.nodes)

``sampling`` builds the usual whole: loader, our node or none, sampler, saved latent and report.
"""

from dataclasses import dataclass, field, replace
from itertools import count

from .checkpoints import ARCHITECTURES

_names = count()
# The nodes whose widgets ``Graph.attention`` takes as well: socket of our node, node, prefix of the names there, widgets.
BESIDE = (
    (
        "settings",
        "SVGEARCustomSettings",
        "",
        """method budget top_p min_share query_clusters key_clusters kmeans_first kmeans_next kmeans_candidates recluster_every
        weighted_centroids key_metric probe_score""".split(),
    ),
    ("schedule", "SVGEARSchedule", "", ["start_percent", "end_percent", "dense_last_steps"]),
    ("recording", "SVGEARRecord", "record_", ["layers", "steps", "heads", "limit_mb"]),
)


@dataclass(frozen=True)
class Node:
    """A node of a graph; ``node[i]`` is its output i, to be passed as an input of another."""

    id: str

    def __getitem__(self, output: int) -> list:
        return [self.id, output]

    def __str__(self) -> str:
        return self.id


@dataclass
class Graph:
    """An API-format workflow that grows by ``add``; ``nodes`` is what the server takes."""

    nodes: dict[str, dict] = field(default_factory=dict)

    def add(self, class_type: str, **inputs) -> Node:
        """Add a node with its inputs (values, or outputs of other nodes) and return it."""
        node = Node(str(len(self.nodes) + 1))
        self.nodes[node.id] = {"class_type": class_type, "inputs": inputs}
        return node

    def load(self, architecture: str) -> list:
        """Add the stock loader for the checkpoint of an architecture and return its MODEL."""
        return self.load_file(ARCHITECTURES[architecture].file_name)

    def load_file(self, name: str) -> list:
        """Add the stock loader for a checkpoint by its file name and return its MODEL."""
        return self.add("UNETLoader", unet_name=name, weight_dtype="default")[0]

    def conditioning(self, architecture: str, seed: int, **changes) -> list:
        """Add random conditioning that fits an architecture; ``changes`` override single inputs, such as ``tokens``,
        ``padding`` (masked text tokens), or ``image``, ``reference``, ``context`` (outputs of ``latent``)."""
        inputs = ARCHITECTURES[architecture].conditioning | changes
        return self.add("SVGEARTestConditioning", seed=seed, **inputs)[0]

    def latent(self, shape: tuple[int, int, int, int], **changes) -> list:
        """Add a latent of channels, frames, height, width; ``changes``: ``batch``, ``seed``, ``noise``, ``masked``, and ``audio``, the
        shape of what is denoised beside the video."""
        channels, frames, height, width = shape
        audio = changes.pop("audio", None)
        changes |= {"audio": "x".join(map(str, audio))} if audio else {}
        return self.add("SVGEARTestLatent", channels=channels, frames=frames, height=height, width=width, **changes)[0]

    def sample(self, model: list, latent: list, *, steps: int, seed: int = 0, cfg: float = 1.0, **inputs) -> list:
        """Add a KSampler and return its LATENT. ``inputs``: ``positive`` and ``negative``, and what else is not usual."""
        usual = {"sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
        return self.add("KSampler", model=model, latent_image=latent, seed=seed, steps=steps, cfg=cfg, **(usual | inputs))[0]

    def save(self, latent: list, **model) -> Node:
        """Save a LATENT under a new name; read it with ``Result.latent(node)``. With ``model=`` it is as that model sees it."""
        return self.add("SVGEARTestSave", latent=latent, name=f"latent-{next(_names)}", **model)

    def show(self, text: list) -> Node:
        """Hand a STRING back; read it with ``Result.text(node)``."""
        return self.add("SVGEARTestShowText", text=text)

    def attention(self, model: list, **settings) -> list:
        """Add our node with its defaults, changed by ``settings``, and return its MODEL.

        Settings of the nodes beside it (see BESIDE) add these nodes. Inputs that are not given take the schema's defaults on
        the server, as in a workflow saved before they existed. ``min_tokens`` is 0 unless given, because the test latents are far
        below the real default.
        """
        for socket, node, prefix, names in BESIDE:
            given = {name: settings.pop(prefix + name) for name in names if prefix + name in settings}
            if given:
                settings[socket] = self.add(node, **given)[0]
        return self.add("SVGEARAttention", model=model, **({"min_tokens": 0} | settings))[0]


@dataclass(frozen=True)
class Sampling:
    """A graph and the nodes whose results a test reads.

    report is None where no report was asked for; first_report is that of the high-noise expert where there are two.
    """

    graph: Graph
    latent: Node
    report: Node | None
    first_report: Node | None = None


def sampling(
    architecture: str,
    attention: dict | None = None,
    *,
    report: bool = False,
    latent: tuple[int, int, int, int] | None = None,
    latent_options: dict | None = None,
    steps: int = 2,
    cfg: float = 1.0,
    seed: int = 0,
    sampler: str = "euler",
    scheduler: str = "simple",
    positive: dict | None = None,
    negative: dict | None = None,
    before=None,
    after=None,
) -> Sampling:
    """One KSampler run of an architecture's checkpoint, its latent saved.

    attention: settings of our node; None leaves it out (the dense run), {} takes its defaults.
    report: add ``SVGEARReport`` after the sampler; its text is read through ``Sampling.report``.
    latent: channels, frames, height, width; the architecture's own by default. ``latent_options``: see Graph.latent.
    cfg: above 1, cond and uncond are evaluated: in one batch when their token counts agree, else in two calls
        (``negative={"tokens": 9}``).
    positive, negative: changes to the conditioning inputs, see Graph.conditioning.
    before, after: ``f(graph, model) -> model``, to put other nodes before and after ours.
    """
    graph = Graph()
    model = graph.load(architecture)
    if before is not None:
        model = before(graph, model)
    if attention is not None:
        model = graph.attention(model, **attention)
    if after is not None:
        model = after(graph, model)
    sampled = graph.sample(
        model,
        graph.latent(
            latent or ARCHITECTURES[architecture].latent, **({"audio": ARCHITECTURES[architecture].audio} | (latent_options or {}))
        ),
        positive=graph.conditioning(architecture, 1, **(positive or {})),
        negative=graph.conditioning(architecture, 2, **(negative or {})),
        seed=seed,
        steps=steps,
        cfg=cfg,
        sampler_name=sampler,
        scheduler=scheduler,
    )
    return _finish(graph, sampled, model, report)


def two_expert_sampling(
    high: str = "wan22_t2v_high",
    low: str = "wan22_t2v_low",
    attention: dict | None = None,
    *,
    report: bool = False,
    latent: tuple[int, int, int, int] | None = None,
    steps: int = 4,
    switch: int = 2,
    cfg: float = 1.0,
    seed: int = 0,
    positive: dict | None = None,
    negative: dict | None = None,
) -> Sampling:
    """The two-sampler graph of Wan 2.2 14B: the high-noise expert up to step ``switch``, the low-noise one after it.

    ``report`` adds one for each expert; arguments as in ``sampling``.
    """
    graph = Graph()
    models = [graph.load(name) for name in (high, low)]
    if attention is not None:
        models = [graph.attention(model, **attention) for model in models]
    conditions = {
        "positive": graph.conditioning(high, 1, **(positive or {})),
        "negative": graph.conditioning(high, 2, **(negative or {})),
    }
    common = conditions | {"steps": steps, "cfg": cfg, "sampler_name": "euler", "scheduler": "simple"}
    first = graph.add(
        "KSamplerAdvanced",
        model=models[0],
        latent_image=graph.latent(latent or ARCHITECTURES[high].latent),
        add_noise="enable",
        noise_seed=seed,
        start_at_step=0,
        end_at_step=switch,
        return_with_leftover_noise="enable",
        **common,
    )
    second = graph.add(
        "KSamplerAdvanced",
        model=models[1],
        latent_image=first[0],
        add_noise="disable",
        noise_seed=seed,
        start_at_step=switch,
        end_at_step=10000,
        return_with_leftover_noise="disable",
        **common,
    )
    shown = _report(graph, first[0], models[0]) if report else None
    return replace(_finish(graph, second[0], models[1], report), first_report=shown)


def _report(graph: Graph, sampled: list, model: list) -> Node:
    return graph.show(graph.add("SVGEARReport", model=model, latent=sampled)[0])


def _finish(graph: Graph, sampled: list, model: list, report: bool) -> Sampling:
    saved = graph.save(sampled)
    return Sampling(graph, saved, _report(graph, sampled, model) if report else None)
