"""Samplers against the exact denoiser of a Gaussian, x0 ~ N(m, d^2), for which every answer is known."""

import pytest
import torch

from bundle.diffusion.samplers import AncestralSampler, DPMSolverPP2M, ancestral_step
from bundle.diffusion.schedules import Cosine, LogSNRUniformGrid, TimeUniformGrid, alpha_sigma
from bundle.seeding import Streams

MEAN, STD = 0.3, 0.5
SCHEDULE = Cosine(10, -10)


def exact_denoiser(z_t, logsnr):
    alpha, sigma = (a.reshape(-1, *[1] * (z_t.ndim - 1)) for a in alpha_sigma(logsnr))
    return MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (z_t - alpha * MEAN)


def exact_flow(z, grid):
    """Where the probability flow ODE carries z: standardised values stay constant."""
    scale = [(alpha * MEAN, (alpha**2 * STD**2 + sigma**2).sqrt()) for alpha, sigma in map(alpha_sigma, grid[[0, -1]])]
    return scale[1][0] + scale[1][1] * (z - scale[0][0]) / scale[0][1]


def error(sampler, grid_rule, num_steps):
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    grid = grid_rule(SCHEDULE, num_steps).double()
    return (sampler(exact_denoiser, z, grid, Streams(range(9))) - exact_flow(z, grid)).abs().max().item()


@pytest.mark.parametrize("grid_rule", [TimeUniformGrid(), LogSNRUniformGrid()])
@pytest.mark.parametrize("sampler, ratio", [(AncestralSampler(eta=0), 1.8), (DPMSolverPP2M(), 3.5)])
def test_order_of_convergence(sampler, ratio, grid_rule):
    errors = [error(sampler, grid_rule, num_steps) for num_steps in (64, 128, 256)]
    assert errors[0] / errors[1] > ratio and errors[1] / errors[2] > ratio


def test_a_clipped_grid_keeps_the_mean():
    """From noise alone at log-SNR -4 the mean comes out wrong; by way of the schedule's noisy end it does not."""
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    clipped = LogSNRUniformGrid(logsnr_min=-4)(SCHEDULE, 64).double()
    by_way_of_the_end, at_once = (
        DPMSolverPP2M()(exact_denoiser, z, grid, Streams(range(9))).mean().item() for grid in (clipped, clipped[1:])
    )
    assert abs(by_way_of_the_end - MEAN) < 2e-3 < 1e-2 < abs(at_once - MEAN)


def test_ddim_is_the_first_step_of_the_multistep_solver():
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    grid = SCHEDULE(torch.tensor([0.7, 0.4], dtype=torch.float64))
    ddim, dpm = (s(exact_denoiser, z, grid, Streams(range(9))) for s in (AncestralSampler(eta=0), DPMSolverPP2M()))
    torch.testing.assert_close(ddim, dpm, rtol=0, atol=1e-14)


def test_eta_1_is_the_ancestral_step_of_vdm():
    """Kingma et al. 2021, eqs. 31-34, in their own quantities."""
    g = torch.Generator().manual_seed(0)
    z_t, x0, noise = torch.randn(3, 1000, dtype=torch.float64, generator=g)
    logsnr_t, logsnr_s = torch.tensor([-1.3, 0.4], dtype=torch.float64)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(logsnr_t), alpha_sigma(logsnr_s)
    alpha_ts = alpha_t / alpha_s
    var_ts = sigma_t**2 - alpha_ts**2 * sigma_s**2
    mean = alpha_ts * sigma_s**2 / sigma_t**2 * z_t + alpha_s * var_ts / sigma_t**2 * x0
    expected = mean + (var_ts * sigma_s**2 / sigma_t**2).sqrt() * noise
    torch.testing.assert_close(ancestral_step(z_t, x0, logsnr_t, logsnr_s, 1.0, noise), expected)


def test_ancestral_samples_have_the_data_s_mean_and_spread():
    grid = TimeUniformGrid()(SCHEDULE, 64)
    streams = Streams(range(200))
    x0 = AncestralSampler()(exact_denoiser, streams.normal((20,)), grid, streams)
    n = x0.numel()
    assert abs(x0.mean() - MEAN) < 4 * STD / n**0.5
    assert abs(x0.std() / STD - 1) < 4 / (2 * n) ** 0.5 + 0.02  # sampling error, and that of 64 steps


@pytest.mark.parametrize("sampler", [AncestralSampler(), AncestralSampler(eta=0), DPMSolverPP2M()])
def test_n_steps_are_n_calls_each_at_its_level(sampler):
    seen = []

    def spy(z_t, logsnr):
        seen.append(logsnr.tolist())
        return exact_denoiser(z_t, logsnr)

    grid = TimeUniformGrid()(SCHEDULE, 5)
    sampler(spy, torch.zeros(2, 3), grid, Streams([1, 2]))
    assert seen == [[value] for value in grid[:-1].tolist()]  # one for all samples


@pytest.mark.parametrize("sampler", [AncestralSampler(), AncestralSampler(eta=0.5), DPMSolverPP2M()])
def test_a_sample_does_not_depend_on_its_batch(sampler):
    grid = LogSNRUniformGrid()(SCHEDULE, 6)

    def run(members):
        streams = Streams.for_members(0, "case", members)
        return sampler(exact_denoiser, streams.normal((3,)), grid, streams)

    torch.testing.assert_close(run(range(4)), torch.cat([run([member]) for member in range(4)]))


def test_eta_is_a_fraction():
    with pytest.raises(ValueError, match="eta=1.5"):
        AncestralSampler(eta=1.5)
