"""From a folder of DICOM and NIfTI to a data set that inference reads, as a user runs it."""

import csv
import gzip
import json
import shutil
import subprocess
import sys
from datetime import date

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT, TINY, start_bundle
from nibabel.affines import apply_affine
from preparation_scans import SECRETS, coarse, save, turned, write_dicom

from bundle.data.preparation.cohort import prepare_dataset
from bundle.data.transforms import LoadCased
from bundle.errors import InputError
from bundle.lesions import Volume

pytestmark = pytest.mark.slow

QUALITY = "derivatives/preparation"


def mask_of(simulated, visit, label):
    affine = coarse(simulated.flair[visit]).affine
    return Volume((simulated.masks[visit, label].reshape(96, 2, 112, 2, 15).any(axis=(1, 3))).astype(np.uint8), affine)


def prepare(source, out, *arguments):
    command = [sys.executable, "-m", "scripts.prepare", str(source), "--out", str(out), "--workers", "1", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def source(simulated, visits, tmp_path_factory):
    """A patient in DICOM, one in BIDS with masks, a truncated file, a patient with one study."""
    root = tmp_path_factory.mktemp("Mustermann_source")
    moved = visits["w048"]._replace(affine=turned() @ visits["w048"].affine)
    write_dicom(visits["w000"], root / "Mustermann" / "1", date(2019, 3, 1))
    write_dicom(moved, root / "Mustermann" / "2", date(2020, 2, 1))
    for session, scan, visit in (("a", visits["w000"], "w000"), ("b", moved, "w048")):
        stem = f"sub-b1/ses-{session}/anat/sub-b1_ses-{session}"
        save(scan, root / f"{stem}_FLAIR.nii.gz")
        mask = mask_of(simulated, visit, "T2lesion")._replace(affine=scan.affine)
        save(mask, root / f"derivatives/lesions/{stem}_label-T2lesion_mask.nii.gz")
    (root / "participants.tsv").write_text("participant_id\ttreatment_arm\nsub-b1\tocrelizumab\n")
    for study in (1, 2):
        save(visits["w000"], root / "broken" / f"study{study}_FLAIR.nii.gz")
    whole = (root / "broken" / "study2_FLAIR.nii.gz").read_bytes()
    (root / "broken" / "study2_FLAIR.nii.gz").write_bytes(whole[: len(whole) // 2])
    save(visits["w000"], root / "once" / "study1_FLAIR.nii.gz")
    return root


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory):
    """The finished process, and the data set."""
    out = tmp_path_factory.mktemp("prepared") / "my_data"
    return prepare(source, out, "--key", str(out.parent / "key.tsv")), out


def test_those_that_can_be_are_prepared_and_the_others_get_a_line_each(prepared):
    done, out = prepared
    assert done.returncode == 1, done.stderr
    assert "prepared 2 of 4 patients" in done.stdout
    errors = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and "Traceback" not in done.stderr
    assert any("unreadable or truncated" in line for line in errors)
    assert any("only one study with a FLAIR" in line for line in errors)
    assert "registering" in done.stderr
    rows = list(csv.DictReader((out / QUALITY / "patients.tsv").open(), delimiter="\t"))
    assert sorted(row["status"] for row in rows) == ["prepared", "prepared", "refused", "refused"]
    assert (out / "participants.tsv").read_text().splitlines()[1:] == ["sub-001\tn/a", "sub-b1\tocrelizumab"]


def test_the_key_says_who_is_who(prepared):
    _, out = prepared
    lines = (out.parent / "key.tsv").read_text().splitlines()
    assert "sub-001\tMRN-4711" in lines and "sub-b1\tsub-b1" in lines


def test_no_name_birth_date_or_uid_reaches_an_output(prepared):
    _, out = prepared
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) > 20
    for path in files:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for secret in (*SECRETS, "2019-03-01", "20190301", "once", "broken/"):
            assert secret.encode() not in content, f"{secret} in {path}"
            assert secret not in str(path.relative_to(out))


def test_the_visits_lie_in_one_world_and_no_voxel_was_resampled(prepared, visits):
    _, out = prepared
    for case in ("sub-001", "sub-b1"):
        record = json.loads((out / QUALITY / case / f"{case}_preparation.json").read_text())
        assert record["registration"]["w048"]["correlation"] > 0.8
        first, later = (nib.load(out / case / f"ses-{v}/anat/{case}_ses-{v}_FLAIR.nii.gz") for v in visits)
        np.testing.assert_allclose(first.affine, visits["w000"].affine, atol=1e-3)
        assert later.shape == visits["w048"].values.shape
        points = np.argwhere(visits["w048"].values > 0)
        apart = apply_affine(later.affine, points) - apply_affine(visits["w048"].affine, points)
        assert np.linalg.norm(apart, axis=1).mean() < 0.5
    assert (out / "sub-001/sub-001_sessions.tsv").read_text().splitlines()[1:] == ["ses-w000\t0.0", "ses-w048\t11.07"]


def test_masks_keep_their_voxels_and_move_with_their_visit(prepared, simulated):
    _, out = prepared
    stem = "sub-b1/ses-w048/anat/sub-b1_ses-w048"
    mask = nib.load(out / f"derivatives/lesions/{stem}_label-T2lesion_mask.nii.gz")
    np.testing.assert_array_equal(mask.get_fdata(), mask_of(simulated, "w048", "T2lesion").values)
    np.testing.assert_allclose(mask.affine, nib.load(out / f"{stem}_FLAIR.nii.gz").affine)
    about = json.loads((out / f"derivatives/lesions/{stem}_label-T2lesion_mask.json").read_text())
    assert about["GeneratedBy"][0]["Name"] == "scripts.prepare" and about["Sources"][0].startswith("sha256:")


def test_every_derived_image_has_its_provenance(prepared):
    _, out = prepared
    for path in [*out.rglob("*.nii.gz"), *out.rglob("*.tfm")]:
        stem = path.name.removesuffix(".gz").removesuffix(".nii").removesuffix(".tfm")
        assert json.loads((path.parent / f"{stem}.json").read_text())["Sources"]


def test_the_page_shows_the_pair_and_its_figures(prepared):
    _, out = prepared
    page = (out / QUALITY / "sub-b1" / "sub-b1_quality.html").read_text()
    assert page.count("data:image/png;base64,") == 1 and "registered to it" in page
    assert 'href="sub-b1/sub-b1_quality.html"' in (out / QUALITY / "patients.html").read_text()


def test_the_second_run_leaves_finished_patients_alone_and_a_changed_one_is_done_again(prepared, source, tmp_path):
    _, out = prepared
    copy, data = tmp_path / "source", shutil.copytree(out, tmp_path / "data")
    shutil.copytree(source, copy)
    shutil.rmtree(copy / "broken")
    (data / ".sub-001.killed.partial").mkdir()
    before = {path: path.stat().st_mtime_ns for path in data.glob("sub-*/**/*.nii.gz")}
    labels, failures = prepare_dataset(copy, data, workers=1)
    assert labels == ["sub-001", "sub-b1"] and len(failures) == 1
    assert {path: path.stat().st_mtime_ns for path in data.glob("sub-*/**/*.nii.gz")} == before
    assert not (data / ".sub-001.killed.partial").exists()
    (mask,) = (copy / "derivatives/lesions/sub-b1/ses-b").rglob("*.nii.gz")
    mask.unlink()
    labels, _ = prepare_dataset(copy, data, workers=1)
    changed = {path.parents[2].name for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed == {"sub-b1"}
    assert not (data / "derivatives/lesions/sub-b1/ses-w048").exists()


def test_inference_reads_the_result_without_an_option(prepared, tiny_weights, tmp_path):
    _, out = prepared
    settings = TINY | {"weights": tiny_weights, "num_members": 2, "num_steps": 2, "output_dir": tmp_path}
    process = start_bundle("inference", "configs/inference.json", dataset_dir=out, **settings)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0 and "forecast 2 of 2 cases" in output, output[-3000:]
    report = json.loads((tmp_path / "sub-b1" / "sub-b1_desc-net2_forecast.json").read_text())
    assert report["arm"] == "ocrelizumab" and "t2_w048" in report["inputs"]["used"]
    assert report["inputs"]["brain"] == "estimated"


def test_what_does_not_belong_together_is_refused(visits, tmp_path):
    other = visits["w048"]._replace(values=np.ascontiguousarray(visits["w048"].values[:, ::-1]))
    save(visits["w000"], tmp_path / "in/a/study1_FLAIR.nii.gz")
    save(other, tmp_path / "in/a/study2_FLAIR.nii.gz")
    labels, (failure,) = prepare_dataset(tmp_path / "in", tmp_path / "out", workers=1)
    assert labels == [] and "w048 and w000" in str(failure)
    assert not (tmp_path / "out" / "sub-001").exists()


def test_a_folder_that_holds_something_else_is_refused(source, tmp_path):
    (tmp_path / "thesis.doc").touch()
    with pytest.raises(InputError, match="is not empty"):
        prepare_dataset(source, tmp_path)
    with pytest.raises(InputError, match="lies in the source"):
        prepare_dataset(source, source / "out")
    with pytest.raises(InputError, match="must stay pseudonymised"):
        prepare_dataset(source, tmp_path / "x", key=tmp_path / "x" / "key.tsv")


def test_loading_again_gives_no_warning_on_alignment(prepared):
    _, out = prepared
    for case in ("sub-001", "sub-b1"):
        loaded = LoadCased()({"image": out / case, "dataset_dir": out})
        assert not any("aligned" in text for text in loaded["warnings"])
