"""What we show in the browser is said in every language that we have: reasons, lines of reports, labels of the view."""

import ast
import copy
import json
import re

import pytest
from svg_ear.nodes.recording.reasons import REASONS
from svg_ear.nodes.recording.words import Joined, Text, counted, for_browser

from benchmarks.pack import ROOT

LANGUAGES = sorted(path.parent.name for path in (ROOT / "locales").glob("*/main.json"))
STRING = r'("(?:[^"\\]|\\.)*")'


def said_by_the_server():
    """The first words of every Text, Joined and counted in the code, and the reasons."""
    found = {text for reason in REASONS.values() for text in (reason.sentence, reason.remedy)}
    for path in (ROOT / "nodes").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(call.func, "id", None) if isinstance(call, ast.Call) else None
            if name == "counted":
                words = [word.value for word in call.args if isinstance(word, ast.Constant) and isinstance(word.value, str)]
                found |= {counted(number, *words).template for number in (1, 2)}
            elif name in ("Text", "Joined") and path.name != "words.py":
                assert isinstance(call.args[0], ast.Constant), f"{path.name}, line {call.lineno}: the text is not written out"
                found.add(call.args[0].value)
    return found


def said_by_the_browser():
    found = set()
    for path in (ROOT / "web").rglob("*.js"):
        if path.name == "language.js":
            continue
        source = path.read_text(encoding="utf-8")
        alone = re.findall(rf"\btranslate\({STRING}", source)
        assert len(alone) == source.count("translate("), f"{path.name}: a text is not written out"
        pairs = re.findall(rf"\bcounted\(\w+, {STRING}, {STRING}\)", source)
        assert len(pairs) == source.count("counted("), f"{path.name}: a text is not written out"
        found |= {json.loads(text) for text in (*alone, *(text for pair in pairs for text in pair))}
    return found


SAID = said_by_the_server() | said_by_the_browser()


def figures(template):
    return sorted(re.findall(r"\{\w+\}", template))


@pytest.fixture(params=LANGUAGES)
def translations(request):
    return json.loads((ROOT / "locales" / request.param / "main.json").read_text(encoding="utf-8"))["svgEar"]


def test_chinese_is_among_the_languages():
    assert "zh" in LANGUAGES


def test_every_text_is_translated(translations):
    """Those of figures and punctuation alone may be left out."""
    assert {text for text in SAID if re.search("[a-z]", re.sub(r"\{\w+\}", "", text))} - set(translations) == set()


def test_nothing_is_translated_that_is_no_longer_said(translations):
    assert set(translations) - SAID == set()


def test_translations_have_the_figures_of_the_english(translations):
    assert {text: said for text, said in translations.items() if figures(text) != figures(said)} == {}


def test_texts_are_copied_whole():
    for text in (Text("saved {time} of {dense}", time="3 s", dense=counted(2, "step")), Joined(", ", (counted(2, "warning"), "1.0 s"))):
        copied = copy.deepcopy(text)
        assert copied == text and for_browser(copied) == for_browser(text) != str(text)


def test_the_browser_gets_words_and_figures_apart():
    line = Joined(", ", (Text("saved {time} of {dense}", time="3 s", dense="9 s"), counted(2, "warning"), Text("Stopped early"), "1.0 s"))
    assert line == "saved 3 s of 9 s, 2 warnings, Stopped early, 1.0 s"
    assert for_browser(line) == {
        "between": ", ",
        "parts": [
            {"template": "saved {time} of {dense}", "figures": {"time": "3 s", "dense": "9 s"}},
            {"template": "{count} warnings", "figures": {"count": "2"}},
            "Stopped early",
            "1.0 s",
        ],
    }
