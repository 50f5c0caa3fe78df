from svg_ear.nodes.recording import reasons
from svg_ear.nodes.recording.reasons import REASONS, Reason, StrictModeError


def test_names_are_short_and_unique():
    assert len(REASONS) == sum(isinstance(value, Reason) for value in vars(reasons).values())
    assert all(name == name.lower() and " " not in name and len(name) < 26 for name in REASONS)


def test_what_the_user_did_not_ask_for_says_what_to_change():
    for reason in REASONS.values():
        assert reason.sentence.endswith(".")
        assert reason.by_design or reason.remedy.endswith(".")


def test_strict_error_names_the_reason_and_the_remedy():
    reason = REASONS["head-dim"]
    message = str(StrictModeError(reason))
    assert "head-dim" in message and reason.remedy in message
