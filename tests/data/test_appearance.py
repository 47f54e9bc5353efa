"""Volumes whose features are known."""

import numpy as np
import pytest

from bundle.data.appearance import GRID, histogram_mode, scan_appearance, slab_appearance
from bundle.errors import InputError
from bundle.lesions import Volume

SHAPE = (60, 80, 15)
BRAIN = np.zeros(SHAPE, bool)
BRAIN[5:-5, 5:-5] = True  # 50 x 70 x 15 voxels


def planes(values):
    """A brain made of layers from left to right, each of one value and equally thick; 9999 outside."""
    volume = np.full(SHAPE, 9999.0)
    volume[5:-5] = np.repeat(values, 50 // len(values))[:, None, None]
    return np.where(BRAIN, volume, 9999.0)


def test_percentiles_are_in_units_of_the_most_frequent_value():
    found = slab_appearance(planes([100, 200, 200, 200, 200, 200, 200, 300, 300, 400]), BRAIN)
    assert found[:4] == pytest.approx((0.5, 1.0, 1.5, 2.0))


def test_the_mode_is_that_of_the_smoothed_histogram():
    # Alone, 150 is the most frequent value; of those that lie close together, 201 is.
    values = np.concatenate([[150.0] * 30, *([v] * 20 for v in (197.0, 199.0, 201.0, 203.0, 205.0))])
    assert histogram_mode(values) == pytest.approx(201, abs=1.5)
    assert histogram_mode(np.array([-5.0, 7, 7, 7])) == pytest.approx(7)


def test_the_unit_of_a_scan_does_not_matter_and_nor_does_what_lies_outside_the_brain():
    scan = planes([100, 200, 200, 200, 300]) + np.random.default_rng(0).normal(0, 5, SHAPE)
    lesions = np.zeros(SHAPE, bool)
    lesions[0:10, 30, 7] = True  # half of it outside the brain
    found = slab_appearance(scan, BRAIN, lesions)
    assert slab_appearance(np.where(BRAIN, 7 * scan, -3), BRAIN, lesions) == pytest.approx(found)


@pytest.mark.parametrize("noise", [0.02, 0.05])
def test_white_noise_is_measured_and_edges_add_little(noise):
    white, edges = 100 * noise * np.random.default_rng(1).standard_normal(SHAPE), planes([50, 100, 100, 100, 150])
    assert slab_appearance(100 + white, BRAIN).noise == pytest.approx(noise, rel=0.02)
    assert noise < slab_appearance(edges + white, BRAIN).noise < 1.12 * noise
    assert slab_appearance(edges, BRAIN).noise == pytest.approx(0, abs=1e-9)


def test_sharpness_of_a_ramp_is_its_slope_over_its_range():
    ramp = np.where(BRAIN, 100 + 2.0 * np.arange(80)[None, :, None], 0)  # 70 steps, each as frequent
    assert slab_appearance(ramp, BRAIN).sharpness == pytest.approx(1 / (66 - 3))


def test_sharpness_falls_as_an_edge_is_spread():
    x = np.arange(60)[:, None, None]
    brain = BRAIN & (abs(x - 30) < 10)  # so that more than 5 % of it lie at the edge
    sharp, spread = (np.where(brain, 100 + 100 * np.clip((x - 28) / width, 0, 1), 0) for width in (1, 4))
    assert slab_appearance(sharp, brain).sharpness == pytest.approx(1 / 2)
    assert slab_appearance(spread, brain).sharpness == pytest.approx(1 / 4)


def test_bias_is_the_deviation_of_the_smooth_part():
    """Two brains, farther apart than the Gaussian reaches: each half is its own mean, 10 % apart from the middle."""
    brain = np.zeros((220, 20, 3), bool)
    brain[:20] = brain[-20:] = True
    pattern = np.indices(brain.shape).sum(0) % 2 * 2.0 - 1  # averages out
    scan = np.where(np.arange(220)[:, None, None] < 110, 90.0, 110.0) * brain
    mode = histogram_mode(scan[brain])
    assert slab_appearance(scan, brain).bias == pytest.approx(10 / mode)
    assert slab_appearance(np.where(brain, 100 + pattern, 0), brain).bias < 0.001


def test_contrast_of_lesions_is_their_median_over_the_mode():
    scan, lesions = planes([80, 100, 100, 100, 100]), np.zeros(SHAPE, bool)
    lesions[40:43, 40, 7] = True
    scan[40:43, 40, 7] = 130, 140, 900
    lesions[0, 0, 0] = True  # outside the brain
    assert slab_appearance(scan, BRAIN, lesions).lesion_contrast == pytest.approx(0.4)
    assert np.isnan(slab_appearance(scan, BRAIN).lesion_contrast)
    assert np.isnan(slab_appearance(scan, BRAIN, np.zeros(SHAPE, bool)).lesion_contrast)


@pytest.mark.parametrize(
    ("scan", "brain", "problem"),
    [
        (planes([100]), BRAIN, "no contrast"),
        (np.zeros(SHAPE), BRAIN, "no signal"),
        (planes([100]), np.zeros(SHAPE, bool), "no cell of the slab"),
    ],
)
def test_what_cannot_be_measured_is_refused(scan, brain, problem):
    with pytest.raises(ValueError, match=problem):
        slab_appearance(scan, brain)


def test_a_scan_on_the_grid_is_measured_as_it_is_in_any_orientation():
    affine = np.diag([1.0, 1, 3, 1])
    scan = np.where(BRAIN, planes([100, 200, 200, 200, 300]), 0) + BRAIN * np.random.default_rng(0).normal(0, 5, SHAPE)
    lesions = np.zeros(SHAPE, bool)
    lesions[30:33, 40:42, 7] = True
    found = slab_appearance(scan, BRAIN, lesions)
    volumes = [Volume(x, affine) for x in (scan, BRAIN, lesions)]
    assert scan_appearance(*volumes, "sub-01") == pytest.approx(found, rel=1e-5)
    turned = affine @ np.array([[-1, 0, 0, SHAPE[0] - 1.0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    volumes = [Volume(x[::-1], turned) for x in (scan, BRAIN, lesions)]
    assert scan_appearance(*volumes, "sub-01") == pytest.approx(found, rel=1e-5)


def test_cells_hold_the_mean_of_the_brain_in_them_stripped_or_not():
    """Voxels of .5 x .5 x 1 mm; the brain fills the cells at its left and right borders by three quarters."""
    fine = np.repeat(np.repeat(np.repeat(BRAIN, 2, 0), 2, 1), 3, 2)
    fine[10, :, 1::2] = fine[-11, :, 1::2] = False
    scan = np.where(fine, np.linspace(90, 130, fine.shape[1])[None, :, None], 0.0)
    affine = np.diag([0.5, 0.5, 1, 1])
    brain = Volume(fine, affine)
    stripped = scan_appearance(Volume(scan, affine), brain, None, "")
    whole = scan_appearance(Volume(np.where(fine, scan, 5000), affine), brain, None, "")
    assert stripped == pytest.approx(whole, nan_ok=True)
    assert stripped.percentile_5 > 90 / 130 and stripped.noise < 0.01


def test_a_scan_that_cannot_be_used_names_its_case():
    scan = Volume(np.ones(SHAPE, np.float32), np.diag([1.0, 1, 3, 1]))
    with pytest.raises(InputError, match="sub-01: no brain found; give a brain mask"):
        scan_appearance(scan, scan._replace(values=np.zeros(SHAPE, bool)), None, "sub-01")
    with pytest.raises(InputError, match="sub-01: the brain has no contrast"):
        scan_appearance(scan, scan._replace(values=BRAIN), None, "sub-01")


def test_voxels_that_would_fill_the_memory_are_refused():
    tiny = np.diag([0.1, 0.1, 0.1, 1.0])
    scan = Volume(np.ones((4, 4, 4), np.float32), tiny)
    with pytest.raises(InputError, match="sub-01: its voxels are too small"):
        scan_appearance(scan, scan._replace(values=np.ones((4, 4, 4), bool)), None, "sub-01")
    assert GRID.spacing_mm == (1, 1, 3)
