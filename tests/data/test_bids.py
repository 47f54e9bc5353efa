import pytest

from bundle.data.bids import CONDITION, OUTCOME, find_case, list_cases, read_participants
from bundle.errors import InputError


def write_participants(root, *lines):
    root.mkdir(exist_ok=True)
    (root / "participants.tsv").write_text("\n".join(("participant_id\ttreatment_arm", *lines)) + "\n")


def test_a_folder_any_file_in_it_and_a_label_name_the_same_patient(patient):
    root = patient.folder.parent
    whole = find_case(patient.folder)
    assert set(whole.volumes) == set(CONDITION + OUTCOME)
    assert set(whole.brain) == {"w000", "w048", "w096"}
    for place in (patient.path("flair_w000"), patient.path("gd_w048"), patient.path("brain_w048").parent):
        assert find_case(place) == whole
    assert find_case("sub-0001", root) == find_case("0001", root) == find_case("sub-0001", str(root)) == whole


def test_a_patient_is_found_from_inside_his_own_folder(patient, monkeypatch):
    monkeypatch.chdir(patient.folder)
    assert find_case("ses-w048") == find_case(patient.folder)


def test_uncompressed_files_are_found_too(patient):
    packed = patient.path("flair_w000")
    plain = packed.with_suffix("")
    packed.rename(plain)
    assert find_case(patient.folder).volumes["flair_w000"] == plain


def test_the_segmentation_before_the_outcome_counts(patient):
    path = patient.folder.parent / "derivatives/synthseg/sub-0001/ses-{0}/anat/sub-0001_ses-{0}_dseg.nii.gz"
    assert find_case(patient.folder).dseg is None
    for visit in ("w096", "w000", "w048"):
        file = path.with_name(path.name.format(visit)).parents[2] / f"ses-{visit}/anat" / path.name.format(visit)
        file.parent.mkdir(parents=True)
        file.touch()
        found = find_case(patient.folder).dseg
        assert (found and found.parent.parent.name) == {"w096": None, "w000": "ses-w000", "w048": "ses-w048"}[visit]


def test_the_arm_comes_from_the_request_then_from_participants_then_is_unknown(patient):
    assert find_case(patient.folder).arm == 6
    write_participants(patient.folder.parent, "sub-0001\tocrelizumab")
    assert find_case(patient.folder).arm == find_case(patient.folder, arm=[]).arm == 5
    assert find_case(patient.folder, arm=["avonex", "placebo"]).arm == 2
    assert find_case(patient.folder, arm="unknown").arm == 6


def test_participants_by_class_index(tmp_path):
    assert read_participants(tmp_path) == {}
    write_participants(tmp_path, "sub-a1\tplacebo", "sub-b2\tn/a", "sub-c3\tOcrelizumab")
    assert read_participants(tmp_path) == {"sub-a1": 0, "sub-b2": 6, "sub-c3": 5}


def test_participants_may_have_other_columns_a_byte_order_mark_and_windows_lines(tmp_path):
    text = "participant_id\tage\ttreatment_arm\r\nsub-a\t31\tavonex\r\n"
    (tmp_path / "participants.tsv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_participants(tmp_path) == {"sub-a": 2}


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["sub-1\tplacebo", "sub-1\tavonex"], "sub-1: .*listed twice; keep one"),
        (["sub-1\taspirin"], "sub-1: .*unknown treatment arm 'aspirin'; use one of placebo"),
        (["patient 1\tplacebo"], "participant_id 'patient 1'; write sub-"),
        (["\tplacebo"], "participant_id ''; write sub-"),
    ],
)
def test_wrong_participants_are_told_in_one_line(tmp_path, lines, told):
    write_participants(tmp_path, *lines)
    with pytest.raises(InputError, match=told) as error:
        read_participants(tmp_path)
    assert "participants.tsv" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"participant_id,treatment_arm\n", b"\xff\xfe\x00\x01\n"])
def test_participants_that_are_no_such_table(tmp_path, content):
    (tmp_path / "participants.tsv").write_bytes(content)
    with pytest.raises(InputError, match=r"participants.tsv: (no column|not a table).*tab-separated"):
        read_participants(tmp_path)


def test_an_unknown_arm_of_a_request_names_the_case(patient):
    with pytest.raises(InputError, match="sub-0001: unknown treatment arm 'aspirin'; .*; correct the arm"):
        find_case(patient.folder, arm="aspirin")


def test_nobody_there(tmp_path, patient):
    with pytest.raises(InputError, match="no patient 'sub-0009'; name a folder"):
        find_case("sub-0009", patient.folder.parent)
    with pytest.raises(InputError, match="not found; give a patient's folder"):
        find_case(tmp_path / "sub-0009")
    with pytest.raises(InputError, match="not inside a folder sub-"):
        find_case(tmp_path)


def test_cases_are_the_folders(make_patient, tmp_path):
    for name in ("sub-b", "sub-a"):
        make_patient(name)
    assert list_cases(tmp_path / "trial") == ["sub-a", "sub-b"]
    with pytest.raises(InputError, match="no sub-"):
        list_cases(tmp_path)
