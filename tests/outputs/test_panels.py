import numpy as np
import pytest
from matplotlib.colors import LogNorm

from bundle.lesions import Volume
from bundle.outputs.panels import (
    HEAT,
    LEAST,
    MOST,
    OPACITY,
    SOLID,
    axial_view,
    choose_levels,
    heat_colours,
    visible_heat,
)


def test_all_levels_that_hold_heat_are_shown_and_others_evenly():
    heat, covered = np.zeros(40), np.zeros(40, bool)
    covered[5:35] = True
    heat[[6, 7, 30]] = 1
    levels, left_out = choose_levels(heat, covered, 7)
    assert {6, 7, 30} < set(levels) and len(levels) == 7 and levels == sorted(levels) and left_out == 0
    assert levels[0] == 5 and levels[-1] == 34


def test_of_too_many_levels_each_run_of_neighbours_shows_that_with_most_heat():
    heat = np.arange(1.0, 13)
    heat[4] = 50
    levels, left_out = choose_levels(heat, np.ones(12, bool), 4)
    assert (levels, left_out) == ([2, 4, 8, 11], 8)


def test_levels_outside_the_slab_are_not_shown():
    assert choose_levels(np.ones(6), np.array([False, True, True, False, False, False]), 15) == ([1, 2], 0)
    assert choose_levels(np.ones(6), np.zeros(6, bool), 15) == ([], 0)


def test_below_the_threshold_the_map_is_transparent_and_grows_opaque_above():
    opacity = heat_colours(np.array([0, LEAST / 2, LEAST, np.sqrt(LEAST * SOLID), SOLID, MOST, 1]))[:, 3]
    np.testing.assert_allclose(opacity, OPACITY * np.array([0, 0, 0, 0.5, 1, 1, 1]), atol=1e-6)


def test_colours_are_those_of_the_scale():
    heat = np.array([0.002, 0.05])
    np.testing.assert_array_equal(heat_colours(heat)[:, :3], HEAT(LogNorm(LEAST, MOST)(heat))[:, :3])


def test_heat_that_is_not_drawn_does_not_count():
    heat = np.zeros((2, 2, 3))
    heat[0, 0] = (LEAST / 2, LEAST, 0.5)
    assert visible_heat(heat) == pytest.approx([0, LEAST, 0.5])


def test_a_view_keeps_the_slice_numbers_of_the_file_and_its_fractions():
    affine = np.diag([2.0, 2.0, -3.0, 1.0])  # the file counts downwards
    brain = np.ones((4, 4, 3), bool)
    covered = np.zeros_like(brain)
    covered[:, :, 0] = True
    covered[:2, :, 1] = True
    view = axial_view(Volume(np.zeros(brain.shape), affine), np.zeros(brain.shape), brain=brain, covered=covered)
    assert view.fractions.tolist() == [0, 0.5, 1]
    assert [view.slice_number(level) for level in range(3)] == [2, 1, 0]
