"""The brain mask of a patient, and an estimate for those without one."""

from collections.abc import Mapping

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from bundle.data.bids import Case
from bundle.data.volumes import check_same_grid, read_mask
from bundle.errors import InputError
from bundle.lesions import Volume

_COARSE_MM = 3.0
_NECK_MM = 5.0  # half the width of the bridges (muscles, vessels, nerves) that are cut between brain and head
_FURROW_MM = 10.0  # half the width of the dark fluid (ventricles, fissures) inside the brain
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
    from skimage.filters import threshold_otsu  # here, as a patient with a brain mask does not need it
    from skimage.measure import label

    spacing = voxel_sizes(affine)
    zoom = np.minimum(spacing / _COARSE_MM, 1)
    coarse = ndimage.zoom(flair, zoom, order=1, grid_mode=True, mode="nearest")
    spacing = spacing * flair.shape / coarse.shape
    bright = coarse > threshold_otsu(coarse[coarse > 0]) if coarse.any() else coarse > 0
    parts = label(ndimage.distance_transform_edt(bright, sampling=spacing) > _NECK_MM, connectivity=1)
    if not parts.any():
        return np.zeros(flair.shape, bool)
    core = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    grown = ndimage.distance_transform_edt(~core, sampling=spacing) <= _NECK_MM + _FURROW_MM
    brain = ndimage.distance_transform_edt(ndimage.binary_fill_holes(grown), sampling=spacing) > _FURROW_MM
    if np.count_nonzero(coarse > 0) <= _STRIPPED * np.count_nonzero(brain):
        return flair > 0
    index = np.ix_(*[np.minimum((np.arange(n) * m) // n, m - 1) for n, m in zip(flair.shape, brain.shape)])
    return brain[index]


def brain_of(case: Case, flairs: Mapping[str, Volume]) -> tuple[Volume, str]:
    """Brain mask of the latest visit that has one, "given", else an "estimated" one from the latest FLAIR.

    Args:
        case: the patient.
        flairs: scans by name, "flair_w000" and so on, at least one.

    Raises:
        InputError: the mask is empty or not on the FLAIR's grid, or no brain was found.
    """
    latest_first = sorted(flairs, reverse=True)
    for name in latest_first:
        visit = name.split("_")[1]
        if visit in case.brain:
            brain = read_mask(case.brain[visit], case.id)
            check_same_grid(brain, flairs[name], case.id)
            if not brain.values.any():
                raise InputError("the brain mask is empty", "recreate or remove it", case=case.id, file=brain.path)
            return brain, "given"
    flair = flairs[latest_first[0]]
    found = estimate_brain(flair.values, flair.affine)
    if not found.any():
        raise InputError("no brain found", "add a mask in derivatives/brain", case=case.id, file=flair.path)
    return Volume(found, flair.affine, flair.path), "estimated"
