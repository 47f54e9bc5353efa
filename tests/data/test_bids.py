import gzip
import shutil

import pytest

from bundle.data.bids import CONDITION, OUTCOME, dataset_warnings, find_case, ignored_files, left_behind, list_cases
from bundle.errors import InputError


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
    table = "participant_id\ttreatment_arm\nsub-0001\tocrelizumab\n"
    (patient.folder.parent / "participants.tsv").write_text(table)
    assert find_case(patient.folder).arm == find_case(patient.folder, arm=[]).arm == 5
    assert find_case(patient.folder, arm=["as recorded", "placebo"]).arm == 5
    assert find_case(patient.folder, arm=["avonex", "placebo"]).arm == 2
    assert find_case(patient.folder, arm="unknown").arm == 6


def test_an_unknown_arm_of_a_request_names_the_case(patient):
    with pytest.raises(InputError, match="sub-0001: unknown treatment arm 'aspirin'; .*; correct the arm"):
        find_case(patient.folder, arm="aspirin")


def test_no_such_patient(tmp_path, patient):
    with pytest.raises(InputError, match="no patient 'sub-0009'; name a folder"):
        find_case("sub-0009", patient.folder.parent)
    with pytest.raises(InputError, match="not found; give a patient's folder"):
        find_case(tmp_path / "sub-0009")
    with pytest.raises(InputError, match="not inside a folder sub-"):
        find_case(tmp_path)


@pytest.mark.parametrize("name", ["x" * 300, "sub-" + "1" * 5000, "a\0b"])
def test_names_that_no_file_can_have(tmp_path, name):
    for arguments in ((name,), (name, tmp_path), ("sub-1", tmp_path / name)):
        with pytest.raises(InputError) as error:
            find_case(*arguments)
        assert "\n" not in str(error.value) and len(str(error.value)) < 6000


def test_cases_are_the_folders(make_patient, tmp_path):
    for name in ("sub-b", "sub-a"):
        make_patient(name)
    assert list_cases(tmp_path / "trial") == ["sub-a", "sub-b"]
    with pytest.raises(InputError, match="no sub-"):
        list_cases(tmp_path)


def test_a_data_set_may_be_named_by_a_number(make_patient, tmp_path, monkeypatch):
    make_patient("sub-1").folder.parent.rename(tmp_path / "123")
    monkeypatch.chdir(tmp_path)
    assert list_cases(123) == ["sub-1"] and find_case("sub-1", 123).id == "sub-1"


def test_folders_that_are_skipped_and_patients_that_are_not_listed_are_named(make_patient, tmp_path):
    root = make_patient("sub-01").folder.parent
    assert dataset_warnings(root) == [f"{root}: no participants.tsv: all treatments are taken as unknown"]
    assert dataset_warnings(root, arm_given=True) == []
    for name in ("sub-01_a", "sub-MS_001", "Sub-02", "sub-03", "subjects", "derivatives"):
        (root / name).mkdir(exist_ok=True)
    (root / "participants.tsv").write_text("participant_id\ttreatment_arm\nsub-01\tplacebo\n")
    assert dataset_warnings(root) == [
        f"{root}: skipped Sub-02, sub-01_a, sub-MS_001; patients' folders are named sub-<letters and digits>",
        f"{root}: not in participants.tsv: sub-03; their treatment is taken as unknown",
    ]
    for folder in ("derivatives/lesions/sub-1", "derivatives/lesion", "derivatives/freesurfer"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "participants.tsv").write_text("participant_id\ttreatment_arm\nsub-01\tplacebo\nsub-03\tplacebo\n3\tx\n")
    derivatives = root / "derivatives"
    assert dataset_warnings(root)[:-1] == [
        f"{root / 'participants.tsv'}: ignored participant_id '3'; write sub-<letters and digits>",
        f"{derivatives / 'lesion'}: ignored; it is read from derivatives/lesions",
        f"{derivatives / 'lesions'}: ignored sub-1; no patient has that name",
    ]
    (tmp_path / "other" / "sub-MS_001").mkdir(parents=True)
    with pytest.raises(InputError, match=r"no sub-\* folder \(skipped: sub-MS_001\)"):
        list_cases(tmp_path / "other")


def test_a_folder_that_cannot_be_read_is_one_line(patient, monkeypatch):
    """As for root every folder is readable, the refusal is simulated."""

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(patient.folder), "iterdir", refuse)
    for look in (lambda: list_cases(patient.folder.parent), lambda: find_case("sub-0001", patient.folder.parent)):
        with pytest.raises(InputError, match="cannot be read: Permission denied; check its name and rights"):
            look()


