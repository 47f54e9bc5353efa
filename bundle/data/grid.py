"""The slab that the networks see, and the resampling between it and a scan's own grid."""

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from scipy import ndimage

from bundle.errors import InputError

_INTEGER = 1e-5  # an index this near an integer is one: affines come from float32 headers
_UNTILTED = 0.05  # voxels; a tilt that adds less to a cell's extent needs no more points
_MAX_POINTS = 2**27  # of a slab: half a gigabyte as float32


@dataclass(frozen=True)
class SlabGrid:
    """A box of voxels along the world axes: (H, W, S) = left to right, posterior to anterior, inferior to superior.

    Args:
        spacing_mm: voxel size along (H, W, S). The lite model's default; the paper's is (1, 1, 3).
        shape: voxels along (H, W, S). The paper's is (256, 256, 15).
    """

    spacing_mm: tuple[float, float, float] = (2.0, 2.0, 3.0)
    shape: tuple[int, int, int] = (80, 96, 15)

    def __post_init__(self) -> None:
        for name, kind in (("spacing_mm", float), ("shape", int)):  # JSON brings lists
            given = getattr(self, name)
            try:
                values = tuple(kind(value) for value in given)
            except (TypeError, ValueError):  # no sequence, or not of numbers
                values = ()
            if len(values) != 3 or not all(0 < value < np.inf for value in values):
                raise InputError(f"{name}={given!r} is not three positive numbers", f"correct --grid#{name}")
            object.__setattr__(self, name, values)

    @property
    def size_mm(self) -> np.ndarray:
        """Extent along (H, W, S), borders included."""
        return np.multiply(self.spacing_mm, self.shape)

    def affine(self, centre_mm: np.ndarray) -> np.ndarray:
        """(4, 4) affine of the slab whose middle lies at `centre_mm` (3,) in RAS+ world millimetres."""
        affine = np.diag([*self.spacing_mm, 1.0])
        affine[:3, 3] = np.asarray(centre_mm) - (self.size_mm - self.spacing_mm) / 2
        return affine


def slab_centre(brain: np.ndarray, affine: np.ndarray, grid: SlabGrid) -> np.ndarray:
    """Centre of the slab: at the height where it holds most brain, in plane around the brain there.

    In MNI space this is z = -17.5 to 27.5 mm: the lateral ventricles and the white matter around them. It does not
    depend on the extent of a scan: of an acquisition of just the slab's slices it takes exactly these, and the
    brainstem has no influence. The slab's corner lies on a corner of the scan's voxels, so that cells hold whole voxels
    wherever the sizes allow.

    Args:
        brain: (X, Y, Z) bool, at least one voxel set.
        affine: (4, 4) of `brain`.
        grid: the slab.

    Returns:
        (3,) the slab's middle in world millimetres.
    """
    world_axis = nib.io_orientation(affine)[:, 0].astype(int)  # of each voxel axis
    spacing = voxel_sizes(affine)
    extent = grid.size_mm[world_axis] / spacing  # of the slab, in voxels of the scan
    up = int(np.flatnonzero(world_axis == 2)[0])
    low = np.empty(3)  # the slab's low corner in voxels; voxel i reaches from i to i + 1
    low[up] = _fullest_window(brain.sum(axis=tuple({0, 1, 2} - {up})), extent[up])
    slices = slice(max(int(low[up]), 0), int(np.ceil(low[up] + extent[up])))
    inside = np.moveaxis(brain, up, 0)[slices].any(axis=0)
    for axis, other in zip([a for a in range(3) if a != up], (1, 0)):
        found = np.flatnonzero(inside.any(axis=other))
        low[axis] = np.round((found[0] + found[-1] + 1 - extent[axis]) / 2)
    middle = low + extent / 2 - 0.5
    return apply_affine(affine, middle)


def to_slab(data: np.ndarray, affine: np.ndarray, slab_affine: np.ndarray, grid: SlabGrid) -> np.ndarray:
    """Mean of a volume over each cell of the slab, whatever the volume's orientation, spacing, tilt and field of view.

    The volume is read linearly at points at least as dense as its own voxels, and these are averaged over the cell: no
    aliasing. Of a mask this is the fraction of the cell that it covers. Outside the volume is 0.

    Args:
        data: (X, Y, Z) float32.
        affine: (4, 4) of `data`.
        slab_affine: (4, 4), `grid.affine(...)`.

    Returns:
        (H, W, S) float32.
    """
    if not data.any():
        return np.zeros(grid.shape, np.float32)
    points, fine = fine_points(affine, slab_affine)
    read = read_linearly(data, affine, fine, tuple(points * grid.shape))
    h, w, s = grid.shape
    return read.reshape(h, points[0], w, points[1], s, points[2]).mean(axis=(1, 3, 5))


