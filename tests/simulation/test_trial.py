import json
import os
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bundle.arms import ARMS
from bundle.errors import InputError
from bundle.simulation.anatomy import AFFINE, SHAPE
from bundle.simulation.covariates import COLUMNS
from bundle.simulation.disease import patient_history
from bundle.simulation.events import assigned_arm
from bundle.simulation.protocol import PRESETS
from bundle.simulation.trial import simulate_trial

ROOT = Path(__file__).parents[2]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def small_trial(tmp_path_factory):
    return simulate_trial(tmp_path_factory.mktemp("simulated") / "trial", 3, seed=8, workers=1)


def test_every_file_of_the_contract_is_there_and_no_other(small_trial):
    expected = {"participants.tsv", "dataset_description.json"}
    expected |= {f"derivatives/{d}/dataset_description.json" for d in ("lesions", "brain", "synthseg", "truth")}
    labels = {"w000": ("T2lesion", "Gdlesion"), "w048": ("T2lesion", "Gdlesion", "NET2"), "w096": ("NET2",)}
    for case in ("sub-0001", "sub-0002", "sub-0003"):
        expected.add(f"{case}/{case}_sessions.tsv")
        expected.add(f"derivatives/truth/{case}/{case}_truth.json")
        expected |= {f"derivatives/truth/{case}/{case}_ses-{v}_desc-status_dseg.nii.gz" for v in ("w000", "w048")}
        for visit, masks in labels.items():
            anat, stem = f"{case}/ses-{visit}/anat", f"{case}_ses-{visit}"
            expected.add(f"{anat}/{stem}_FLAIR.nii.gz")
            expected.add(f"derivatives/brain/{anat}/{stem}_desc-brain_mask.nii.gz")
            expected.add(f"derivatives/synthseg/{anat}/{stem}_dseg.nii.gz")
            expected |= {f"derivatives/lesions/{anat}/{stem}_label-{label}_mask.nii.gz" for label in masks}
    assert set(contents(small_trial)) == expected


def test_volumes_share_one_ras_grid_and_masks_are_binary(small_trial):
    for file in small_trial.rglob("*.nii.gz"):
        image = nib.load(file)
        assert image.shape == SHAPE
        np.testing.assert_array_equal(image.affine, AFFINE)
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        assert image.header.get_xyzt_units()[0] == "mm"
        if file.name.endswith("_mask.nii.gz"):
            assert set(np.unique(image.dataobj)) <= {0, 1}


def test_participants_carry_their_assigned_arm_and_covariates(small_trial):
    rows = [line.split("\t") for line in (small_trial / "participants.tsv").read_text().splitlines()]
    assert rows[0] == ["participant_id", "treatment_arm", *COLUMNS]
    for i, (case, arm, *covariates) in enumerate(rows[1:]):
        assert (case, arm) == (f"sub-000{i + 1}", ARMS[assigned_arm(8, i)])
        truth = json.loads((small_trial / f"derivatives/truth/{case}/{case}_truth.json").read_text())
        assert truth["arm"] == arm
        assert covariates == [str(truth["covariates"][name]) for name in COLUMNS]


def test_sessions_carry_the_months(small_trial):
    for i in range(3):
        lines = (small_trial / f"sub-000{i + 1}/sub-000{i + 1}_sessions.tsv").read_text().splitlines()
        first, second = patient_history(8, i).months
        assert lines == ["session_id\tmonths", "ses-w000\t0.0", f"ses-w048\t{first}", f"ses-w096\t{first + second}"]


@pytest.mark.slow
def test_what_is_not_known_is_not_available(tmp_path):
    out = simulate_trial(tmp_path / "clinic", 1, seed=3, workers=1, preset="clinic", compact=True)
    simulate_trial(out, 1, seed=3, workers=1, preset="clinic", compact=True)
    (row,) = (out / "participants.tsv").read_text().splitlines()[1:]
    seen = patient_history(3, 0, PRESETS["clinic"]).seen_covariates
    assert row.split("\t")[2:] == ["n/a" if (v := getattr(seen, c)) is None else str(v) for c in COLUMNS]


def test_the_same_call_gives_the_same_bytes_and_a_smaller_trial_is_a_prefix(small_trial, tmp_path):
    """Two workers against one, in two calls against one: only the list of participants is longer."""
    simulate_trial(tmp_path / "again", 1, seed=8, workers=1)
    one = contents(tmp_path / "again")
    three = contents(small_trial)
    assert all(three[name] == content for name, content in one.items() if name != "participants.tsv")
    simulate_trial(tmp_path / "again", 3, seed=8, workers=2)
    assert contents(tmp_path / "again") == three