# ---- the root is never left


def derived(patient):
    """The same patient once more, registered, as a data set of its own in derivatives."""
    root = patient.folder.parent
    copy = root / "derivatives" / "registered"
    shutil.copytree(patient.folder, copy / patient.id)
    return copy


def test_a_data_set_inside_derivatives_is_the_one_that_is_read(patient):
    root = derived(patient)
    for case in (find_case("sub-0001", root), find_case(root / "sub-0001", root), find_case(root / "sub-0001")):
        assert case.dataset_dir == root
        assert set(case.volumes) == {"flair_w000", "flair_w048", "flair_w096"} and not case.brain
        assert all(root in path.parents for path in case.volumes.values())


def test_a_patient_of_another_data_set_is_refused(patient, tmp_path):
    (tmp_path / "elsewhere" / "sub-0001").mkdir(parents=True)
    for folder, root in (
        (patient.folder, tmp_path / "elsewhere"),
        (derived(patient) / "sub-0001", patient.folder.parent),
    ):
        with pytest.raises(InputError, match="sub-0001: not a patient of .*; give its own dataset_dir"):
            find_case(folder, root)


# ---- names


def renamed(patient, name, change):
    path = patient.path(name)
    return path.rename(path.with_name(change(path.name)))


@pytest.mark.parametrize(
    "entities", ["acq-3D", "run-1", "rec-norm", "ce-gad", "acq-3D_ce-gad_rec-norm_run-2", "run-1_acq-3D"]
)
def test_entities_are_accepted_where_one_file_fits(patient, entities):
    flair = renamed(patient, "flair_w000", lambda name: name.replace("_FLAIR", f"_{entities}_FLAIR"))
    mask = renamed(patient, "t2_w048", lambda name: name.replace("_label", f"_{entities}_label"))
    case = find_case(patient.folder)
    assert (case.volumes["flair_w000"], case.volumes["t2_w048"]) == (flair, mask)
    assert ignored_files(case) == []


@pytest.mark.parametrize("entities", ["acq-3D_acq-2D", "space-MNI", "acq", "desc-x"])
def test_other_entities_are_not(patient, entities):
    renamed(patient, "t2_w000", lambda name: name.replace("_label", f"_{entities}_label"))
    case = find_case(patient.folder)
    assert "t2_w000" not in case.volumes and len(ignored_files(case)) == 1


def test_two_files_that_fit_are_an_error_that_names_them(patient):
    path = patient.path("flair_w048")
    shutil.copy(path, path.with_name("sub-0001_ses-w048_acq-3D_FLAIR.nii.gz"))
    names = "sub-0001_ses-w048_FLAIR.nii.gz, sub-0001_ses-w048_acq-3D_FLAIR.nii.gz"
    with pytest.raises(InputError, match=f"sub-0001: .*several files fit: {names}; keep one of them"):
        find_case(patient.folder)


def test_compressed_and_not_must_be_the_same(patient):
    packed = patient.path("flair_w000")
    plain = packed.with_suffix("")
    content = gzip.decompress(packed.read_bytes())
    plain.write_bytes(content)
    assert find_case(patient.folder).volumes["flair_w000"] == packed
    for other in (content[:-1] + b"!", content + b"x", content[:-5], b""):
        plain.write_bytes(other)
        with pytest.raises(InputError, match="differs from sub-0001_ses-w000_FLAIR.nii.gz; keep the right one"):
            find_case(patient.folder)


def test_near_misses_are_named(patient):
    anat = patient.path("t2_w000").parent
    assert ignored_files(find_case(patient.folder)) == []
    renamed(patient, "t2_w000", lambda name: name.replace("T2lesion", "lesion"))
    (patient.folder / "ses-w000" / "FLAIR.nii.gz").touch()
    (patient.folder / "ses-w000" / "anat" / "sub-0001_ses-w000_T1w.nii.gz").touch()  # no miss
    (patient.folder / "ses-w024" / "anat").mkdir(parents=True)  # another visit of the patient
    (patient.folder / "ses-w024" / "anat" / "sub-0001_ses-w024_FLAIR.nii.gz").touch()
    misplaced = anat.parents[1] / "ses-01" / "anat" / "sub-0001_ses-01_label-T2lesion_mask.nii.gz"
    misplaced.parent.mkdir(parents=True)
    misplaced.touch()
    (line,) = ignored_files(find_case(patient.folder))
    for path in ("sub-0001/ses-w000/FLAIR.nii.gz", "sub-0001_ses-w000_label-lesion_mask.nii.gz", "/ses-w000/FLAIR"):
        assert path in line
    assert "T1w" not in line and "w024" not in line and "label-T2lesion_mask" in line and "\n" not in line
    assert "ses-01" not in line or "derivatives" in line


