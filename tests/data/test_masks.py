from itertools import product

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bundle.data.grid import SlabGrid
from bundle.data.masks import mask_to_slab

GRID = SlabGrid(spacing_mm=(2, 2, 3), shape=(10, 12, 5))
SLAB = GRID.affine(np.zeros(3))
NATIVE = SlabGrid(spacing_mm=(1, 1, 3), shape=(20, 24, 5)).affine(np.zeros(3))  # four voxels to a cell


def drawn(*boxes):
    mask = np.zeros((20, 24, 5), dtype=np.uint8)
    for box in boxes:
        mask[box] = 1
    return mask


def cells(mask, affine=NATIVE, slab=SLAB, grid=GRID):
    return set(map(tuple, np.argwhere(mask_to_slab(mask, affine, slab, grid)).tolist()))


def test_a_lesion_of_whole_cells_keeps_them():
    assert cells(drawn(np.s_[4:8, 6:8, 1:3])) == {(x, 3, z) for x in (2, 3) for z in (1, 2)}
    assert cells(drawn()) == set()


def test_a_lesion_less_than_a_cell_gets_the_cell_that_holds_most_of_it():
    assert cells(drawn(np.s_[5, 7, 2])) == {(2, 3, 2)}
    assert cells(drawn(np.s_[5:8, 7, 2])) == {(3, 3, 2)}  # one voxel in cell 2, two in cell 3


def test_a_lesion_across_cell_borders_keeps_its_volume():
    mask = drawn(np.s_[5:9, 7:11, 2])  # 16 voxels, four cells full, over nine cells
    assert cells(mask) >= {(3, 4, 2)} and len(cells(mask)) == 4


def test_a_small_lesion_stays_beside_a_large_one():
    large = {(x, y, 1) for x in range(4) for y in range(4)}
    assert cells(drawn(np.s_[0:8, 0:8, 1], np.s_[15, 15, 3])) == large | {(7, 7, 3)}


def test_the_masks_own_grid_changes_nothing():
    mask = np.random.default_rng(0).random(GRID.shape) > 0.8
    np.testing.assert_array_equal(mask_to_slab(mask, SLAB, SLAB, GRID), mask)


@pytest.mark.parametrize("orientation", ["LPS", "SRA", "PIL"])
def test_orientation_changes_nothing(orientation):
    mask = (np.random.default_rng(1).random((20, 24, 5)) > 0.97).astype(np.uint8)
    turn = nib.orientations.ornt_transform(*map(nib.orientations.axcodes2ornt, ("RAS", orientation)))
    turned = nib.Nifti1Image(mask, NATIVE).as_reoriented(turn)
    assert cells(np.asarray(turned.dataobj), turned.affine) == cells(mask)


def test_a_coarse_mask_fills_all_cells_of_its_voxels():
    affine = np.diag([4.0, 4.0, 6.0, 1.0])
    affine[:3, 3] = (-8, -10, -7.5)  # the first voxel covers two cells along each axis
    mask = np.zeros((5, 6, 3))
    mask[0, 1, 1] = 1
    assert cells(mask, affine) == {(x, y, z) for x in (0, 1) for y in (2, 3) for z in (1, 2)}


def test_what_lies_outside_the_slab_is_lost():
    far = NATIVE.copy()
    far[0, 3] += 500
    assert cells(drawn(np.s_[5, 7, 2]), far) == set()


@pytest.mark.parametrize("tilt_degrees", [0, 1, 20])
def test_no_lesion_is_lost_however_small_and_tilted(tilt_degrees):
    grid = SlabGrid((2, 2, 3), (30, 30, 15))
    slab_affine = grid.affine(np.zeros(3))
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", [tilt_degrees, tilt_degrees / 2, -tilt_degrees], degrees=True).as_matrix()
    affine[:3, :3] = turn * (0.72, 0.72, 3)
    affine[:3, 3] = affine[:3, :3] @ (-25, -25, -5)
    for x, y, z in product(range(1, 50, 12), range(1, 50, 12), range(1, 10, 3)):
        mask = np.zeros((51, 51, 11), bool)
        mask[x, y, z] = True
        marked = np.argwhere(mask_to_slab(mask, affine, slab_affine, grid))
        assert len(marked) == 1
        apart = slab_affine[:3, :3] @ marked[0] + slab_affine[:3, 3] - affine[:3, :3] @ (x, y, z) - affine[:3, 3]
        assert np.abs(apart).max() < 3
