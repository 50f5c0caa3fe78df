"""What the end of a run says of the tests that were skipped."""

from left_out import NO_CHECKOUT_REASON, NO_GPU_REASON, explained


def test_skips_are_counted_and_explained():
    lines = explained([f"Skipped: {NO_GPU_REASON}"] * 37 + [f"Skipped: {NO_CHECKOUT_REASON}", "Skipped: make is not installed"])
    assert lines[0].startswith("39 tests were skipped")
    assert "37 need a CUDA GPU" in lines[1] and "1 need a ComfyUI: set COMFYUI_PATH" in lines[2] and "make is not installed" in lines[3]
    assert "docs/contributing.md" in lines[-1]


def test_where_nothing_was_skipped_nothing_is_said():
    assert explained([]) == []
