import pytest

from bundle.outputs.notes import NOTES_SHOWN, horizon, wrap_notes


@pytest.mark.parametrize(("settings", "months"), [({"horizon_months": 18.5}, "18.5"), ({}, "11")])
def test_the_horizon_is_told_in_months(settings, months):
    both, first = (
        {"sampling": settings, "inputs": {"session": dict.fromkeys(visits)}} for visits in (("w000", "w048"), ("w000",))
    )
    assert horizon(both) == f"in the {months} months after the second scan"
    assert horizon(first) == f"in the {months} months after week 48"  # there was no second scan


def test_long_notes_are_wrapped_and_what_has_no_room_is_said_to_be_in_the_json():
    assert wrap_notes([("short", True), ("remark", False)]) == [("short", True), ("remark", False)]
    lines = wrap_notes([("word " * 300, False), ("a warning at the end", True)])
    assert len(lines) == NOTES_SHOWN
    assert lines[-1] == ("More warnings and remarks are in the JSON file.", True)  # amber, as a warning is hidden
