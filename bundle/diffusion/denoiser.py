"""The denoiser, (z_t, logsnr, condition) -> x0: the only thing that knows the network and what it predicts."""

from functools import partial
from typing import Any

from torch import Tensor, nn

from bundle.diffusion.predictions import Prediction
from bundle.diffusion.samplers import DenoiseAt
from bundle.diffusion.schedules import alpha_sigma, expand_to


class Denoiser(nn.Module):
    """Runs a network and turns its output into x0, for data of any shape under any condition.

    Args:
        network: (z_t (B, ...), logsnr (B,) or (1,), condition) -> output shaped as z_t.
        prediction: what the output means.
    """

    def __init__(self, network: nn.Module, prediction: Prediction) -> None:
        super().__init__()
        self.network = network
        self.prediction = prediction

    def output(self, z_t: Tensor, logsnr: Tensor, condition: Any) -> Tensor:
        """The network's own output in float32, shaped as z_t, for logsnr of B samples (B,) or of all (1,)."""
        return self.network(z_t, logsnr, condition).float()

    def to_x0(self, output: Tensor, z_t: Tensor, logsnr: Tensor) -> Tensor:
        """E[x0 | z_t, condition] of the network's output, in [-1, 1]."""
        alpha, sigma = (expand_to(value, z_t) for value in alpha_sigma(logsnr))
        return self.prediction.to_x0(output, z_t, alpha, sigma).clamp(-1, 1)

    def forward(self, z_t: Tensor, logsnr: Tensor, condition: Any) -> Tensor:
        """E[x0 | z_t, condition], (B, ...) in [-1, 1], for logsnr (B,) or (1,) on any device."""
        logsnr = logsnr.to(z_t.device)
        return self.to_x0(self.output(z_t, logsnr, condition), z_t, logsnr)

    def given(self, condition: Any, reuse_within: float = 0.0) -> DenoiseAt:
        """`forward` under this condition.

        Args:
            condition: what is known.
            reuse_within: rise of log-SNR within which a subclass may reuse what it has computed; not used here.
        """
        return partial(self, condition=condition)
