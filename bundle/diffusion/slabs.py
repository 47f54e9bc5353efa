"""Slabs: a volume (B, C, H, W, S) is seen by a 2D network as (B, C*S, H, W), its slices as channels.

What is special to a slab whose last contrast is a lesion mask stands here: the condition, the denoiser, the heatmap.
"""

from dataclasses import dataclass, replace
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bundle.arms import NULL_ARM
from bundle.diffusion.denoiser import Denoiser
from bundle.diffusion.predictions import Prediction
from bundle.diffusion.samplers import DenoiseAt
from bundle.diffusion.schedules import Schedule, expand_to

NUM_VOLUMES = 7  # of the image tensor; its eighth plane holds the arm
_REACH = 5  # voxels in plane, of three slices, that hold the rest of a lesion around one of its voxels
NUM_OUTCOMES = 2  # contrasts denoised together: FLAIR and NET2


def fold_slices(volume: Tensor) -> Tensor:
    """(B, C, H, W, S) -> (B, C*S, H, W), the slices of a contrast side by side (Favero et al. 2025, section 2)."""
    return volume.permute(0, 1, 4, 2, 3).flatten(1, 2)


def unfold_slices(slab: Tensor, num_contrasts: int) -> Tensor:
    """(B, C*S, H, W) -> (B, C, H, W, S), the inverse of `fold_slices`.

    Raises:
        ValueError: the channels do not divide into `num_contrasts`.
    """
    if slab.shape[1] % num_contrasts:
        raise ValueError(f"{slab.shape[1]} channels do not divide into {num_contrasts} contrasts")
    return slab.unflatten(1, (num_contrasts, -1)).permute(0, 1, 3, 4, 2)


def outcome_shape(image: Tensor) -> tuple[int, int, int]:
    """(30, H, W), the shape of the denoised slab, for an image tensor (..., 8, H, W, S)."""
    return NUM_OUTCOMES * image.shape[-1], *image.shape[-3:-1]


@dataclass(frozen=True)
class Condition:
    """What is known of B patients; of one (B = 1) when samples of the same patient are drawn together.

    Args:
        images: (B, 105, H, W), the seven volumes folded into channels; an unknown volume is all 0.
        arm: (B,), class index of the treatment, 6 = unknown.
    """

    images: Tensor
    arm: Tensor

    @classmethod
    def of(cls, image: Tensor) -> "Condition":
        """The condition held in image tensors (B, 8, H, W, S): seven volumes and the constant plane of the arm."""
        return cls(images=fold_slices(image[:, :NUM_VOLUMES]), arm=image[:, NUM_VOLUMES, 0, 0, 0].round().long())

    def null(self, *, images: bool = True, arm: bool = True) -> "Condition":
        """The same patients with the images, the arm, or both unknown."""
        return replace(
            self,
            images=torch.zeros_like(self.images) if images else self.images,
            arm=torch.full_like(self.arm, NULL_ARM) if arm else self.arm,
        )


class EncodingNetwork(Protocol):
    """A network whose images are encoded once and whose output is a backbone's plus a cheap local path's."""

    def encode(self, images: Tensor, arm: Tensor) -> dict[str, Tensor]: ...

    def backbone(self, z_t: Tensor, logsnr: Tensor, arm: Tensor, encoded: dict[str, Tensor]) -> Tensor: ...

    def add_local(self, backbone: Tensor, z_t: Tensor, logsnr: Tensor, encoded: dict[str, Tensor]) -> Tensor: ...


