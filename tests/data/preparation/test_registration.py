import numpy as np
import pytest
from nibabel.affines import apply_affine
from preparation_scans import turned

from bundle.data.preparation.registration import Motion, agreement, register


def test_a_motion_states_its_angle_and_how_far_the_brain_moves():
    motion = np.eye(4)
    motion[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    found = Motion(motion, np.array([10.0, 0, 0]))
    assert found.degrees == pytest.approx(90)
    assert found.millimetres == pytest.approx(10 * np.sqrt(2))


def test_the_transform_for_itk_takes_points_of_the_first_visit_to_the_later_one():
    motion = Motion(turned(), np.zeros(3))
    point = np.array([12.0, -30, 45])
    lps = np.array(motion.itk().TransformPoint((point * [-1, -1, 1]).tolist())) * [-1, -1, 1]
    np.testing.assert_allclose(apply_affine(motion.matrix, lps), point, atol=1e-9)


def test_agreement_of_a_scan_with_itself_and_with_something_elsewhere(visits):
    scan = visits["w000"]
    brain = scan.values > 0
    assert agreement(scan, scan, brain).correlation == pytest.approx(1)
    away = scan._replace(affine=turned((0, 0, 0), (500, 0, 0)) @ scan.affine)
    assert np.isnan(agreement(scan, away, brain).correlation)


@pytest.mark.slow
def test_a_known_motion_is_found(visits):
    first, second = visits["w000"], visits["w048"]
    moved = second._replace(affine=turned() @ second.affine)
    found = register(first, moved, first.values > 0, moved.values > 0)
    points = apply_affine(moved.affine, np.argwhere(moved.values > 0))
    error = np.linalg.norm(apply_affine(found.matrix, points) - apply_affine(np.linalg.inv(turned()), points), axis=1)
    assert error.mean() < 0.5
    again = register(first, moved, first.values > 0, moved.values > 0)
    np.testing.assert_allclose(again.matrix, found.matrix, atol=1e-3)
