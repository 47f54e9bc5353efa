"""FLAIR as the segmenter sees it: 1 x 1 x 3 mm, in units of the brain's own brightness, three slices at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from nibabel.affines import apply_affine
from torch import Tensor
from torch.nn import functional as F

from bundle.data.bids import VISITS, Case
from bundle.data.brain import brain_of
from bundle.data.grid import SlabGrid, is_too_fine, slab_centre, to_slab
from bundle.data.volumes import read_flair
from bundle.errors import InputError
from bundle.lesions import Volume

SPACING_MM = (1.0, 1.0, 3.0)
NUM_INPUTS = 3  # slices that the network sees: the one whose lesions it marks, and its neighbours
_OUTSIDE = -1.0
_BRIGHTEST = 3.0
_UNIT = 3.0  # interquartile ranges
_MULTIPLE = 16  # of pixels in plane: the network halves them four times


@dataclass(frozen=True)
class Scans:
    """The FLAIR of a patient's visits on one grid.

    Attributes:
        flair: visit -> (H, W, S) float32, see `in_brain_units`.
        brain: (H, W, S) bool.
        in_slab: (S,) bool, slices of the slab that is forecast; the network has seen no others.
        grid, affine: where they lie.
    """

    flair: Mapping[str, np.ndarray]
    brain: np.ndarray
    in_slab: np.ndarray
    grid: SlabGrid
    affine: np.ndarray


def read_scans(case: Case, visits: tuple[str, ...] = VISITS) -> Scans:
    """The FLAIR of those of the visits that the patient has; the brain is that of the latest one.

    Raises:
        InputError: there is none, or one cannot be used.
    """
    names = [f"flair_{visit}" for visit in visits if f"flair_{visit}" in case.volumes]
    if not names:
        raise InputError("no FLAIR", "add one", case=case.id, file=case.expected_path(f"flair_{visits[0]}"))
    flairs = {name: read_flair(case.volumes[name], case.id) for name in names}
    brain, _ = brain_of(case, flairs)
    grid, affine = working_grid(brain)
    inside = to_slab(brain.values.astype(np.float32), brain.affine, affine, grid) >= 0.5
    on_grid = {}
    for name, flair in flairs.items():
        if is_too_fine(flair.affine, affine, grid):
            raise InputError("its voxels are too small", "resample it", case=case.id, file=flair.path)
        on_grid[name.split("_")[1]] = in_brain_units(to_slab(flair.values, flair.affine, affine, grid), inside)
    height_mm = affine[2, 3] + np.arange(grid.shape[2]) * SPACING_MM[2]
    slab = SlabGrid()
    from_centre = np.abs(height_mm - slab_centre(brain.values, brain.affine, slab)[2])
    return Scans(on_grid, inside, from_centre <= slab.size_mm[2] / 2, grid, affine)


def working_grid(brain: Volume) -> tuple[SlabGrid, np.ndarray]:
    """The grid of `SPACING_MM` around a brain, and its affine; multiples of 16 voxels in plane.

    Its corner lies on a corner of the scan's voxels, so that cells hold whole voxels where the sizes allow.
    """
    where = np.argwhere(brain.values)
    low, high = where.min(0) - 0.5, where.max(0) + 0.5
    corners = np.stack(np.meshgrid(*zip(low, high), indexing="ij"), axis=-1).reshape(-1, 3)
    world = apply_affine(brain.affine, corners)
    low, high = world.min(0), world.max(0)
    shape = np.ceil((high - low) / SPACING_MM - 1e-3).astype(int)
    shape[:2] = -(-shape[:2] // _MULTIPLE) * _MULTIPLE
    grid = SlabGrid(SPACING_MM, tuple(shape.tolist()))
    return grid, grid.affine(low + grid.size_mm / 2)


def in_brain_units(flair: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """FLAIR whose median in the brain is 0, in units of three interquartile ranges; in [-1, 3], -1 outside the brain.

    Lesions hardly change the quartiles, so that a lesion of some kind has the same value in patients with few and many.
    """
    covered = flair[brain & (flair > 0)]
    low, middle, high = np.quantile(covered, (0.25, 0.5, 0.75)) if covered.size else (0.0, 0.0, 0.0)
    scaled = (flair - middle) / max(_UNIT * (high - low), 1e-6)
    return np.where(brain, np.clip(scaled, _OUTSIDE, _BRIGHTEST), _OUTSIDE).astype(np.float32)


def to_slices(flair: Tensor) -> Tensor:
    """Every slice of (H, W, S) between its neighbours, which at the ends it is itself: (S, 3, H, W)."""
    padded = torch.cat([flair[:, :, :1], flair, flair[:, :, -1:]], dim=2)
    return padded.unfold(2, NUM_INPUTS, 1).permute(2, 3, 0, 1)


@torch.no_grad()
def lesion_probability(network: torch.nn.Module, flair: Tensor, batch: int = 8) -> Tensor:
    """P(T2 lesion) of every voxel, the mean over the scan as it is and mirrored: (H, W, S) in [0, 1].

    Args:
        network: (B, 3, H, W) -> logits (B, 1, H, W); H and W are multiples of 16.
        flair: (H, W, S), see `in_brain_units`.
        batch: slices computed together.
    """
    probabilities = []
    for slices in to_slices(flair).split(batch):
        plain, mirrored = network(slices).sigmoid(), network(slices.flip(2)).sigmoid().flip(2)
        probabilities.append((plain + mirrored)[:, 0] / 2)
    return torch.cat(probabilities).permute(1, 2, 0)


def cropped(x: Tensor, shape: Sequence[int], corner: Sequence[int]) -> Tensor:
    """A window of (N, C, H, W), which may reach beyond the image, where it is 0."""
    (h, w), (top, left) = shape, corner
    pads = [max(-left, 0), max(left + w - x.shape[-1], 0), max(-top, 0), max(top + h - x.shape[-2], 0)]
    if any(pads):
        x = F.pad(x, pads)
        top, left = top + pads[2], left + pads[0]
    return x[..., top : top + h, left : left + w]
