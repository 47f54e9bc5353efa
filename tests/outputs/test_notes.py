from bundle.outputs.notes import NOTES_SHOWN, percent, wrap_notes


def test_per_cents_never_claim_a_certainty_that_is_not():
    assert [percent(fraction) for fraction in (0, 0.004, 0.01, 0.256, 0.99, 0.996, 1)] == [
        "0 %",
        "< 1 %",
        "1 %",
        "26 %",
        "99 %",
        "> 99 %",
        "100 %",
    ]


def test_long_notes_are_wrapped_and_what_has_no_room_is_said_to_be_in_the_json():
    assert wrap_notes([("short", True), ("remark", False)]) == [("short", True), ("remark", False)]
    lines = wrap_notes([("word " * 300, False), ("a warning at the end", True)])
    assert len(lines) == NOTES_SHOWN
    assert lines[-1] == ("More warnings and remarks stand in the JSON file.", True)  # amber, as a warning is hidden
