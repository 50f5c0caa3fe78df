"""The real interface in a real browser: the sample workflows, and the view of SVG-EAR Routed Blocks used as a person would.

Screenshots go to build/screenshots for a person to look at.
"""

import json
import re
import shutil

import numpy as np
import pytest
from harness import browser
from harness.graphs import Graph
from svg_ear.nodes.recording.reasons import REASONS
from test_calibration import calibrating

from benchmarks.checkout import find_checkout
from benchmarks.demo_model import sample
from benchmarks.pack import ROOT

WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
CHECKOUT = find_checkout()
# With seeds of their own, so that each samples.
KINDS = {"classic": {"vueNodes": False, "light": False, "seed": 3}, "nodes 2.0, light theme": {"vueNodes": True, "light": True, "seed": 4}}
MAP, DENSITY, ERROR, VIDEO = range(4)
CHINESE = re.compile("[\u4e00-\u9fff]")
KEPT_WORDS = {"token", "cond", "uncond"}


@pytest.fixture(scope="module")
def drive(comfyui, tmp_path_factory):
    """``drive(script, request)``: what a script of this folder saw."""
    tools = browser.install()
    # the picture that a new LoadImage node shows
    shutil.copytree(CHECKOUT.path / "input", comfyui.base / "input", dirs_exist_ok=True)

    def run(script, request):
        profile = tmp_path_factory.mktemp("profile")
        return tools.drive(script, comfyui.client.address, profile, request)

    return run


@pytest.mark.parametrize("vue_nodes", [False, True], ids=["classic", "nodes 2.0"])
def test_every_workflow_opens_clean(drive, vue_nodes):
    request = {"workflows": [str(path) for path in WORKFLOWS], "portrait": "wan21_14b_i2v", "vueNodes": vue_nodes}
    found = drive("check_workflows.mjs", request)
    assert set(found) == {path.stem for path in WORKFLOWS}
    faults = {
        name: {kind: seen[kind] for kind in ("missing", "overlaps", "rejected", "errors") if seen[kind]} for name, seen in found.items()
    }
    assert not any(faults.values()), faults
    assert all(seen["told"] for seen in found.values()), "no node shows its line"


@pytest.fixture(scope="module")
def panel(drive):
    """What check_panel.mjs saw of the nodes that hold a widget of ours."""
    nodes = ["SVGEARRoutedBlocks", "SVGEARReport", "SVGEARSaveCalibration", "SVGEARCompare", "SVGEARGPUCheck"]
    return drive("check_panel.mjs", {"nodes": nodes, "locales": ["en", "zh", "zh-TW", "fr"]})


def test_the_properties_panel_leaves_our_widgets_as_they_are(panel):
    """The panel draws the widgets of the node that is chosen, and used to leave its own width on ours."""
    assert panel["errors"] == [] and panel["panel"]
    for kind, widths in panel["widths"].items():
        assert widths["before"] > 300 and set(widths.values()) == {widths["before"]}, (kind, widths)


@pytest.mark.parametrize(("locale", "said"), [("en", "Run "), ("zh", "\u8fd0\u884c"), ("zh-TW", "\u8fd0\u884c"), ("fr", "Run ")])
def test_placeholders_speak_the_language_of_the_interface(panel, locale, said):
    placeholders = panel["placeholders"][locale]
    assert len(placeholders) == 4 and all(said in text for text in placeholders)