@dataclass(frozen=True)
class VolumeCorrection:
    """Log-odds of NET2 to be added at each noise level, so that members hold as much volume as the heatmap.

    The expected volume of an exact denoiser's x0 is the same at all levels of a walk (x0 is a martingale: Daras et al.
    2023, arXiv 2302.09057). A network is trained on true outcomes made noisy; on the states that follow from its own x0
    it marks a little less at every step. `scripts.correct_volume` fits these numbers so that it does not.

    Args:
        first: log-SNR of the first number.
        log_odds: at log-SNR first, first + 1, ...; linear in between, and falling to 0 within 1 on both sides.
    """

    first: float
    log_odds: tuple[float, ...]

    def __call__(self, logsnr: Tensor) -> Tensor:
        """Log-odds (B,) at logsnr (B,)."""
        values = torch.tensor(self.log_odds, dtype=logsnr.dtype, device=logsnr.device)
        levels = self.first + torch.arange(len(values), dtype=logsnr.dtype, device=logsnr.device)
        return ((1 - (logsnr[:, None] - levels).abs()).clamp(min=0) * values).sum(1)


class SlabDenoiser(Denoiser):
    """Denoiser of a slab by a network that takes one tensor.

    Args:
        network: (B, 30 + 105 + 1 + 1, H, W) -> (B, 30, H, W), see `bundle.networks.slab_unet.ForecastNetwork`.
        prediction: what the output means.
        foreground_weight: the loss weight of lesion voxels under which the network was trained; x0 is corrected for
            it in the mask, the last of `num_contrasts` contrasts. No default: a wrong one multiplies the odds of all
            lesions.
        num_contrasts: contrasts denoised together (FLAIR and NET2).
        volume_correction: of the mask; none if not given.
        rate: NET2 lesions come at this multiple of the rate that the network has learnt, see `scale_rate`.
    """

    def __init__(
        self,
        network: nn.Module,
        prediction: Prediction,
        foreground_weight: float,
        num_contrasts: int = NUM_OUTCOMES,
        volume_correction: VolumeCorrection | None = None,
        rate: float = 1.0,
    ) -> None:
        super().__init__(network, prediction)
        self.foreground_weight = foreground_weight
        self.num_contrasts = num_contrasts
        self.volume_correction = volume_correction
        self.rate = rate

    def output(self, z_t: Tensor, logsnr: Tensor, condition: Condition) -> Tensor:
        plane = z_t[:, :1]
        images = condition.images.to(z_t.dtype).expand(len(z_t), -1, -1, -1)
        planes = [expand_to(value.to(z_t.dtype), plane).expand_as(plane) for value in (logsnr, condition.arm)]
        return self.network(torch.cat([z_t, images, *planes], dim=1)).float()

    def to_x0(self, output: Tensor, z_t: Tensor, logsnr: Tensor) -> Tensor:
        x0 = super().to_x0(output, z_t, logsnr)
        if self.foreground_weight == 1 and self.volume_correction is None and self.rate == 1:
            return x0
        weight = torch.full_like(logsnr, self.foreground_weight)
        if self.volume_correction is not None:
            weight = weight * (-self.volume_correction(logsnr)).exp()
        *images, mask = x0.chunk(self.num_contrasts, dim=1)
        mask = unweight_foreground(mask, expand_to(weight, mask))
        if self.rate != 1:
            mask = scale_rate(mask, self.rate)
        return torch.cat([*images, mask], dim=1)

    def given(self, condition: Condition, reuse_within: float = 0.0) -> DenoiseAt:
        if not hasattr(self.network, "encode"):
            return super().given(condition)
        return EncodedDenoiser(self, condition, reuse_within)


