"""Reverse processes: (denoise, noise, grid) -> x0. They know no network, no treatment and no MONAI.

`denoise(z_t, logsnr)` gives x0 of B samples at one logsnr, (1,); `grid` is logsnr (num_steps + 1,), increasing.
`num_steps` steps make exactly `num_steps` calls, at all but the last value of the grid, the level of the result.

References:
    Song et al. 2021, DDIM, arXiv 2010.02502. Kingma et al. 2021, VDM, arXiv 2107.00630 (ancestral step in logsnr).
    Lu et al. 2022, DPM-Solver++, arXiv 2211.01095, algorithm 2 (2M); its lambda is logsnr / 2.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bundle.diffusion.schedules import alpha_sigma
from bundle.seeding import Streams

DenoiseAt = Callable[[Tensor, Tensor], Tensor]


def ancestral_step(z_t: Tensor, x0: Tensor, logsnr_t: Tensor, logsnr_s: Tensor, eta: float, noise: Tensor) -> Tensor:
    """One step from logsnr_t to logsnr_s > logsnr_t: eta = 0 is DDIM, eta = 1 the exact posterior q(z_s | z_t, x0).

    Args:
        z_t, x0, noise: (B, ...).
        logsnr_t, logsnr_s: scalars.
        eta: fraction of the posterior's noise, in [0, 1].
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(logsnr_t), alpha_sigma(logsnr_s)
    eps = (z_t - alpha_t * x0) / sigma_t
    variance = eta**2 * -torch.expm1(logsnr_t - logsnr_s)  # of the new noise, in units of sigma_s^2
    return alpha_s * x0 + sigma_s * ((1 - variance).sqrt() * eps + variance.sqrt() * noise)


@dataclass(frozen=True)
class AncestralSampler:
    """Ancestral sampling (eta = 1, Favero et al.: 256 steps) down to DDIM (eta = 0)."""

    eta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta={self.eta} must lie in [0, 1]")

    def __call__(self, denoise: DenoiseAt, z: Tensor, grid: Tensor, streams: Streams) -> Tensor:
        """x0 (B, ...) from noise z (B, ...); `streams` gives each sample its further noise."""
        for logsnr_t, logsnr_s in itertools.pairwise(grid):
            x0 = denoise(z, logsnr_t[None])
            noise = streams.normal(z.shape[1:], z.device) if self.eta else torch.zeros_like(z)
            z = ancestral_step(z, x0, logsnr_t, logsnr_s, self.eta, noise)
        return z


@dataclass(frozen=True)
class DPMSolverPP2M:
    """DPM-Solver++(2M): deterministic, second order in the step of logsnr / 2, one call a step."""

    def __call__(self, denoise: DenoiseAt, z: Tensor, grid: Tensor, streams: Streams) -> Tensor:
        """x0 (B, ...) from noise z (B, ...); `streams` is not drawn from."""
        previous_x0, previous_step = None, None
        for logsnr_t, logsnr_s in itertools.pairwise(grid):
            (_, sigma_t), (alpha_s, sigma_s) = alpha_sigma(logsnr_t), alpha_sigma(logsnr_s)
            x0 = denoise(z, logsnr_t[None])
            step = (logsnr_s - logsnr_t) / 2
            if previous_x0 is None:
                direction = x0
            else:
                direction = x0 + step / previous_step / 2 * (x0 - previous_x0)
            z = sigma_s / sigma_t * z - alpha_s * torch.expm1(-step) * direction
            previous_x0, previous_step = x0, step
        return z
