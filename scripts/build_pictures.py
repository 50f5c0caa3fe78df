"""Draw the pictures of the help pages, the README and the thumbnails: python scripts/build_pictures.py

The thumbnails show routing of the demo model, whatever model their workflow loads. Runs the demo model once (about a
minute), and cuts its nodes out of the browser tests' screenshots in build/screenshots, which `make test` writes.
"""

import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn.functional import scaled_dot_product_attention

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import pack  # noqa: E402
from benchmarks.demo_model import sample  # noqa: E402
from benchmarks.demo_model.model import rotate  # noqa: E402

pack.load()
from svg_ear.kernels import ClusterState, sparse_attention  # noqa: E402
from svg_ear.nodes.patch.options import Options  # noqa: E402
from svg_ear.nodes.recording.reasons import DENSE_BLOCK, WARM_UP_STEP  # noqa: E402
from svg_ear.nodes.recording.record import Run, RunRecord  # noqa: E402
from svg_ear.nodes.recording.trace import Place, RoutingMap  # noqa: E402
from svg_ear.nodes.showing.arrange import arranged  # noqa: E402
from svg_ear.nodes.showing.figure import figure, proportions  # noqa: E402
from svg_ear.nodes.showing.palette import ERROR, EXACT, error_level, shade  # noqa: E402

SCREENSHOTS = ROOT / "build" / "screenshots"
HELP = ROOT / "web" / "docs"
GRID, STEPS, WARM_UP, LAYERS, SEED = (9, 15, 26), 6, 1, 8, 3
CARD = (640, 360)
# name of the workflow: title, what is below it, number of the map that decorates it
CARDS = {
    "wan22_14b_t2v": ("Wan 2.2 14B", "text to video, both experts, 1280 x 720, 81 frames", 0),
    "wan21_14b_i2v": ("Wan 2.1 14B", "image to video, 832 x 480, 81 frames", 1),
    "wan22_5b_ti2v": ("Wan 2.2 5B", "text or image to video, 1280 x 704, 121 frames", 2),
    "hunyuan_video_t2v": ("HunyuanVideo", "text to video, 1280 x 720, 73 frames", 3),
    "hunyuan_video_15_t2v": ("HunyuanVideo 1.5", "text to video, 1280 x 720, 121 frames", 4),
    "ltx23_t2v": ("LTX-2.3", "text to video with sound, 1920 x 1088, 241 frames", 9),
    "wan21_1_3b_routed_blocks": ("See what was routed", "Wan 2.1 1.3B with routed blocks and report", 5),
    "wan21_1_3b_calibrate": ("Calibrate", "learn once which attention Wan 2.1 1.3B needs", 6),
    "wan21_1_3b_calibrated": ("Follow a calibration", "Wan 2.1 1.3B without any search", 7),
    "minimax_h3": ("MiniMax-H3", "text or image to video with sound, 1280 x 704, 124 frames", 10),
    "wan21_1_3b_compare": ("Compare with dense", "Wan 2.1 1.3B twice from the same noise", 8),
}
# Nodes in the screenshots: left, top, right, bottom.
VIEW, REPORT = (70, 92, 638, 1268), (680, 92, 1160, 552)
CALIBRATION = (64, 154, 956, 680)
WIDGETS = (0, 0, 350, 318)


class RecordedAttention:
    """Takes the place of the self-attention of one layer, with the recording of the nodes."""

    step = 0

    def __init__(self, attention, layer: int, run: Run):
        self.attention, self.layer, self.run = attention, layer, run
        self.state = ClusterState()
        attention.forward = self

    def __call__(self, x, rope):
        q, k, v = self.attention.project(x, x)
        q, k, v = (tensor.transpose(1, 2) for tensor in (rotate(q, rope).type_as(v), rotate(k, rope).type_as(v), v))
        reason = WARM_UP_STEP if RecordedAttention.step < WARM_UP else DENSE_BLOCK if self.layer == 0 else None
        if reason is not None:
            self.run.count_dense(reason)
            self.run.trace.count_dense(self.layer, LAYERS, RecordedAttention.step, reason)
            out = scaled_dot_product_attention(q, k, v)
        else:
            place = Place(self.layer, LAYERS, RecordedAttention.step, tuple(range(WARM_UP, STEPS)), ("cond",), GRID)
            observe = self.run.trace.observer(place, q.shape[1])
            result = sparse_attention(q, k, v, Options().settings(), state=self.state, observe=observe)
            self.run.count_sparse(result.statistics, place)
            out = result.output
        return self.attention.o(out.transpose(1, 2).flatten(2))


