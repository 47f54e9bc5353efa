"""Scores of lesion masks: exact examples."""

import numpy as np
import pytest

from bundle.segmentation.scoring import mask_score, total

AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])  # 3 mm3 a voxel


def masks(*boxes):
    mask = np.zeros((40, 40, 8), bool)
    for box in boxes:
        mask[box] = True
    return mask


SMALL = (slice(2, 4), slice(2, 4), slice(1, 2))  # 12 mm3
MIDDLE = (slice(10, 15), slice(10, 13), slice(2, 3))  # 45 mm3
LARGE = (slice(20, 30), slice(20, 30), slice(3, 5))  # 600 mm3


def test_counts_of_a_mask():
    part = (slice(20, 25), slice(20, 30), slice(3, 5))
    elsewhere = (slice(35, 37), slice(35, 37), slice(6, 7))
    score = mask_score(masks(part, MIDDLE, elsewhere), masks(SMALL, MIDDLE, LARGE), AFFINE)
    assert score.lesions.tolist() == [1, 1, 0, 1]
    assert score.found.tolist() == [0, 1, 0, 1]
    assert (score.right, score.wrong) == (2, 1)
    assert score.dice == pytest.approx(2 * (100 + 15) / (119 + 219))
    assert score.precision == pytest.approx(2 / 3)
    assert score.f1 == pytest.approx(2 / 3)
    np.testing.assert_array_equal(score.sensitivity, [0, 1, np.nan, 1])


def test_the_truth_scores_one_and_nothing_scores_nothing():
    true = masks(SMALL, LARGE)
    assert mask_score(true, true, AFFINE).f1 == mask_score(true, true, AFFINE).dice == 1
    assert mask_score(masks(), true, AFFINE).f1 == mask_score(masks(), true, AFFINE).dice == 0
    assert np.isnan(mask_score(masks(), masks(), AFFINE).dice)


def test_scores_add_up():
    one, other = mask_score(masks(SMALL), masks(SMALL), AFFINE), mask_score(masks(), masks(LARGE), AFFINE)
    both = total([one, other])
    assert (both.found.sum(), both.lesions.sum(), both.true) == (1, 2, one.true + other.true)
