"""What a threshold finds: the classical baseline that a segmenter has to beat."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bundle.data.bids import Case
from bundle.data.grid import read_linearly
from bundle.data.volumes import read_flair
from bundle.lesions import LesionRule
from bundle.segmentation.scans import SPACING_MM, read_scans


@dataclass(frozen=True)
class BrightVoxels:
    """Voxels brighter than a level, away from the surface of the brain, where the cortex is bright too.

    After the first step of LST-LGA (Schmidt et al. 2012, doi 10.1016/j.neuroimage.2011.11.032), whose belief maps start
    from FLAIR outliers of each tissue; without T1 there are no tissue classes, and the distance stands for them.

    Args:
        level: of T2 lesions, in three interquartile ranges above the brain's median.
        change: by which a new lesion is brighter than before, in the same units.
        depth_mm: least distance to the surface.
        min_volume_mm3: smaller lesions are left out.
    """

    level: float = 0.45
    change: float = 0.3
    depth_mm: float = 9.0
    min_volume_mm3: float = 9.0

    def masks(self, case: Case, visit: str, earlier: str | None = None) -> dict[str, np.ndarray]:
        """As `bundle.segmentation.segmenter.Segmenter.masks`."""
        scans = read_scans(case, (visit,) if earlier is None else (earlier, visit))
        padded = np.pad(scans.brain, ((1, 1), (1, 1), (0, 0)))  # a slab's first and last slice are no surface
        depth = ndimage.distance_transform_edt(padded, sampling=SPACING_MM)[1:-1, 1:-1]
        deep = depth >= self.depth_mm
        now = scans.flair[visit]
        found = {"t2": (now >= self.level) & deep}
        if earlier is not None:
            found["net2"] = found["t2"] & (now - scans.flair[earlier] >= self.change)
        flair = read_flair(case.volumes[f"flair_{visit}"], case.id)
        masks = {}
        for kind, mask in found.items():
            on_scan = read_linearly(mask.astype(np.float32), scans.affine, flair.affine, flair.values.shape)
            masks[kind] = LesionRule(min_volume_mm3=self.min_volume_mm3).label(on_scan, flair.affine) > 0
        return masks
