"""FLAIR as the segmenter sees it."""

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from bundle.data.bids import find_case
from bundle.errors import InputError
from bundle.lesions import Volume
from bundle.segmentation.scans import (
    SPACING_MM,
    cropped,
    in_brain_units,
    lesion_probability,
    read_scans,
    to_slices,
    working_grid,
)


def test_the_grid_holds_the_brain_on_whole_voxels_of_the_scan():
    brain = np.zeros((60, 70, 20), bool)
    brain[11:48, 9:60, 3:17] = True
    affine = np.array([[-1.0, 0, 0, 30.5], [0, 1, 0, -40], [0, 0, 3, -7], [0, 0, 0, 1]])  # left and right swapped
    grid, found = working_grid(Volume(brain, affine))
    assert grid.shape == (48, 64, 14)  # 37 and 51 voxels, rounded up to multiples of 16
    assert grid.spacing_mm == SPACING_MM
    index = np.linalg.inv(affine) @ found
    np.testing.assert_allclose(index[:3, 3], np.round(index[:3, 3]), atol=1e-9)
    corners = np.linalg.inv(found) @ affine @ np.array([[11, 47], [9, 59], [3, 16], [1, 1]])
    assert corners[:3].min() >= 0 and (corners[:3].max(1) <= np.array(grid.shape) - 1).all()


def test_units_do_not_depend_on_gain_and_offset():
    rng = np.random.default_rng(0)
    brain = rng.random((20, 20, 5)) < 0.7
    flair = rng.normal(100, 10, brain.shape).astype(np.float32)
    units = in_brain_units(flair, brain)
    np.testing.assert_allclose(in_brain_units(7 * flair + 20, brain), units, atol=1e-4)
    assert np.median(units[brain]) == pytest.approx(0, abs=1e-3)
    low, high = np.quantile(units[brain], (0.25, 0.75))
    assert high - low == pytest.approx(1 / 3, abs=1e-3)
    assert (units[~brain] == -1).all() and units.min() >= -1 and units.max() <= 3


def test_a_slice_comes_with_its_neighbours():
    flair = torch.randn(8, 6, 4)
    slices = to_slices(flair)
    assert slices.shape == (4, 3, 8, 6)
    for slice_, neighbours in enumerate([(0, 0, 1), (0, 1, 2), (1, 2, 3), (2, 3, 3)]):
        for position, index in enumerate(neighbours):
            assert torch.equal(slices[slice_, position], flair[:, :, index])


def test_a_window_may_reach_beyond_the_image():
    image = torch.arange(12.0).reshape(1, 1, 3, 4)
    inside = cropped(image, (2, 2), (1, 1))
    assert torch.equal(inside[0, 0], torch.tensor([[5.0, 6], [9, 10]]))
    beyond = cropped(image, (4, 6), (-1, -1))
    assert torch.equal(beyond[0, 0, 1:, 1:5], image[0, 0]) and beyond.sum() == image.sum()


def test_the_probability_is_the_mean_over_the_mirror_image():
    class Left(nn.Module):
        def forward(self, x):
            logits = torch.full((len(x), 1, *x.shape[2:]), -20.0)
            logits[:, 0, 0] = 20
            return logits

    found = lesion_probability(Left(), torch.zeros(16, 32, 3))
    assert found.shape == (16, 32, 3)
    np.testing.assert_allclose(found[[0, -1]], 0.5, atol=1e-6)
    assert found[1:-1].max() < 1e-6


def test_all_visits_lie_on_one_grid(trial):
    case = find_case("sub-0001", trial)
    scans = read_scans(case)
    assert set(scans.flair) == {"w000", "w048", "w096"}
    assert all(flair.shape == scans.grid.shape for flair in scans.flair.values())
    raw = nib.load(case.volumes["flair_w000"])
    # The simulated scans have the spacing of this grid: the values are those of the voxels.
    index = np.linalg.inv(raw.affine) @ scans.affine
    offset = np.round(index[:3, 3]).astype(int)
    voxel = np.argwhere(scans.brain)[1000]
    values = raw.get_fdata()
    lower, upper = np.argwhere(scans.brain)[[2000, 3000]]
    order = np.sign(scans.flair["w000"][tuple(upper)] - scans.flair["w000"][tuple(lower)])
    assert np.sign(values[tuple(upper + offset)] - values[tuple(lower + offset)]) == order
    assert values[tuple(voxel + offset)] > 0


def test_a_patient_without_the_scan_gets_one_line(trial, tmp_path):
    (tmp_path / "sub-1").mkdir()
    with pytest.raises(InputError, match="sub-1: .*no FLAIR"):
        read_scans(find_case("sub-1", tmp_path))
