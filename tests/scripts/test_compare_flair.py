"""The table of hand-made features, and a small data set from end to end."""

import nibabel as nib
import numpy as np
import pytest

from bundle.data.appearance import Appearance
from bundle.errors import InputError
from bundle.simulation.anatomy import AFFINE
from bundle.simulation.patient import simulate_patient
from scripts.compare_flair import compare_flair, comparison_table, fraction_below, real_scans, simulated_scans


def features(value, contrast=np.nan):
    return Appearance(*[value] * 7, contrast)


def test_the_table_shows_extremes_and_where_each_real_scan_lies():
    real = {"sub-01, w000": features(0.25), "sub-02, w048": features(0.75, 0.5)}
    simulated = {"trial": [features(v, v) for v in (0.1, 0.2, 0.3, 0.8)], "clinic": [features(0.9)] * 2}
    lines = comparison_table(real, simulated).splitlines()
    rows = {
        cells[0]: cells[1:] for cells in ([c.strip() for c in line.strip("|").split("|")] for line in lines if line)
    }
    assert rows["scans"][0] == "5th percentile" and rows["scans"][-1] == "contrast of T2 lesions"
    assert rows["real, 2"][0] == "0.25, 0.50, 0.75" and rows["real, 2"][4] == "0.250, 0.500, 0.750"
    assert rows["real, 2"][-1] == "0.50, 0.50, 0.50 (of 1)"
    assert rows["trial, 4"][0] == "0.10, 0.25, 0.80" and rows["clinic, 2"][-1] == ""
    assert rows["sub-01, w000"][0] == "0.25 (50%, 0%)" and rows["sub-01, w000"][-1] == ""
    assert rows["sub-02, w048"][-1] == "0.50 (75%, nan%)"


def test_scans_without_the_feature_do_not_count():
    assert fraction_below(np.array([1.0, 2, np.nan, 3]), 2.5) == pytest.approx(2 / 3)
    assert np.isnan(fraction_below(np.array([np.nan]), 1))


@pytest.fixture(scope="module")
def patient():
    return simulate_patient(5, 0)


def write(root, patient, visit, session, masks):
    anat, stem = f"sub-01/{session}/anat", f"sub-01_{session}"
    files = {f"{anat}/{stem}_FLAIR.nii.gz": patient.flair[visit]}
    if masks:
        files[f"derivatives/brain/{anat}/{stem}_desc-brain_mask.nii.gz"] = patient.brain[visit]
        if (visit, "T2lesion") in patient.masks:
            files[f"derivatives/lesions/{anat}/{stem}_label-T2lesion_mask.nii.gz"] = patient.masks[visit, "T2lesion"]
    for path, values in files.items():
        (root / path).parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(values.astype(np.int16), AFFINE), root / path)


@pytest.mark.slow
def test_a_simulated_patient_read_from_disk_is_measured_as_in_memory(tmp_path, patient):
    for visit in patient.flair:
        write(tmp_path, patient, visit, f"ses-{visit}", masks=True)
    on_disk, in_memory = real_scans(str(tmp_path)), simulated_scans("trial", 1, seed=5)
    assert list(on_disk) == ["sub-01, w000", "sub-01, w048", "sub-01, w096"]
    np.testing.assert_allclose(list(on_disk.values()), in_memory, rtol=1e-5)


@pytest.mark.slow
def test_masks_are_optional_and_sessions_can_be_named(tmp_path, patient):
    write(tmp_path, patient, "w000", "ses-01", masks=False)
    with pytest.raises(InputError, match="no FLAIR of a visit; name the sessions with --visits"):
        real_scans(str(tmp_path))
    table = compare_flair(str(tmp_path), preset="trial", patients=1, seed=5, visits={"w000": "ses-01"})
    assert "| real, 1 |" in table and "| trial, 3 |" in table and "clinic" not in table
    assert "| sub-01, w000 |" in table


@pytest.mark.parametrize("wrong", [{"preset": "hospital"}, {"patients": 0}, {"patients": 1.5}, {"seed": -1}])
def test_a_wrong_option_is_refused_before_any_work(tmp_path, wrong):
    with pytest.raises(InputError, match=f"--{next(iter(wrong))}"):
        compare_flair(str(tmp_path), **wrong)
