import numpy as np
import pytest

from bundle.data.grid import SlabGrid
from bundle.lesions import Volume
from bundle.outputs.coverage import axial_axis, covered_fractions, covered_voxels, field_of_view

GRID = SlabGrid(spacing_mm=(2, 2, 3), shape=(20, 24, 5))  # 40 x 48 x 15 mm
SLAB = Volume(np.zeros(GRID.shape), GRID.affine(np.zeros(3)))


def fractions(shape, affine):
    native = Volume(np.zeros(shape), affine)
    return covered_fractions(covered_voxels(native, SLAB), np.ones(shape, bool), axial_axis(affine))


def centred(shape, matrix):
    affine = np.eye(4)
    affine[:3, :3] = matrix
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    return affine


@pytest.mark.parametrize(
    ("step_mm", "first_mm", "slices", "expected"),
    [
        (3, -6, 5, range(5)),  # the slab's own slices
        (-3, 6, 5, range(5)),  # the same from above
        (1, -20, 60, range(13, 28)),  # the slab reaches from -7.5 to 7.5 mm
        (6, -30, 20, range(4, 7)),
        (3, -3, 3, range(3)),  # a scan that ends inside the slab
    ],
)
def test_a_slice_is_covered_where_its_middle_lies_in_the_slab(step_mm, first_mm, slices, expected):
    affine = np.diag([1.0, 1.0, step_mm, 1.0])
    affine[2, 3] = first_mm
    np.testing.assert_array_equal(fractions((10, 10, slices), affine), np.isin(np.arange(slices), expected))


def test_slices_along_any_axis_count_the_brain_alone():
    affine = np.eye(4)[[1, 2, 0, 3]]  # the first axis runs up
    affine[:3, 3] = (-5, -5, -20)
    brain = np.zeros((40, 10, 10), bool)
    brain[10:15] = True
    covered = covered_voxels(Volume(np.zeros(brain.shape), affine), SLAB)
    assert axial_axis(affine) == 0
    np.testing.assert_array_equal(np.flatnonzero(covered_fractions(covered, brain, 0)), [13, 14])


def test_the_slices_of_a_tilted_scan_are_covered_in_part():
    shape, angle = (39, 41, 21), np.deg2rad(20)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = centred(shape, turn @ np.diag([1, 1, 2.0]))
    found = fractions(shape, affine)
    # Along y a slice at distance k rises by sin: it lies in the slab where |2 k cos + y sin| is at most 7.5 mm.
    y, k = np.arange(-20, 21), np.arange(-10, 11)[:, None]
    expected = (np.abs(2 * k * np.cos(angle) + y * np.sin(angle)) < 7.5).mean(axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert found[10] == 1 and 0 < found[6] < 1 and found[0] == 0
    np.testing.assert_allclose(found, found[::-1])


def test_the_statement_separates_complete_from_partial_slices():
    report = field_of_view(np.array([0, 0.12, 0.91, 1, 1, 0.999, 0.5, 0]), axis=2)
    assert (report["first_slice"], report["last_slice"], report["num_slices"]) == (1, 6, 8)
    assert report["covered_fraction"] == [0.12, 0.91, 1, 1, 0.999, 0.5]
    assert (
        "completely in slices 3 to 5 and partly in slices 1 to 2, 6 (12 to 91 % of the brain there)"
        in report["statement"]
    )
    assert "of slices 0 to 7 along voxel axis 2" in report["statement"]


def test_the_statement_of_a_straight_scan_and_of_none():
    straight = field_of_view(np.array([0, 1, 1, 0.0]), axis=0)
    assert "forecast completely in slices 1 to 2, of slices 0 to 3 along voxel axis 0" in straight["statement"]
    nothing = field_of_view(np.zeros(3), axis=1)
    assert "nowhere" in nothing["statement"] and nothing["first_slice"] is None and nothing["covered_fraction"] == []
    assert "partly in slice 1 (40 % of" in field_of_view(np.array([0, 0.4, 0]), axis=1)["statement"]
