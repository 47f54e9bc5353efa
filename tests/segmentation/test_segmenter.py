"""Masks on the grid of each visit's own scan."""

import nibabel as nib
import numpy as np
import pytest
from segmentation_network import Bright

from bundle.data.bids import find_case
from bundle.data.volumes import read_mask
from bundle.segmentation.baseline import BrightVoxels
from bundle.segmentation.scoring import mask_score
from bundle.segmentation.segmenter import Segmenter, Thresholds, fitted_thresholds, new_lesions


def test_masks_lie_on_the_lesions_of_the_scan_in_any_orientation(trial, tmp_path):
    case = find_case("sub-0001", trial)
    marked = Segmenter(Bright()).masks(case, "w048", "w000")
    assert set(marked) == {"t2", "net2"}
    true = read_mask(case.volumes["t2_w048"], case.id)
    assert marked["t2"].shape == true.values.shape
    plain = mask_score(marked["t2"], true.values, true.affine)
    assert plain.both / plain.true > 0.5  # lesions are bright; so is some of the cortex
    for visit in ("w000", "w048"):
        for kind, ending in (("flair", "FLAIR"), ("brain", "desc-brain_mask")):
            source = case.volumes[f"flair_{visit}"] if kind == "flair" else case.brain[visit]
            anat = f"sub-0001/ses-{visit}/anat"
            folder = tmp_path / (anat if kind == "flair" else f"derivatives/brain/{anat}")
            folder.mkdir(parents=True)
            turned = nib.as_closest_canonical(nib.load(source)).slicer[::-1, :, :]
            turned = nib.Nifti1Image(np.swapaxes(np.asanyarray(turned.dataobj), 0, 1), turned.affine[:, [1, 0, 2, 3]])
            nib.save(turned, folder / f"sub-0001_ses-{visit}_{ending}.nii.gz")
    other = Segmenter(Bright()).masks(find_case("sub-0001", tmp_path), "w048", "w000")["t2"]
    np.testing.assert_array_equal(np.swapaxes(other, 0, 1)[::-1], marked["t2"])


def test_nothing_is_marked_outside_the_slab(trial, tmp_path):
    source = nib.load(find_case("sub-0001", trial).volumes["flair_w000"])
    values = np.asanyarray(source.dataobj)
    tall = np.concatenate([values[:, :, :1]] * 6 + [values] + [values[:, :, -1:]] * 6, axis=2)
    tall[:, :, [0, -1]] = 0
    folder = tmp_path / "sub-1" / "ses-w000" / "anat"
    folder.mkdir(parents=True)
    nib.save(nib.Nifti1Image(tall, source.affine), folder / "sub-1_ses-w000_FLAIR.nii.gz")
    marked = Segmenter(Bright()).masks(find_case("sub-1", tmp_path), "w000")["t2"]
    assert marked.any((0, 1)).sum() <= 15 and marked.any()


def test_one_visit_alone_has_no_new_lesions(trial):
    assert set(Segmenter(Bright()).masks(find_case("sub-0001", trial), "w000")) == {"t2"}


def test_thresholds_and_least_volume_hold(trial):
    case = find_case("sub-0001", trial)
    loose, strict = (
        Segmenter(Bright(), Thresholds(t2=t), min_volume_mm3=0).masks(case, "w000")["t2"] for t in (0.2, 0.8)
    )
    assert strict.sum() < loose.sum() and not (strict & ~loose).any()
    large = Segmenter(Bright(), Thresholds(t2=0.2), min_volume_mm3=60).masks(case, "w000")["t2"]
    assert 0 < large.sum() < loose.sum() and not (large & ~loose).any()


def test_a_new_lesion_was_none_before_and_is_brighter():
    t2, before = np.zeros((2, 7, 7, 3))
    flair, flair_before = np.zeros((2, 7, 7, 3))
    t2[1:6, 3] = 0.9
    flair[1:6, 3] = 1.0
    before[3, 3, 1] = 0.8
    flair_before[5] = 0.95
    new = new_lesions(t2, before, flair, flair_before)
    assert new[1, 3, 1] == pytest.approx(0.9)  # two voxels from the old one
    assert new[2, 3, 1] == new[4, 3, 1] == pytest.approx(0.9 * 0.2)  # beside it in plane
    assert new[3, 3, 0] == pytest.approx(0.9)  # another slice
    assert new[5, 3, 1] == 0  # as bright before
    assert not new[:, :3].any()


def test_thresholds_that_were_not_fitted_are_one_half(tmp_path):
    assert fitted_thresholds(tmp_path / "segmenter.pt") == Thresholds(0.5, 0.5)


@pytest.mark.parametrize("visit, earlier", [("w000", None), ("w048", "w000")])
def test_the_baseline_finds_lesions(trial, visit, earlier):
    case = find_case("sub-0003", trial)
    true = read_mask(case.volumes[f"t2_{visit}"], case.id)
    marked = BrightVoxels().masks(case, visit, earlier)["t2"]
    assert mask_score(marked, true.values, true.affine).dice > 0.2
