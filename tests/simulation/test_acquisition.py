import numpy as np
import pytest

from bundle.simulation.acquisition import acquire_flair, diffuse_extent, draw_texture, tissue_signal
from bundle.simulation.anatomy import SHAPE, draw_anatomy
from bundle.simulation.protocol import PRESETS
from bundle.simulation.scanners import EndlessScanners, Fleet, OneScanner, Settings, SiteScanners

NOTHING = np.zeros(SHAPE, np.float32)
PLAIN = np.ones(SHAPE, np.float32)
QUIET = Settings(noise=0.001, bias=1e-6)


@pytest.fixture(scope="module")
def anatomy():
    return draw_anatomy(np.random.default_rng(0))


def scan(anatomy, settings=QUIET, seed=2, growth_mm=0.0, gain=NOTHING, diffuse=NOTHING, texture=PLAIN):
    signal = tissue_signal(anatomy, settings, texture, growth_mm, gain, diffuse)
    return acquire_flair(anatomy, signal, settings, np.random.default_rng(seed))


def test_nothing_outside_the_brain_and_something_everywhere_inside(anatomy):
    flair, brain = scan(anatomy)
    assert flair.dtype == np.int16
    np.testing.assert_array_equal(flair > 0, anatomy.brain)
    np.testing.assert_array_equal(brain, anatomy.brain)


def test_tissue_contrast_and_gain_are_those_of_the_settings(anatomy):
    settings = Settings(grey=1.3, fluid=0.2, noise=0.001, bias=1e-6, gain=1000)
    flair, _ = scan(anatomy, settings)
    white, grey, fluid = (np.median(flair[fraction > 0.99]) for fraction in anatomy.tissue)
    assert white == pytest.approx(1000, rel=0.02)
    assert grey / white == pytest.approx(1.3, abs=0.05)
    assert fluid / white == pytest.approx(0.2, abs=0.05)


def test_a_lesion_is_brighter_by_its_gain_and_hides_the_diffuse_signal(anatomy):
    centre = tuple(np.argwhere(anatomy.tissue[0] > 0.99)[5000])
    box = tuple(slice(max(0, c - r), c + r + 1) for c, r in zip(centre, (8, 8, 3)))
    gain = NOTHING.copy()
    gain[box] = 0.5
    for diffuse in (NOTHING, 0.2 * PLAIN):
        flair, _ = scan(anatomy, gain=gain, diffuse=diffuse)
        assert flair[centre] / 300 == pytest.approx(1.5, abs=0.06)


def test_diffuse_signal_can_be_measured_in_the_image(anatomy):
    """White matter well within its extent against white matter beyond it, as a reader would take them."""
    extent = diffuse_extent(anatomy)
    white = anatomy.tissue[0] > 0.97
    for diffuse in (0.03, 0.2):
        flair, _ = scan(anatomy, diffuse=np.float32(diffuse) * extent)
        inside, outside = np.median(flair[white & (extent > 0.95)]), np.median(flair[white & (extent == 0)])
        assert inside / outside - 1 == pytest.approx(diffuse, abs=0.01)


def test_ventricles_grow_by_what_they_are_told(anatomy):
    """Half a millimetre of the shell around them turns to fluid."""
    (before, _), (after, _) = scan(anatomy), scan(anatomy, growth_mm=0.5)
    shell = (anatomy.ventricle_mm > 0) & (anatomy.ventricle_mm <= 1) & (anatomy.tissue[2] < 0.1)
    assert after[shell].mean() < 0.8 * before[shell].mean()
    far = anatomy.ventricle_mm > 8
    assert np.median(after[far] / before[far].astype(float)) == pytest.approx(1, abs=0.005)


def test_noise_bias_ghost_shift_and_residue_do_what_they_say(anatomy):
    white = anatomy.tissue[0] > 0.98
    clean, _ = scan(anatomy)
    noisy, _ = scan(anatomy, Settings(noise=0.05, bias=1e-6))
    assert (noisy[white] / 300).std() == pytest.approx(0.05, rel=0.15)
    ghost, _ = scan(anatomy, Settings(noise=0.001, bias=1e-6, ghost=0.04))
    assert 0 < np.mean(ghost[white] - clean[white].astype(float)) / 300 < 0.04
    moved, _ = scan(anatomy, Settings(noise=0.001, bias=1e-6, shift_mm=(1.0, 0.0, 0.0)))
    inner = anatomy.brain & np.roll(anatomy.brain, 3, 0) & np.roll(anatomy.brain, -3, 0)
    difference = [np.abs(moved.astype(float) - np.roll(clean, k, 0))[inner].mean() for k in (0, 1)]
    assert difference[1] < 0.2 * difference[0]
    _, stripped = scan(anatomy, Settings(residue=0.1))
    extra = stripped & ~anatomy.brain
    assert 0 < extra.sum() < 0.02 * anatomy.brain.sum() and not (anatomy.brain & ~stripped).any()


def test_thick_slices_mix_their_neighbours(anatomy):
    thin, thick = (scan(anatomy, Settings(noise=0.001, bias=1e-6, slice_mm=mm))[0].astype(float) for mm in (3.0, 5.0))
    inner = anatomy.brain & np.roll(anatomy.brain, 1, 2)
    step = [np.abs(np.diff(v, axis=2))[inner[..., 1:]].mean() for v in (thin, thick)]
    assert step[1] < 0.95 * step[0]


def test_texture_is_the_patients_own_and_round_one():
    texture = draw_texture(np.random.default_rng(1))
    assert texture.mean() == pytest.approx(1, abs=0.01)
    assert texture.std() == pytest.approx(np.hypot(0.03, 0.02), rel=0.2)


def test_one_scanner_keeps_its_contrast():
    visits = OneScanner().settings(1, 3, np.random.default_rng(0))
    assert len({(v.grey, v.fluid, v.slice_mm, v.lesion) for v in visits}) == 1
    assert len({v.gain for v in visits}) == 3


def test_a_site_is_the_same_for_all_patients_of_a_trial_and_for_all_visits():
    patients = [SiteScanners(sites=1).settings(5, 2, np.random.default_rng(seed)) for seed in (1, 2)]
    assert len({(v.grey, v.noise, v.slice_mm) for visits in patients for v in visits}) == 1
    other = SiteScanners(sites=1).settings(6, 1, np.random.default_rng(1))
    assert other[0].grey != patients[0][0].grey


def test_patients_of_sites_are_scanned_by_one_of_twenty_scanners_each():
    patients = [PRESETS["sites"].scanners.settings(5, 3, np.random.default_rng(seed)) for seed in range(300)]
    scanners = [{(visit.grey, visit.blur_mm, visit.noise) for visit in visits} for visits in patients]
    assert {len(own) for own in scanners} == {1} and len(set.union(*scanners)) == 20


def test_endless_scanners_stay_within_their_ranges():
    visits = EndlessScanners().settings(1, 500, np.random.default_rng(0))
    for name in ("grey", "fluid", "lesion", "blur_mm", "slice_mm", "noise", "bias", "gain"):
        low, high = getattr(Fleet(), name)
        drawn = np.array([getattr(v, name) for v in visits])
        assert drawn.min() >= low and drawn.max() <= high and len(np.unique(drawn)) == 500
    assert max(np.linalg.norm(v.shift_mm) for v in visits) <= 1
    assert 0.2 < np.mean([v.ghost > 0 for v in visits]) < 0.4
