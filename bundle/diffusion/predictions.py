"""What the network predicts, and how that becomes x0: the hub through which everything else sees the network.

Each prediction has `to_x0(output, z_t, alpha, sigma)` and `error(output, x0, z_t, alpha, sigma)`, the voxel-wise
loss in units of x0 before any weighting. The error of the linear ones is (to_x0 - x0)^2: for eps it equals SNR^-1 and
for v (SNR + 1)^-1 times the squared error of the output itself, so one weighting on x0 serves all (min(SNR, 5) on x0
is min(SNR, 5) / (SNR + 1) on v).

Tensors are (B, ...); alpha and sigma broadcast against them.

References:
    Salimans & Ho 2022, Progressive distillation, arXiv 2202.00512 (v).
    Dieleman et al. 2022, Continuous diffusion for categorical data, arXiv 2211.15089 (log loss on discrete x0).
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Prediction(Protocol):
    """Turns the network's output into x0 and says how wrong it was."""

    def to_x0(self, output: Tensor, z_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor: ...

    def error(self, output: Tensor, x0: Tensor, z_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor: ...


class _Linear:
    """Squared error in x0, shared by the linear predictions."""

    def to_x0(self, output: Tensor, z_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        raise NotImplementedError

    def error(self, output: Tensor, x0: Tensor, z_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (self.to_x0(output, z_t, alpha, sigma) - x0).square()


@dataclass(frozen=True)
class X0Prediction(_Linear):
    """The network predicts the clean image."""

    def to_x0(self, output: Tensor, z_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return output


@dataclass(frozen=True)
class EpsPrediction(_Linear):
    """The network predicts the noise."""

    def to_x0(self, output: Tensor, z_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (z_t - sigma * output) / alpha


@dataclass(frozen=True)
class VPrediction(_Linear):
    """The network predicts v = alpha eps - sigma x0."""

    def to_x0(self, output: Tensor, z_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha * z_t - sigma * output


@dataclass(frozen=True)
class PreconditionedPrediction(_Linear):
    """x0 where noise is large, the noise to take off where it is small: x0 = c_skip z_t + c_out output.

    c_skip z_t is the best linear estimate of x0 if it had standard deviation `data_std` around 0, and c_out the size of
    that estimate's error. With data_std = 1 this is v-prediction up to sign. With a smaller one the network need not
    carry noise to its output until alpha / sigma reaches 1 / data_std, nor copy the image to it from there on.

    Args:
        data_std: the spread of x0 that is left once the condition is known.

    References:
        Karras et al. 2022, Elucidating the design space, arXiv 2206.00364, section 5 and table 1 (there
        variance-exploding, here divided by alpha).
    """

    data_std: float = 0.25

    def to_x0(self, output: Tensor, z_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        skip, out = self._coefficients(alpha, sigma)
        return skip * z_t + out * output

    def _coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        variance = alpha.square() * self.data_std**2 + sigma.square()  # of z_t
        return alpha * self.data_std**2 / variance, sigma * self.data_std / variance.sqrt()


@dataclass(frozen=True)
class BinaryPrediction:
    """The network predicts half the log-odds that a voxel of a -1/1 mask is 1, given all but its own noisy value.

    Bayes for one voxel: logit P(x0 = 1 | z_t) = logit P(x0 = 1 | everything else) + 2 alpha z_t / sigma^2. The
    second term is known exactly, so the network is spared carrying noise from its input to its output, which a narrow
    network that reads 30 slices as channels cannot do. x0 = E[x0 | z_t] = tanh of half that sum; the error is
    the log loss, whose minimiser is the same conditional mean as the squared error's, without its vanishing gradient
    at rare voxels.
    """

    def half_log_odds(self, output: Tensor, z_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return output + alpha * z_t / sigma.square()

    def to_x0(self, output: Tensor, z_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.tanh(self.half_log_odds(output, z_t, alpha, sigma))

    def error(self, output: Tensor, x0: Tensor, z_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        half = self.half_log_odds(output, z_t, alpha, sigma)
        p = (1 + x0) / 2  # not 0 or 1 if x0 is the mean of several outcomes
        return p * F.softplus(-2 * half) + (1 - p) * F.softplus(2 * half)


@dataclass(frozen=True)
class ContrastwisePrediction:
    """One prediction a contrast: the channels (B, C*S, H, W) are cut into equal parts, in order.

    Args:
        contrasts: the predictions, by default the image (FLAIR) and the mask (NET2) of Favero et al.
    """

    contrasts: tuple[Prediction, ...] = field(default_factory=lambda: (PreconditionedPrediction(), BinaryPrediction()))

    def to_x0(self, output: Tensor, z_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        parts = zip(self.contrasts, self._cut(output), self._cut(z_t))
        return torch.cat([p.to_x0(part, z, alpha, sigma) for p, part, z in parts], dim=1)

    def error(self, output: Tensor, x0: Tensor, z_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        parts = zip(self.contrasts, self._cut(output), self._cut(x0), self._cut(z_t))
        return torch.cat([p.error(part, x, z, alpha, sigma) for p, part, x, z in parts], dim=1)

    def _cut(self, slab: Tensor) -> tuple[Tensor, ...]:
        return slab.unflatten(1, (len(self.contrasts), -1)).unbind(1)
