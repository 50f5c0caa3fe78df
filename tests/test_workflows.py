"""The sample workflows by themselves: consistent links, known nodes, nothing on top of anything else."""

import json
from itertools import combinations
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "workflows"
WORKFLOWS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}
TITLE = 30
OURS = {"SVGEARAttention", "SVGEARRecord", "SVGEARRoutedBlocks", "SVGEARReport"}
COMPARING = {"SVGEARCompare"}
CALIBRATING = {"SVGEARCalibrate", "SVGEARSaveCalibration", "SVGEARLoadCalibration"}
STOCK = {
    "BasicScheduler",
    "CFGGuider",
    "CLIPLoader",
    "CLIPTextEncode",
    "CLIPVisionEncode",
    "CLIPVisionLoader",
    "CheckpointLoaderSimple",
    "ConditioningZeroOut",
    "CreateVideo",
    "DualCLIPLoader",
    "EmptyHunyuanLatentVideo",
    "EmptyHunyuanVideo15Latent",
    "EmptyLTXVLatentVideo",
    "FluxGuidance",
    "KSampler",
    "KSamplerAdvanced",
    "KSamplerSelect",
    "LTXAVTextEncoderLoader",
    "LTXVAudioVAEDecode",
    "LTXVAudioVAELoader",
    "LTXVConcatAVLatent",
    "LTXVConditioning",
    "LTXVEmptyLatentAudio",
    "LTXVLatentUpsampler",
    "LTXVSeparateAVLatent",
    "LatentUpscaleModelLoader",
    "LoadImage",
    "LoraLoaderModelOnly",
    "ManualSigmas",
    "MiniMaxH3ImageToVideo",
    "ModelSamplingSD3",
    "Note",
    "PreviewImage",
    "RandomNoise",
    "SamplerCustom",
    "SamplerCustomAdvanced",
    "SaveVideo",
    "UNETLoader",
    "VAEDecode",
    "VAEDecodeAudio",
    "VAEDecodeTiled",
    "VAELoader",
    "Wan22ImageToVideoLatent",
    "WanImageToVideo",
}

every_workflow = pytest.mark.parametrize("workflow", WORKFLOWS.values(), ids=WORKFLOWS)


def test_every_architecture_has_one():
    named = {"wan22_14b_t2v", "wan21_14b_i2v", "wan22_5b_ti2v", "hunyuan_video_t2v", "hunyuan_video_15_t2v", "ltx23_t2v", "minimax_h3"}
    assert named <= set(WORKFLOWS)


def test_one_shows_everything_beside_the_sampler():
    nodes = WORKFLOWS["wan21_1_3b_routed_blocks"]["nodes"]
    assert OURS <= {node["type"] for node in nodes}


def test_one_saves_the_calibration_that_another_loads():
    def values(workflow, kind):
        return next(node["widgets_values"] for node in WORKFLOWS[workflow]["nodes"] if node["type"] == kind)

    saved = values("wan21_1_3b_calibrate", "SVGEARSaveCalibration")[0]
    assert f"{saved}.safetensors" in values("wan21_1_3b_calibrated", "SVGEARLoadCalibration")
    assert "custom" in values("wan21_1_3b_calibrated", "SVGEARAttention")


def test_one_compares_runs_that_differ_in_their_model_only():
    workflow = WORKFLOWS["wan21_1_3b_compare"]
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: link for link in workflow["links"]}

    def sources(node):
        return {socket["name"]: links[socket["link"]][1] for socket in node["inputs"] if socket["link"] is not None}

    dense, sparse = (node for node in workflow["nodes"] if node["type"] == "SamplerCustomAdvanced")
    assert {name for name, source in sources(dense).items() if sources(sparse)[name] != source} == {"guider"}
    guiders = [nodes[sources(sampler)["guider"]] for sampler in (dense, sparse)]
    assert guiders[0]["widgets_values"] == guiders[1]["widgets_values"]
    patches = [nodes[sources(guider)["model"]] for guider in guiders]
    assert sources(patches[0]) == sources(patches[1]) and [patch["type"] for patch in patches] == ["SVGEARAttention"] * 2
    assert 10000 in patches[0]["widgets_values"] and 10000 not in patches[1]["widgets_values"]
    (compare,) = (node for node in workflow["nodes"] if node["type"] == "SVGEARCompare")
    found = sources(compare)
    assert len(found) == 6
    for name, sampler, patch in (("dense", dense, patches[0]), ("sparse", sparse, patches[1])):
        assert (found[f"{name}_model"], found[f"{name}_latent"]) == (patch["id"], sampler["id"])
        assert sources(nodes[found[name]])["samples"] == sampler["id"]


