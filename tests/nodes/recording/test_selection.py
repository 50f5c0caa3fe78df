import pytest
from svg_ear.nodes.recording.selection import Selection


@pytest.mark.parametrize(
    ("text", "selected"),
    [
        ("", []),
        ("0", [0]),
        (" 0, 1, 3-4 ", [0, 1, 3, 4]),
        ("-1", [5]),
        ("-2--1", [4, 5]),
        ("4 - -1,", [4, 5]),
        ("9", []),
    ],
)
def test_numbers_are_selected(text, selected):
    selection = Selection.parse(text, "dense_blocks")
    assert [number for number in range(6) if selection.selects(number, 6)] == selected


@pytest.mark.parametrize("text", ["first", "1-", "5-3", "-1--2", "1;2", "1.5"])
def test_invalid_text_and_its_input_are_named(text):
    with pytest.raises(ValueError, match="dense_blocks has '.*such as 0, 1, 38-39"):
        Selection.parse(text, "dense_blocks")


def test_automatic_is_not_a_selection():
    assert Selection.parse_or_automatic(" Auto ", "record_layers") is None
    assert not Selection.parse_or_automatic("", "record_layers").selects(0, 6)
