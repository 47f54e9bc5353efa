"""A patient's brain: nilearn's packaged MNI152 template (2009a), deformed at random, seen through an axial slab."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template
from scipy import ndimage
from scipy.interpolate import BSpline
from scipy.spatial.transform import Rotation

SHAPE = (192, 224, 15)  # left -> right, posterior -> anterior, inferior -> superior
SPACING_MM = (1.0, 1.0, 3.0)
VOXEL_MM3 = 3.0
CENTRE_MM = (0.0, -18.0, 12.5)  # in MNI space: z from -10 to 35 mm, the lateral ventricles and most of the lesion load
AFFINE = np.diag((*SPACING_MM, 1.0))
AFFINE[:3, 3] = np.array(CENTRE_MM) - (np.array(SHAPE) - 1) / 2 * np.array(SPACING_MM)

BACKGROUND, BRAINSTEM = 0, 16
LEFT = {"white": 2, "cortex": 3, "ventricle": 4, "cerebellum": 8, "deep": 10}  # FreeSurfer's numbers
RIGHT = {"white": 41, "cortex": 42, "ventricle": 43, "cerebellum": 47, "deep": 49}


@dataclass(frozen=True)
class Anatomy:
    """One brain on the acquisition grid; every array has shape `SHAPE`.

    Attributes:
        brain: bool, the intracranial parenchyma and cerebrospinal fluid.
        tissue: float32 (3, *SHAPE), fractions of white matter, grey matter and fluid: they add up to 1 in the brain and
            to 0 outside.
        labels: uint8, FreeSurfer labels (`LEFT`, `RIGHT`, `BRAINSTEM`).
        susceptibility: float32 >= 0, where lesions start in a brain without lesions, not normalised; 0 outside the
            parenchyma.
    """

    brain: np.ndarray
    tissue: np.ndarray
    labels: np.ndarray
    susceptibility: np.ndarray

    @property
    def parenchyma(self) -> np.ndarray:
        """Where a lesion may spread: bool."""
        return self.brain & (self.tissue[2] < 0.5)


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """A random brain: rotation, shift and stretch of the head and a smooth free-form deformation of the template."""
    template = load_template()
    where = _template_voxels(rng)
    brain = ndimage.map_coordinates(template.brain, where, order=1) > 0.5
    inside = where[:, brain]
    tissue = np.zeros((3, *SHAPE), np.float32)
    for fraction, source in zip(tissue, template.tissue):
        fraction[brain] = ndimage.map_coordinates(source, inside, order=1)
    tissue /= np.maximum(tissue.sum(0), 1e-6)
    labels = np.zeros(SHAPE, np.uint8)
    labels[brain] = ndimage.map_coordinates(template.labels, inside, order=0)
    distance_mm = ndimage.map_coordinates(template.ventricle_distance_mm, inside, order=1)
    susceptibility = np.zeros(SHAPE, np.float32)
    susceptibility[brain] = _susceptibility(tissue[:, brain], labels[brain], distance_mm)
    return Anatomy(brain, tissue, labels, susceptibility)


def _susceptibility(tissue: np.ndarray, labels: np.ndarray, distance_mm: np.ndarray) -> np.ndarray:
    """White matter, falling with the distance from the lateral ventricles as real lesions do, and a little cortex."""
    white, grey, fluid = tissue
    periventricular = np.exp(-((distance_mm / 11) ** 1.7))
    cerebral_white = np.isin(labels, (LEFT["white"], RIGHT["white"]))
    cortex = np.isin(labels, (LEFT["cortex"], RIGHT["cortex"]))
    deep = np.isin(labels, (LEFT["deep"], RIGHT["deep"]))
    density = cerebral_white * white * (0.1 + periventricular) + cortex * grey * 0.035 + deep * 0.05
    return np.where(fluid < 0.5, density, 0)


def _template_voxels(rng: np.random.Generator) -> np.ndarray:
    """Template voxel coordinates (3, *SHAPE) of every acquired voxel, float32."""
    rotation = Rotation.from_euler("xyz", rng.normal(0, 2.5, 3), degrees=True).as_matrix()
    stretch = np.clip(rng.normal(1, 0.03, 3), 0.94, 1.06)
    shift_mm = rng.normal(0, 2.5, 3)
    linear = rotation / stretch[:, None]  # a stretched head reads the template in smaller steps
    half = (np.array(SHAPE) - 1) / 2
    axes = [(np.arange(n) - h) * s for n, h, s in zip(SHAPE, half, SPACING_MM)]  # mm from the centre of the slab
    origin = np.array(CENTRE_MM) + shift_mm - load_template().origin_mm
    where = np.stack(
        [
            np.add.outer(np.add.outer(row[0] * axes[0], row[1] * axes[1]), row[2] * axes[2]) + start
            for row, start in zip(linear, origin)
        ]
    ).astype(np.float32)
    return where + _smooth_displacement(rng, deviation_mm=3.0)


def _smooth_displacement(rng: np.random.Generator, *, deviation_mm: float) -> np.ndarray:
    """(3, *SHAPE) in mm: cubic B-splines on a control grid of about 28 mm (Rueckert et al. 1999)."""
    bases = [_spline_basis(n, max(2, round(n * s / 28))) for n, s in zip(SHAPE, SPACING_MM)]
    control = rng.normal(0, deviation_mm, (3, *(basis.shape[1] for basis in bases)))
    # Plain einsum, not BLAS: what BLAS returns depends on its number of threads, and the bytes must not.
    for axis, basis in zip("abc", bases):
        control = np.einsum(f"nabc,x{axis}->n{'abc'.replace(axis, 'x')}", control, basis)
    return control.astype(np.float32)


@lru_cache
def _spline_basis(num_points: int, num_spans: int) -> np.ndarray:
    """(num_points, num_spans + 3) values of the uniform cubic B-splines along one axis."""
    knots = np.arange(-3, num_spans + 4, dtype=float)
    points = np.linspace(0, num_spans, num_points) * (1 - 1e-9)
    return BSpline.design_matrix(points, knots, 3).toarray()


@dataclass(frozen=True)
class Template:
    """The undeformed brain at 1 mm, averaged over the 3 mm of a slice; arrays of one shape, voxel 0 at `origin_mm`."""

    brain: np.ndarray
    tissue: tuple[np.ndarray, np.ndarray, np.ndarray]
    labels: np.ndarray
    ventricle_distance_mm: np.ndarray
    origin_mm: np.ndarray


@lru_cache
def load_template() -> Template:
    """Reads the packaged maps, once per process; derives fluid, labels and the distance to the lateral ventricles."""
    image = load_mni152_template(resolution=1)
    t1, grey, white = (
        np.asarray(i.dataobj, np.float32)
        for i in (image, load_mni152_gm_template(resolution=1), load_mni152_wm_template(resolution=1))
    )
    origin_mm = image.affine[:3, 3]
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
    return Template(
        ndimage.uniform_filter1d(brain.astype(np.float32), 3, axis=2),
        tuple(ndimage.uniform_filter1d(f, 3, axis=2) for f in fractions),
        labels,
        distance_mm,
        origin_mm,
    )


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
