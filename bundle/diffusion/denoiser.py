"""The denoiser, (z_t, logsnr, condition) -> x0: the only thing that knows the network and what it predicts."""

import math
from functools import partial

import torch
from torch import Tensor, nn

from bundle.diffusion.predictions import Prediction
from bundle.diffusion.samplers import DenoiseAt
from bundle.diffusion.schedules import alpha_sigma, expand_to
from bundle.diffusion.slabs import Condition


def unweight_foreground(x0: Tensor, weight: float) -> Tensor:
    """Undo what a loss weight on foreground voxels does to a denoised -1/1 mask.

    With lesion voxels weighted w in a squared or log loss, the best x0 has its foreground odds multiplied by w at
    every noise level, so a sampler would draw about w times too many rare lesions. Dividing the odds by w
    gives back E[x0 | z_t] exactly.
    """
    p = (x0.clamp(-1, 1) + 1) / 2
    return 2 * p / (p + weight * (1 - p)) - 1


class Denoiser(nn.Module):
    """Packs the network's one input tensor, runs it, and turns its output into x0.

    Args:
        network: (B, 30 + 105 + 1 + 1, H, W) -> (B, 30, H, W), see `bundle.networks.slab_unet.ForecastNetwork`.
        prediction: what the output means.
        foreground_weight: the loss weight of lesion voxels under which the network was trained; x0 is corrected
            for it in the mask, the last of `num_contrasts` contrasts.
        num_contrasts: contrasts denoised together (FLAIR and NET2).
    """

    def __init__(
        self, network: nn.Module, prediction: Prediction, foreground_weight: float = 10.0, num_contrasts: int = 2
    ) -> None:
        super().__init__()
        self.network = network
        self.prediction = prediction
        self.foreground_weight = foreground_weight
        self.num_contrasts = num_contrasts

    def output(self, z_t: Tensor, logsnr: Tensor, condition: Condition) -> Tensor:
        """The network's own output in float32, (B, 30, H, W), for logsnr of B samples or of one for all."""
        plane = z_t[:, :1]
        images = condition.images.to(z_t.dtype).expand(len(z_t), -1, -1, -1)
        planes = [expand_to(value.to(z_t.dtype), plane).expand_as(plane) for value in (logsnr, condition.arm)]
        return self.network(torch.cat([z_t, images, *planes], dim=1)).float()

    def forward(self, z_t: Tensor, logsnr: Tensor, condition: Condition) -> Tensor:
        """E[x0 | z_t, condition], (B, 30, H, W) in [-1, 1], for logsnr of B samples or of one for all, on any device."""
        logsnr = logsnr.to(z_t.device)
        return self._to_x0(self.output(z_t, logsnr, condition), z_t, logsnr)

    def given(self, condition: Condition, reuse_within: float = 0.0) -> DenoiseAt:
        """`forward` for this condition; what a network can `encode` of the images is computed here, once for all calls.

        What UNet and ControlNet say changes slowly along the walk of a sample: while log-SNR has risen by less than `reuse_within`
        since they were called, they are taken at their word and only the network's local path is computed (after
        DeepCache, Ma et al. 2024, arXiv 2312.00858). All samples must be at one level, and a network without a local path would say
        the same twice. A walk begins below all levels of the one before it, and so with a call. Levels are best given on the CPU:
        they are read here.
        """
        if not hasattr(self.network, "encode"):
            return partial(self, condition=condition)
        encoded = self.network.encode(condition.images)
        guess, guessed_at = None, math.inf

        def denoise(z_t: Tensor, logsnr: Tensor) -> Tensor:
            nonlocal guess, guessed_at
            reached, logsnr = logsnr[0], logsnr.to(z_t.device)
            if not (reuse_within and 0 < reached - guessed_at < reuse_within):
                guess, guessed_at = self.network.guess(z_t, logsnr, condition.arm, encoded), reached
            return self._to_x0(self.network.refine(guess, z_t, logsnr, encoded).float(), z_t, logsnr)

        return denoise

    def _to_x0(self, output: Tensor, z_t: Tensor, logsnr: Tensor) -> Tensor:
        alpha, sigma = (expand_to(value, z_t) for value in alpha_sigma(logsnr))
        x0 = self.prediction.to_x0(output, z_t, alpha, sigma).clamp(-1, 1)
        if self.foreground_weight == 1:
            return x0
        *images, mask = x0.chunk(self.num_contrasts, dim=1)
        return torch.cat([*images, unweight_foreground(mask, self.foreground_weight)], dim=1)
