import pytest
import torch

from bundle.diffusion.slabs import fold_slices, unfold_slices


def test_fold_and_unfold_are_inverse_and_keep_slices_of_a_contrast_together():
    volume = torch.arange(2 * 3 * 4 * 5 * 6).reshape(2, 3, 4, 5, 6)
    slab = fold_slices(volume)
    assert slab.shape == (2, 18, 4, 5)
    assert torch.equal(slab[:, 6 + 2], volume[:, 1, ..., 2])
    assert torch.equal(unfold_slices(slab, 3), volume)


def test_contrasts_must_divide_the_channels():
    with pytest.raises(ValueError, match="7 channels"):
        unfold_slices(torch.zeros(1, 7, 2, 2), 3)
