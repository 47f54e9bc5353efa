"""Registration of real scans as they were acquired, against the transforms that their authors published."""

import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import ROOT
from nibabel.affines import apply_affine

from bundle.data.preparation.cohort import prepare_dataset
from bundle.data.preparation.images import LPS

SCANS = ROOT.parent / "shared" / "openms" / "longitudinal"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SCANS.is_dir(), reason="no real scans beside the project"),
]


def to_common(number, study):
    """The published matrix (4, 4) from points of the common grid to those of the scan as acquired, RAS."""
    published = sitk.ReadTransform(str(SCANS / f"patient{number}/raw/study{study}_FLAIR_to_common.txt"))
    numbers, centre = np.array(published.GetParameters()), np.array(published.GetFixedParameters())[:3]
    matrix = np.eye(4)
    matrix[:3, :3] = numbers[:9].reshape(3, 3)
    matrix[:3, 3] = centre + numbers[9:] - matrix[:3, :3] @ centre
    return LPS @ matrix @ LPS


@pytest.mark.parametrize("number", ["01", "03"])
def test_raw_visits_are_registered_within_a_millimetre(number, tmp_path):
    source = tmp_path / "scans" / f"patient{number}"
    source.mkdir(parents=True)
    for study in (1, 2):
        name = f"study{study}_FLAIR.nii.gz"
        (source / name).symlink_to(SCANS / f"patient{number}" / "raw" / name)
    labels, failures = prepare_dataset(source.parent, tmp_path / "data", workers=1)
    assert labels == ["sub-001"] and failures == []
    later = nib.load(tmp_path / "data/sub-001/ses-w048/anat/sub-001_ses-w048_FLAIR.nii.gz")
    acquired = nib.load(source / "study2_FLAIR.nii.gz")
    found = acquired.affine @ np.linalg.inv(later.affine)  # points of the first visit to the second as acquired
    brain = nib.load(SCANS / f"patient{number}" / "brainmask.nii.gz")
    common = apply_affine(brain.affine, np.argwhere(brain.get_fdata() > 0)[::20])
    first, second = (apply_affine(to_common(number, study), common) for study in (1, 2))
    assert np.linalg.norm(apply_affine(found, first) - second, axis=1).mean() < 1
    record = json.loads((tmp_path / "data/derivatives/preparation/sub-001/sub-001_preparation.json").read_text())
    assert record["warnings"] == [] and record["registration"]["w048"]["correlation"] > 0.8
