"""Bad input, as a user meets it: one line that names case, file and fix, exit code 1, and nothing half-written."""

import gzip
import re
import shutil
import sys

import nibabel as nib
import numpy as np
import pytest
from conftest import TINY, inference_config, start_bundle

from bundle.data.bids import find_case
from bundle.data.transforms import LoadCased
from bundle.errors import Guard, InputError, report_in_one_line

FEW = TINY | {"num_members": 1, "num_steps": 1, "foreground_weight": 10**4}


def written_again(change=lambda data: data, shift_mm=0.0):
    """Changes a file's voxels or shifts its affine."""

    def spoil(path):
        scan = nib.load(path)
        affine = scan.affine.copy()
        affine[0, 3] += shift_mm
        nib.save(nib.Nifti1Image(change(scan.get_fdata()), affine), path)

    return spoil


def with_nan(data):
    data[90, 100, 7] = np.nan
    return data


def with_two_values(data):
    data[:2], data[2:4] = 0.5, 1
    return data


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scaled(factor):
    """Multiplies the voxel sizes in the header."""

    def spoil(path):
        scan = nib.load(path)
        nib.save(nib.Nifti1Image(scan.get_fdata(), scan.affine @ np.diag([factor, factor, factor, 1])), path)

    return spoil


def with_bytes_inserted(path):
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[400_000:400_000] = bytes(64)
    path.write_bytes(gzip.compress(bytes(content), 1))


SPOILT = {  # by label: the file, what is done to it, the message
    "NoBaseline": ("flair_w000", lambda path: path.unlink(), "no FLAIR of w000; put it there"),
    "NoFollowUp": ("flair_w048", lambda path: path.unlink(), "no FLAIR of w048; put it there"),
    "Text": ("flair_w000", lambda path: path.write_text("hello"), "unreadable or truncated; copy or convert it again"),
    "Cut": ("flair_w048", cut_in_half, "unreadable or truncated; copy or convert it again"),
    "CutMask": ("t2_w000", cut_in_half, "unreadable or truncated; copy or convert it again"),
    "Times": (
        "flair_w048",
        written_again(lambda data: np.stack([data, data], axis=-1)),
        "shape (192, 224, 15, 2) is not a volume; give one 3-D volume",
    ),
    "Nan": ("flair_w000", written_again(with_nan), "NaN or infinite voxels; replace them"),
    "NanMask": ("gd_w048", written_again(with_nan), "NaN or infinite voxels; replace them"),
    "Constant": ("flair_w048", written_again(np.ones_like), "all voxels are equal; give the FLAIR scan"),
    "Fractions": ("net2_w048", written_again(with_two_values), "not a binary mask; keep 0 and 1 only"),
    "Shifted": (
        "t2_w048",
        written_again(shift_mm=2),
        "its affine is not the FLAIR's; resample it to sub-Shifted_ses-w048_FLAIR.nii.gz",
    ),
    "Cropped": (
        "gd_w000",
        written_again(lambda data: data[:-1]),
        "shape (191, 224, 15) is not the FLAIR's (192, 224, 15); resample it to sub-Cropped_ses-w000_FLAIR.nii.gz",
    ),
    "ShiftedBrain": (
        "brain_w048",
        written_again(shift_mm=2),
        "its affine is not the FLAIR's; resample it to sub-ShiftedBrain_ses-w048_FLAIR.nii.gz",
    ),
    "TenTimes": (
        "flair_w000",
        scaled(10),
        "voxels of 10 x 10 x 30 mm are implausible for a brain scan; correct the qform or sform",
    ),
    "Negative": (
        "flair_w048",
        written_again(lambda data: data.max() - data),
        "fluid is not dark in it: inverted, or no FLAIR; give the FLAIR as it was acquired",
    ),
    "Inserted": (
        "flair_w000",
        with_bytes_inserted,
        "more bytes than its header says; copy or convert it again",
    ),
    "AllLesion": (
        "t2_w048",
        written_again(np.ones_like),
        "1935 ml of lesions are more than any patient has (200); check that lesions are 1 and all else is 0",
    ),
    "NoBrain": ("brain_w048", written_again(np.zeros_like), "the brain mask is empty; recreate or remove it"),
}


def admitted(patient, root, label):
    """A copy of a patient's two visits under another label."""
    brain = {f"brain_{visit}": path for visit, path in patient.brain.items()}
    for name, path in (dict(patient.volumes) | brain).items():
        if not name.endswith("w096"):
            copy = root / str(path.relative_to(patient.dataset_dir)).replace(patient.id, f"sub-{label}")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    return find_case(root / f"sub-{label}")


def error_lines(output):
    return [line for line in output.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="module")
