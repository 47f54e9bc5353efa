"""The denoising loss: its noise levels, its weighting over logsnr, its weighting over voxels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bundle.diffusion.denoiser import Denoiser
from bundle.diffusion.schedules import Schedule, alpha_sigma, expand_to
from bundle.diffusion.slabs import Condition
from bundle.seeding import Streams


@dataclass(frozen=True)
class MinSNR:
    """Weight of the x0 error: min(SNR, gamma) (Hang et al. 2023, arXiv 2303.09556, eq. 8), not less than `floor`.

    Args:
        gamma: 5 in the paper.
        floor: without one the noisiest level, whose x0 is the one-call heatmap, has a weight of 1e-7 and is not learnt.
    """

    gamma: float = 5.0
    floor: float = 1.0

    def __call__(self, logsnr: Tensor) -> Tensor:
        return logsnr.exp().clamp(min=self.floor, max=self.gamma)


@dataclass(frozen=True)
class DenoisingLoss:
    """Weighted voxel-wise error of x0, averaged over voxels.

    Args:
        schedule: t -> logsnr; t is uniform in [0, 1], stratified over the batch.
        weighting: logsnr -> weight of the x0 error.
        foreground_weight: weight of lesion voxels of the mask, 10 in the paper. The same number must be given to the
            denoiser, which corrects for it.
        contrast_weights: weights of the contrasts (FLAIR, NET2).
    """

    schedule: Schedule
    weighting: MinSNR
    foreground_weight: float
    contrast_weights: tuple[float, ...]

    def __call__(self, denoiser: Denoiser, x0: Tensor, condition: Condition, streams: Streams) -> Tensor:
        """Loss of each sample, (B,), for clean slabs x0 (B, 30, H, W) whose last contrast is a -1/1 mask."""
        logsnr = self.schedule(streams.stratified_uniform(x0.device))  # (B,)
        alpha, sigma = (expand_to(value, x0) for value in alpha_sigma(logsnr))
        z_t = alpha * x0 + sigma * streams.normal(x0.shape[1:], x0.device)
        error = denoiser.prediction.error(denoiser.output(z_t, logsnr, condition), x0, z_t, alpha, sigma)
        return self.weighting(logsnr) * (error * self.voxel_weights(x0)).flatten(1).mean(1)

    def voxel_weights(self, x0: Tensor) -> Tensor:
        """Weight of each voxel, shaped as x0: its contrast's, times `foreground_weight` in lesions of the mask."""
        contrasts = x0.chunk(len(self.contrast_weights), dim=1)
        weights = [torch.full_like(x, w) for x, w in zip(contrasts, self.contrast_weights)]
        weights[-1] = torch.where(contrasts[-1] > 0, weights[-1] * self.foreground_weight, weights[-1])
        return torch.cat(weights, dim=1)
