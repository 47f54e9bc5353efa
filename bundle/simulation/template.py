"""The undeformed brain: nilearn's packaged MNI152 template (2009a), with what the maps leave out derived by rules."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template
from scipy import ndimage

from bundle.simulation.labels import BRAINSTEM, LEFT, RIGHT
from bundle.simulation.territories import divide

_REACH_MM = (-45, 70)  # of z


@dataclass(frozen=True)
class Template:
    """Maps at 1 mm; arrays of one shape, voxel 0 at `origin_mm` in MNI space.

    Attributes:
        brain: float32, averaged over the 3 mm of a slice.
        tissue: white matter, grey matter and fluid, float32 fractions, averaged likewise.
        labels: uint8, FreeSurfer labels.
        territory: uint8, see `bundle.simulation.territories.divide`.
        ventricle_distance_mm: float32, distance to the lateral ventricles, 0 inside.
        depth_mm: float32, distance to the outside of the brain.
        origin_mm: (3,).
    """

    brain: np.ndarray
    tissue: tuple[np.ndarray, np.ndarray, np.ndarray]
    labels: np.ndarray
    territory: np.ndarray
    ventricle_distance_mm: np.ndarray
    depth_mm: np.ndarray
    origin_mm: np.ndarray


@lru_cache
def load_template() -> Template:
    """Reads the packaged maps, once per process; derives fluid, labels, territories and distances."""
    image = load_mni152_template(resolution=1)
    t1, grey, white = (
        np.asarray(i.dataobj, np.float32)
        for i in (image, load_mni152_gm_template(resolution=1), load_mni152_wm_template(resolution=1))
    )
    origin_mm = image.affine[:3, 3].copy()
    # The brain, as far as deformation may bring it into the slab; the rest would only cost time.
    low, high = (int(z - origin_mm[2]) for z in _REACH_MM)
    box = [*(_extent(t1[..., low:high].any(axis=(1 - axis, 2))) for axis in (0, 1)), slice(low, high)]
    t1, grey, white = (volume[tuple(box)] for volume in (t1, grey, white))
    origin_mm += [axis.start for axis in box]
    x, y, z = np.meshgrid(*(np.arange(n) + o for n, o in zip(t1.shape, origin_mm)), indexing="ij", sparse=True)
    brain = t1 > 0
    # Averaging 152 brains blurs the sulci; squaring the fractions sharpens them to the look of a single one.
    fluid = np.clip((0.62 - t1) / 0.25, 0, 1) * brain
    fractions = np.stack([white * (1 - fluid), grey * (1 - fluid), fluid]) ** 2
    ventricle = _lateral_ventricles(brain & (t1 < 0.5), x, y, z)
    distance_mm = ndimage.distance_transform_edt(~ventricle).astype(np.float32)
    # The template's grey matter map has a rim round the ventricles, which is partial volume and not grey matter.
    rim = (distance_mm < 4) & (distance_mm > 0) & (z > 4) & ~_inside_ellipsoid(x, y, z, (0, -20, 4), (24, 15, 16))
    fractions[0] += np.where(rim, fractions[1], 0)
    fractions[1][rim] = 0
    total = np.maximum(fractions.sum(0), 1e-6)
    fractions = np.where(brain, fractions / total, 0).astype(np.float32)
    labels = _label(fractions, brain, ventricle, x, y, z)
    cortex_mm = ndimage.distance_transform_edt(~np.isin(labels, (LEFT["cortex"], RIGHT["cortex"])))
    return Template(
        ndimage.uniform_filter1d(brain.astype(np.float32), 3, axis=2),
        tuple(ndimage.uniform_filter1d(f, 3, axis=2) for f in fractions),
        labels,
        divide(labels, distance_mm, cortex_mm, x, y, z),
        distance_mm,
        ndimage.distance_transform_edt(brain).astype(np.float32),
        origin_mm,
    )


def _extent(profile: np.ndarray) -> slice:
    found = np.flatnonzero(profile)
    return slice(max(found[0] - 2, 0), found[-1] + 3)


def _lateral_ventricles(fluid: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Fluid within reach of the ventricles' bodies, without the third ventricle and the cisterns in the midline."""
    box = (
        (abs(x) < 36)
        & (y > -62)
        & (y < 38)
        & (z > -12)
        & (z < 34)
        & ((abs(x) > 3) | (z > 8))
        & ~((abs(x) < 12) & (y < -30))
    )
    parts, _ = ndimage.label(fluid & box)
    seeds = parts[(abs(x) < 14) & (abs(y + 5) < 4) & (abs(z - 20) < 3)]
    return np.isin(parts, np.unique(seeds[seeds > 0]))


def _label(
    tissue: np.ndarray, brain: np.ndarray, ventricle: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray
) -> np.ndarray:
    white, grey, fluid = tissue
    part = {
        "white": (white >= grey) & (white > fluid),
        "cortex": (grey > white) & (grey > fluid),
        "ventricle": ventricle,
    }
    part["deep"] = (
        (part["cortex"] | part["white"]) & (grey > 0.2) & _inside_ellipsoid(x, y, z, (0, -6, 5), (33, 33, 17))
    )
    part["cerebellum"] = (part["cortex"] | part["white"]) & _inside_ellipsoid(x, y, z, (0, -64, -40), (45, 24, 36))
    stem = (part["cortex"] | part["white"]) & (abs(x) < 16) & (y < -14) & (y > -44) & (z < -6)
    labels = np.zeros(brain.shape, np.uint8)
    for name in ("white", "cortex", "deep", "cerebellum", "ventricle"):
        labels = np.where(part[name] & brain, np.where(x < 0, LEFT[name], RIGHT[name]), labels)
    return np.where(stem & brain, BRAINSTEM, labels).astype(np.uint8)


def _inside_ellipsoid(x, y, z, centre, radii) -> np.ndarray:
    return sum(((a - c) / r) ** 2 for a, c, r in zip((x, y, z), centre, radii)) < 1
