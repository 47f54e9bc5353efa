"""Location scores of maps whose answer is known."""

import numpy as np
import pytest

from bundle.evaluation.locations import NUM_SITES, TOP_FRACTIONS, UNIFORM, location_scores, site_scores
from bundle.forecasters.base import Forecast
from bundle.lesions import LesionRule

SHAPE, AFFINE = (20, 20, 10), np.diag([4.0, 4.0, 4.0, 1.0])
BRAIN = np.zeros(SHAPE, bool)
BRAIN[:, :, :8] = True
SIZE = BRAIN.sum()


def lesions(*voxels):
    outcome = np.zeros(SHAPE, bool)
    for voxel in voxels:
        outcome[voxel] = True
    return outcome


def scored(heatmap, outcome):
    return location_scores(heatmap, outcome, BRAIN, AFFINE, LesionRule())


TWO = lesions((2, 2, 2), (2, 3, 2), (15, 15, 5))


def test_a_uniform_map_scores_chance_whatever_its_volume():
    for value in (0.0, 0.001, 1.0):
        found = scored(np.full(SHAPE, value), TWO)
        assert found["log score of voxels"] == pytest.approx(0) == found["log score of lesions"]
        np.testing.assert_allclose(found["lesions in top"], 2 * np.array(TOP_FRACTIONS))
        assert (found["outcome_voxels"], found["outcome_lesions"]) == (3, 2)


def test_scale_and_what_lies_outside_the_brain_have_no_effect():
    heatmap = np.random.default_rng(0).random(SHAPE) ** 3
    expected = scored(heatmap, TWO)
    changed = heatmap * 0.01
    changed[~BRAIN] = 1
    for name, value in scored(changed, TWO | ~BRAIN).items():
        np.testing.assert_allclose(value, expected[name], err_msg=name)


def test_the_map_of_the_outcome_has_the_greatest_score():
    found = scored(TWO.astype(float), TWO)
    exact = np.log((1 - UNIFORM) * SIZE / 3 + UNIFORM)
    assert found["log score of voxels"] == pytest.approx(3 * exact)
    assert found["log score of lesions"] == pytest.approx(2 * exact)
    np.testing.assert_allclose(found["lesions in top"], 2)
    assert found["lesions near sites"].tolist() == [1, 2, 2, 2] and NUM_SITES[:2] == (1, 3)


def test_a_map_that_misses_has_the_least_score_and_no_hit():
    found = scored(lesions((10, 10, 2)).astype(float), TWO)
    assert found["log score of voxels"] == pytest.approx(3 * np.log(UNIFORM))
    np.testing.assert_allclose(found["lesions in top"], 2 * (np.array(TOP_FRACTIONS) * SIZE - 1) / (SIZE - 1))
    assert found["lesions near sites"].tolist() == [0, 0, 0, 0]


def test_a_lesion_near_a_site_is_a_hit_and_one_beyond_ten_mm_is_not():
    site = lesions((10, 10, 4)).astype(float)
    for offset, hit in ((2, 1), (3, 0)):  # 8 and 12 mm
        assert scored(site, lesions((10 + offset, 10, 4)))["lesions near sites"].tolist() == [hit] * 4


def test_a_patient_without_lesions_adds_nothing():
    assert all((value == 0).all() for value in scored(np.random.default_rng(0).random(SHAPE), lesions()).values())


def test_false_sites_and_lesions_are_counted_by_the_fraction_that_a_site_holds():
    """Two sites, of 3/4 and 1/4 of the map; a lesion lies at the weaker one only."""
    heatmap = 0.75 * lesions((2, 2, 2)) + 0.25 * lesions((15, 15, 5))
    found = scored(heatmap, lesions((15, 16, 5)))
    false, by_site = found["false sites"], found["lesions by site"]
    assert false.sum() == by_site.sum() == 1 and false.argmax() > by_site.argmax()
    missed = scored(heatmap, lesions((10, 10, 2)))
    assert missed["false sites"].sum() == 2 and missed["lesions by site"].sum() == 0


def test_sites_of_every_patient_are_counted_by_their_probability():
    """With one or no lesion, equally likely, the sites of 3/4 and 1/4 of the map have 3/8 and 1/8."""
    heatmap = 0.003 * lesions((2, 2, 2)) + 0.001 * lesions((15, 15, 5))
    forecast = Forecast(0.5, np.array([0, 1]), np.array([0.5, 0.5]), heatmap=heatmap)
    for outcome, hits in ((lesions(), [0, 0]), (lesions((2, 3, 2)), [0, 1]), (lesions((15, 15, 5)), [1, 0])):
        found = site_scores(forecast, outcome, BRAIN, AFFINE, LesionRule())
        assert found["sites"].tolist() == [0, 0, 0, 1, 1, 0, 0]
        np.testing.assert_allclose(found["site probability"][3:5], [1 / 8, 3 / 8])
        assert found["sites with a lesion"][3:5].tolist() == hits
    places = Forecast(np.nan, np.array([np.nan]), np.ones(1), heatmap=heatmap)
    assert np.isnan(site_scores(places, lesions(), BRAIN, AFFINE, LesionRule())["sites"]).all()
