"""A brain mask for patients who come without one."""

import numpy as np
from scipy import ndimage

_COARSE_MM = 3.0
_NECK_MM = 5.0  # half the width of the bridges (muscles, vessels, nerves) that are cut between brain and head
_FURROW_MM = 10.0  # half the width of the dark fluid (ventricles, fissures) that belongs to the brain
_STRIPPED = 1.5  # a scan whose non-zero voxels are at most this much more than the brain found in it holds nothing else


def estimate_brain(flair: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """A rough brain mask of a FLAIR: where it is not zero if it is skull-stripped, else what is left of the head.

    The head is brighter than Otsu's threshold, opened with a ball, of which the largest component is kept,
    closed and filled. It serves to place the slab and scale intensities; a proper mask (derivatives/brain) is better.

    Args:
        flair: (X, Y, Z) float, 0 is background.
        affine: (4, 4).

    Returns:
        (X, Y, Z) bool; empty if nothing was found.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    zoom = np.minimum(spacing / _COARSE_MM, 1)
    coarse = ndimage.zoom(flair, zoom, order=1, grid_mode=True, mode="nearest")
    spacing = spacing * flair.shape / coarse.shape
    bright = coarse > _otsu(coarse[coarse > 0])
    core = _largest(ndimage.distance_transform_edt(bright, sampling=spacing) > _NECK_MM)
    if not core.any():
        return np.zeros(flair.shape, bool)
    grown = ndimage.distance_transform_edt(~core, sampling=spacing) <= _NECK_MM + _FURROW_MM
    brain = ndimage.distance_transform_edt(ndimage.binary_fill_holes(grown), sampling=spacing) > _FURROW_MM
    if np.count_nonzero(coarse > 0) <= _STRIPPED * np.count_nonzero(brain):
        return flair > 0
    index = np.ix_(*[np.minimum((np.arange(n) * m) // n, m - 1) for n, m in zip(flair.shape, brain.shape)])
    return brain[index]


def _otsu(values: np.ndarray) -> float:
    """The threshold with the greatest variance between the two classes (Otsu, 1979)."""
    counts, edges = np.histogram(values, bins=256)
    middles = (edges[:-1] + edges[1:]) / 2
    below, mean_below = np.cumsum(counts), np.cumsum(counts * middles)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (mean_below / below - (mean_below[-1] - mean_below) / above) ** 2
    return float(edges[1 + np.argmax(np.nan_to_num(between))])


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest 6-connected component."""
    labels, count = ndimage.label(mask)
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:]) if count else mask
