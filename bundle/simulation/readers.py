"""Who draws the lesion masks: readers who see everything, and readers who do not."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bundle.simulation.anatomy import VOXEL_MM3

_NEIGHBOURS_26 = np.ones((3, 3, 3), bool)
_FACES_IN_PLANE = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)[..., None]
Masks = Mapping[tuple[str, str], np.ndarray]


@dataclass(frozen=True)
class Reader:
    """What becomes of the true masks of w000 and w048; the outcome is read perfectly.

    Careless reading misses a lesion with the chance missed_small * exp(-volume / small_mm3), moves borders by one voxel
    in plane where a smooth random field says so, outwards or inwards, and takes lesions within a voxel of each other in
    plane for one.

    Args:
        careless: fraction of patients who are read so.
        missing: fraction of masks that were never drawn, each independently of the others.
        missed_small, small_mm3: of careless reading.
        moved: fraction of the borders that move outwards, and as many move inwards.
        merged: fraction of careless readings that merge near lesions.

    References:
        Commowick et al. 2018, Sci. Rep. 8:13650, and Egger et al. 2017, NeuroImage Clin. 13:264: masks of one scan by
        seven and by three experts. Erbayat Altay et al. 2013, JAMA Neurol. 70:338: readers agree best on enhancing
        lesions, less on new and worst on enlarging T2 lesions. That small lesions are missed most, and all
        numbers, are assumed.
    """

    careless: float = 0.0
    missing: float = 0.0
    missed_small: float = 0.5
    small_mm3: float = 30.0
    moved: float = 0.2
    merged: float = 0.5

    def __call__(self, masks: Masks, rng: np.random.Generator) -> dict[tuple[str, str], np.ndarray]:
        """The masks as written.

        Args:
            masks: (visit, label) -> bool array.
            rng: of this patient's reading.

        Returns:
            The same without those that are missing.
        """
        careless, merges = rng.random() < self.careless, rng.random() < self.merged
        read = {}
        for (visit, label), mask in masks.items():
            if visit == "w096":
                read[visit, label] = mask
                continue
            missing, own = rng.random() < self.missing, np.random.default_rng(rng.integers(2**63))
            if not missing:
                read[visit, label] = self._misread(mask, merges, own) if careless else mask
        return read

    def _misread(self, mask: np.ndarray, merges: bool, rng: np.random.Generator) -> np.ndarray:
        lesions, count = ndimage.label(mask, _NEIGHBOURS_26)
        if not count:
            return mask
        volume = np.bincount(lesions.ravel()) * VOXEL_MM3
        kept = rng.random(count + 1) >= self.missed_small * np.exp(-volume / self.small_mm3)
        kept[0] = False
        seen = kept[lesions]
        field = ndimage.gaussian_filter(rng.standard_normal(mask.shape, np.float32), (3, 3, 1), truncate=2)
        low, high = np.quantile(field, [self.moved, 1 - self.moved])
        swollen = ndimage.binary_dilation(seen, _FACES_IN_PLANE)
        shrunk = ndimage.binary_erosion(seen, _FACES_IN_PLANE, border_value=1)
        read = np.where(field > high, swollen, np.where(field < low, shrunk, seen))
        return ndimage.binary_closing(read, _FACES_IN_PLANE) | read if merges else read
