import numpy as np
import pytest
from scipy import ndimage

from bundle.simulation.readers import Reader

NEIGHBOURS_26 = np.ones((3, 3, 3))
KEYS = (("w000", "T2lesion"), ("w048", "T2lesion"), ("w048", "NET2"), ("w096", "NET2"))


@pytest.fixture(scope="module")
def mask():
    """One lesion of 1200 mm3, 30 of 9 mm3, and two a voxel apart."""
    mask = np.zeros((80, 90, 15), bool)
    mask[10:20, 10:20, 5:9] = True
    for k in range(30):
        mask[30 + 4 * (k % 10), 30 + 4 * (k // 10) : 33 + 4 * (k // 10), 4] = True
    mask[10:16, 60:66, 5:8] = mask[17:23, 60:66, 5:8] = True
    return mask


def read(reader, mask, seed=0):
    return reader(dict.fromkeys(KEYS, mask), np.random.default_rng(seed))


def test_a_careful_reader_writes_the_truth(mask):
    written = read(Reader(), mask)
    assert tuple(written) == KEYS
    assert all(np.array_equal(m, mask) for m in written.values())


def test_the_outcome_is_never_touched(mask):
    for seed in range(5):
        written = read(Reader(careless=1.0, missing=0.9), mask, seed)
        np.testing.assert_array_equal(written["w096", "NET2"], mask)


def test_masks_are_missing_at_random(mask):
    number = [len(read(Reader(missing=0.3), mask, seed)) - 1 for seed in range(300)]
    assert np.mean(number) == pytest.approx(0.7 * 3, abs=0.2)


def test_a_careless_reader_misses_small_lesions_and_moves_borders(mask):
    small, large = [], []
    for seed in range(4):
        seen = read(Reader(careless=1.0, merged=0.0, missed_small=0.6), mask, seed)["w000", "T2lesion"]
        lesions, _ = ndimage.label(mask, NEIGHBOURS_26)
        found = [seen[ndimage.binary_dilation(lesions == k, NEIGHBOURS_26)].any() for k in range(1, lesions.max() + 1)]
        volume = np.bincount(lesions.ravel())[1:] * 3
        small += [f for f, v in zip(found, volume) if v < 30]
        large += [f for f, v in zip(found, volume) if v > 1000]
        assert not np.array_equal(seen, mask)
    assert np.mean(large) == 1
    assert 0.2 < np.mean(small) < 0.75


def test_near_lesions_are_merged(mask):
    reader = Reader(careless=1.0, merged=1.0, moved=1e-6, missed_small=0.0)
    seen = read(reader, mask)["w000", "T2lesion"]
    assert seen[16, 62, 6] and not mask[16, 62, 6]
    assert ndimage.label(seen, NEIGHBOURS_26)[1] < ndimage.label(mask, NEIGHBOURS_26)[1]