@pytest.mark.parametrize("vue_nodes", [False, True], ids=["classic", "nodes 2.0"])
def test_the_calibrating_nodes_say_how_far_they_are(drive, vue_nodes):
    # A number of its own, because ComfyUI keeps the runs of an equal node.
    name = "wan_nodes2" if vue_nodes else "wan_classic"
    graph, _, saved = calibrating(name, runs=2, restart=1 + vue_nodes)
    calibrate = next(name for name, node in graph.nodes.items() if node["class_type"] == "SVGEARCalibrate")
    seen = drive("check_calibration.mjs", {"prompt": graph.nodes, "calibrate": calibrate, "save": saved.id, "vueNodes": vue_nodes})
    assert seen["errors"] == []
    assert seen["before"]["text"] == "" and "how many runs" in seen["before"]["placeholder"]
    assert seen["first"]["status"] == "1 of 2 runs gathered. Queue again with another prompt and seed."
    assert f"Saved models/svg_ear/{name}.safetensors" in seen["second"]["status"]
    assert "Shapes of blocks" in seen["second"]["text"] and seen["second"]["height"] > 120
    assert "2 runs gathered" in seen["second"]["told"]


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def seen(request, comfyui, drive):
    """The states that the view went through, in the order of check_view.mjs."""
    weights = comfyui.models_dir / sample.WEIGHTS.name
    if not weights.exists():
        weights.symlink_to(sample.WEIGHTS)
    return drive("check_view.mjs", workflow(comfyui, request.param["seed"]) | request.param)


def workflow(comfyui, seed, grid=sample.SMALL_GRID):
    """The trained model with guidance, its report and its routed blocks."""
    inputs = comfyui.base / "input"
    inputs.mkdir(exist_ok=True)
    graph = Graph()
    model = graph.add("UNETLoader", unet_name=sample.WEIGHTS.name, weight_dtype="default")[0]
    patched = graph.add(
        "SVGEARAttention", model=graph.add("ModelSamplingSD3", model=model, shift=5.0)[0], min_tokens=0, warm_up_density=0, density=0.1
    )
    conditions = {}
    for name, tokens in zip(("positive", "negative"), sample.conditioning(seed, grid)):
        np.save(inputs / f"browser-{name}-{seed}.npy", tokens.numpy())
        conditions[name] = graph.add("SVGEARTestConditioning", seed=0, tokens=0, channels=0, file=f"browser-{name}-{seed}.npy")[0]
    noise = graph.latent((16, grid[0], 2 * grid[1], 2 * grid[2]))
    sampled = graph.sample(patched[0], noise, **conditions, seed=seed, steps=5, cfg=3.0)
    view = graph.add("SVGEARRoutedBlocks", model=patched[0], latent=sampled)
    report = graph.add("SVGEARReport", model=patched[0], latent=sampled)
    graph.add("PreviewImage", images=view[0])
    return {"prompt": graph.nodes, "node": view.id, "report": report.id, "attention": patched.id}


def changed(before, after):
    """Which of the four pictures differ."""
    return {place for place, (old, new) in enumerate(zip(before["pictures"], after["pictures"])) if old != new}


def test_nothing_of_ours_is_complained_about(seen):
    assert seen["errors"] == []


def test_a_run_fills_the_view(seen):
    assert seen["empty"]["filled"] == "empty" and seen["first"]["filled"] == "filled"
    assert all(count > 20 for count in np.array(seen["first"]["colors"])[[MAP, VIDEO]])
    found = re.search(r"Layer 4, step 3, head 0, cond: ([\d.]+) % exact", seen["first"]["summary"])
    assert float(found[1]) == pytest.approx(10, abs=0.5)


def test_layer_head_and_branch_change_the_pictures(seen):
    assert {MAP, VIDEO} <= changed(seen["first"], seen["otherLayer"])
    assert {MAP, VIDEO} <= changed(seen["otherLayer"], seen["otherHead"])
    assert {MAP, ERROR, VIDEO} <= changed(seen["otherHead"], seen["otherBranch"])
    assert seen["otherHead"]["chosen"] == {"run": "0", "layer": "7", "step": "3", "head": "1", "branch": "cond"}


def test_a_layer_without_a_map_still_has_its_figures(seen):
    assert re.search(r"Layer 5, step 3, head 1, uncond: (9|10)\.", seen["withoutMap"]["summary"])
    assert seen["withoutMap"]["colors"][MAP] < 300
    assert changed(seen["otherBranch"], seen["back"]) == set()


