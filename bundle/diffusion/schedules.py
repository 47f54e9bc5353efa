"""Continuous-time noise schedules, t -> logsnr, and the grids on which samplers walk them.

Variance-preserving diffusion: z_t = alpha x0 + sigma eps, alpha^2 + sigma^2 = 1, logsnr = log(alpha^2 / sigma^2),
t = 0 clean, t = 1 noise. Schedules are numbers only: no tensors, no state.

References:
    Kingma et al. 2021, Variational Diffusion Models, arXiv 2107.00630.
    Hoogeboom et al. 2023, simple diffusion, arXiv 2301.11093, section 3.1 (cosine, shifted, interpolated).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Schedule = Callable[[Tensor], Tensor]
Grid = Callable[[Schedule, int], Tensor]


def expand_to(value: Tensor, x: Tensor) -> Tensor:
    """View one value a sample, (B,), so that it broadcasts over x, (B, ...)."""
    return value.reshape(value.shape + (1,) * (x.ndim - value.ndim))


def alpha_sigma(logsnr: Tensor) -> tuple[Tensor, Tensor]:
    """alpha = sqrt(sigmoid(logsnr)), sigma = sqrt(sigmoid(-logsnr)): accurate at both ends."""
    return torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()


@dataclass(frozen=True)
class Cosine:
    """logsnr(t) = -2 log tan(a + t (b - a)), with a and b such that the ends are exact (simple diffusion, eq. 2).

    Args:
        logsnr_max: logsnr at t = 0.
        logsnr_min: logsnr at t = 1.
    """

    logsnr_max: float = 15.0
    logsnr_min: float = -15.0

    def __post_init__(self) -> None:
        if not self.logsnr_min < self.logsnr_max:
            raise ValueError(f"logsnr_min={self.logsnr_min} must be less than logsnr_max={self.logsnr_max}")

    def __call__(self, t: Tensor) -> Tensor:
        a, b = math.atan(math.exp(-self.logsnr_max / 2)), math.atan(math.exp(-self.logsnr_min / 2))
        return -2 * torch.log(torch.tan(a + t * (b - a)))


@dataclass(frozen=True)
class ShiftedCosine:
    """Cosine + 2 log(reference_size / image_size): the noise of `reference_size` at `image_size` (ibid., eq. 3)."""

    image_size: int
    reference_size: int
    logsnr_max: float = 15.0
    logsnr_min: float = -15.0

    def __call__(self, t: Tensor) -> Tensor:
        return Cosine(self.logsnr_max, self.logsnr_min)(t) + 2 * math.log(self.reference_size / self.image_size)


@dataclass(frozen=True)
class InterpolatedCosine:
    """t * shifted(low_size) + (1 - t) * shifted(high_size) (ibid., eq. 4): the low size sets the noisy end.

    Args:
        image_size: side of the image in pixels.
        low_size: reference size at t = 1.
        high_size: reference size at t = 0; at least `low_size`, so that logsnr decreases.
        logsnr_max, logsnr_min: ends of the cosine before shifting.
    """

    image_size: int
    low_size: int
    high_size: int
    logsnr_max: float = 15.0
    logsnr_min: float = -15.0

    def __post_init__(self) -> None:
        if self.low_size > self.high_size:
            raise ValueError(f"low_size={self.low_size} must not exceed high_size={self.high_size}")

    def __call__(self, t: Tensor) -> Tensor:
        low, high = (
            ShiftedCosine(self.image_size, size, self.logsnr_max, self.logsnr_min)
            for size in (self.low_size, self.high_size)
        )
        return t * low(t) + (1 - t) * high(t)


@dataclass(frozen=True)
class NoisiestLevel:
    """The noisy end of a schedule at every t: trains what is known before any noisy outcome is seen.

    Args:
        schedule: whose end.
    """

    schedule: Schedule

    def __call__(self, t: Tensor) -> Tensor:
        return self.schedule(torch.ones_like(t))


@dataclass(frozen=True)
class TimeUniformGrid:
    """Equal steps of t. Ancestral and DDIM steps prefer it."""

    def __call__(self, schedule: Schedule, num_steps: int) -> Tensor:
        """Returns: logsnr from t = 1 to t = 0, (num_steps + 1,), increasing (noise decreases)."""
        return schedule(torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)).float()


@dataclass(frozen=True)
class LogSNRUniformGrid:
    """Equal steps of logsnr between bounds. Multistep solvers prefer it.

    A walk that began at logsnr_min with noise alone would lack the mean of x0 that z_t has there: of a mask of 100,000
    voxels that are nearly all -1 the mean is visible at -8 already, and a network takes its absence for more lesions.
    So the first step leads from the schedule's noisy end, where noise alone is right, to logsnr_min.

    Args:
        logsnr_min, logsnr_max: clip the schedule's ends, so that no steps are spent where nothing is decided.
    """

    logsnr_min: float = -math.inf
    logsnr_max: float = math.inf

    def __call__(self, schedule: Schedule, num_steps: int) -> Tensor:
        """Returns: logsnr, (num_steps + 1,), increasing (noise decreases)."""
        start, end = schedule(torch.tensor([1.0, 0.0], dtype=torch.float64)).tolist()
        first, last = max(start, self.logsnr_min), min(end, self.logsnr_max)
        if first == start:
            return torch.linspace(start, last, num_steps + 1, dtype=torch.float64).float()
        clipped = torch.linspace(last, first, num_steps, dtype=torch.float64).flip(0)  # with one step it is [last]
        return torch.cat([torch.tensor([start], dtype=torch.float64), clipped]).float()
