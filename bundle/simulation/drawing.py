"""Lesions as voxels: where the next one starts, and what shape it grows to."""

import heapq

import numpy as np
from scipy import ndimage

from bundle.simulation.anatomy import SHAPE, SPACING_MM, VOXEL_MM3, Anatomy
from bundle.simulation.events import net2_volume_mm3


def placement(anatomy: Anatomy, lesions: np.ndarray) -> np.ndarray:
    """f(x): density of the place where the next lesion starts, given the lesions that exist.

    Lesions start outside existing ones, and near them up to several times as often: some therefore enlarge an old
    one.

    Args:
        anatomy: the brain.
        lesions: bool `SHAPE`, T2 lesions so far.

    Returns:
        float32 `SHAPE`, adding up to 1.
    """
    near = ndimage.gaussian_filter(lesions.astype(np.float32), np.divide(3.0, SPACING_MM), truncate=3)
    density = anatomy.susceptibility * (1 + 4 * np.sqrt(np.maximum(near, 0)))
    density[lesions] = 0
    return density / np.float32(density.sum(dtype=np.float64))


def form_lesions(
    anatomy: Anatomy, existing: np.ndarray, marks: list[np.random.SeedSequence]
) -> list[tuple[np.ndarray, ...]]:
    """New lesions, one after the other, outside the existing ones and not touching each other.

    A lesion starts where the first of independent exponential clocks, one per voxel and as fast as `placement`, rings:
    a draw from that density. The same mark keeps its clocks under a slightly different density (another arm's history)
    and then mostly starts at the same voxel, so the potential outcomes of a patient share their places wherever they
    can.

    Args:
        anatomy: the brain.
        existing: bool `SHAPE`, lesions before.
        marks: one source of randomness per new lesion: its clocks, volume and shape.

    Returns:
        Index arrays (3 x n voxels) per lesion. A prefix of `marks` gives a prefix of the lesions.
    """
    candidates = np.flatnonzero(anatomy.susceptibility)
    waiting = 1 / np.maximum(placement(anatomy, existing), np.float32(1e-30))  # mean of each voxel's clock
    free = anatomy.parenchyma & ~existing
    waiting[~free] = np.inf
    lesions = []
    for mark in marks:
        rng = np.random.default_rng(mark)
        # In double precision: single precision rings at 0 once in 2^23 voxels, which starts 3 % of the lesions anywhere.
        clocks = rng.standard_exponential(len(candidates))
        first = candidates[np.argmin(clocks * waiting.ravel()[candidates])]
        lesion = grow(free, np.unravel_index(first, free.shape), net2_volume_mm3(rng.random()), rng)
        lesions.append(lesion)
        box, touching = halo(lesion)
        free[box][touching] = False
        waiting[box][touching] = np.inf
    return lesions


def halo(lesion: tuple[np.ndarray, ...]) -> tuple[tuple[slice, ...], np.ndarray]:
    """The lesion and all voxels that touch it: a box of the grid, and a bool array of the box's shape."""
    box = tuple(slice(max(0, i.min() - 1), min(n, i.max() + 2)) for i, n in zip(lesion, SHAPE))
    drawn = np.zeros([s.stop - s.start for s in box], bool)
    drawn[tuple(i - s.start for i, s in zip(lesion, box))] = True
    return box, ndimage.binary_dilation(drawn, np.ones((3, 3, 3), bool))


def grow(
    free: np.ndarray, seed: tuple[int, int, int], volume_mm3: float, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """A blob with an irregular border: the free voxels nearest to the seed in a bent distance, grown face by face.

    Args:
        free: bool `SHAPE`, where the lesion may lie; true at the seed.
        seed: voxel it starts from.
        volume_mm3: rounded to whole voxels, at least one. The lesion stays smaller where there is no room.
        rng: five ellipsoid and bump parameters are drawn from it, always the same number.

    Returns:
        Index arrays (3 x n voxels) of a face-connected set.
    """
    num_voxels = max(1, round(volume_mm3 / VOXEL_MM3))
    radius_mm = (3 * num_voxels * VOXEL_MM3 / (4 * np.pi)) ** (1 / 3)
    reach = [int(np.ceil((2 * radius_mm + 4) / s)) for s in SPACING_MM]
    low = [max(0, c - r) for c, r in zip(seed, reach)]
    box = tuple(slice(a, c + r + 1) for a, c, r in zip(low, seed, reach))
    room = np.pad(free[box], 1)
    start = [c - a + 1 for c, a in zip(seed, low)]
    distance = _bent_distance(room.shape, start, rng).ravel().tolist()
    strides = (room.shape[1] * room.shape[2], room.shape[2], 1)
    steps = [sign * stride for stride in strides for sign in (-1, 1)]
    first = int(np.ravel_multi_index(start, room.shape))
    shape, room = room.shape, bytearray(room.tobytes())
    front, taken = [(0.0, first)], []
    room[first] = 0
    while front and len(taken) < num_voxels:
        voxel = heapq.heappop(front)[1]
        taken.append(voxel)
        for step in steps:
            if room[voxel + step]:
                room[voxel + step] = 0
                heapq.heappush(front, (distance[voxel + step], voxel + step))
    return tuple(i - 1 + a for i, a in zip(np.unravel_index(taken, shape), low))


def _bent_distance(shape: tuple[int, ...], start: list[int], rng: np.random.Generator) -> np.ndarray:
    """Distance in mm from a point in the start voxel, in a random ellipsoid metric, stretched by direction."""
    offset = rng.uniform(-0.5, 0.5, 3)
    metric = rng.normal(0, 1, (3, 3)) * 0.25 + np.eye(3)
    bumps = rng.normal(0, 0.35, 3), rng.normal(0, 0.25, 3)
    axes = [(np.arange(n) - c - o) * s for n, c, o, s in zip(shape, start, offset, SPACING_MM)]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    u, v, w = (row[0] * x + row[1] * y + row[2] * z for row in metric)
    length = np.sqrt(u * u + v * v + w * w) + 1e-6
    bend = (bumps[0][0] * u * v + bumps[0][1] * v * w + bumps[0][2] * u * w) / length**2
    bend += (bumps[1][0] * u**3 + bumps[1][1] * v**3 + bumps[1][2] * w**3) / length**3
    return length * np.exp(bend)
