from itertools import permutations, product

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bundle.data.grid import SlabGrid, read_linearly, read_nearest, slab_centre, to_slab
from bundle.errors import InputError

GRID = SlabGrid((2, 2, 3), (6, 8, 5))
AFFINE = GRID.affine(np.array([3.0, -4.0, 10.0]))


def world(shape, affine):
    """(3, *shape) millimetres of the voxel centres."""
    return np.einsum("ij,j...->i...", affine[:3, :3], np.indices(shape)) + affine[:3, 3].reshape(3, 1, 1, 1)


def ramp(shape, affine):
    x, y, z = world(shape, affine)
    return (100 + x + 2 * y - 3 * z).astype(np.float32)


def turned(affine, shape, order, flips):
    """The affine and shape of the same voxels with axes in another order and direction."""
    change = np.zeros((4, 4))
    change[3, 3] = 1
    for new, old in enumerate(order):
        change[old, new] = -1 if flips[new] else 1
        change[old, 3] = shape[old] - 1 if flips[new] else 0
    return affine @ change, tuple(shape[axis] for axis in order)


def test_the_slab_is_centred_and_takes_lists_of_a_config():
    assert SlabGrid([2, 2, 3], [6, 8, 5]) == GRID
    corners = AFFINE @ np.array([[-0.5, -0.5, -0.5, 1], [5.5, 7.5, 4.5, 1]]).T
    np.testing.assert_allclose(corners[:3].mean(axis=1), [3, -4, 10])
    np.testing.assert_allclose(corners[:3, 1] - corners[:3, 0], [12, 16, 15])


@pytest.mark.parametrize(
    "wrong",
    [{"spacing_mm": (0, 2, 3)}, {"spacing_mm": 2}, {"spacing_mm": (1, 2, np.inf)}, {"shape": (1, 2)}, {"shape": "abc"}],
)
def test_a_slab_has_three_positive_sizes(wrong):
    (name,) = wrong
    with pytest.raises(InputError, match=f"^{name}=.* is not three positive numbers; correct --grid#{name}$"):
        SlabGrid(**wrong)


@pytest.mark.parametrize("spacing", [(1, 1, 3), (0.72, 0.72, 3), (1, 1, 1), (2.5, 3, 4), (0.5, 2, 1.3)])
@pytest.mark.parametrize("tilt_degrees", [0, 12])
def test_a_cell_holds_the_mean_over_its_volume(spacing, tilt_degrees):
    """Of a linear function that is its value in the middle, for every spacing and tilt."""
    rotation = Rotation.from_euler("xyz", [tilt_degrees, -tilt_degrees / 2, tilt_degrees], degrees=True).as_matrix()
    shape = tuple(np.ceil(60 / np.array(spacing)).astype(int))
    affine = np.eye(4)
    affine[:3, :3] = rotation * spacing
    affine[:3, 3] = np.array([3, -4, 10]) - affine[:3, :3] @ (np.array(shape) - 1) / 2
    slab = to_slab(ramp(shape, affine), affine, AFFINE, GRID)
    np.testing.assert_allclose(slab, ramp(GRID.shape, AFFINE), atol=2e-4)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_axes_in_any_order_and_direction_give_the_same_slab(order):
    rng = np.random.default_rng(0)
    fine = SlabGrid((1, 1, 3), (12, 16, 5)).affine(np.array([3.0, -4.0, 10.0]))
    data = rng.normal(size=(12, 16, 5)).astype(np.float32)
    expected = data.reshape(6, 2, 8, 2, 5).mean(axis=(1, 3))
    for flips in product([False, True], repeat=3):
        affine, shape = turned(fine, data.shape, order, flips)
        view = np.flip(data.transpose(order), [axis for axis in range(3) if flips[axis]])
        np.testing.assert_allclose(to_slab(view, affine, AFFINE, GRID), expected, atol=1e-6)
        restored = read_linearly(expected, AFFINE, *turned(AFFINE, GRID.shape, order, flips))
        again = np.flip(expected.transpose(order), [axis for axis in range(3) if flips[axis]])
        np.testing.assert_array_equal(restored, again)  # bit by bit


def test_downsampling_does_not_alias():
    """A board of 0 and 1 at 1 mm is grey at 2 mm, wherever the cells begin."""
    board = (np.indices((40, 40, 40)).sum(axis=0) % 2).astype(np.float32)
    for shift in (0.0, 0.5, 0.3):
        affine = np.eye(4)
        affine[:3, 3] = shift - 17
        cells = to_slab(board, affine, GRID.affine(np.zeros(3)), SlabGrid((2, 2, 2), (6, 8, 5)))
        np.testing.assert_allclose(cells, 0.5, atol=1e-5)


