"""From where lesions start to what they cover."""

from functools import lru_cache

import numpy as np
from scipy.signal import fftconvolve

from bundle.simulation.anatomy import SHAPE
from bundle.simulation.drawing import Surroundings, grow
from bundle.simulation.events import net2_volume_mm3

# Classes of volume by quantile: small lesions lie where they start, large ones spill over what is free.
_CLASSES = ((0.0, 0.85), (0.85, 1.0))


def lesion_footprint(around: Surroundings, new: np.ndarray, enlarged: np.ndarray) -> np.ndarray:
    """Probability of every voxel to be covered by the next lesion; adds up to its mean volume in voxels.

    The density of starts is spread by the mean shape of a lesion in open space, class of volume by class; what would
    fall on fluid, background, an old lesion or the other half of the head is spread over the free voxels of the same
    shape instead, as a growing lesion does.

    Args:
        around: the lesions before.
        new, enlarged: float64 `SHAPE`, of `Surroundings.starts`.

    Returns:
        float32 `SHAPE` in [0, 1].
    """
    footprint = np.zeros(SHAPE, np.float32)
    for starts, room in ((new, around.fresh), (enlarged, around.free)):
        for half in (around.anatomy.right, ~around.anatomy.right):
            if (starts * half).any():
                _spread(starts.astype(np.float32), room & half, footprint)
    return np.clip(footprint, 0, 1)


def _spread(starts: np.ndarray, room: np.ndarray, footprint: np.ndarray) -> None:
    """Adds what lesions that start in `room` cover of it."""
    box = tuple(
        slice(i.min(), i.max() + 1) for i in (np.flatnonzero(room.any(axis=tuple({0, 1, 2} - {a}))) for a in range(3))
    )
    free, here = room[box].astype(np.float32), starts[box]
    for fraction, shape in mean_lesion_shapes():
        held = fftconvolve(free, shape / shape.sum(), mode="same")  # the shape is symmetric: correlation is convolution
        footprint[box] += free * fftconvolve(fraction * here * free / np.maximum(held, 0.05), shape, mode="same")


@lru_cache(maxsize=1)
def mean_lesion_shapes(num_lesions: int = 600) -> tuple[tuple[float, np.ndarray], ...]:
    """Per class of volume its fraction of lesions, and float32 (odd, odd, odd): how often a lesion that started in the
    centre covers each voxel.
    """
    centre = (45, 45, 15)
    free = np.ones([2 * c + 1 for c in centre], bool)
    rng = np.random.default_rng(0)
    quantiles = (np.arange(num_lesions) + 0.5) / num_lesions
    shapes = []
    for low, high in _CLASSES:
        room, mine = np.zeros(free.shape, np.float32), quantiles[(quantiles >= low) & (quantiles < high)]
        for quantile in mine:
            room[grow(free, centre, net2_volume_mm3(quantile), rng)] += 1
        for axis in range(3):  # a shape and its mirror images are equally likely
            room = (room + np.flip(room, axis)) / 2
        reach = [int(abs(i - c).max()) for i, c in zip(np.nonzero(room), centre)]
        tight = room[tuple(slice(c - r, c + r + 1) for c, r in zip(centre, reach))]
        shapes.append((high - low, tight / np.float32(len(mine))))
    return tuple(shapes)
