"""Slices as channels: a slab (B, C, H, W, S) is seen by a 2D network as (B, C*S, H, W)."""

from torch import Tensor


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
