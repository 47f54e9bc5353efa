import numpy as np
import pytest
from scipy import ndimage

from bundle.simulation.anatomy import SHAPE, Anatomy
from bundle.simulation.drawing import form_lesions, grow, halo, placement

NEIGHBOURS_26 = np.ones((3, 3, 3))
NO_LESIONS = np.zeros(SHAPE, bool)


def block_anatomy(*blocks: tuple[tuple[slice, ...], float]) -> Anatomy:
    """White matter everywhere; lesions start in the given blocks, so many times as often."""
    susceptibility = np.zeros(SHAPE, np.float32)
    for block, weight in blocks:
        susceptibility[block] = weight
    tissue = np.zeros((3, *SHAPE), np.float32)
    tissue[0] = 1
    return Anatomy(np.ones(SHAPE, bool), tissue, np.full(SHAPE, 2, np.uint8), susceptibility)


LEFT_BLOCK = (slice(40, 60), slice(100, 120), slice(4, 10))
RIGHT_BLOCK = (slice(130, 150), slice(100, 120), slice(4, 10))


def marks(count: int, seed: int = 0) -> list[np.random.SeedSequence]:
    return [np.random.SeedSequence(seed, spawn_key=(j,)) for j in range(count)]


@pytest.mark.parametrize("volume_mm3", [3, 9, 45, 117, 1500])
def test_a_lesion_has_its_volume_in_one_piece_round_its_seed(volume_mm3):
    for seed in range(10):
        start = (90, 110, 7)
        lesion = grow(np.ones(SHAPE, bool), start, volume_mm3, np.random.default_rng(seed))
        drawn = np.zeros(SHAPE, bool)
        drawn[lesion] = True
        assert drawn.sum() * 3 == volume_mm3
        assert drawn[start]
        assert ndimage.label(drawn)[1] == 1


def test_lesions_are_compact_but_not_balls():
    """A ball of radius r has the radius of gyration r sqrt(3/5); bumps stretch it by some percent, not by half."""
    ratios = []
    for seed in range(60):
        lesion = np.array(grow(np.ones(SHAPE, bool), (90, 110, 7), 1500, np.random.default_rng(seed)))
        places_mm = lesion * np.array([[1], [1], [3]])
        gyration = np.sqrt(places_mm.var(axis=1).sum())
        ratios.append(gyration / ((3 * 1500 / (4 * np.pi)) ** (1 / 3) * np.sqrt(3 / 5)))
    assert 1.02 < np.mean(ratios) < 1.35
    assert np.std(ratios) > 0.02


def test_a_lesion_stays_where_it_is_free_and_takes_all_the_room_there_is():
    free = np.zeros(SHAPE, bool)
    free[10:13, 20:22, 5] = True
    lesion = grow(free, (11, 20, 5), 300, np.random.default_rng(0))
    drawn = np.zeros(SHAPE, bool)
    drawn[lesion] = True
    np.testing.assert_array_equal(drawn, free)


def test_a_lesion_may_touch_the_edge_of_the_slab():
    lesion = grow(np.ones(SHAPE, bool), (0, 223, 14), 300, np.random.default_rng(0))
    assert len(lesion[0]) == 100
    assert all(i.min() >= 0 and i.max() < n for i, n in zip(lesion, SHAPE))


@pytest.mark.parametrize("start", [(90, 110, 7), (0, 0, 14)])
def test_halo_is_the_dilated_lesion(start):
    lesion = grow(np.ones(SHAPE, bool), start, 120, np.random.default_rng(1))
    drawn = np.zeros(SHAPE, bool)
    drawn[lesion] = True
    box, touching = halo(lesion)
    found = np.zeros(SHAPE, bool)
    found[box] = touching
    np.testing.assert_array_equal(found, ndimage.binary_dilation(drawn, NEIGHBOURS_26))


def test_placement_is_a_density_outside_old_lesions_and_higher_next_to_them():
    anatomy = block_anatomy((LEFT_BLOCK, 1.0))
    lesions = NO_LESIONS.copy()
    lesions[48:52, 108:112, 6:8] = True
    density = placement(anatomy, lesions)
    assert density.sum(dtype=float) == pytest.approx(1, abs=1e-5)
    assert density[lesions].sum() == 0
    assert density[47, 109, 7] > 2 * density[40, 100, 4]
    np.testing.assert_allclose(placement(anatomy, NO_LESIONS)[LEFT_BLOCK], 1 / anatomy.susceptibility.sum(), rtol=1e-5)


def test_lesions_start_in_proportion_to_the_density():
    """Half-brains with weights 3 and 1, so roomy that a few lesions do not take each other's place."""
    anatomy = block_anatomy((np.s_[20:90, 40:180], 3.0), (np.s_[100:170, 40:180], 1.0))
    lesions = [lesion for seed in range(20) for lesion in form_lesions(anatomy, NO_LESIONS, marks(15, seed))]
    left = np.mean([lesion[0].mean() < 95 for lesion in lesions])
    assert abs(left - 3 / 4) < 4 * np.sqrt(3 / 16 / len(lesions))


def test_lesions_hardly_ever_start_where_they_hardly_can():
    """By rights one start in 4000 lies outside the block; clocks of single precision put one in 14 there."""
    anatomy = block_anatomy((np.s_[:], 1e-6), (LEFT_BLOCK, 1.0))
    lesions = [lesion for seed in range(25) for lesion in form_lesions(anatomy, NO_LESIONS, marks(4, seed))]
    first = np.array([[i[0] for i in lesion] for lesion in lesions])  # a lesion lists its seed first
    outside = ~np.all([(first[:, i] >= s.start) & (first[:, i] < s.stop) for i, s in enumerate(LEFT_BLOCK)], axis=0)
    assert outside.sum() <= 1


def test_lesions_of_one_visit_stay_apart_and_off_old_lesions():
    anatomy = block_anatomy((LEFT_BLOCK, 1.0), (RIGHT_BLOCK, 1.0))
    old = NO_LESIONS.copy()
    old[45:55, 105:115, 5:8] = True
    lesions = form_lesions(anatomy, old, marks(8))
    drawn = NO_LESIONS.copy()
    for lesion in lesions:
        drawn[lesion] = True
    assert drawn.sum() == sum(len(lesion[0]) for lesion in lesions)
    assert ndimage.label(drawn, NEIGHBOURS_26)[1] == 8
    assert not (drawn & old).any()


def test_fewer_marks_give_the_first_of_the_same_lesions():
    anatomy = block_anatomy((LEFT_BLOCK, 1.0))
    few, many = form_lesions(anatomy, NO_LESIONS, marks(2)), form_lesions(anatomy, NO_LESIONS, marks(4))
    for one, other in zip(few, many):
        np.testing.assert_array_equal(one, other)


def test_another_history_mostly_leaves_the_places_where_they_were():
    """The clocks are shared, so a lesion elsewhere moves few of the others."""
    anatomy = block_anatomy((LEFT_BLOCK, 1.0), (RIGHT_BLOCK, 1.0))
    old = NO_LESIONS.copy()
    old[40:43, 100:103, 4] = True
    same = 0
    for mark in marks(20):
        a, b = (form_lesions(anatomy, lesions, [mark])[0] for lesions in (NO_LESIONS, old))
        same += np.shape(a) == np.shape(b) and np.array_equal(a, b)
    assert same >= 17
