"""The local path around the UNet: two 3D convolutions, the same in every slice."""

import torch
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding
from torch import Tensor, nn
from torch.nn import functional as F

from bundle.diffusion.schedules import alpha_sigma, expand_to


def logsnr_to_timestep(logsnr: Tensor) -> Tensor:
    """logsnr in [-20, 20] -> [100, 0], for MONAI's sinusoidal embedding.

    The fastest of its waves then turns once in 2.5 of log-SNR: slowly enough for what is learnt of one level to hold for its
    neighbours. At ten times that speed (MONAI's range, [0, 1000]) it learns each tenth of log-SNR for itself, and x0 is jagged.
    """
    return 2.5 * (20 - logsnr.clamp(-20, 20))


class LocalPath(nn.Module):
    """Two 3D convolutions around the UNet, the same in every slice: what neighbouring voxels say about each other.

    In z_t the voxels of one lesion vouch for each other, and FLAIR of a year ago is the best guess of FLAIR today. Both are
    local and alike everywhere, but a 2D network with slices as channels must learn them anew for each slice, and
    carry every voxel through the width of its first level. A lesion of one voxel is told from noise by its own
    neighbours only, so patches are not folded here.

    Of the mask, the last contrast, the second convolution gives the log-likelihoods of `hypotheses` in which the voxel is part
    of a lesion (of some size, lying some way) and of as many in which it is not; the likelihoods add up over either kind. One sum
    of features would have to be all these shapes at once. The added function starts as zero, and so does what the images say to it.

    Args:
        outcome_contrasts, image_contrasts: contrasts denoised and read.
        channels: width.
        hypotheses: for, and as many against.
    """

    def __init__(self, outcome_contrasts: int, image_contrasts: int, channels: int, hypotheses: int = 8) -> None:
        super().__init__()
        self.channels, self.hypotheses, self.others = channels, hypotheses, outcome_contrasts - 1
        self.level = nn.Sequential(nn.Linear(32, 64), nn.SiLU(), nn.Linear(64, 2 * channels + 4 * hypotheses))
        self.outcome = nn.Conv3d(4 * outcome_contrasts, channels, kernel_size=3, padding=1)
        self.images = nn.Conv3d(image_contrasts, channels, kernel_size=(1, 3, 3), padding=(0, 1, 1))
        self.out = nn.Conv3d(channels, self.others + 2 * hypotheses, kernel_size=3, padding=1)
        kinds = torch.eye(2).repeat_interleave(hypotheses, dim=1)  # for and against
        self.register_buffer("kinds", F.pad(kinds, (self.others, 0))[..., None, None, None], persistent=False)
        for layer in (self.images, self.out):
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.images.weight)
        with torch.no_grad():  # each hypothesis for starts with one against that is as likely
            self.out.weight[: self.others] = 0
            in_favour, against = self.out.weight[self.others :].chunk(2)
            against.copy_(in_favour)
            self.level[-1].weight[2 * channels :] = 0
            self.level[-1].bias[2 * channels :] = 0

    def encode(self, images: Tensor) -> Tensor:
        """What the image volumes (B, image_contrasts, S, H, W) say, whatever the noise."""
        return self.images(images.contiguous(memory_format=torch.channels_last_3d))  # so it is faster on a CPU

    def forward(self, z_t: Tensor, guess: Tensor, encoded: Tensor, logsnr: Tensor) -> Tensor:
        """(B, outcome_contrasts, S, H, W) to add to the UNet's output `guess`; `encoded` and logsnr are of B or of one.

        Of a mask, guess is half the log-odds that all other voxels give a voxel and alpha z_t / sigma^2 what it says of
        itself (`bundle.diffusion.predictions.BinaryPrediction`), so that the tanh of both is x0 as known before its neighbours are asked.
        """
        alpha, sigma = (expand_to(value, z_t) for value in alpha_sigma(logsnr.float()))
        z_t = z_t.to(guess.dtype)  # what all of it will be rounded to for the convolution
        evidence = (alpha / sigma.square()).to(z_t.dtype) * z_t
        x0 = torch.tanh(guess + evidence)
        level = self.level(get_timestep_embedding(logsnr_to_timestep(logsnr), self.level[0].in_features))
        sizes = [self.channels, self.channels, 2 * self.hypotheses, 2 * self.hypotheses]
        scale, shift, scale_out, shift_out = level.split(sizes, dim=1)
        outcome = torch.cat([z_t, guess, evidence.clamp(-4, 4), x0], dim=1).contiguous(memory_format=torch.channels_last_3d)
        scale_out, shift_out = (F.pad(x, (self.others, 0)) for x in (scale_out, shift_out))
        if logsnr.shape[0] == 1:  # then filters, which are few, and what the images say are modulated in the place of every voxel
            weight, bias = modulated(self.outcome, scale[0], shift[0])
            encoded = modulate(encoded, scale, torch.zeros_like(shift))
            features = F.silu(F.conv3d(outcome, weight, bias, padding=1) + encoded)
            out, last = F.conv3d(features, *self._relative(*modulated(self.out, scale_out[0], shift_out[0])), padding=1), 1
        else:
            features = F.silu(modulate(self.outcome(outcome) + encoded, scale, shift))
            out, last = modulate(self.out(features), scale_out, shift_out), 0
        # Log-sum-exp with a bound instead of the largest, and the sums as a convolution: a seventh of the time of torch.logsumexp.
        sums = F.conv3d(out.clamp(-85, 85).exp(), self.kinds[:, : out.shape[1]]).float()
        mask = (sums[:, :1].log() - (sums[:, 1:] + last).log()) / 2
        return torch.cat([out[:, : self.others].to(mask), mask], dim=1)

    def _relative(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The filters of `out` with the last hypothesis as the yardstick of all others.

        Log-odds do not change when every log-likelihood changes alike, so that one of them can be held at 0: of 17 channels a
        CPU computes 32, of 16 the half.
        """
        for filters in (weight, bias):
            filters[self.others :] -= filters[-1].clone()
        return weight[:-1], bias[:-1]


def modulated(layer: nn.Conv3d, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias that give the layer's output as `modulate` would, at one noise level: scale and shift are (C,)."""
    return layer.weight * expand_to(1 + scale, layer.weight), layer.bias * (1 + scale) + shift


def modulate(features: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """(1 + scale) features + shift, of (B, C, S, H, W) by (B, C): FiLM (Perez et al. 2018)."""
    # Spelt out over a slice: a CPU broadcasts channels that lie last voxel by voxel, which takes seven times as long.
    scale, shift = (
        expand_to(value, features).expand(-1, -1, 1, *features.shape[-2:]) for value in (1 + scale, shift)
    )
    shift, features, scale = (x.contiguous(memory_format=torch.channels_last_3d) for x in (shift, features, scale))
    return torch.addcmul(shift, features, scale)