class EncodedDenoiser:
    """A `SlabDenoiser` under one condition: (z_t, logsnr) -> x0, with the images encoded once for all calls.

    The output of UNet and ControlNet changes slowly as log-SNR rises along the walk of a sample. Until log-SNR has
    risen by `reuse_within` since it was computed, it is reused and only the network's local path is computed (after
    DeepCache, Ma et al. 2024, arXiv 2312.00858). A new walk begins at a lower log-SNR, and so with a call of its own.

    Args:
        denoiser: around an `EncodingNetwork`.
        condition: of B patients, or of one whose samples are drawn together.
        reuse_within: 0 computes the backbone at every call. All samples must be at one level otherwise, and the
            network must have a local path.
    """

    def __init__(self, denoiser: SlabDenoiser, condition: Condition, reuse_within: float = 0.0) -> None:
        self.denoiser, self.condition, self.reuse_within = denoiser, condition, reuse_within
        self._network = cast(EncodingNetwork, denoiser.network)
        self._encoded = self._network.encode(condition.images, condition.arm)
        self._backbone = torch.empty(0)
        self._computed_at = torch.tensor(torch.inf)

    def __call__(self, z_t: Tensor, logsnr: Tensor) -> Tensor:
        """x0 (B, 30, H, W); logsnr (B,) or (1,) is best on the CPU, since its value is read here."""
        level, logsnr = logsnr[0], logsnr.to(z_t.device)
        if not (self.reuse_within and 0 < level - self._computed_at < self.reuse_within):
            self._backbone = self._network.backbone(z_t, logsnr, self.condition.arm, self._encoded)
            self._computed_at = level
        output = self._network.add_local(self._backbone, z_t, logsnr, self._encoded).float()
        return self.denoiser.to_x0(output, z_t, logsnr)


def unweight_foreground(x0: Tensor, weight: float | Tensor) -> Tensor:
    """Undo what a loss weight on foreground voxels does to a denoised -1/1 mask.

    With lesion voxels weighted w in a squared or log loss, the best x0 has its foreground odds multiplied by w at
    every noise level, so a sampler would draw about w times too many rare lesions. Dividing the odds by w
    gives back E[x0 | z_t] exactly.
    """
    p = (x0.clamp(-1, 1) + 1) / 2
    return 2 * p / (p + weight * (1 - p)) - 1


def scale_rate(x0: Tensor, rate: float) -> Tensor:
    """A denoised -1/1 mask (B, S, H, W) if lesions came at `rate` times their rate, e.g. in a longer time.

    Where at most one lesion is in question, P(voxel) = P(lesion) P(voxel | lesion), and only the odds of the lesion are
    in proportion to the rate. P(lesion) is taken as the greatest P(voxel) in `_REACH`. So a lesion of which z_t shows
    nothing yet has its odds multiplied, and one that z_t shows keeps its borders: if the odds of all voxels were
    multiplied at every level, members would have larger lesions instead of more.
    """
    p = (x0.clamp(-1, 1) + 1) / 2
    plane = F.max_pool2d(p, _REACH, stride=1, padding=_REACH // 2)
    padded = F.pad(plane, (0, 0, 0, 0, 1, 1))  # no lesion lies outside; max_pool3d would take ten times as long
    lesion = torch.maximum(torch.maximum(padded[:, :-2], padded[:, 2:]), plane)
    return 2 * rate * p / (1 + (rate - 1) * lesion) - 1


def net2_probability(x0: Tensor) -> Tensor:
    """P(NET2) of each voxel, (B, H, W, S) in [0, 1], of a denoised slab (B, 30, H, W)."""
    return (unfold_slices(x0, NUM_OUTCOMES)[:, -1].clamp(-1, 1) + 1) / 2


def one_call_heatmap(
    denoise: DenoiseAt, shape: tuple[int, int, int, int], schedule: Schedule, device: torch.device | str = "cpu"
) -> Tensor:
    """P(NET2) of each voxel in one network call, (B, H, W, S): the heatmap of an infinite ensemble.

    At the noisiest level z_t carries no information, so the optimal x0 is the conditional mean of the outcome whatever
    z_t is. A network is not optimal: it takes some of the noise for lesions, and two draws of one patient correlate by
    only about .5. So z_t = 0 is given, the mean of the noise, and the heatmap depends on the patient alone.

    Args:
        denoise: (z_t, logsnr) -> x0.
        shape: (B, 30, H, W).
        schedule: whose noisy end is used.
        device: of the images.
    """
    return net2_probability(denoise(torch.zeros(shape, device=device), schedule(torch.ones(1))))
