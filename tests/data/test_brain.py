import numpy as np
import pytest
from scipy import ndimage

from bundle.data.brain import estimate_brain

AFFINE = np.diag([2.0, 2.0, 3.0, 1])


def head():
    """Brain with dark ventricles in a dark skull in a bright scalp, at 2 x 2 x 3 mm; returns FLAIR and brain."""
    x, y, z = np.indices((90, 100, 50))

    def ball(radius_mm, at=(90, 100, 75)):
        return ((2 * x - at[0]) ** 2 + (2 * y - at[1]) ** 2 + (3 * z - at[2]) ** 2) < radius_mm**2

    brain = ball(55)
    flair = np.where(ball(75), 300.0, 0)
    flair[ball(69)] = 30
    flair[brain] = 500
    flair[ball(9)] = 30
    flair[44:46, 48:52, :15] = 500  # a nerve to the outside
    noise = np.random.default_rng(0).normal(0, 10, flair.shape)
    return np.maximum(flair + ndimage.gaussian_filter(noise, 1) * (flair > 0), 0), brain


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_the_brain_is_found_in_the_head_with_its_ventricles():
    flair, brain = head()
    found = estimate_brain(flair, AFFINE)
    assert dice(found, brain) > 0.95
    assert found[45, 50, 25]


def test_a_stripped_brain_is_what_is_not_zero():
    flair, brain = head()
    np.testing.assert_array_equal(estimate_brain(flair * brain, AFFINE), flair * brain > 0)


@pytest.mark.parametrize("nothing", [np.zeros((20, 20, 20)), np.eye(20)[:, :, None] * np.ones(20)])
def test_nothing_found_is_an_empty_mask(nothing):
    assert not estimate_brain(nothing, np.eye(4)).any()
