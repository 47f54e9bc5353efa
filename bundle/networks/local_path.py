"""The local path around the UNet: two 3D convolutions, the same in every slice."""

import torch
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding
from torch import Tensor, nn
from torch.nn import functional as F

from bundle.diffusion.schedules import alpha_sigma, expand_to

MAX_RATIO = 85.0  # log-likelihoods lower than the largest by more than this do not count: exp(-85) is still a float32


def logsnr_to_timestep(logsnr: Tensor) -> Tensor:
    """logsnr in [-20, 20] -> [100, 0], for MONAI's sinusoidal embedding.

    The fastest of its waves then has a period of 2.5 in log-SNR: slow enough for what is learnt at one level to hold
    at its neighbours. At ten times that speed (MONAI's range, [0, 1000]) every tenth of log-SNR is learnt by itself,
    and x0 is jagged in log-SNR.
    """
    # Not of logsnr.clamp: onnxscript gives the bounds of one tensor that is clamped twice the same names.
    return (2.5 * (20 - logsnr)).clamp(0, 100)


class LocalPath(nn.Module):
    """Two 3D convolutions around the UNet, the same in every slice: context from neighbouring voxels.

    In z_t the voxels of one lesion support each other, and FLAIR of a year ago is the best estimate of FLAIR today.
    Both are local and alike everywhere, but a 2D network with slices as channels must learn them anew for each slice,
    and carry every voxel through the width of its first level. A lesion of one voxel differs from noise by its own
    neighbours only, so patches are not folded here.

    Of the mask, the last contrast, the second convolution gives the log-likelihoods of `hypotheses` in which the voxel
    is part of a lesion (of some size, in some direction) and of as many in which it is not; the likelihoods of each
    kind are added up. One sum of features would have to represent all these shapes at once. The added function starts
    as zero, and so does the contribution of the images.

    Args:
        outcome_contrasts, image_contrasts: contrasts denoised and read.
        channels: width.
        hypotheses: for a lesion, and as many against.
    """

    def __init__(self, outcome_contrasts: int, image_contrasts: int, channels: int, hypotheses: int = 8) -> None:
        super().__init__()
        self.channels, self.hypotheses, self.others = channels, hypotheses, outcome_contrasts - 1
        self.level = nn.Sequential(nn.Linear(32, 64), nn.SiLU(), nn.Linear(64, 2 * channels + 4 * hypotheses))
        self.outcome = nn.Conv3d(4 * outcome_contrasts, channels, kernel_size=3, padding=1)
        self.images = nn.Conv3d(image_contrasts, channels, kernel_size=(1, 3, 3), padding=(0, 1, 1))
        self.out = nn.Conv3d(channels, self.others + 2 * hypotheses, kernel_size=3, padding=1)
        # Adds up hypotheses for (row 0) and against (row 1), all but the last one, which is the reference.
        kinds = torch.eye(2).repeat_interleave(hypotheses, dim=1)[:, :-1, None, None, None]
        self.register_buffer("kinds", kinds, persistent=False)
        for layer in (self.images, self.out):
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.images.weight)
        with torch.no_grad():  # each hypothesis starts with one against that is as likely
            self.out.weight[: self.others] = 0
            in_favour, against = self.out.weight[self.others :].chunk(2)
            against.copy_(in_favour)
            self.level[-1].weight[2 * channels :] = 0
            self.level[-1].bias[2 * channels :] = 0

    def encode(self, images: Tensor) -> Tensor:
        """Features of the image volumes (B, image_contrasts, S, H, W), the same at every noise level."""
        return self.images(images.contiguous(memory_format=torch.channels_last_3d))  # faster on a CPU

    def forward(self, z_t: Tensor, backbone: Tensor, encoded: Tensor, logsnr: Tensor) -> Tensor:
        """(B, outcome_contrasts, S, H, W) to add to the UNet's output `backbone`; `encoded` and logsnr are of B or one.

        Of a mask, backbone is half the log-odds of a voxel given all other voxels and alpha z_t / sigma^2 its own
        evidence (`bundle.diffusion.predictions.BinaryPrediction`), so that the tanh of their sum is x0 as known before
        its neighbours are considered.
        """
        alpha, sigma = (expand_to(value, z_t) for value in alpha_sigma(logsnr.float()))
        z_t = z_t.to(backbone.dtype)  # the convolution rounds all of its input to this
        evidence = (alpha / sigma.square()).to(z_t.dtype) * z_t
        x0 = torch.tanh(backbone + evidence)
        outcome = torch.cat([z_t, backbone, evidence.clamp(-4, 4), x0], dim=1)
        outcome = outcome.contiguous(memory_format=torch.channels_last_3d)
        level = self.level(get_timestep_embedding(logsnr_to_timestep(logsnr), self.level[0].in_features))
        sizes = [self.channels, self.channels, 2 * self.hypotheses, 2 * self.hypotheses]
        scale, shift, *of_out = level.split(sizes, dim=1)
        scale_out, shift_out = (F.pad(x, (self.others, 0)) for x in of_out)
        convolve = self._convolve_at_one_level if logsnr.shape[0] == 1 else self._convolve_at_own_levels
        others, log_ratios = convolve(outcome, encoded, scale, shift, scale_out, shift_out)
        return torch.cat([others.float(), self._half_log_odds(log_ratios)], dim=1)

    def _convolve_at_own_levels(
        self, outcome: Tensor, encoded: Tensor, scale: Tensor, shift: Tensor, scale_out: Tensor, shift_out: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Other contrasts, and log-likelihoods of all hypotheses but the last relative to the last one.

        Features are modulated, each sample's by its own noise level: scale and shift are (B, C).
        """
        features = F.silu(modulate(self.outcome(outcome) + encoded, scale, shift))
        out = modulate(self.out(features), scale_out, shift_out)
        return out[:, : self.others], out[:, self.others : -1] - out[:, -1:]

    def _convolve_at_one_level(
        self, outcome: Tensor, encoded: Tensor, scale: Tensor, shift: Tensor, scale_out: Tensor, shift_out: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same where all samples are at one noise level: filters, which are few, are modulated instead of voxels.

        The last hypothesis is subtracted from the filters of the others too: of 17 output channels a CPU computes 32,
        of 16 only 16.
        """
        weight, bias = modulate_filters(self.outcome, scale[0], shift[0])
        encoded = modulate(encoded, scale, torch.zeros_like(shift))
        features = F.silu(F.conv3d(outcome, weight, bias, padding=1) + encoded)
        weight, bias = modulate_filters(self.out, scale_out[0], shift_out[0])
        weight, bias = (torch.cat([x[: self.others], x[self.others : -1] - x[-1:]]) for x in (weight, bias))
        out = F.conv3d(features, weight, bias, padding=1)
        return out[:, : self.others], out[:, self.others :]

    def _half_log_odds(self, log_ratios: Tensor) -> Tensor:
        """(B, 1, S, H, W) of the log-likelihoods (B, 2 * hypotheses - 1, S, H, W) relative to the last hypothesis."""
        largest = log_ratios.amax(dim=1, keepdim=True).clamp(min=0)  # of all, the reference's 0 included
        likelihoods = (log_ratios - largest).clamp(min=-MAX_RATIO).exp()
        # The sums as a convolution: a seventh of the time of torch.logsumexp over channels.
        in_favour, against = F.conv3d(likelihoods, self.kinds).float().split(1, dim=1)
        reference = (-largest.float()).clamp(min=-MAX_RATIO).exp()
        return (in_favour.log() - (against + reference).log()) / 2


def modulate_filters(layer: nn.Conv3d, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias with which the layer gives what `modulate` makes of its output; scale and shift are (C,)."""
    return layer.weight * expand_to(1 + scale, layer.weight), layer.bias * (1 + scale) + shift


def modulate(features: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """(1 + scale) features + shift, of (B, C, S, H, W) by (B, C): FiLM (Perez et al. 2018)."""
    # Expanded over a slice: a CPU broadcasts channels that lie last voxel by voxel, which takes seven times as long.
    scale, shift = (expand_to(value, features).expand(-1, -1, 1, *features.shape[-2:]) for value in (1 + scale, shift))
    shift, features, scale = (x.contiguous(memory_format=torch.channels_last_3d) for x in (shift, features, scale))
    return torch.addcmul(shift, features, scale)
