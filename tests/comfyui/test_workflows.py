"""The sample workflows against the schemas of a real ComfyUI: every widget value is one that the node accepts."""

import json
import sys

import pytest

from benchmarks.pack import ROOT

sys.path.append(str(ROOT / "scripts"))
from workflow import WIDGETS as OURS  # noqa: E402

WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
WIDGETS = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool, "COMBO": str}
ONLY_IN_THE_INTERFACE = {"Note"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_node_matches_its_schema(comfyui, path):
    for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
        if node["type"] in ONLY_IN_THE_INTERFACE:
            continue
        schema = comfyui.client.object_info(node["type"])
        assert schema, f"{node['type']} is not known"
        sockets, widgets = _inputs(schema)
        assert {entry["name"]: entry["type"] for entry in node["inputs"]}.items() <= sockets.items()
        linked = {entry["name"] for entry in node["inputs"] if entry["link"] is not None}
        required = set(schema["input_order"].get("required", ()))
        assert sockets.keys() & required <= linked, node["type"]
        outputs = [(entry["name"], entry["type"]) for entry in node["outputs"]]
        assert outputs == list(zip(schema["output_name"], schema["output"]))[: len(outputs)]
        left_out = {name for name, _, _ in widgets[len(node["widgets_values"]) :]}
        assert len(node["widgets_values"]) <= len(widgets), node["type"]
        # stock nodes grow widgets that older versions lack; ours are written in full
        assert not left_out & required and not (left_out and node["type"].startswith("SVGEAR")), (node["type"], left_out)
        if node["type"].startswith("SVGEAR"):
            named = dict(zip((name for name, _, _ in widgets), node["widgets_values"]))
            assert node.get("widgets_values_named", {}) == named
        for value, (name, kind, options) in zip(node["widgets_values"], widgets):
            _check(f"{node['type']}.{name}", value, kind, options)


@pytest.mark.parametrize("kind", OURS)
def test_our_widgets_are_written_in_the_order_of_the_schema(comfyui, kind):
    _, widgets = _inputs(comfyui.client.object_info(kind))
    assert list(OURS[kind]) == [name for name, _, _ in widgets]
    assert [value for value in OURS[kind].values() if value is not None] == [
        options["default"] for name, _, options in widgets if OURS[kind][name] is not None
    ]


def _inputs(schema):
    """Sockets by name, and the widgets in the order of ``widgets_values``, with the ones that the interface adds."""
    sockets, widgets = {}, []
    for section in ("required", "optional"):
        for name in schema["input_order"].get(section, ()):
            kind, options = (*schema["input"][section][name], {})[:2]
            kind = options.get("widgetType", kind)
            if isinstance(kind, list):
                kind, options = "COMBO", options | {"options": kind}
            elif kind == "COMFY_DYNAMICCOMBO_V3":  # choices that bring further widgets with them
                kind, options = "COMBO", options | {"options": [option["key"] for option in options["options"]]}
            if kind not in WIDGETS or options.get("forceInput"):
                sockets[name] = kind
                continue
            widgets.append((name, kind, options))
            if options.get("control_after_generate"):
                widgets.append(("control after generate", "COMBO", {"options": ["fixed", "randomize"]}))
            if options.get("image_upload"):
                widgets.append(("upload", "STRING", {}))
    return sockets, widgets


def _check(where, value, kind, options):
    assert isinstance(value, WIDGETS[kind]) and (kind == "BOOLEAN" or not isinstance(value, bool)), where
    if kind in ("INT", "FLOAT"):
        assert options.get("min", value) <= value <= options.get("max", value), where
    if kind == "COMBO" and not value.endswith((".safetensors", ".png")):  # files, which are not there
        assert value in options["options"], where