def ward(trial, tiny_weights, tmp_path_factory):
    """A data set with a patient for each kind of bad file and two sound ones, and the result of the command."""
    folder = tmp_path_factory.mktemp("ward")
    data, out = folder / "data", folder / "out"
    patient = find_case(trial / "sub-0001")
    for label in ("Aspirin", "Blocked", "Sound", "Zound"):
        admitted(patient, data, label)
    shutil.copy(
        find_case(trial / "sub-0002").volumes["flair_w048"], admitted(patient, data, "Other").volumes["flair_w048"]
    )
    for label, (name, spoil, _) in SPOILT.items():
        spoil(admitted(patient, data, label).expected_path(name))
    (data / "participants.tsv").write_text("participant_id\ttreatment_arm\nsub-Aspirin\taspirin\nsub-Sound\tavonex\n")
    out.mkdir()
    (out / "sub-Blocked").write_text("a file where a folder should be")
    settings = FEW | {"weights": tiny_weights, "dataset_dir": data, "output_dir": out}
    process = start_bundle("inference", "configs/inference.json", **settings)
    output, _ = process.communicate(timeout=600)
    return data, out, process.returncode, output


def lines_of(label, output):
    return [line for line in error_lines(output) if f"sub-{label}: " in line]


@pytest.mark.parametrize("label", SPOILT)
def test_an_unusable_file_is_reported_with_case_and_fix(ward, label):
    data, _, _, output = ward
    name, _, problem = SPOILT[label]
    file = find_case(data / f"sub-{label}", arm="unknown").expected_path(name)
    assert lines_of(label, output) == [f"error: sub-{label}: {file}: {problem}"]


def test_the_sound_patients_of_the_batch_are_forecast_and_no_others(ward):
    _, out, code, output = ward
    assert code == 1 and "Traceback" not in output, output[-3000:]
    assert "input summary" not in output and "logging" not in output
    assert len(error_lines(output)) == len(SPOILT) + 2 and f"{len(SPOILT) + 2} not forecast" in output
    assert {path.name for path in out.iterdir()} == {"sub-Blocked", "sub-Other", "sub-Sound", "sub-Zound"}
    assert (out / "sub-Blocked").read_text() == "a file where a folder should be"
    for case in ("sub-Sound", "sub-Zound"):
        assert len(list((out / case).iterdir())) == 4
        assert all(path.name.startswith(f"{case}_desc-net2_") for path in (out / case).iterdir())


def test_the_visits_of_two_patients_are_refused(ward):
    """On the default grid; the test's cells of 8 mm see too little of a brain, and the patient carries a warning."""
    data, _, _, output = ward
    assert any("sub-Other: w048 and w000 may not be aligned" in line for line in output.splitlines())
    with pytest.raises(InputError, match="w048 and w000 do not show one brain in one position.*co-register the visits"):
        LoadCased()({"image": str(data / "sub-Other"), "arm": "unknown"})


def test_patients_without_a_treatment_are_a_warning(ward):
    warnings = [line for line in ward[3].splitlines() if line.startswith("warning: ")]
    assert any("not in participants.tsv: sub-AllLesion, sub-Blocked, sub-Constant" in line for line in warnings)


def test_a_wrong_arm_in_participants_concerns_that_patient_alone(ward):
    data, _, _, output = ward
    (line,) = lines_of("Aspirin", output)
    assert line.startswith(f"error: sub-Aspirin: {data / 'participants.tsv'}: unknown treatment arm 'aspirin'; use")


def test_a_folder_of_a_case_that_cannot_be_written_is_reported(ward):
    _, out, _, output = ward
    (line,) = lines_of("Blocked", output)
    assert line.startswith(f"error: sub-Blocked: {out / 'sub-Blocked'}: cannot be written: ")
    assert line.endswith("; choose another output_dir")


