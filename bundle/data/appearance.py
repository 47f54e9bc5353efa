"""How a FLAIR scan looks: numbers by which simulated scans are held against real ones."""

from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.stats import median_abs_deviation

from bundle.data.grid import SlabGrid, is_too_fine, slab_centre, to_slab
from bundle.data.masks import mask_to_slab
from bundle.errors import InputError
from bundle.lesions import Volume

GRID = SlabGrid(spacing_mm=(1.0, 1.0, 3.0), shape=(256, 256, 15))  # the paper's
_BIN = 0.01  # of the histogram, in medians of the brain
_SMOOTH_BINS = 2.0  # standard deviation that its counts are smoothed by
_BIAS_MM = 20.0  # standard deviation of the Gaussian that leaves the bias field
_IN_PLANE = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)[..., None]  # a voxel and its four neighbours


class Appearance(NamedTuple):
    """Features of one scan; signals are in units of the mode of the brain's histogram.

    Attributes:
        percentile_5, percentile_25, percentile_75, percentile_95: of the brain's voxels.
        noise: standard deviation of white noise that scatters a voxel about the mean of its four neighbours in plane as
            the middle half of the brain's voxels scatter.
        sharpness: 95th percentile of the gradient in plane, over the range from the 5th to the 95th percentile; per mm.
        bias: standard deviation over the brain of the scan smoothed by a Gaussian of 20 mm standard deviation, which
            reads nothing outside the brain.
        lesion_contrast: median of the T2 lesions less the mode; NaN without a mask or without a lesion.
    """

    percentile_5: float
    percentile_25: float
    percentile_75: float
    percentile_95: float
    noise: float
    sharpness: float
    bias: float
    lesion_contrast: float


def scan_appearance(flair: Volume, brain: Volume, lesions: Volume | None, case: str) -> Appearance:
    """Features of a scan on the paper's slab.

    Each cell holds the mean of the part of the brain in it, so that a stripped scan is read as any other.

    Args:
        flair: (X, Y, Z) float32; 0 is no signal.
        brain: bool, on the grid of `flair`.
        lesions: T2 lesions, bool, on the grid of `flair`; None if not known.
        case: participant label, for error messages.

    Raises:
        InputError: the mask holds no brain, the voxels are too small to be read, or the brain has no contrast.
    """
    if not brain.values.any():
        raise InputError("no brain found", "give a brain mask", case=case, file=brain.path or flair.path)
    affine = GRID.affine(slab_centre(brain.values, brain.affine, GRID))
    if is_too_fine(flair.affine, affine, GRID):
        raise InputError("its voxels are too small", "resample it", case=case, file=flair.path)
    covered = to_slab(brain.values.astype(np.float32), brain.affine, affine, GRID)
    inside = covered >= 0.5
    values = to_slab(flair.values * brain.values, flair.affine, affine, GRID) / np.where(inside, covered, 1)
    marked = None if lesions is None else mask_to_slab(lesions.values, lesions.affine, affine, GRID)
    try:
        return slab_appearance(values, inside, marked)
    except ValueError as error:
        raise InputError(str(error), "give the FLAIR scan and its brain", case=case, file=flair.path) from error


def slab_appearance(values: np.ndarray, brain: np.ndarray, lesions: np.ndarray | None = None) -> Appearance:
    """Features of a scan that lies on a grid of 1 x 1 x 3 mm.

    Args:
        values: (H, W, S) float, 0 is no signal; what lies outside the brain is not read.
        brain: (H, W, S) bool.
        lesions: (H, W, S) bool, T2 lesions; None if not known.

    Raises:
        ValueError: the brain is empty, has no signal or no contrast.
    """
    if not brain.any():
        raise ValueError("the brain fills no cell of the slab")
    box = ndimage.find_objects(brain.astype(np.uint8))[0]  # the rest would only cost time
    values, brain = np.where(brain, values, 0)[box].astype(float), brain[box]
    tissue = values[brain]
    mode = histogram_mode(tissue)
    p5, p25, p75, p95 = np.percentile(tissue, (5, 25, 75, 95))
    if not p95 > p5:
        raise ValueError("the brain has no contrast")
    inner = ndimage.binary_erosion(brain, _IN_PLANE)
    marked = np.zeros_like(brain) if lesions is None else lesions[box] & brain
    return Appearance(
        *(float(p / mode) for p in (p5, p25, p75, p95)),
        noise=_noise(values, inner) / mode,
        sharpness=_steepness(values, inner) / float(p95 - p5),
        bias=float(_smoothed(values, brain)[brain].std()) / mode,
        lesion_contrast=float(np.median(values[marked])) / mode - 1 if marked.any() else np.nan,
    )


def histogram_mode(tissue: np.ndarray) -> float:
    """The most frequent value: the highest bin, 1 % of the median wide, after smoothing over 2 bins.

    Args:
        tissue: (N,) values, of which less than half are 0 or below.

    Raises:
        ValueError: the median is not positive.
    """
    median = float(np.median(tissue))
    if not median > 0:
        raise ValueError("the brain has no signal")
    width = _BIN * median
    bins = np.rint(tissue[(tissue > 0) & (tissue < 4 * median)] / width).astype(int)  # bin n is centred on n widths
    counts = ndimage.gaussian_filter1d(np.bincount(bins).astype(float), _SMOOTH_BINS, mode="constant")
    return float(np.argmax(counts) * width)


def _noise(values: np.ndarray, inner: np.ndarray) -> float:
    neighbours = sum(np.roll(values, step, axis) for axis in (0, 1) for step in (-1, 1)) / 4
    # A mean of four adds a quarter to the variance. The median deviation disregards edges.
    scatter = median_abs_deviation((values - neighbours)[inner], scale="normal") if inner.any() else np.nan
    return float(scatter / np.sqrt(1 + 1 / 4))


def _steepness(values: np.ndarray, inner: np.ndarray) -> float:
    slopes = [(np.roll(values, -1, axis) - np.roll(values, 1, axis)) / (2 * GRID.spacing_mm[axis]) for axis in (0, 1)]
    return float(np.percentile(np.hypot(*slopes)[inner], 95)) if inner.any() else np.nan


def _smoothed(values: np.ndarray, brain: np.ndarray) -> np.ndarray:
    width = np.divide(_BIAS_MM, GRID.spacing_mm)
    sums, weights = (ndimage.gaussian_filter(x, width, mode="constant") for x in (values, brain.astype(float)))
    return sums / np.maximum(weights, np.finfo(float).tiny)
