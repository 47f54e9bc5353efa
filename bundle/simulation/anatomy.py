"""A patient's brain: the packaged template, deformed and folded at random, seen through an axial slab."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from scipy import ndimage
from scipy.interpolate import BSpline
from scipy.spatial.transform import Rotation

from bundle.simulation.labels import LEFT, RIGHT
from bundle.simulation.template import load_template
from bundle.simulation.territories import NUM_TERRITORIES

SHAPE = (192, 224, 15)  # left -> right, posterior -> anterior, inferior -> superior
SPACING_MM = (1.0, 1.0, 3.0)
VOXEL_MM3 = 3.0
CENTRE_MM = (0.0, -18.0, 12.5)  # in MNI space: z from -10 to 35 mm, the lateral ventricles and most of the lesion load
AFFINE = np.diag((*SPACING_MM, 1.0))
AFFINE[:3, 3] = np.array(CENTRE_MM) - (np.array(SHAPE) - 1) / 2 * np.array(SPACING_MM)


@dataclass(frozen=True)
class Anatomy:
    """One brain on the acquisition grid; every array has shape `SHAPE`.

    Attributes:
        brain: bool, the intracranial parenchyma and cerebrospinal fluid.
        tissue: float32 (3, *SHAPE), fractions of white matter, grey matter and fluid: they add up to 1 in the brain and
            to 0 outside.
        labels: uint8, FreeSurfer labels (`bundle.simulation.labels`).
        territory: uint8, 0 or 1 + the index in `bundle.simulation.territories.TERRITORIES`.
        susceptibility: float32 >= 0, how readily lesions start at a voxel compared with others of its territory; 0
            outside the parenchyma and the territories.
        ventricle_mm: float32, distance to the lateral ventricles; 0 inside and outside the brain.
        right: bool, the right half of the head. No single lesion grows across the midline.
    """

    brain: np.ndarray
    tissue: np.ndarray
    labels: np.ndarray
    territory: np.ndarray
    susceptibility: np.ndarray
    ventricle_mm: np.ndarray
    right: np.ndarray

    @cached_property
    def parenchyma(self) -> np.ndarray:
        """Where a lesion may spread: bool."""
        return self.brain & (self.tissue[2] < 0.5)

    @cached_property
    def members(self) -> tuple[np.ndarray, ...]:
        """Per territory the flat indices of the voxels where lesions may start."""
        candidates = np.flatnonzero(self.susceptibility)
        territory = self.territory.ravel()[candidates]
        order = np.argsort(territory, kind="stable")
        ends = np.searchsorted(territory[order], np.arange(1, NUM_TERRITORIES + 2))
        return tuple(candidates[order[a:b]] for a, b in zip(ends, ends[1:]))


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """A random brain: rotation, shift and stretch of the head and a smooth free-form deformation of the template."""
    template = load_template()
    where = _template_voxels(rng)
    brain = ndimage.map_coordinates(template.brain, where, order=1) > 0.5
    inside = where[:, brain]
    nearest = tuple(np.clip(np.rint(i), 0, n - 1).astype(int) for i, n in zip(inside, template.labels.shape))
    white, grey, fluid, distance_mm = (
        ndimage.map_coordinates(source, inside, order=1)
        for source in (*template.tissue, template.ventricle_distance_mm)
    )
    tissue = np.stack([white, grey, fluid])  # (3, voxels of the brain)
    tissue /= np.maximum(tissue.sum(0), 1e-6)
    labels = template.labels[nearest]
    _fold(tissue, labels, template.depth_mm[nearest], _furrow_distance(rng)[brain])
    right = inside[0] + template.origin_mm[0] >= 0
    territory = _territory(template.territory, nearest, right, _border_shift_mm(rng)[:, brain])
    susceptibility = _susceptibility(tissue, labels, territory, distance_mm)
    maps = [_on_grid(m, brain) for m in (*tissue, labels, territory, susceptibility, distance_mm, right)]
    return Anatomy(brain, np.stack(maps[:3]), *maps[3:])


def _on_grid(values: np.ndarray, brain: np.ndarray) -> np.ndarray:
    grid = np.zeros(SHAPE, values.dtype)
    grid[brain] = values
    return grid


def _susceptibility(
    tissue: np.ndarray, labels: np.ndarray, territory: np.ndarray, distance_mm: np.ndarray
) -> np.ndarray:
    """White matter, falling with the distance from the lateral ventricles as real lesions do, and a little cortex."""
    white, grey, fluid = tissue
    periventricular = np.exp(-distance_mm / 5) + np.exp(-((distance_mm / 11) ** 1.7))
    cerebral_white = np.isin(labels, (LEFT["white"], RIGHT["white"]))
    cortex = np.isin(labels, (LEFT["cortex"], RIGHT["cortex"]))
    deep = np.isin(labels, (LEFT["deep"], RIGHT["deep"]))
    density = cerebral_white * white * (0.1 + periventricular) + cortex * grey * 0.035 + deep * 0.05
    return np.where((fluid < 0.5) & (territory > 0), density, 0).astype(np.float32)


def _territory(source: np.ndarray, nearest: tuple[np.ndarray, ...], right: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Territory of every voxel of the brain, with winding borders: those of the template are cut by planes.

    A patient with hundreds of lesions in one territory fills it, and a straight border would show.

    Args:
        source: uint8, territories of the template.
        nearest: voxels of the template, three index arrays (N,).
        right: (N,) bool, the right half of the head.
        shift: (3, N) voxels of the template by which the borders move.
    """
    own = source[nearest]
    moved = source[
        tuple(np.clip(np.rint(i + s), 0, n - 1).astype(int) for i, s, n in zip(nearest, shift, source.shape))
    ]
    moved = np.where(moved > 0, moved - 1 - (moved - 1) % 2 + right + 1, 0).astype(np.uint8)  # each side keeps its own
    return np.where((own > 0) & (moved > 0), moved, own)