def test_the_one_that_loads_a_calibration_says_to_make_it_first():
    (note,) = (node for node in WORKFLOWS["wan21_1_3b_calibrated"]["nodes"] if node["type"] == "Note")
    assert "First run the workflow wan21_1_3b_calibrate" in note["widgets_values"][0]


@every_workflow
def test_every_one_has_a_thumbnail(workflow):
    name = workflow["id"].removeprefix("svg-ear-")
    assert (FOLDER / f"{name}.jpg").read_bytes()[:3] == b"\xff\xd8\xff"


@every_workflow
def test_only_stock_nodes_and_ours(workflow):
    assert {node["type"] for node in workflow["nodes"]} <= OURS | COMPARING | CALIBRATING | STOCK


@every_workflow
def test_both_ends_of_every_link_agree(workflow):
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert len(nodes) == len(workflow["nodes"])
    for link, source, source_slot, target, target_slot, kind in workflow["links"]:
        output, socket = nodes[source]["outputs"][source_slot], nodes[target]["inputs"][target_slot]
        assert link in output["links"] and socket["link"] == link
        assert output["type"] == socket["type"] == kind
    known = {link[0] for link in workflow["links"]}
    for node in workflow["nodes"]:
        used = {link for output in node["outputs"] for link in output["links"]}
        used |= {socket["link"] for socket in node["inputs"] if socket["link"] is not None}
        assert used <= known
    assert workflow["last_link_id"] == max(known) and workflow["last_node_id"] == max(nodes)


@every_workflow
def test_every_sampler_runs_a_patched_model_and_has_a_report(workflow):
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: link for link in workflow["links"]}

    def source(node, name):
        link = next(socket["link"] for socket in node["inputs"] if socket["name"] == name)
        return nodes[links[link][1]]

    samplers = [node for node in workflow["nodes"] if node["type"] in ("KSampler", "KSamplerAdvanced", "SamplerCustom")]
    if any(node["type"] in COMPARING for node in workflow["nodes"]):
        return
    # A calibrating run has nothing to report; what it found is saved.
    calibrates = any(node["type"] == "SVGEARCalibrate" for node in workflow["nodes"])
    patch, behind = ("SVGEARCalibrate", "SVGEARSaveCalibration") if calibrates else ("SVGEARAttention", "SVGEARReport")
    reports = [node for node in workflow["nodes"] if node["type"] == behind]
    assert samplers and all(source(node, "model")["type"] == patch for node in samplers)
    reported = {(source(node, "model")["id"], source(node, "latent")["id"]) for node in reports}
    assert reported == {(source(node, "model")["id"], node["id"]) for node in samplers}


@every_workflow
def test_models_can_be_had_and_are_named_in_the_note(workflow):
    (note,) = [node for node in workflow["nodes"] if node["type"] == "Note"]
    for node in workflow["nodes"]:
        if node["type"] == "SVGEARLoadCalibration":
            continue
        files = [value for value in node["widgets_values"] if str(value).endswith(".safetensors")]
        models = node["properties"].get("models", [])
        assert files == [model["name"] for model in models]
        for model in models:
            folder, name = model["url"].split("/")[-2:]
            assert model["url"].startswith("https://") and name == model["name"] and folder in (model["directory"], "main")
            assert f"models/{model['directory']}/{model['name']}" in note["widgets_values"][0]


@every_workflow
def test_nothing_overlaps_and_every_node_lies_in_a_group(workflow):
    boxes = [(*_box(node), node["type"]) for node in workflow["nodes"]]
    groups = [group["bounding"] for group in workflow["groups"]]
    assert all(group["title"] for group in workflow["groups"])
    for first, second in combinations(boxes, 2):
        assert not _overlap(first, second), f"{first[4]} and {second[4]}"
    for first, second in combinations(groups, 2):
        assert not _overlap(first, second)
    for x, y, width, height, kind in boxes:
        inside = [gx <= x and gy <= y and x + width <= gx + gw and y + height <= gy + gh for gx, gy, gw, gh in groups]
        assert sum(inside) == 1, kind


def _box(node):
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, width, height + TITLE


def _overlap(first, second):
    return all(first[axis] < second[axis] + second[axis + 2] and second[axis] < first[axis] + first[axis + 2] for axis in (0, 1))