@pytest.fixture
def message(trial, tiny_weights, tmp_path, monkeypatch, capsys):
    """What the command prints on stderr when it cannot start, from the same parts in this process."""

    def run(**overrides):
        settings = FEW | {"weights": tiny_weights, "dataset_dir": trial, "output_dir": tmp_path / "out"} | overrides
        config = inference_config(**{name: str(x) if hasattr(x, "parts") else x for name, x in settings.items()})
        with pytest.raises(Exception) as caught:
            config.get_parsed_content("inference")
        monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
        report_in_one_line()
        capsys.readouterr()
        sys.excepthook(caught.type, caught.value, caught.tb)
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            {"arm": "aspirin"},
            "unknown treatment arm 'aspirin'; use one of placebo, .*, or 'all' to compare them",
        ),
        (
            {"arm": "none"},
            "unknown treatment arm 'none'; use one of placebo, .*, or 'all' to compare them",
        ),
        ({"dataset_dir": "nowhere"}, r"nowhere: no sub-\* folder; give the root of a BIDS data set"),
        ({"datalist": "nowhere.json"}, "nowhere.json: no datalist with 'training' in it; make it with .*"),
        ({"split": "everyone"}, ".*datalist.json: no datalist with 'everyone' in it; make it with .*"),
        (
            {"weights": "nowhere.pt"},
            "nowhere.pt: weights file not found; train a model, or give another file with --weights",
        ),
        (
            {"network_def#channels": [8, 16], "network_def#num_head_channels": 8},
            ".*model.pt: weights of another architecture; run with the configuration they were trained with",
        ),
        ({"num_members": 0}, "num_members=0 is not a whole number of at least 1; correct --num_members"),
        ({"num_members": 2.5}, "num_members=2.5 is not a whole number of at least 1; correct --num_members"),
        ({"num_steps": 0}, "num_steps=0 is not a whole number of at least 1; correct --num_steps"),
        ({"member_batch": "all"}, "member_batch='all' is not a whole number of at least 1; correct --member_batch"),
        ({"seed": "lucky"}, "seed=lucky is not a whole number; correct --seed"),
        ({"guidance_scale": "much"}, "guidance_scale=much is not a number; correct --guidance_scale"),
        (
            {"guidance_interval": [2, -1]},
            r"guidance_interval=\[2, -1\] is not two rising log-SNRs; correct --guidance_interval",
        ),
        ({"amp": "maybe"}, "amp=maybe is neither True nor False; correct --amp"),
        ({"foreground_weight": 0}, "foreground_weight=0 is not a number above 0; correct --foreground_weight"),
        (
            {"volume_correction": 3},
            "volume_correction=3 is not what scripts.correct_volume fits; leave --volume_correction out, or .*",
        ),
        ({"horizon_months": 40}, "horizon_months=40 is not a number between 3 and 36; correct --horizon_months"),
        ({"reuse_within": -1}, "reuse_within=-1 is not a number of at least 0; correct --reuse_within"),
    ],
)
def test_what_keeps_everyone_from_a_forecast_is_reported_at_once(message, overrides, line):
    assert re.fullmatch(f"error: {line}\n", message(**overrides))


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ("participant_id,treatment_arm\nsub-0001,avonex\n", "no column participant_id; name it so in .*"),
        ("participant_id\tarm\nsub-0001\tavonex\n", "no column treatment_arm; name it so in .*"),
        ("participant_id\ttreatment_arm\npatient 1\tavonex\n", "participant_id 'patient 1'; write sub-.*"),
        ("participant_id\ttreatment_arm\n0001\tavonex\n", "participant_id '0001'; write sub-.*"),
    ],
)
def test_a_table_of_participants_that_cannot_be_read_is_reported_once(message, tmp_path, rows, line):
    (tmp_path / "sub-0001").mkdir()
    (tmp_path / "participants.tsv").write_text(rows)
    expected = f"error: {re.escape(str(tmp_path / 'participants.tsv'))}: {line}\n"
    assert re.fullmatch(expected, message(dataset_dir=tmp_path))


def test_an_output_folder_that_cannot_be_made_is_reported_before_the_work(message, tmp_path):
    (tmp_path / "file").touch()
    line = message(output_dir=tmp_path / "file" / "out")
    assert line.startswith(f"error: {tmp_path / 'file' / 'out'}: cannot be written: ")
    assert line.endswith("; choose another output_dir\n") and line.count("\n") == 1


@pytest.mark.parametrize(
    ("case", "line"),
    [
        ("sub-0099", "{data}: no patient 'sub-0099'; name a folder sub-* of the data set"),
        ("{elsewhere}/sub-0001", "{elsewhere}/sub-0001: not found; give a patient's folder or a file in it"),
        ("{data}", "{data}: not inside a folder sub-*; arrange the scans in BIDS"),
    ],
)
def test_a_case_that_does_not_exist_is_reported(trial, tiny_weights, tmp_path, capsys, case, line):
    places = {"data": str(trial), "elsewhere": str(tmp_path)}
    settings = {"weights": str(tiny_weights), "dataset_dir": str(trial), "output_dir": str(tmp_path / "out")}
    with pytest.raises(SystemExit, match="1 not forecast"):
        inference_config(**FEW | settings, case=case.format(**places)).get_parsed_content("inference")
    assert error_lines(capsys.readouterr().err) == [f"error: {line.format(**places)}"]
    assert not (tmp_path / "out").exists()


def test_an_error_that_is_no_users_is_raised():
    with pytest.raises(ZeroDivisionError):
        Guard().call(lambda _: 1 / 0, {}, None)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [{"num_members": 0}, {"network_def#channels": [16, 48]}])
def test_the_command_ends_with_one_line_and_exit_code_1(trial, tiny_weights, tmp_path, overrides):
    settings = FEW | {"weights": tiny_weights, "dataset_dir": trial, "output_dir": tmp_path / "out"} | overrides
    process = start_bundle("inference", "configs/inference.json", **settings)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1 and "Traceback" not in output and not (tmp_path / "out").exists()
    assert len(error_lines(output)) == 1 and output.endswith(error_lines(output)[0] + "\n")
