"""What counts as a lesion: one rule for truth and forecast, and the tables of lesions made by it."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from nibabel.affines import apply_affine
from scipy import ndimage

NEIGHBOURS_26 = np.ones((3, 3, 3), dtype=bool)
MAX_COUNT = 256  # the last entry of a distribution of lesion counts means "this many or more"

# FreeSurfer's labels of each region, left and right; hypointense white matter (77 to 79) is white matter.
REGIONS = {
    **dict.fromkeys((2, 41, 77, 78, 79), "cerebral white matter"),
    **dict.fromkeys((251, 252, 253, 254, 255), "corpus callosum"),
    **dict.fromkeys((3, 42, *range(1000, 1036), *range(2000, 2036)), "cortex"),
    **dict.fromkeys((4, 5, 14, 15, 24, 31, 43, 44, 63), "ventricle or CSF"),
    **dict.fromkeys((10, 11, 12, 13, 26, 28, 49, 50, 51, 52, 58, 60), "deep grey matter"),
    **dict.fromkeys((17, 18, 53, 54), "hippocampus or amygdala"),
    **dict.fromkeys((7, 8, 46, 47), "cerebellum"),
    16: "brainstem",
}


class Volume(NamedTuple):
    """Values on a grid in the world.

    values: (..., H, W, S), axes in any orientation.
    affine: (4, 4), voxel index to world millimetres (RAS+).
    path: the file they were read from, if any.
    """

    values: np.ndarray
    affine: np.ndarray
    path: Path | None = None

    def at(self, points_mm: np.ndarray) -> np.ndarray:
        """Values of the voxels in which the points (N, 3) lie, (..., N); zero off the grid."""
        # Just below the half: a point on an edge, up to float noise, always falls to the same side.
        index = np.floor(apply_affine(np.linalg.inv(self.affine), points_mm) + 0.5 - 1e-6).astype(int)
        shape = np.array(self.values.shape[-3:])
        inside = np.all((index >= 0) & (index < shape), axis=1)
        values = self.values[(..., *np.clip(index, 0, shape - 1).T)]
        return np.where(inside, values, np.zeros((), self.values.dtype))


@dataclass(frozen=True)
class LesionRule:
    """Voxels above a threshold, opened by a flat kernel, are one lesion where they touch by face, edge or corner.

    Args:
        kernel: voxels of the opening along (H, W, S); (1, 1, 1) opens nothing. The paper: (5, 5, 1) at 1 x 1 x 3 mm.
        min_volume_mm3: components smaller than this are no lesions.
        threshold: a voxel is marked where its probability is at least this; masks of 0 and 1 keep their voxels.

    References:
        Favero et al. 2025 (arXiv 2508.07006), section 3: opening by 1 x 5 x 5, then connected components.
    """

    kernel: tuple[int, int, int] = (1, 1, 1)
    min_volume_mm3: float = 0.0
    threshold: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "kernel", tuple(self.kernel))  # JSON brings lists
        if len(self.kernel) != 3 or min(self.kernel) < 1:
            raise ValueError(f"kernel must be three sizes of at least 1 voxel, got {self.kernel}")
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must lie in (0, 1], got {self.threshold}")
        if self.min_volume_mm3 < 0:
            raise ValueError(f"min_volume_mm3 must not be negative, got {self.min_volume_mm3}")

    def label(self, probability: np.ndarray, affine: np.ndarray) -> np.ndarray:
        """The lesions of one map.

        Args:
            probability: (H, W, S) in [0, 1], or a mask.
            affine: (4, 4) of its grid; only the volume of a voxel matters here.

        Returns:
            int32 (H, W, S): 0 outside, 1 to n the lesions.
        """
        marked = np.asarray(probability) >= self.threshold
        if max(self.kernel) > 1:
            marked = ndimage.binary_opening(marked, structure=np.ones(self.kernel, dtype=bool))
        labels, count = ndimage.label(marked, structure=NEIGHBOURS_26)
        kept = np.bincount(labels.ravel(), minlength=count + 1) * voxel_volume_mm3(affine) >= self.min_volume_mm3
        kept[0] = False
        return (np.cumsum(kept) * kept)[labels].astype(np.int32)

    def count(self, probability: np.ndarray, affine: np.ndarray) -> int:
        """Number of lesions of one map (H, W, S)."""
        return int(self.label(probability, affine).max(initial=0))

    def volume_ml(self, probability: np.ndarray, affine: np.ndarray) -> float:
        """Volume of all lesions of one map (H, W, S), in millilitres."""
        return float(np.count_nonzero(self.label(probability, affine)) * voxel_volume_mm3(affine) / 1000)


@dataclass(frozen=True)
class DetectionRule:
    """When a lesion counts as found by the lesions of another map.

    It is found if they cover more than `alpha` of it, and if those that overlap it most, taken in turn until they make
    up `gamma` of the overlap, each lie outside all lesions of its map with at most `beta` of their voxels.

    Args:
        alpha, beta, gamma: fractions; the defaults are those of the MSSEG challenges.
        min_volume_mm3: smaller lesions of either map are left out, as in MSSEG-2.

    References:
        Commowick et al. 2018, Objective evaluation of multiple sclerosis lesion segmentation, Sci. Rep. 8:13650,
        methods, "Detection metrics".
    """

    alpha: float = 0.1
    beta: float = 0.7
    gamma: float = 0.65
    min_volume_mm3: float = 3.0

    def __call__(self, lesions: np.ndarray, others: np.ndarray) -> np.ndarray:
        """(n,) bool, which of the lesions are found.

        Args:
            lesions, others: label maps (H, W, S), 0 outside, 1 to n and 1 to m.
        """
        n, m = int(lesions.max(initial=0)), int(others.max(initial=0))
        overlap = np.zeros((n + 1, m + 1))  # voxels by label and other label
        np.add.at(overlap, (lesions.ravel(), others.ravel()), 1)
        outside = overlap[0, 1:] / np.maximum(overlap[:, 1:].sum(axis=0), 1)
        covered = overlap[1:, 1:]
        found = covered.sum(axis=1) > self.alpha * overlap[1:].sum(axis=1)
        for index in np.flatnonzero(found):
            order = np.argsort(-covered[index], kind="stable")
            cumulative = covered[index][order].cumsum() / covered[index].sum()
            needed = order[: int(np.searchsorted(cumulative, self.gamma)) + 1]
            found[index] = (outside[needed] <= self.beta).all()
        return found


@dataclass(frozen=True)
class Lesion:
    """One lesion of a table.

    centroid_mm: mean of its voxel centres in world millimetres (RAS+).
    volume_mm3: its voxels' volume.
    region: where most of its labelled voxels lie, None without a segmentation.
    probability: fraction of members that mark a voxel of it, None without members.
    """

    centroid_mm: tuple[float, float, float]
    volume_mm3: float
    region: str | None
    probability: float | None


def voxel_volume_mm3(affine: np.ndarray) -> float:
    """Volume of a voxel, in mm3, for any (4, 4) affine, oblique and sheared ones too."""
    return float(abs(np.linalg.det(np.asarray(affine)[:3, :3])))


def lesion_table(lesions: Volume, *, dseg: Volume | None = None, members: Volume | None = None) -> list[Lesion]:
    """The lesions of a label map, the most probable first, then the largest.

    Args:
        lesions: labels (H, W, S) as `LesionRule.label` returns them.
        dseg: FreeSurfer labels on any grid of the same world.
        members: marks (K, H, W, S), bool, on any grid of the same world.
    """
    table = []
    for label, box in enumerate(ndimage.find_objects(lesions.values), start=1):
        corner = [axis.start for axis in box]
        points_mm = apply_affine(lesions.affine, np.argwhere(lesions.values[box] == label) + corner)
        table.append(
            Lesion(
                centroid_mm=tuple(points_mm.mean(axis=0).tolist()),
                volume_mm3=len(points_mm) * voxel_volume_mm3(lesions.affine),
                region=None if dseg is None else region_of(points_mm, dseg),
                probability=None if members is None else fraction_marking(points_mm, members),
            )
        )
    return sorted(table, key=lambda lesion: (-(lesion.probability or 0), -lesion.volume_mm3))


def region_of(points_mm: np.ndarray, dseg: Volume) -> str | None:
    """The region in which most of the points (N, 3) lie; None where the segmentation names none of them."""
    names = regions_at(points_mm, dseg)
    return max(sorted(set(names)), key=names.count, default=None)


def regions_at(points_mm: np.ndarray, dseg: Volume) -> list[str]:
    """The region of each of the points (N, 3) that lies in one."""
    return [REGIONS[label] for label in dseg.at(points_mm).astype(int).tolist() if label in REGIONS]


def fraction_marking(points_mm: np.ndarray, members: Volume) -> float:
    """Fraction of members (K, H, W, S) that mark a voxel in which one of the points (N, 3) lies, in [0, 1]."""
    return float(members.at(points_mm).any(axis=-1).mean())