@pytest.mark.parametrize(
    "place",
    [
        "sub-0001/ses-w000/anat/sub-0001_ses-w000_label-T2lesion_mask.nii.gz",
        "derivatives/lesions/sub-0001/ses-01/anat/sub-0001_ses-01_label-T2lesion_mask.nii.gz",
        "derivatives/lesions/sub-0001/ses-w000/anat/sub-0001_ses-w000_label-T2lesion_mask.mgz",
        "sub-0001/ses-w000/anat/sub-0001_ses-w000_FLAIR.NII.GZ",
    ],
)
def test_a_file_in_another_place_or_format_is_named(patient, place):
    path = patient.folder.parent / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    (line,) = ignored_files(find_case(patient.folder))
    assert place in line


def test_sessions_may_have_other_names(patient):
    root, names = patient.folder.parent, {"w000": "ses-01", "w048": "ses-02"}
    before = find_case(patient.folder)
    for part in (root, root / "derivatives" / "lesions", root / "derivatives" / "brain"):
        for visit, session in names.items():
            folder = (part / "sub-0001" / f"ses-{visit}").rename(part / "sub-0001" / session)
            for path in (folder / "anat").iterdir():
                path.rename(path.with_name(path.name.replace(f"ses-{visit}", session)))
    assert set(find_case(patient.folder).volumes) == {"flair_w096", "net2_w096"}
    for visits in (names, {"w000": "01", "w048": "02"}):
        case = find_case(patient.folder, visits=visits)
        assert set(case.volumes) == set(before.volumes) and set(case.brain) == set(before.brain)
        assert case.sessions == {"w000": "ses-01", "w048": "ses-02", "w096": "ses-w096"}
    assert case.expected_path("flair_w048") == case.volumes["flair_w048"]
    assert case.existing_sessions() == ["ses-01", "ses-02", "ses-w096"]


@pytest.mark.parametrize(
    ("visits", "message"),
    [
        ("ses-01", "visits 'ses-01' is not a mapping; give --visits"),
        (["ses-01", "ses-02"], "is not a mapping"),
        ({"w024": "ses-01"}, "visits names 'w024', which is none of w000, w048, w096"),
        ({"w000": "../w048"}, "visits names the session '../w048'"),
        ({"w000": ""}, "visits names the session ''"),
        ({"w000": "w048"}, "visits maps two visits to one session"),
    ],
)
def test_wrong_mappings(patient, visits, message):
    with pytest.raises(InputError, match=message):
        find_case(patient.folder, visits=visits)


def test_a_scan_outside_any_patients_folder_is_a_patient_with_one_flair(patient, tmp_path):
    scan = shutil.copy(patient.path("flair_w048"), tmp_path / "Jane_Doe.nii.gz")
    case = find_case(scan)
    assert case.is_single_scan and dict(case.volumes) == {"flair_w000": scan} and case.arm == 6
    assert case.warnings == ("a single FLAIR, taken as that of w000; unknown: second visit, masks, treatment",)
    again = find_case(shutil.copy(scan, tmp_path / "upload.nii.gz"), arm="avonex")
    assert again.id == case.id and "Jane" not in case.id and again.arm == 2
    assert again.warnings == ("a single FLAIR, taken as that of w000; unknown: second visit, masks",)
    assert find_case(shutil.copy(patient.path("flair_w000"), tmp_path / "other.nii.gz")).id != case.id
    with pytest.raises(InputError, match="not inside a folder sub-"):
        find_case(shutil.copy(scan, tmp_path / "scan.dcm"))


def test_an_outcome_can_be_given_with_the_request(patient, tmp_path):
    label = tmp_path / "label.nii.gz"
    assert find_case(patient.folder, outcome=label).volumes["net2_w096"] == label


def test_a_folder_copied_without_its_data_set_is_said_to_lack_what_lay_elsewhere(patient, tmp_path):
    assert left_behind(find_case(patient.folder)) == []
    copied = shutil.copytree(patient.folder, tmp_path / "copied" / patient.id)
    assert "masks and treatment unknown" in left_behind(find_case(copied))[0]
    assert left_behind(find_case(copied, arm="avonex"))[0].endswith(": masks unknown")