def test_a_mask_gives_the_share_of_the_cell_it_covers():
    mask = np.zeros((12, 16, 5), np.float32)
    mask[4, 4, 2] = mask[5, 5, 2] = mask[6, 4, 2] = 1
    slab = to_slab(mask, SlabGrid((1, 1, 3), mask.shape).affine(np.array([3.0, -4.0, 10.0])), AFFINE, GRID)
    assert slab[2, 2, 2] == 0.5 and slab[3, 2, 2] == 0.25 and slab.sum() == 0.75


def test_beyond_the_scan_is_zero_and_its_outer_half_voxel_is_held():
    line = np.array([2, 4, 8], np.float32).reshape(3, 1, 1)
    fine = np.diag([0.25, 1, 1, 1])
    fine[0, 3] = -0.875
    read = read_linearly(line, np.eye(4), fine, (15, 1, 1))[:, 0, 0]
    # centres at -.875, -.625, ..., the scan reaches from -.5 to 2.5
    np.testing.assert_allclose(read, [0, 0, 2, 2, 2.25, 2.75, 3.25, 3.75, 4.5, 5.5, 6.5, 7.5, 8, 8, 0])


def ellipsoid(shape, centre, radii):
    index = np.indices(shape)
    return sum(((index[i] - centre[i]) / radii[i]) ** 2 for i in range(3)) < 1


def test_the_slab_lies_where_most_brain_is():
    """A ball with a stem below it: the slab is around the ball's equator, and around the ball in plane."""
    brain = ellipsoid((80, 80, 80), (40, 42, 50), (25, 25, 25))
    brain[38:43, 20:25, :30] = True
    centre = slab_centre(brain, np.eye(4), SlabGrid((2, 2, 3), (30, 30, 9)))
    # 27 slices of 1 mm in the middle of 49; the plane has 60 mm around voxels 16 to 64
    np.testing.assert_allclose(centre, [40, 42, 50], atol=0.51)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(False, False, False), (True, True, False), (True, False, True)])
def test_an_acquisition_of_the_slab_is_taken_slice_by_slice(order, flips):
    """15 slices of 3 mm: they are the slab, and in plane the cells begin where voxels begin; in any orientation."""
    brain = ellipsoid((61, 70, 15), (28, 35, 4), (24, 30, 14))
    acquired = np.diag([1, 1, 3.000005, 1])  # as headers have it
    acquired[:3, 3] = [-31.3, -40.2, 5.7]
    grid = SlabGrid((2, 2, 3), (32, 32, 15))
    affine, _ = turned(acquired, brain.shape, order, flips)
    view = np.flip(brain.transpose(order), [axis for axis in range(3) if flips[axis]])
    corner = np.linalg.inv(acquired) @ grid.affine(slab_centre(view, affine, grid)) @ [-0.5, -0.5, -0.5, 1] + 0.5
    np.testing.assert_allclose(corner[2], 0, atol=1e-4)
    np.testing.assert_allclose(corner[:2], np.round(corner[:2]), atol=1e-6)
    np.testing.assert_allclose(corner[:2], [28.5 - 32, 35.5 - 32], atol=0.51)


def test_fewer_slices_than_the_slab_lie_in_its_middle():
    brain = np.ones((20, 20, 9), bool)
    centre = slab_centre(brain, np.diag([1, 1, 3, 1]), SlabGrid((2, 2, 3), (8, 8, 15)))
    np.testing.assert_allclose(centre, [9.5, 9.5, 12])


@pytest.mark.parametrize("offset", [(0, 0, 0), (3, -2, 1), (-4, 6, 4), (9, 0, 0)])
@pytest.mark.parametrize("steps", [(1, 1, 1), (-1, 1, 1), (-1, -1, 1), (1, -1, -1)])
def test_where_voxels_fall_on_voxels_the_quick_way_gives_what_interpolation_would(steps, offset):
    data = np.random.default_rng(0).normal(size=(6, 7, 4)).astype(np.float32)
    at = np.diag([*steps, 1.0])
    at[:3, 3] = offset
    mapping, shape = (np.array(steps, float), np.array(offset, float)), (5, 8, 3)
    scipys = ndimage.affine_transform(data, *mapping, shape, order=1, mode="grid-constant", prefilter=False)
    np.testing.assert_array_equal(read_linearly(data, np.eye(4), at, shape), scipys)
    np.testing.assert_array_equal(read_nearest(data, np.eye(4), at, shape), scipys)
