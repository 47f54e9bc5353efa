from pathlib import Path

import numpy as np
import pytest

from bundle.lesions import Volume
from scripts.lesion_survival import FINE, KERNELS, OWN_VOLUME, SETTINGS, measure_mask, summarise

AFFINE = FINE.affine(np.zeros(3))
BRAIN = Volume(np.ones(FINE.shape, np.float32), AFFINE, Path("brain"))


@pytest.fixture(scope="module")
def measured():
    """One lesion of a voxel (3 mm3) and one of 6 x 6 x 1 voxels (108 mm3) on cell borders of every grid."""
    mask = np.zeros(FINE.shape, np.float32)
    mask[30, 30, 7] = 1
    mask[78:84, 96:102, 7] = 1
    return measure_mask(Volume(mask, AFFINE, Path("mask")), BRAIN)


def at(measured, grid, marking, kernel):
    return measured[[g is grid and m == marking for g, m in SETTINGS].index(True), KERNELS.index(kernel)].tolist()


def test_on_its_own_grid_a_mask_keeps_all_and_an_opening_what_it_fits(measured):
    assert at(measured, FINE, OWN_VOLUME, 1) == pytest.approx([2, 2, 2, 0.111, 0.111])
    assert at(measured, FINE, OWN_VOLUME, 2) == pytest.approx([2, 1, 1, 0.111, 0.108])


def test_a_voxel_is_lost_to_a_threshold_and_kept_by_its_volume(measured):
    coarse = SETTINGS[1][0]
    assert at(measured, coarse, "any", 1) == pytest.approx([2, 2, 2, 0.111, 0.12])
    assert at(measured, coarse, "1/2 covered", 1) == pytest.approx([2, 1, 1, 0.111, 0.108])
    assert at(measured, coarse, OWN_VOLUME, 1) == pytest.approx([2, 2, 2, 0.111, 0.12])
    assert at(measured, coarse, OWN_VOLUME, 5) == pytest.approx([2, 0, 0, 0.111, 0])


def test_the_table_sums_over_masks_and_leaves_empty_ones_out(measured):
    empty = measure_mask(Volume(np.zeros(FINE.shape, np.float32), AFFINE, Path("mask")), BRAIN)
    table = summarise(np.array([measured, empty, measured]))
    assert table.startswith("3 masks, 2 with a lesion, 4 lesions.")
    assert "| 2 x 2 x 3 | 1/2 covered | 1 x 1 | 0.500 | 0.500 | 1.000 | 0.000 | 1.000 | 0.97 |" in table