def record() -> RunRecord:
    """A run of the demo model."""
    run = Run(Options().recorded())
    run.architecture, run.steps = "Wan (the demo model)", STEPS
    model = sample.load_demo_model()
    for layer, block in enumerate(model.blocks):
        RecordedAttention(block.self_attn, layer, run)

    def progress(step, steps):
        RecordedAttention.step = step

    return run.finish(sample.sample(model, SEED, GRID, steps=STEPS, guidance=1.0, progress=progress))


def card(recorded: RoutingMap, title: str, subtitle: str) -> Image.Image:
    """A thumbnail: a routing map, and below it what the workflow is for."""
    width, height = CARD
    shown = arranged(recorded)
    colors = shade(error_level(shown.errors), ERROR)
    colors[shown.exact] = EXACT
    rows, columns = proportions(shown.group_sizes, 2 * (height - 100)), proportions(shown.cluster_sizes, 2 * width)
    image = Image.new("RGB", CARD, (24, 27, 32))
    image.paste(Image.fromarray(colors[rows][:, columns]).resize((width, height - 100), Image.Resampling.BOX))
    draw = ImageDraw.Draw(image)
    draw.text((24, height - 86), title, (255, 255, 255), ImageFont.load_default(size=34))
    draw.text((24, height - 40), f"SVG-EAR: {subtitle}", (176, 184, 194), ImageFont.load_default(size=19))
    return image


def main() -> None:
    run = record()
    maps = [recorded for recorded in run.trace.maps if recorded.layer > 1]
    chosen = next(recorded for recorded in maps if (recorded.layer, recorded.step) == (4, 3))
    picture = figure(run, chosen, 4, 1400)
    picture.save(ROOT / "docs" / "routed_blocks.png", optimize=True)
    picture.resize((1000, picture.height * 1000 // 1400), Image.Resampling.LANCZOS).save(HELP / "figure.jpg", quality=85, optimize=True)
    for name, (title, subtitle, number) in CARDS.items():
        card(maps[number], title, subtitle).save(ROOT / "workflows" / f"{name}.jpg", quality=80, optimize=True)

    dark, light = (Image.open(SCREENSHOTS / f"view_{kind}_pinned.png").convert("RGB") for kind in ("classic", "nodes2_light"))
    filled = Image.open(SCREENSHOTS / "view_classic_filled.png").convert("RGB")
    both = Image.new("RGB", (2 * (VIEW[2] - VIEW[0]) + 24, VIEW[3] - VIEW[1]), (255, 255, 255))
    both.paste(filled.crop(VIEW), (0, 0))
    both.paste(light.crop(VIEW), (VIEW[2] - VIEW[0] + 24, 0))
    both.save(ROOT / "docs" / "view.jpg", quality=88, optimize=True)
    dark.crop(VIEW).save(HELP / "view.jpg", quality=85, optimize=True)
    filled.crop(REPORT).save(HELP / "report.jpg", quality=85, optimize=True)
    Image.open(SCREENSHOTS / "attention.png").convert("RGB").crop(WIDGETS).save(HELP / "attention.jpg", quality=85, optimize=True)
    calibration = Image.open(SCREENSHOTS / "calibration_classic.png").convert("RGB")
    calibration.crop(CALIBRATION).save(HELP / "calibration.jpg", quality=85, optimize=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
