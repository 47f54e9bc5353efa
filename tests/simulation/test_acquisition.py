import numpy as np
import pytest

from bundle.simulation.acquisition import FLUID, GREY, acquire_flair, draw_texture
from bundle.simulation.anatomy import SHAPE, draw_anatomy

NO_GAIN = np.zeros(SHAPE, np.float32)


@pytest.fixture(scope="module")
def anatomy():
    return draw_anatomy(np.random.default_rng(0))


def test_nothing_outside_the_brain_and_something_everywhere_inside(anatomy):
    flair = acquire_flair(anatomy, draw_texture(anatomy, np.random.default_rng(1)), NO_GAIN, np.random.default_rng(2))
    assert flair.dtype == np.int16
    np.testing.assert_array_equal(flair > 0, anatomy.brain)


def test_tissue_contrast_is_the_one_written_down(anatomy):
    """Over several visits the bias fields average out; the ratio of pure tissues remains."""
    texture = np.ones(SHAPE, np.float32)
    visits = [acquire_flair(anatomy, texture, NO_GAIN, np.random.default_rng(seed)) for seed in range(12)]
    white, grey, fluid = ([np.median(v[fraction > 0.97]) for v in visits] for fraction in anatomy.tissue)
    assert np.mean(np.divide(grey, white)) == pytest.approx(GREY, abs=0.05)
    assert np.mean(np.divide(fluid, white)) == pytest.approx(FLUID, abs=0.05)


def test_a_lesion_is_brighter_by_its_gain(anatomy):
    """The same draws with and without a large lesion: inside the signal grows by the gain, far away not at all."""
    gain = NO_GAIN.copy()
    centre = tuple(np.argwhere(anatomy.tissue[0] > 0.99)[5000])
    box = tuple(slice(max(0, c - r), c + r + 1) for c, r in zip(centre, (8, 8, 3)))
    gain[box] = 0.5
    texture = np.ones(SHAPE, np.float32)
    without, with_lesion = (
        acquire_flair(anatomy, texture, g, np.random.default_rng(3)).astype(float) for g in (NO_GAIN, gain)
    )
    ratio = with_lesion[centre] / without[centre]
    assert ratio == pytest.approx(1.5, abs=0.06)
    far = np.ones(SHAPE, bool)
    far[tuple(slice(max(0, s.start - 6), s.stop + 6) for s in box)] = False
    np.testing.assert_array_equal(with_lesion[far], without[far])


def test_visits_differ_in_scale_and_noise_but_not_in_texture(anatomy):
    texture = draw_texture(anatomy, np.random.default_rng(1))
    first, second = (
        acquire_flair(anatomy, texture, NO_GAIN, np.random.default_rng(seed)).astype(float) for seed in (5, 6)
    )
    white = anatomy.tissue[0] > 0.97
    assert np.median(first[white]) != pytest.approx(np.median(second[white]), rel=0.01)
    with_texture = np.corrcoef(first[white], second[white])[0, 1]
    plain = np.ones(SHAPE, np.float32)
    first, second = (
        acquire_flair(anatomy, plain, NO_GAIN, np.random.default_rng(seed)).astype(float) for seed in (5, 6)
    )
    assert with_texture > np.corrcoef(first[white], second[white])[0, 1] + 0.1


def test_texture_is_round_one(anatomy):
    texture = draw_texture(anatomy, np.random.default_rng(1))
    assert texture.mean() == pytest.approx(1, abs=0.005)
    assert texture.std() == pytest.approx(np.hypot(0.03, 0.02), rel=0.1)
