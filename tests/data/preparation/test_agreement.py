import numpy as np
import pytest

from bundle.data.preparation.agreement import Limits, register_checked
from bundle.data.preparation.registration import Agreement
from bundle.errors import InputError

VISITS = ("w000", "w048")


def checked(first, later):
    return register_checked((first, later), (first.values > 0, later.values > 0), case="sub-1", visits=VISITS)


def test_a_low_correlation_is_a_warning():
    assert Limits().warnings(Agreement(0.76, 1.0), VISITS) == []
    (text,) = Limits().warnings(Agreement(0.72, 1.0), VISITS)
    assert "w048 and w000 may not be registered: correlation 0.72" in text


@pytest.mark.slow
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mirrored_scan_is_refused(visits, axis):
    later = visits["w048"]
    flipped = later._replace(values=np.ascontiguousarray(np.flip(later.values, axis)))
    with pytest.raises(InputError, match="sub-1: w048 and w000"):
        checked(visits["w000"], flipped)


@pytest.mark.slow
def test_noise_in_the_place_of_a_scan_is_refused(visits):
    later = visits["w048"]
    noise = np.random.default_rng(0).uniform(1, 500, later.values.shape) * (later.values > 0)
    with pytest.raises(InputError, match="sub-1: "):
        checked(visits["w000"], later._replace(values=noise.astype(np.float32)))
