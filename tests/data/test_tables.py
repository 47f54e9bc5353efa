import pytest

from bundle.data.bids import find_case
from bundle.data.tables import COVARIATES, arm_of, read_covariates, read_participants, read_treatments, visit_months
from bundle.errors import InputError


def write_participants(root, *lines):
    root.mkdir(exist_ok=True)
    (root / "participants.tsv").write_text("\n".join(("participant_id\ttreatment_arm", *lines)) + "\n")


def test_participants_by_class_index(tmp_path):
    assert read_participants(tmp_path) == {}
    write_participants(tmp_path, "sub-a1\tplacebo", "sub-b2\tn/a", "sub-c3\tOcrelizumab")
    assert read_participants(tmp_path) == {"sub-a1": 0, "sub-b2": 6, "sub-c3": 5}


def test_participants_may_have_other_columns_a_byte_order_mark_and_windows_lines(tmp_path):
    text = "participant_id\tage\ttreatment_arm\r\nsub-a\t31\tavonex\r\n"
    (tmp_path / "participants.tsv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_participants(tmp_path) == {"sub-a": 2}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["sub-1\tplacebo", "sub-1\tavonex"], "sub-1: .*listed twice; keep one"),
        (["sub-1\taspirin"], "sub-1: .*unknown treatment arm 'aspirin'; use one of placebo"),
        (["sub-1\t2"], "sub-1: .*unknown treatment arm '2'; use one of placebo"),
        (["sub-1\t\u00b2"], "sub-1: .*unknown treatment arm '\u00b2'; use one of placebo"),
        (["patient 1\tplacebo"], "participant_id 'patient 1'; write sub-"),
        (["\tplacebo"], "participant_id ''; write sub-"),
        (["sub-1\tplacebo\tavonex"], "line 2 has 3 columns, the first line 2; separate"),
        (["sub-1\tplacebo", "sub-2 avonex"], "line 3 has 1 columns, the first line 2; separate"),
    ],
)
def test_wrong_participants_are_reported_in_one_line(tmp_path, lines, message):
    write_participants(tmp_path, *lines)
    with pytest.raises(InputError, match=message) as error:
        read_participants(tmp_path)
    assert "participants.tsv" in str(error.value) and "\n" not in str(error.value)


def test_a_wrong_line_leaves_the_other_patients_usable(tmp_path):
    write_participants(tmp_path, "sub-1\tplacebo", "sub-1\tavonex", "02\tplacebo", "sub-3\tavonex")
    assert arm_of(tmp_path, "sub-3") == 2 and arm_of(tmp_path, "sub-4") is None
    with pytest.raises(InputError, match="sub-1: .*listed twice; keep one of the lines"):
        arm_of(tmp_path, "sub-1")
    with pytest.raises(InputError, match="sub-02: .*lists 02, not sub-02; write the label as the folder's"):
        arm_of(tmp_path, "sub-02")


def test_an_open_quote_swallows_no_row(tmp_path):
    write_participants(tmp_path, 'sub-1\t"placebo', "sub-2\tavonex")
    assert read_treatments(tmp_path) == {"sub-1": '"placebo', "sub-2": "avonex"}
    with pytest.raises(InputError, match="sub-1: .*unknown treatment arm"):
        read_participants(tmp_path)


@pytest.mark.parametrize("content", [b"", b"participant_id,treatment_arm\n", b"\xff\xfe\x00\x01\n"])
def test_participants_that_are_no_such_table(tmp_path, content):
    (tmp_path / "participants.tsv").write_bytes(content)
    with pytest.raises(InputError, match=r"participants.tsv: (no column|not a table).*tab-separated"):
        read_participants(tmp_path)


def test_participants_that_are_a_folder(tmp_path):
    (tmp_path / "participants.tsv").mkdir()
    with pytest.raises(
        InputError, match="^[^;:]*participants.tsv: is a folder; put a tab-separated table in its place$"
    ):
        read_participants(tmp_path)


def test_a_column_twice_is_refused(tmp_path):
    (tmp_path / "participants.tsv").write_text("participant_id\ttreatment_arm\ttreatment_arm\nsub-1\tplacebo\tavonex\n")
    with pytest.raises(InputError, match="two columns treatment_arm"):
        read_participants(tmp_path)


def test_the_label_of_the_table_must_be_that_of_the_folder(make_patient):
    patient = make_patient("sub-01")
    write_participants(patient.folder.parent, "sub-1\tplacebo", "sub-02\tavonex")
    with pytest.raises(InputError, match="sub-01: .*participants.tsv: lists sub-1, not sub-01; write the label as"):
        find_case(patient.folder)
    assert find_case(patient.folder, arm="avonex").arm == 2  # the table is not asked
    make_patient("sub-1")  # now sub-1 is another patient
    case = find_case(patient.folder)
    assert case.arm == 6 and case.warnings == ("not listed in participants.tsv: the treatment is taken as unknown",)


SESSIONS = {"w000": "ses-w000", "w048": "ses-w048"}


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("session_id\tacq_time\nses-w000\t2020-01-01\nses-w048\t2020-12-02T00:00:00Z\n", {"w000": 0, "w048": 11.04}),
        ("session_id\tmonths\nses-w048\t12.5\nses-w000\t1\n", {"w000": 0, "w048": 11.5}),
        ("session_id\tmonths\nses-w000\t0\nses-w048\tn/a\n", {"w000": 0, "w048": None}),
        ("session_id\tacq_time\nses-w048\t2020-01-01\n", {"w000": None, "w048": None}),
        ("session_id\tacq_time\nses-w000\tlong ago\nses-w048\t2020-01-01\n", {"w000": None, "w048": None}),
        (None, {"w000": None, "w048": None}),
    ],
)
def test_months_of_the_visits(tmp_path, table, expected):
    (tmp_path / "sub-1").mkdir()
    if table is not None:
        (tmp_path / "sub-1" / "sub-1_sessions.tsv").write_text(table)
    assert visit_months(tmp_path, "sub-1", SESSIONS) == expected


def test_covariates_are_numbers_or_unknown(tmp_path):
    rows = [
        "participant_id\ttreatment_arm\tage\tsex\tedss",
        "sub-1\tplacebo\t35\tF\t2.5",
        "sub-2\tplacebo\tn/a\tM\tinf",
    ]
    (tmp_path / "participants.tsv").write_text("\n".join(rows) + "\n")
    unknown = dict.fromkeys(COVARIATES)
    assert read_covariates(tmp_path, "sub-1") == unknown | {"age": 35, "sex": 1, "edss": 2.5}
    assert read_covariates(tmp_path, "sub-2") == unknown | {"sex": 0}
    assert read_covariates(tmp_path, "sub-3") == read_covariates(tmp_path / "none", "sub-1") == unknown
