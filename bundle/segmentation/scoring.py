"""How well lesions are found: voxels, and lesions as wholes by their size."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bundle.lesions import NEIGHBOURS_26, voxel_volume_mm3

SIZES_MM3 = (0.0, 30.0, 100.0, 300.0, np.inf)  # borders of the classes of true lesions


@dataclass(frozen=True)
class MaskScore:
    """Counts of one mask against the truth; add them over patients.

    Attributes:
        both, marked, true: voxels in both masks, in the found one, in the true one.
        found: (sizes,) true lesions of each class of `SIZES_MM3` that a marked voxel touches.
        lesions: (sizes,) true lesions of each class.
        right, wrong: marked lesions with and without a true voxel.
    """

    both: int
    marked: int
    true: int
    found: np.ndarray
    lesions: np.ndarray
    right: int
    wrong: int

    def __add__(self, other: "MaskScore") -> "MaskScore":
        return MaskScore(*(a + b for a, b in zip(vars(self).values(), vars(other).values())))

    @property
    def dice(self) -> float:
        """Of all voxels together; NaN if neither mask has one."""
        return 2 * self.both / (self.marked + self.true) if self.marked + self.true else np.nan

    @property
    def sensitivity(self) -> np.ndarray:
        """Fraction of true lesions that were found, of each class of size; NaN where there are none."""
        with np.errstate(invalid="ignore"):
            return self.found / self.lesions

    @property
    def precision(self) -> float:
        """Fraction of marked lesions that are right."""
        return self.right / (self.right + self.wrong) if self.right + self.wrong else np.nan

    @property
    def f1(self) -> float:
        """Harmonic mean of sensitivity and precision, over lesions; NaN if neither mask has one."""
        if not self.found.sum():
            return 0.0 if self.lesions.sum() or self.wrong else np.nan
        sensitivity = self.found.sum() / self.lesions.sum()
        return 2 * sensitivity * self.precision / (sensitivity + self.precision)


def mask_score(marked: np.ndarray, true: np.ndarray, affine: np.ndarray) -> MaskScore:
    """Scores a mask; lesions are components of 26 neighbours.

    Args:
        marked, true: (H, W, S) bool on one grid.
        affine: (4, 4) of it.
    """
    lesions, count = ndimage.label(true, NEIGHBOURS_26)
    volume = np.bincount(lesions.ravel(), minlength=count + 1)[1:] * voxel_volume_mm3(affine)
    touched = np.bincount(lesions[marked], minlength=count + 1)[1:] > 0
    size = np.digitize(volume, SIZES_MM3[1:-1])
    classes = len(SIZES_MM3) - 1
    candidates, number = ndimage.label(marked, NEIGHBOURS_26)
    right = int((np.bincount(candidates[true], minlength=number + 1)[1:] > 0).sum())
    return MaskScore(
        int((marked & true).sum()),
        int(marked.sum()),
        int(true.sum()),
        np.bincount(size[touched], minlength=classes),
        np.bincount(size, minlength=classes),
        right,
        number - right,
    )


def total(scores: Iterable[MaskScore]) -> MaskScore:
    """Sum of the scores of several masks."""
    first, *rest = scores
    for score in rest:
        first = first + score
    return first
