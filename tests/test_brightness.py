import numpy as np
import torch

from bundle.brightness import compress_bright, expand_bright

LINEAR = np.linspace(-1, 3, 401)


def test_bright_values_stay_apart_and_within_the_range():
    compressed = compress_bright(LINEAR)
    assert (np.diff(compressed) > 0).all() and compressed.min() == -1 and compressed.max() < 1
    assert np.array_equal(compressed[LINEAR <= 0.5], LINEAR[LINEAR <= 0.5])


def test_expanding_is_the_inverse_even_of_float16():
    compressed = torch.from_numpy(compress_bright(LINEAR))
    np.testing.assert_allclose(expand_bright(compressed).numpy(), LINEAR, atol=1e-9)
    np.testing.assert_allclose(expand_bright(compressed.half().float()).numpy(), LINEAR, atol=0.05)


def test_beyond_the_range_nothing_is_infinite():
    values = torch.from_numpy(compress_bright(np.array([-1e6, 50.0, 1e9])))
    assert expand_bright(values).tolist() == [-1, 3, 3]