def test_patients_that_are_there_are_left_alone(small_trial):
    before = {file: file.stat().st_mtime_ns for file in small_trial.rglob("*.nii.gz")}
    simulate_trial(small_trial, 3, seed=8, workers=1)
    assert {file: file.stat().st_mtime_ns for file in small_trial.rglob("*.nii.gz")} == before


def test_a_patient_that_was_only_half_moved_is_written_again(small_trial, tmp_path):
    simulate_trial(tmp_path / "half", 1, seed=8, workers=1)
    whole = contents(tmp_path / "half")
    os.rename(tmp_path / "half" / "sub-0001", tmp_path / "half" / ".sub-0001.partial")  # the last move had not happened
    simulate_trial(tmp_path / "half", 1, seed=8, workers=1)
    assert contents(tmp_path / "half") == whole


def test_killed_at_any_time_it_goes_on_to_the_same_bytes(small_trial, tmp_path):
    command = [
        sys.executable,
        "-m",
        "scripts.simulate_trial",
        "--out",
        str(tmp_path / "killed"),
        "--patients=200",
        "--seed=8",
        "--workers=2",
    ]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "sub-0001").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    settled = None
    while settled != (settled := len(contents(tmp_path / "killed"))) or settled == 0:  # workers notice and end
        time.sleep(1.0)
    done = len(list((tmp_path / "killed").glob("sub-*")))
    assert 1 <= done < 200
    assert not (tmp_path / "killed" / "participants.tsv").exists()
    simulate_trial(tmp_path / "killed", max(3, done), seed=8, workers=2)
    finished = contents(tmp_path / "killed")
    expected = contents(small_trial)
    assert all(finished[name] == content for name, content in expected.items() if name != "participants.tsv")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patients": 0}, "--patients 0"),
        ({"patients": 2.5}, "--patients 2.5"),
        ({"patients": "many"}, "--patients 'many'"),
        ({"patients": 1, "seed": -1}, "--seed -1"),
        ({"patients": 1, "workers": 0}, "--workers 0"),
        ({"patients": True}, "--patients True"),
        ({"patients": 1, "preset": "hospital"}, "--preset 'hospital' is none of trial, clinic, sites, scanners, mixed"),
        ({"patients": 1, "preset": "mixed"}, "--preset mixed without --compact"),
        ({"patients": 1, "expected": True}, "--expected without --compact"),
        ({"patients": 1, "compact": True, "expected": 3}, "--expected 3"),
        ({"patients": 1, "compact": "yes"}, "--compact 'yes'"),
    ],
)
def test_arguments_out_of_range_are_told(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        simulate_trial(tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()


def test_a_disk_that_refuses_is_told_in_one_line(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / ".sub-0001.partial").write_text("")  # a file where the patient's folder should be made
    with pytest.raises(InputError, match="stopped.*it will resume"):
        simulate_trial(tmp_path / "full", 1, workers=1)
    assert not (tmp_path / "full" / "participants.tsv").exists()


def test_a_folder_with_something_else_is_not_touched(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        simulate_trial(tmp_path, 1)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"seed": 9}, "seed 8"), ({"preset": "clinic"}, "preset 'trial'"), ({"compact": True}, "compact false")],
)
def test_other_arguments_do_not_go_on_in_the_same_folder(small_trial, arguments, message):
    with pytest.raises(InputError, match=message):
        simulate_trial(small_trial, 3, **({"seed": 8} | arguments))


def test_a_trial_of_version_2_is_refused(tmp_path):
    """Its description had neither preset nor form."""
    generator = {"Name": "scripts.simulate_trial", "Version": "2", "Seed": 0}
    (tmp_path / "dataset_description.json").write_text(json.dumps({"GeneratedBy": [generator]}))
    with pytest.raises(InputError, match="version '2'"):
        simulate_trial(tmp_path, 1)
    assert len(list(tmp_path.iterdir())) == 1


def test_another_data_set_is_refused(tmp_path):
    (tmp_path / "dataset_description.json").write_text(json.dumps({"Name": "mine"}))
    with pytest.raises(InputError, match="another data set"):
        simulate_trial(tmp_path, 1)


def test_a_file_in_place_of_the_folder_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be used"):
        simulate_trial(tmp_path / "file", 1)
