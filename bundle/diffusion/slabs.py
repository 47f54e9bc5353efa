"""Slices as channels: a slab (B, C, H, W, S) is seen by a 2D network as (B, C*S, H, W)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bundle.arms import NULL_ARM
from bundle.diffusion.samplers import DenoiseAt
from bundle.diffusion.schedules import Schedule


def fold_slices(volume: Tensor) -> Tensor:
    """(B, C, H, W, S) -> (B, C*S, H, W), the slices of a contrast next to each other (Favero et al. 2025, section 2)."""
    return volume.permute(0, 1, 4, 2, 3).flatten(1, 2)


def unfold_slices(slab: Tensor, num_contrasts: int) -> Tensor:
    """(B, C*S, H, W) -> (B, C, H, W, S), the inverse of `fold_slices`.

    Raises:
        ValueError: the channels do not divide into `num_contrasts`.
    """
    if slab.shape[1] % num_contrasts:
        raise ValueError(f"{slab.shape[1]} channels do not divide into {num_contrasts} contrasts")
    return slab.unflatten(1, (num_contrasts, -1)).permute(0, 1, 3, 4, 2)


@dataclass(frozen=True)
class Condition:
    """What is known of B patients; of one (B = 1) when samples of the same patient are drawn together.

    Args:
        images: (B, 105, H, W), the seven volumes folded into channels; an unknown volume is all 0.
        arm: (B,), class index of the treatment, 6 = unknown.
    """

    images: Tensor
    arm: Tensor

    def null(self, *, images: bool = True, arm: bool = True) -> "Condition":
        """The same patients with the images, the arm, or both unknown."""
        return replace(
            self,
            images=torch.zeros_like(self.images) if images else self.images,
            arm=torch.full_like(self.arm, NULL_ARM) if arm else self.arm,
        )


NUM_VOLUMES = 7  # of the image tensor; its eighth plane holds the arm
NUM_OUTCOMES = 2  # contrasts denoised together: FLAIR and NET2


def condition_of(image: Tensor) -> Condition:
    """The condition held in image tensors (B, 8, H, W, S): seven volumes and the constant plane of the arm."""
    return Condition(images=fold_slices(image[:, :NUM_VOLUMES]), arm=image[:, NUM_VOLUMES, 0, 0, 0].round().long())


def net2_probability(x0: Tensor) -> Tensor:
    """P(NET2) a voxel, (B, H, W, S) in [0, 1], of a denoised slab (B, 30, H, W)."""
    return (unfold_slices(x0, NUM_OUTCOMES)[:, -1].clamp(-1, 1) + 1) / 2


def one_call_heatmap(denoise: DenoiseAt, noise: Tensor, schedule: Schedule) -> Tensor:
    """The heatmap of an infinite ensemble in one network call, (B, H, W, S), from noise (B, 30, H, W).

    At the noisiest level z_t says nothing, so the optimal x0 is the conditional mean of the outcome.
    """
    return net2_probability(denoise(noise, schedule(torch.ones(1))))


def shape_of_outcome(image: Tensor) -> tuple[int, int, int]:
    """(30, H, W) of the slab that is denoised, of an image tensor (..., 8, H, W, S)."""
    return NUM_OUTCOMES * image.shape[-1], *image.shape[-3:-1]