def test_hovering_explains(seen):
    assert "1 query group (" in seen["overBlock"]["info"] and "1 key cluster (" in seen["overBlock"]["info"]
    assert {MAP, VIDEO} == changed(seen["back"], seen["overBlock"])
    assert "dense, warm-up-step" in seen["overDense"]["info"] and "dense_first_steps" in seen["overDense"]["info"]
    assert "of the queries see it exactly" in seen["overToken"]["info"]


def test_a_token_can_be_pinned(seen):
    assert {MAP, VIDEO} == changed(seen["overToken"], seen["pinned"])
    assert changed(seen["back"], seen["unpinned"]) == set()


def test_the_keyboard_is_enough(seen):
    assert changed(seen["unpinned"], seen["nextFrame"]) == {VIDEO}
    assert "query group" in seen["keyboard"]["info"] and MAP in changed(seen["nextFrame"], seen["keyboard"])
    assert seen["keyboardTable"]["chosen"]["layer"] == "5"


def test_missing_and_unknown_data_break_nothing(seen):
    assert changed(seen["keyboardTable"], seen["afterNothing"]) == set()
    assert seen["afterUnknown"]["filled"] == seen["withoutRuns"]["filled"] == "empty"
    assert "another version" in seen["afterUnknown"]["says"] and "No run was recorded" in seen["withoutRuns"]["says"]


def test_a_saved_workflow_opens_as_it_was_left(seen):
    assert seen["reloaded"]["filled"] == "filled"
    assert seen["reloaded"]["chosen"] == seen["keyboardTable"]["chosen"]
    assert seen["reloaded"]["summary"] == seen["keyboardTable"]["summary"], "it sampled again"


def test_nothing_is_clipped(seen):
    for name, state in seen.items():
        if name not in ("errors", "help"):
            assert state["clipped"] == [] and not state["scrolls"], name


def test_the_status_is_on_both_nodes(seen):
    for text in (seen["first"]["status"], seen["first"]["told"]):
        assert "28 of 40 calls sparse" in text


def test_the_help_panel_shows_page_and_pictures(seen):
    assert {"SVG-EAR Routed Blocks", "Reading the view", "When something is missing"} <= set(seen["help"]["titles"])
    assert len(seen["help"]["pictures"]) == 2 and min(seen["help"]["pictures"]) > 0


@pytest.mark.parametrize("light", [False, True], ids=["dark", "light"])
def test_reasons_view_and_report_speak_chinese(comfyui, drive, light):
    """And English once the language was changed."""
    weights = comfyui.models_dir / sample.WEIGHTS.name
    if not weights.exists():
        weights.symlink_to(sample.WEIGHTS)
    found = drive("check_language.mjs", workflow(comfyui, 5) | {"locale": "zh", "then": "en", "light": light})
    chinese, english = found["first"], found["then"]
    assert not CHINESE.search(found["empty"] + "".join(english.values())) and "Run the workflow" in found["empty"]
    reason = REASONS["warm-up-step"]
    translations = json.loads((ROOT / "locales" / "zh" / "main.json").read_text(encoding="utf-8"))["svgEar"]
    assert found["errors"] == []
    assert translations[reason.sentence] + translations[reason.remedy] in chinese["dense"] and "warm-up-step" in chinese["dense"]
    assert reason.sentence in english["dense"] and reason.remedy in english["dense"]
    for part in ("block", "token", "view", "report", "status"):
        assert CHINESE.search(chinese[part]), part
    # Names of inputs, reasons, models and units are the same in every language.
    assert {word for word in re.findall("[A-Za-z][a-z]{3,}", chinese["view"] + chinese["block"] + chinese["token"])} <= KEPT_WORDS
    assert "28" in chinese["status"] and translations["Dense calls: {count}"].split("{")[0] in chinese["report"]
