import numpy as np
import torch
from scipy import ndimage
from skimage.measure import euler_number as by_skimage

from bundle.networks.loads import euler_number, lesion_loads


def test_the_euler_number_is_that_of_scikit_image():
    masks = torch.rand(4, 3, 5, 9, 8, generator=torch.Generator().manual_seed(0)) < 0.3
    expected = [[by_skimage(volume.numpy(), connectivity=3) for volume in patient] for patient in masks]
    assert euler_number(masks.float()).tolist() == expected


def test_the_euler_number_of_lesions_without_holes_is_their_number():
    rng, mask = np.random.default_rng(0), np.zeros((15, 60, 60), np.float32)
    for centre in rng.integers((1, 2, 2), (14, 58, 58), (25, 3)):
        mask[tuple(slice(c - 1, c + 1) for c in centre)] = 1
    mask[0, :3, :3] = 1  # at the edge
    assert euler_number(torch.from_numpy(mask)) == ndimage.label(mask, np.ones((3, 3, 3)))[1]


def test_loads_are_logs_of_volume_and_say_what_is_known():
    volumes = torch.zeros(1, 3, 2, 4, 4)
    volumes[0, 1] = -1
    volumes[0, 2, 0, 0, :3] = 1
    expected = torch.tensor([[0, 0, np.log(4) / 2, 0, 1, 1]], dtype=torch.float32)
    torch.testing.assert_close(lesion_loads(volumes), expected)