def _border_shift_mm(rng: np.random.Generator) -> np.ndarray:
    """(3, *SHAPE) in mm, 3.5 mm standard deviation, smooth over about 15 mm."""
    coarse = (3, SHAPE[0] // 2, SHAPE[1] // 2, SHAPE[2])
    noise = ndimage.gaussian_filter(rng.standard_normal(coarse, np.float32), (0, 3, 3, 1.5), truncate=2.5)
    return np.stack([doubled(component * np.float32(3.5 / component.std())) for component in noise])


def _furrow_distance(rng: np.random.Generator) -> np.ndarray:
    """Distance in mm from winding sheets: the zeros of a smooth random field, to first order; float32 `SHAPE`."""
    coarse = (SHAPE[0] // 2, SHAPE[1] // 2, SHAPE[2])
    field = ndimage.gaussian_filter(rng.standard_normal(coarse, np.float32), (2.4, 2.4, 1.2), truncate=2.5)
    slope = np.hypot(*np.gradient(field, 2.0, axis=(0, 1)))
    distance = np.abs(field) / (slope + 0.1 * slope.mean())
    return doubled(distance)


def doubled(values: np.ndarray) -> np.ndarray:
    """Twice as many voxels in plane, linear between the centres of the old ones, held at the border."""
    for axis in (0, 1):
        values = np.moveaxis(values, axis, 0)
        before, after = np.concatenate([values[:1], values[:-1]]), np.concatenate([values[1:], values[-1:]])
        pairs = np.stack([0.75 * values + 0.25 * before, 0.75 * values + 0.25 * after], axis=1)
        values = np.moveaxis(pairs.reshape(-1, *values.shape[1:]), 0, axis)
    return values


def _fold(tissue: np.ndarray, labels: np.ndarray, depth_mm: np.ndarray, furrow_mm: np.ndarray) -> None:
    """Cuts sulci into the outer cerebrum, in place: the template, an average of 152 brains, has lost most of them.

    Args:
        tissue: (3, N) fractions.
        labels: (N,) FreeSurfer labels, which follow the tissue.
        depth_mm: (N,) below the surface of the brain; sulci end 22 mm below.
        furrow_mm: (N,) distance from the middle of a would-be sulcus.
    """
    cerebrum = np.isin(labels, (LEFT["white"], LEFT["cortex"], RIGHT["white"], RIGHT["cortex"]))
    reach = np.flatnonzero(cerebrum & (depth_mm < 22) & (furrow_mm < 6))
    fade = np.clip((22 - depth_mm[reach]) / 8, 0, 1)
    near = furrow_mm[reach]
    white, grey, fluid = tissue[:, reach]
    ribbon = fade * np.exp(-((near / 2.7) ** 8))
    turned = ribbon * white  # white matter beside a sulcus becomes cortex
    white, grey = white - turned, grey + turned
    groove = 0.75 * fade * np.exp(-((near / 0.9) ** 2))
    parts = np.stack([white * (1 - groove), grey * (1 - groove), fluid + (white + grey) * groove])
    tissue[:, reach] = parts
    left = np.isin(labels[reach], list(LEFT.values()))
    is_white = parts[0] > parts[1]
    labels[reach] = np.where(
        is_white, np.where(left, LEFT["white"], RIGHT["white"]), np.where(left, LEFT["cortex"], RIGHT["cortex"])
    )
    labels[reach[parts[2] > 0.5]] = 0


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
    """(3, *SHAPE) in mm: cubic B-splines on a control grid of about 28 mm (Rueckert et al. 1999, IEEE TMI 18:712)."""
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
