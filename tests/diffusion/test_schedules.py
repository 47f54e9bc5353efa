import math

import pytest
import torch

from bundle.diffusion.schedules import (
    Cosine,
    InterpolatedCosine,
    LogSNRUniformGrid,
    NoisiestLevel,
    ShiftedCosine,
    TimeUniformGrid,
    alpha_sigma,
)

T = torch.linspace(0, 1, 101, dtype=torch.float64)
SCHEDULES = [Cosine(), ShiftedCosine(128, 32), InterpolatedCosine(128, 32, 256), Cosine(logsnr_max=20, logsnr_min=-10)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_noise_only_grows(schedule):
    assert (schedule(T).diff() < 0).all()


def test_cosine_has_exact_ends_and_is_the_cosine_between():
    logsnr = Cosine()(T)
    torch.testing.assert_close(logsnr[[0, 50, 100]], torch.tensor([15.0, 0.0, -15.0], dtype=torch.float64))
    alpha, _ = alpha_sigma(Cosine(60, -60)(T[1:-1]))  # wide bounds: alpha = cos(pi t / 2)
    torch.testing.assert_close(alpha, torch.cos(math.pi / 2 * T[1:-1]))


def test_shift_is_that_of_the_reference_size():
    torch.testing.assert_close(ShiftedCosine(256, 64)(T), Cosine()(T) - 2 * math.log(4))
    torch.testing.assert_close(ShiftedCosine(64, 64)(T), Cosine()(T))


def test_interpolation_is_ruled_by_the_low_size_at_the_noisy_end():
    schedule = InterpolatedCosine(256, 32, 128)
    low, high = ShiftedCosine(256, 32), ShiftedCosine(256, 128)
    torch.testing.assert_close(schedule(T)[[0, -1]], torch.stack([high(T)[0], low(T)[-1]]))
    torch.testing.assert_close(schedule(T)[50], (low(T)[50] + high(T)[50]) / 2)


def test_variance_is_preserved_at_both_extremes():
    alpha, sigma = alpha_sigma(torch.linspace(-40, 40, 81))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(81))
    assert (alpha > 0).all() and (sigma > 0).all()


def test_the_noisiest_level_is_the_end_of_the_schedule_at_every_time():
    t = torch.linspace(0, 1, 5)
    assert torch.equal(NoisiestLevel(Cosine())(t), Cosine()(torch.ones(5)))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_grids_run_from_noise_to_image_through_the_same_ends(schedule):
    by_time, by_logsnr = TimeUniformGrid()(schedule, 7), LogSNRUniformGrid()(schedule, 7)
    assert by_time.shape == by_logsnr.shape == (8,)
    torch.testing.assert_close(by_time[[0, -1]], by_logsnr[[0, -1]])
    torch.testing.assert_close(by_time[[0, -1]], schedule(T[[-1, 0]]).float())
    torch.testing.assert_close(by_logsnr.diff(), by_logsnr.diff()[0].expand(7))
    assert (by_time.diff() > 0).all()


def test_a_grid_can_be_clipped_to_where_something_is_decided():
    grid = LogSNRUniformGrid(logsnr_min=-8, logsnr_max=8)
    torch.testing.assert_close(grid(Cosine(), 5), torch.tensor([-15.0, -8, -4, 0, 4, 8]))
    torch.testing.assert_close(grid(Cosine(), 1), torch.tensor([-15.0, 8]))
    torch.testing.assert_close(LogSNRUniformGrid(logsnr_max=9)(Cosine(), 4), torch.tensor([-15.0, -9, -3, 3, 9]))


def test_wrong_bounds_are_refused():
    with pytest.raises(ValueError, match="logsnr_min=3"):
        Cosine(logsnr_max=3, logsnr_min=3)
    with pytest.raises(ValueError, match="low_size=64"):
        InterpolatedCosine(64, low_size=64, high_size=32)
