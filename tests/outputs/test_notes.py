from bundle.outputs.notes import NOTES_SHOWN, wrap_notes


def test_long_notes_are_wrapped_and_what_has_no_room_is_said_to_be_in_the_json():
    assert wrap_notes([("short", True), ("remark", False)]) == [("short", True), ("remark", False)]
    lines = wrap_notes([("word " * 300, False), ("a warning at the end", True)])
    assert len(lines) == NOTES_SHOWN
    assert lines[-1] == ("More warnings and remarks are in the JSON file.", True)  # amber, as a warning is hidden