def fine_points(affine: np.ndarray, slab_affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (3,) per cell along (H, W, S) so dense that each voxel holds one, tilted or not; their affine (4, 4)."""
    voxels_per_cell = np.abs(np.linalg.inv(affine) @ slab_affine)[:3, :3].sum(axis=0)  # the sum, for tilted scans
    points = np.maximum(np.ceil(voxels_per_cell - _UNTILTED), 1).astype(int)
    fine = slab_affine @ np.diag([*1 / points, 1.0])
    fine[:3, 3] += slab_affine[:3, :3] @ (1 / points - 1) / 2
    return points, fine


def is_too_fine(affine: np.ndarray, slab_affine: np.ndarray, grid: SlabGrid) -> bool:
    """Whether a volume's voxels are so small that reading it onto the slab would need more than half a gigabyte."""
    points, _ = fine_points(affine, slab_affine)
    return bool(points.astype(float).prod() * np.prod(grid.shape) > _MAX_POINTS)


def read_linearly(data: np.ndarray, affine: np.ndarray, at: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Values of a volume at the voxels of another grid (affine `at`, `shape`), float32.

    Linear between voxel centres, held from the outer centres to the volume's border, 0 beyond. Exact, bit by bit, where
    voxels fall on voxels.
    """
    mapping, data = _mapping(affine, at), data.astype(np.float32, copy=False)
    if _falls_on_voxels(mapping):
        return _picked(data, mapping, shape)
    values = ndimage.affine_transform(data, *mapping, shape, order=1, mode="nearest", prefilter=False)
    return values * _nearest(np.broadcast_to(np.True_, data.shape), mapping, shape)


def read_nearest(data: np.ndarray, affine: np.ndarray, at: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """As `read_linearly`, but each value is that of the voxel that contains the point; the type of `data` stays."""
    mapping = _mapping(affine, at)
    return (_picked if _falls_on_voxels(mapping) else _nearest)(data, mapping, shape)


def _nearest(data: np.ndarray, mapping: tuple[np.ndarray, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    return ndimage.affine_transform(data, *mapping, shape, order=0, mode="grid-constant", prefilter=False)


def _falls_on_voxels(mapping: tuple[np.ndarray, np.ndarray]) -> bool:
    """Whether every voxel of the other grid is one of the volume's own or lies outside it: nothing to interpolate."""
    matrix, offset = mapping
    return matrix.ndim == 1 and bool((np.abs(matrix) == 1).all() and (offset == np.round(offset)).all())


def _picked(data: np.ndarray, mapping: tuple[np.ndarray, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """The volume's own voxels, 0 outside: ten times as fast as interpolation, and bit by bit the same."""
    picked, to, of = np.zeros(shape, data.dtype), [], []
    for step, start, size, available in zip(*mapping, shape, data.shape):
        places = start + step * np.arange(size)
        inside = np.flatnonzero((0 <= places) & (places < available))
        if not inside.size:
            return picked
        first, last = sorted(int(places[end]) for end in inside[[0, -1]])
        to.append(slice(inside[0], inside[-1] + 1))
        of.append(slice(first, last + 1))
    turn = tuple(slice(None, None, int(step)) for step in mapping[0])
    picked[tuple(to)] = data[tuple(of)][turn]
    return picked


def _mapping(affine: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and offset from indices of the grid `at` to those of the grid `affine`, as scipy wants them."""
    indices = np.linalg.inv(affine) @ at
    near = np.round(indices)
    indices = np.where(np.abs(indices - near) < _INTEGER, near, indices)
    matrix = indices[:3, :3]
    diagonal = np.diag(matrix)  # for which scipy has a faster routine
    return diagonal if (matrix == np.diag(diagonal)).all() else matrix, indices[:3, 3]


def _fullest_window(profile: np.ndarray, length: float) -> float:
    """Integer start (it may be below 0) of the window of `length` entries with the greatest sum; of ties the middle."""
    if length >= len(profile):
        found = np.flatnonzero(profile)
        return np.round((found[0] + found[-1] + 1 - length) / 2)
    total = np.concatenate([[0], np.cumsum(profile)])
    starts = np.arange(len(profile) - int(np.ceil(length)) + 1)
    held = np.interp(starts + length, np.arange(len(total)), total) - total[starts]
    best = np.flatnonzero(np.isclose(held, held.max(), rtol=1e-9))
    return best[(len(best) - 1) // 2]
