import json
from datetime import date

import numpy as np
import pytest
from preparation_scans import write_dicom

from bundle.data.preparation.sources import Scan, Study, assign_visits, find_subjects
from bundle.data.preparation.study_list import read_rows
from bundle.errors import InputError
from bundle.lesions import Volume

SMALL = Volume(np.arange(4 * 5 * 9.0).reshape(4, 5, 9), np.diag([2.0, 2, 3, 1]))


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def scans_of(subject):
    return [{kind: scan.files[0].name for kind, scan in study.scans.items()} for study in subject.studies]


def study(months, visit=None):
    return Study((str(months),), months, visit, {"flair": Scan(())})


def test_folders_of_patients_with_numbered_visits(tmp_path):
    touch(tmp_path, "patient01/study1_FLAIR.nii.gz", "patient01/study2_FLAIR.nii.gz", "patient01/brainmask.txt")
    touch(tmp_path, "patient02/v2/t2_tse.nii", "patient02/v10/flair.nii", "patient02/v2/dark-fluid.nii")
    one, two = find_subjects(tmp_path)
    assert (one.key, one.label) == ("patient01", None)
    assert scans_of(one) == [{"flair": "study1_FLAIR.nii.gz"}, {"flair": "study2_FLAIR.nii.gz"}]
    assert scans_of(two) == [{"flair": "dark-fluid.nii"}, {"flair": "flair.nii"}]


def test_bids_with_any_session_names_keeps_labels_masks_months_and_arms(tmp_path):
    for session in ("base", "followup"):
        stem = f"sub-7/ses-{session}/anat/sub-7_ses-{session}"
        touch(tmp_path, f"{stem}_FLAIR.nii.gz", f"{stem}_T1w.nii.gz")
        touch(tmp_path, f"derivatives/x/{stem}_label-T2lesion_mask.nii.gz")
        touch(tmp_path, f"derivatives/x/{stem}_label-Gdlesion_mask.nii.gz", f"derivatives/x/{stem}_desc-brain_mask.nii")
    touch(tmp_path, "derivatives/x/sub-7/ses-followup/anat/sub-7_ses-followup_label-NET2_mask.nii.gz")
    (tmp_path / "participants.tsv").write_text("participant_id\ttreatment_arm\nsub-7\tavonex\n")
    (tmp_path / "sub-7/sub-7_sessions.tsv").write_text("session_id\tmonths\nses-base\t20\nses-followup\t31.5\n")
    (subject,) = find_subjects(tmp_path)
    assert (subject.label, subject.arm) == ("sub-7", "avonex")
    assert [study.months for study in subject.studies] == [20, 31.5]
    assert [set(study.scans) for study in subject.studies] == [
        {"flair", "t2", "gd", "brain"},
        {"flair", "t2", "gd", "brain", "net2"},
    ]


def test_dates_in_names_and_sidecars(tmp_path):
    touch(tmp_path, "anna/2021-03-05/FLAIR.nii.gz", "anna/x/3.nii.gz")
    (tmp_path / "anna/x/3.json").write_text(
        json.dumps({"SeriesDescription": "t2_tirm_tra_dark-fluid", "AcquisitionDateTime": "2020-03-05T11:12:13"})
    )
    (subject,) = find_subjects(tmp_path)
    assert scans_of(subject) == [{"flair": "3.nii.gz"}, {"flair": "FLAIR.nii.gz"}]
    first, second = (study.months for study in subject.studies)
    assert second - first == pytest.approx(12, abs=0.05)


def test_dicom_is_sorted_by_header_and_the_best_flair_is_chosen(tmp_path):
    pytest.importorskip("pydicom")
    write_dicom(SMALL, tmp_path / "a", date(2020, 1, 2), number=5, description="t2_tse")
    write_dicom(SMALL, tmp_path / "b", date(2020, 1, 2), number=7, description="FLAIR MPR")
    write_dicom(SMALL, tmp_path / "c", date(2020, 1, 2), number=6, description="t2_tirm_tra")
    write_dicom(SMALL, tmp_path / "d", date(2020, 12, 2), number=2, description="", InversionTime=2500, EchoTime=90)
    (tmp_path / "a" / "notes.doc").write_text("no image")
    (subject,) = find_subjects(tmp_path)
    assert [study.scans["flair"].files[0].parent.name for study in subject.studies] == ["c", "d"]
    assert subject.studies[1].months - subject.studies[0].months == pytest.approx(11, abs=0.05)
    assert subject.remarks == ("series 6 (t2_tirm_tra) taken as flair, not series 7 (FLAIR MPR)",)


