"""Translations and help pages against the schemas of a real ComfyUI: complete, and nothing in them that is gone."""

import json
import re
import urllib.request

import pytest
from svg_ear.nodes.recording.reasons import REASONS

from benchmarks.pack import ROOT

LANGUAGES = ("en", "zh")
PICTURED = ("SVGEARAttention", "SVGEARRoutedBlocks", "SVGEARReport")
NODES = (
    *PICTURED,
    "SVGEARCompare",
    "SVGEARCustomSettings",
    "SVGEARSchedule",
    "SVGEARRecord",
    "SVGEARCalibrate",
    "SVGEARSaveCalibration",
    "SVGEARLoadCalibration",
    "SVGEARGPUCheck",
    "SVGEARRaylight",
    "SVGEARRaylightReport",
)
# The interface asks for <NodeId>/<language>.md and takes <NodeId>.md where there is none; pictures lie beside the latter.
HELP = {"en": "{}.md", "zh": "{}/zh.md"}
CHINESE = re.compile("[\u4e00-\u9fff]")


def inputs_of(schema):
    return {name: options for group in ("required", "optional") for name, options in schema["input"].get(group, {}).items()}


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_name_is_translated(client, language, node):
    texts = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    assert set(texts) == set(NODES)
    schema, found = client.object_info(node), texts[node]
    assert set(found["inputs"]) == set(inputs_of(schema))
    assert set(found["outputs"]) == {str(number) for number in range(len(schema["output"]))}
    assert all(entry["name"] for group in ("inputs", "outputs") for entry in found[group].values())
    if language == "en":
        assert found["display_name"] == schema["display_name"]
    else:
        said = [found["display_name"], found["description"]]
        said += [entry["tooltip"] for group in ("inputs", "outputs") for entry in found[group].values()]
        assert all(CHINESE.search(text) for text in said)


def test_the_server_serves_them(client):
    served = client.get("/i18n")
    for language in LANGUAGES:
        assert set(NODES) <= set(served[language]["nodeDefs"])


def help_of(node, language):
    return (ROOT / "web" / "docs" / HELP[language].format(node)).read_text(encoding="utf-8")


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("node", NODES)
def test_help_explains_every_input_and_has_its_pictures(client, node, language):
    page = help_of(node, language)
    explained = {name for cell in re.findall(r"^\| ([^|]+) \|", page, re.MULTILINE) for name in re.findall(r"`([a-z_]+)`", cell)}
    assert set(inputs_of(client.object_info(node))) <= explained
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", page)
    assert len(pictures) >= (node in PICTURED) and all((ROOT / "web" / "docs" / picture).is_file() for picture in pictures)


@pytest.mark.parametrize("node", NODES)
def test_chinese_help_says_what_the_english_says(node):
    """The same sections, rows and pictures in the same order."""
    english, chinese = (help_of(node, language) for language in LANGUAGES)
    assert CHINESE.search(chinese)
    for part in (r"^(#+) ", r"^\| (`[^|]+`) \|", r"!\[[^]]+\](\([^)]+\))"):
        found, expected = (re.findall(part, page, re.MULTILINE) for page in (chinese, english))
        assert found == expected


def test_help_says_what_to_do_about_every_reason():
    for language in LANGUAGES:
        pages = "".join(help_of(node, language) for node in NODES)
        assert [name for name in REASONS if f"`{name}`" not in pages] == []


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("node", NODES)
def test_the_server_serves_help_and_pictures(client, node, language):
    """Where the interface looks for them: beside the English page."""
    base = f"{client.address}/extensions/svg-ear/docs/"
    with urllib.request.urlopen(base + HELP[language].format(node), timeout=30) as answer:
        page = answer.read().decode()
    for picture in re.findall(r"!\[[^]]+\]\(([^)]+)\)", page):
        with urllib.request.urlopen(base + picture, timeout=30) as answer:
            assert answer.headers["Content-Type"] == "image/jpeg"
