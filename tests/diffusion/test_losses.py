import math

import pytest
import torch
from torch import nn

from bundle.diffusion.losses import DenoisingLoss, MinSNR
from bundle.diffusion.predictions import BinaryPrediction, ContrastwisePrediction, X0Prediction
from bundle.diffusion.schedules import Cosine
from bundle.diffusion.slabs import Condition, SlabDenoiser
from bundle.seeding import Streams


def constant_level(logsnr):
    return lambda t: torch.full_like(t, logsnr)


class Constant(nn.Module):
    """A network whose whole output is one number, which can be trained."""

    def __init__(self, value=0.0, channels=2):
        super().__init__()
        self.value, self.channels = nn.Parameter(torch.tensor(value)), channels

    def forward(self, x):
        return self.value.expand(len(x), self.channels, *x.shape[2:])


def batch(x0):
    return Condition(images=x0.new_zeros(len(x0), 1, *x0.shape[2:]), arm=torch.zeros(len(x0), dtype=torch.long))


def test_min_snr():
    logsnr = torch.tensor([-20.0, math.log(2), math.log(5), 9.0])
    torch.testing.assert_close(MinSNR(floor=0)(logsnr), torch.tensor([math.exp(-20), 2, 5, 5]))
    torch.testing.assert_close(MinSNR(floor=0.5)(logsnr), torch.tensor([0.5, 2, 5, 5]))


def test_loss_is_per_sample_weighted_by_contrast_lesion_and_level():
    x0 = torch.full((2, 2, 4, 4), -1.0)  # one slice of FLAIR, one of NET2
    x0[1, 1, 0, 0] = 1  # one lesion voxel in the second patient
    loss = DenoisingLoss(constant_level(math.log(3.0)), MinSNR(), foreground_weight=10, contrast_weights=(0.5, 1.0))
    value = loss(SlabDenoiser(Constant(1.0), X0Prediction(), 1), x0, batch(x0), Streams.for_batch(0, 0, range(2), 2))
    healthy = 3 * 4 * (0.5 * 16 + 16) / 32  # SNR x error of 2 squared x mean weight
    torch.testing.assert_close(value, torch.tensor([healthy, 3 * 4 * (0.5 * 16 + 15) / 32]))
    lesion = DenoisingLoss(constant_level(0.0), MinSNR(), 10, (1.0, 1.0))(
        SlabDenoiser(Constant(-1.0), X0Prediction(), 10), x0, batch(x0), Streams.for_batch(0, 0, range(2), 2)
    )
    torch.testing.assert_close(lesion, torch.tensor([0.0, 10 * 4 / 32]))


@pytest.mark.parametrize("foreground_weight", [1.0, 10.0])
def test_training_with_weighted_lesions_still_gives_the_true_frequency(foreground_weight):
    """The best constant for masks with 5 % of lesion voxels: the denoiser must report 5 %, not 10 times the odds."""
    x0 = torch.full((4, 2, 20, 20), -1.0)
    x0[:, 1, 0] = 1
    network = Constant(channels=2)
    prediction = ContrastwisePrediction((X0Prediction(), BinaryPrediction()))
    denoiser = SlabDenoiser(network, prediction, foreground_weight)
    loss = DenoisingLoss(
        constant_level(-30.0), MinSNR(floor=1), foreground_weight, contrast_weights=(0.0, 1.0)
    )  # pure noise
    optimizer = torch.optim.LBFGS([network.value], max_iter=50)

    def closure():
        optimizer.zero_grad()
        value = loss(denoiser, x0, batch(x0), Streams.for_batch(0, 0, range(4), 4)).mean()
        value.backward()
        return value

    optimizer.step(closure)
    p = (denoiser(torch.zeros_like(x0), torch.full((4,), -30.0), batch(x0))[:, 1].mean() + 1) / 2
    torch.testing.assert_close(p.item(), 0.05, rtol=1e-3, atol=0)


def test_the_noise_is_that_of_the_streams_and_the_levels_cover_the_schedule():
    seen = []

    class Network(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x[:, :2]

    x0 = -torch.ones(8, 2, 4, 4)
    loss = DenoisingLoss(Cosine(), MinSNR(), 1, (1.0, 1.0))
    first, second = (
        loss(SlabDenoiser(Network(), X0Prediction(), 1), x0, batch(x0), Streams.for_batch(1, 2, range(8), 8))
        for _ in range(2)
    )
    assert torch.equal(first, second)
    levels = seen[0][:, -2, 0, 0]
    assert levels.min() < -2 and levels.max() > 2 and len(levels.unique()) == 8
