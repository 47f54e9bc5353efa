"""Lesions as voxels: where the next one starts, and what shape it grows to."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

from bundle.simulation.anatomy import SHAPE, SPACING_MM, VOXEL_MM3, Anatomy
from bundle.simulation.events import Event, net2_volume_mm3, t2_volume_mm3
from bundle.simulation.territories import KINDS

# Status of a voxel at a visit; where lesions overlap the most active counts.
FREE, QUIET, RECENT, ENHANCING, SMOULDERING = range(5)
# The volumes of a patient with hundreds of lesions shrink, as no load is greater than this.
_GREATEST_LOAD_MM3 = 120_000.0


@dataclass(frozen=True)
class Surroundings:
    """Where the next lesions may start, given the lesions that exist.

    An event either forms a new lesion, which touches no old one, in a territory drawn from the patient's spatial law
    and there in proportion to the susceptibility; or it enlarges an old lesion: it starts at a voxel beside one, in
    proportion to the hazard of the most active lesion that the voxel touches.

    Args:
        anatomy: the brain.
        status: uint8 `SHAPE`, of `FREE` to `SMOULDERING`.
        hazards: of `QUIET` to `SMOULDERING`, ascending.
    """

    anatomy: Anatomy
    status: np.ndarray
    hazards: tuple[float, ...]

    @cached_property
    def touched(self) -> np.ndarray:
        """The greatest status among a voxel and its 26 neighbours: uint8 `SHAPE`."""
        return ndimage.maximum_filter(self.status, 3, mode="constant")

    @cached_property
    def free(self) -> np.ndarray:
        """Where lesions may lie: bool `SHAPE`."""
        return self.anatomy.parenchyma & (self.status == FREE)

    @cached_property
    def fresh(self) -> np.ndarray:
        """Where new lesions may lie, which touch no old one: bool `SHAPE`."""
        return self.anatomy.parenchyma & (self.touched == FREE)

    @cached_property
    def rim(self) -> np.ndarray:
        """Flat indices of the voxels where enlargements may start."""
        return np.flatnonzero(self.free & (self.touched > FREE) & (self.anatomy.susceptibility > 0))

    @cached_property
    def rim_hazard(self) -> np.ndarray:
        """Hazard of each voxel of `rim`."""
        return np.array(self.hazards)[self.touched.ravel()[self.rim] - 1]

    def room_in(self, territory: int) -> np.ndarray:
        """Flat indices of the voxels where new lesions of a territory may start; the whole brain if it is full."""
        members = self.anatomy.members[territory]
        there = members[self.fresh.ravel()[members]]
        return there if len(there) else np.flatnonzero(self.fresh & (self.anatomy.susceptibility > 0))

    def starts(self, law: np.ndarray, enlarging: float) -> tuple[np.ndarray, np.ndarray]:
        """Exact density of the start of the next lesion.

        Args:
            law: (territories,) probabilities, the spatial law or its posterior mean.
            enlarging: chance of an enlargement.

        Returns:
            Of new lesions and of enlargements, float64 `SHAPE`; together they add up to 1.
        """
        new, enlarged = np.zeros(np.prod(SHAPE)), np.zeros(np.prod(SHAPE))
        enlarging = enlarging if len(self.rim) else 0.0
        for territory, chance in enumerate(law):
            there = self.room_in(territory)
            weight = self.anatomy.susceptibility.ravel()[there].astype(float)
            new[there] += (1 - enlarging) * chance * weight / max(weight.sum(), 1e-30)
        enlarged[self.rim] = enlarging * self.rim_hazard / max(self.rim_hazard.sum(), 1e-30)
        return new.reshape(SHAPE), enlarged.reshape(SHAPE)


def form_lesions(
    around: Surroundings, events: Sequence[Event], marks: Sequence[np.random.SeedSequence]
) -> list[tuple[np.ndarray, ...]]:
    """NET2 lesions of one interval, one after the other, not touching each other.

    A lesion starts where the first of independent exponential clocks, one per voxel and as fast as the density of
    starts, rings: a draw from that density. The same mark keeps its clocks under a slightly different density (another
    arm's history) and then mostly starts at the same voxel, so the potential outcomes of a patient share their places
    wherever they can.

    Args:
        around: the lesions before.
        events: what each lesion is.
        marks: one source of randomness per lesion: its clocks, volume and shape.

    Returns:
        Index arrays (3 x n voxels) per lesion, the start first. A prefix of the events gives a prefix of the lesions.
    """
    if not events:
        return []
    anatomy = around.anatomy
    susceptibility = anatomy.susceptibility.ravel()
    candidates = np.flatnonzero(susceptibility)
    free, fresh = around.free.copy(), around.fresh.copy()
    lesions = []
    for event, mark in zip(events, marks, strict=True):
        rng = np.random.default_rng(mark)
        room = free if event.enlarges and len(around.rim) else fresh
        if room is free:
            where, speed = around.rim, around.rim_hazard
            clocks = rng.standard_exponential(len(candidates))[np.searchsorted(candidates, where)]
        else:
            where = anatomy.members[event.territory]
            # In double precision: single precision rings at 0 once in 2^23 voxels, which starts lesions anywhere.
            clocks = rng.standard_exponential(len(where))
            if not room.ravel()[where].any():
                where = candidates
                clocks = rng.standard_exponential(len(where))
            speed = susceptibility[where]
        waits = np.where(room.ravel()[where], clocks / speed, np.inf)
        start = np.unravel_index(where[np.argmin(waits)], SHAPE)
        lesion = grow(room, start, net2_volume_mm3(rng.random()), rng, anatomy.right)
        lesions.append(lesion)
        box, touching = halo(lesion)
        for mask in (free, fresh):
            mask[box][touching] = False
    return lesions


def form_old_lesions(
    anatomy: Anatomy,
    territories: np.ndarray,
    patient_effect: float,
    rng: np.random.Generator,
    *,
    at_least_mm3: float = 0,
) -> list[tuple[np.ndarray, ...]]:
    """Lesions of the years before the trial; they may overlap and merge, and together hold less than 120 ml.

    Args:
        anatomy: the brain.
        territories: (n,) of each lesion.
        patient_effect: see `t2_volume_mm3`.
        rng: draws places, volumes and shapes.
        at_least_mm3: smaller volumes are raised to this.
    """
    starts = np.empty(len(territories), int)
    for territory in np.unique(territories):
        mine, members = np.flatnonzero(territories == territory), anatomy.members[territory]
        upto = anatomy.susceptibility.ravel()[members].cumsum(dtype=float)
        starts[mine] = members[np.searchsorted(upto, rng.random(len(mine)) * upto[-1], side="right")]
    inner = np.minimum(anatomy.susceptibility.ravel()[starts] / 1.5, 1)
    volumes_mm3 = t2_volume_mm3(rng.random(len(starts)), patient_effect, inner)
    volumes_mm3 = np.maximum(volumes_mm3 / (1 + volumes_mm3.sum() / _GREATEST_LOAD_MM3), at_least_mm3)
    places = zip(*np.unravel_index(starts, SHAPE))
    sides = [
        None if KINDS[t // 2] == "callosal" else anatomy.right for t in territories
    ]  # callosal ones may cross over
    return [grow(anatomy.parenchyma, p, v, rng, side) for p, v, side in zip(places, volumes_mm3, sides)]


def halo(lesion: tuple[np.ndarray, ...]) -> tuple[tuple[slice, ...], np.ndarray]:
    """The lesion and all voxels that touch it: a box of the grid, and a bool array of the box's shape."""
    box = tuple(slice(max(0, i.min() - 1), min(n, i.max() + 2)) for i, n in zip(lesion, SHAPE))
    drawn = np.zeros([s.stop - s.start for s in box], bool)
    drawn[tuple(i - s.start for i, s in zip(lesion, box))] = True
    return box, ndimage.binary_dilation(drawn, np.ones((3, 3, 3), bool))


def grow(
    free: np.ndarray,
    seed: tuple[int, int, int],
    volume_mm3: float,
    rng: np.random.Generator,
    right: np.ndarray | None = None,
) -> tuple[np.ndarray, ...]:
    """A blob with an irregular border: the free voxels nearest to the seed in a bent distance, grown face by face.

    Args:
        free: bool `SHAPE`, where the lesion may lie; true at the seed.
        seed: voxel it starts from.
        volume_mm3: rounded to whole voxels, at least one. The lesion stays smaller where there is no room.
        rng: five ellipsoid and bump parameters are drawn from it, always the same number.
        right: bool `SHAPE`, the half of the head; the lesion stays in the half of its seed.

    Returns:
        Index arrays (3 x n voxels) of a face-connected set.
    """
    num_voxels = max(1, round(volume_mm3 / VOXEL_MM3))
    radius_mm = (3 * num_voxels * VOXEL_MM3 / (4 * np.pi)) ** (1 / 3)
    reach = [int(np.ceil((1.7 * radius_mm + 4) / s)) for s in SPACING_MM]
    low = [max(0, c - r) for c, r in zip(seed, reach)]
    box = tuple(slice(a, c + r + 1) for a, c, r in zip(low, seed, reach))
    room = free[box] if right is None else free[box] & (right[box] == right[tuple(seed)])
    room = np.pad(room, 1)
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
    metric = (rng.normal(0, 1, (3, 3)) * 0.25 + np.eye(3)).astype(np.float32)
    bumps, cubes = rng.normal(0, 0.35, 3).astype(np.float32), rng.normal(0, 0.25, 3).astype(np.float32)
    axes = [((np.arange(n) - c - o) * s).astype(np.float32) for n, c, o, s in zip(shape, start, offset, SPACING_MM)]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    u, v, w = (row[0] * x + (row[1] * y + row[2] * z) for row in metric)
    uu, vv, ww = u * u, v * v, w * w
    length = np.sqrt(uu + vv + ww) + np.float32(1e-6)
    bend = (bumps[0] * u + bumps[1] * w) * v + bumps[2] * u * w
    bend *= length
    bend += cubes[0] * uu * u + cubes[1] * vv * v + cubes[2] * ww * w
    bend /= length * length * length
    return length * np.exp(bend)
