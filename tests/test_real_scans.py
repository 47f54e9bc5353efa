"""Real patients of the Ljubljana databases: two FLAIR visits and a brain mask, nothing else, as users often have."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT, TINY, start_bundle

from bundle.data.transforms import LoadCased, plain_inputs
from bundle.errors import InputError

SCANS = ROOT.parent / "shared" / "openms" / "longitudinal"
SHIPPED = ROOT / "models" / "model.pt"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SCANS.is_dir(), reason="no real scans beside the project"),
]


@pytest.fixture(scope="module")
def real_patients(tmp_path_factory):
    """Patients 01 and 03 as BIDS: study 1 as w000, study 2 as w048."""
    root = tmp_path_factory.mktemp("real")
    for number in ("01", "03"):
        for study, visit in (("study1", "w000"), ("study2", "w048")):
            place = Path(f"sub-{number}", f"ses-{visit}", "anat")
            stem = f"sub-{number}_ses-{visit}"
            for folder, name, source in (
                (root, f"{stem}_FLAIR", f"{study}_FLAIR"),
                (root / "derivatives" / "brain", f"{stem}_desc-brain_mask", "brainmask"),
            ):
                (folder / place).mkdir(parents=True)
                shutil.copy(SCANS / f"patient{number}" / f"{source}.nii.gz", folder / place / f"{name}.nii.gz")
    return root


@pytest.fixture(scope="module")
def forecasts(real_patients, tiny_weights, tmp_path_factory):
    """What the command writes: with the shipped weights if there are any, else with the tiny random network."""
    out = tmp_path_factory.mktemp("forecasts")
    settings = {"num_members": 4, "num_steps": 4, "dataset_dir": real_patients, "output_dir": out}
    if not SHIPPED.is_file():
        settings |= TINY | {"weights": tiny_weights, "foreground_weight": 300}
    process = start_bundle("inference", "configs/inference.json", **settings)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output[-3000:]
    return out


@pytest.mark.parametrize("number", ["01", "03"])
def test_a_real_patient_gets_a_forecast_on_the_scans_own_grid(forecasts, number):
    case = f"sub-{number}"
    stem = f"{case}_desc-net2_"
    names = {path.name.removeprefix(stem) for path in (forecasts / case).iterdir()}
    assert names == {"probseg.nii.gz", "mask.nii.gz", "forecast.json", "forecast.png"}
    flair = nib.load(SCANS / f"patient{number}" / "study2_FLAIR.nii.gz")
    heatmap = nib.load(forecasts / case / f"{stem}probseg.nii.gz")
    np.testing.assert_array_equal(heatmap.affine, flair.affine)
    assert heatmap.shape == flair.shape and nib.aff2axcodes(heatmap.affine) == ("L", "P", "S")
    np.testing.assert_allclose(heatmap.header.get_zooms(), (0.72, 0.72, 3), atol=0.005)
    probabilities = heatmap.get_fdata()
    assert probabilities.min() == 0 and probabilities.max() <= 1
    assert not probabilities[nib.load(SCANS / f"patient{number}" / "brainmask.nii.gz").get_fdata() == 0].any()
    report = json.loads((forecasts / case / f"{stem}forecast.json").read_text())
    assert report["arm"] == "unknown" and report["num_members"] == 4
    voxel_ml = np.prod(heatmap.header.get_zooms()) / 1000
    assert probabilities.sum() * voxel_ml == pytest.approx(report["volume_ml"]["mean"], rel=0.1)  # resampled
    assert report["count_source"] == "heatmap" and 0.02 < report["p_active"] < 0.98
    assert report["members"]["p_active"] in (0, 0.25, 0.5, 0.75, 1)
    view = report["field_of_view"]
    assert (view["axis"], view["num_slices"]) == (2, flair.shape[2])
    assert view["last_slice"] - view["first_slice"] + 1 == 15  # 45 mm of 3 mm slices
    marked = np.flatnonzero(probabilities.any(axis=(0, 1)))
    assert all(view["first_slice"] <= marked) and all(marked <= view["last_slice"])


@pytest.mark.parametrize("number", ["01", "03"])
def test_registered_visits_are_accepted_without_a_warning(real_patients, number):
    inputs, warnings = plain_inputs(LoadCased()({"image": real_patients / f"sub-{number}"}))
    assert inputs["alignment"] > 0.8 and inputs["brain"] == "given" and warnings == []
    assert inputs["missing"] == ["t2_w000", "gd_w000", "t2_w048", "gd_w048", "net2_w048"]


@pytest.mark.parametrize("number", ["01", "03"])
def test_visits_as_they_were_acquired_are_refused(tmp_path, number):
    for study, visit in (("study1", "w000"), ("study2", "w048")):
        path = tmp_path / f"sub-{number}/ses-{visit}/anat/sub-{number}_ses-{visit}_FLAIR.nii.gz"
        path.parent.mkdir(parents=True)
        path.symlink_to(SCANS / f"patient{number}" / "raw" / f"{study}_FLAIR.nii.gz")
    with pytest.raises(
        InputError, match="w048 and w000 (do not show one|have [0-9]+% of the slab's) brain .*; co-register"
    ):
        LoadCased()({"image": tmp_path / f"sub-{number}"})