def test_the_table_overrules(tmp_path):
    touch(tmp_path, "a/x.nii.gz", "a/y.nii.gz", "b/z_FLAIR.nii.gz")
    table = tmp_path / "table.tsv"
    table.write_text(
        "path\tpatient\tparticipant_id\tdate\tkind\ttreatment_arm\n"
        "a/x.nii.gz\tp\t\t2020-01-31\tflair\t\nb\tp\t\t2021-01-31\t\t\n\tp\tsub-p\t\t\tocrelizumab\n"
    )
    subjects = {subject.key: subject for subject in find_subjects(tmp_path, read_rows(table, tmp_path))}
    assert (subjects["p"].label, subjects["p"].arm) == ("sub-p", "ocrelizumab")
    assert scans_of(subjects["p"]) == [{"flair": "x.nii.gz"}, {"flair": "z_FLAIR.nii.gz"}]
    assert subjects["a"].studies == () and subjects["a"].remarks == ("no FLAIR among y.nii.gz",)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("path\nz.nii\n", "line 2: no such file"),
        ("path,date\n,2020-01-01\n", "line 2: neither path nor patient"),
        ("path,date\na.nii,31.1.2020\n", "line 2: date '31.1.2020'"),
        ("path,date\na.nii,2020-02-31\n", "line 2: date"),
        ("path,visit\na.nii,w012\n", "line 2: visit 'w012'"),
        ("path,kind\na.nii,T1\n", "line 2: kind 't1'"),
        ("patient,treatment_arm\na,aspirin\n", "unknown treatment arm 'aspirin'"),
        ("patient,participant_id\na,Anna Smith\n", "line 2: participant_id"),
        ("path,arm\na.nii,avonex\n", "unknown columns arm"),
    ],
)
def test_a_wrong_line_of_the_table_is_named(tmp_path, text, problem):
    touch(tmp_path, "a.nii")
    (tmp_path / "table").write_text(text)
    with pytest.raises(InputError, match=problem):
        read_rows(tmp_path / "table", tmp_path)


def test_two_scans_that_may_be_the_same_are_not_guessed(tmp_path):
    touch(tmp_path, "a/v1/FLAIR_1.nii", "a/v1/FLAIR_2.nii", "a/v2/FLAIR.nii")
    (subject,) = find_subjects(tmp_path)
    assert "several scans of one study may be its flair" in str(subject.problem)
    assert subject.remarks == ("FLAIR_1.nii, FLAIR_2.nii",)


@pytest.mark.parametrize(
    ("months", "chosen"),
    [
        ([0, 11], [0, 11]),
        ([0, 6, 12, 24], [0, 12, 24]),
        ([100, 104, 112, 121], [100, 112, 121]),
        ([0, 10, 60], [0, 10]),
        ([None, None, None], [None] * 3),
    ],
)
def test_visits_are_the_nearest_to_48_and_96_weeks(months, chosen):
    visits, remarks = assign_visits([study(m) for m in months], "")
    assert [study.months for study in visits.values()] == chosen
    assert list(visits) == ["w000", "w048", "w096"][: len(chosen)]
    assert bool(remarks) == (len(chosen) < len(months))


def test_named_visits_are_taken_as_they_are():
    visits, _ = assign_visits([study(0), study(5, "w000"), study(17, "w048")], "")
    assert [visits[v].months for v in ("w000", "w048")] == [5, 17]


def test_one_study_is_not_enough():
    with pytest.raises(InputError, match="only one study with a FLAIR"):
        assign_visits([study(0)], "")


def test_a_folder_without_scans_is_refused(tmp_path):
    with pytest.raises(InputError, match="is empty"):
        find_subjects(tmp_path)
    touch(tmp_path, "a/T1w.nii.gz")
    with pytest.raises(InputError, match="none of its 1 files"):
        find_subjects(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        find_subjects(tmp_path / "x")
