"""The slices of a scan in which lesions are forecast: the slab may lie obliquely in it."""

from collections.abc import Iterable
from typing import Any

import nibabel as nib
import numpy as np

from bundle.data.grid import read_nearest
from bundle.lesions import Volume

COMPLETE = 0.995  # fraction of a slice's brain from which the slice counts as covered completely


def covered_voxels(native: Volume, slab: Volume) -> np.ndarray:
    """Voxels of a scan (X, Y, Z) whose centres lie in the slab, bool."""
    cells = np.ones(slab.values.shape[-3:], np.uint8)
    return read_nearest(cells, slab.affine, native.affine, native.values.shape) > 0


def covered_fractions(covered: np.ndarray, brain: np.ndarray, axis: int) -> np.ndarray:
    """Fraction of the brain of each slice that lies in the slab, in [0, 1]; 0 where a slice holds no brain.

    Args:
        covered, brain: (X, Y, Z), bool.
        axis: the slices' axis, see `axial_axis`.
    """
    others = tuple({0, 1, 2} - {axis})
    return (covered & brain).sum(axis=others) / np.maximum(brain.sum(axis=others), 1)


def axial_axis(affine: np.ndarray) -> int:
    """The voxel axis that runs nearest to inferior-superior."""
    return int(np.flatnonzero(nib.io_orientation(affine)[:, 0] == 2)[0])


def field_of_view(fractions: np.ndarray, axis: int) -> dict[str, Any]:
    """What the report says of the slices that are forecast.

    Args:
        fractions: (slices,), see `covered_fractions`.
        axis: the slices' voxel axis.

    Returns:
        axis; num_slices; first_slice and last_slice, the outermost of which a part is forecast (None if there is none);
        covered_fraction, that of each slice from the first to the last; statement, a sentence.
    """
    some = np.flatnonzero(fractions)
    first, last = (int(some[0]), int(some[-1])) if some.size else (None, None)
    complete = np.flatnonzero(fractions >= COMPLETE)
    partly = np.flatnonzero((fractions > 0) & (fractions < COMPLETE))
    parts = [f"completely in {_slices(complete)}"] if complete.size else []
    if partly.size:
        low, high = (f"{100 * bound:.0f}" for bound in (fractions[partly].min(), fractions[partly].max()))
        percentage = low if low == high else f"{low} to {high}"
        parts.append(f"partly in {_slices(partly)} ({percentage} % of the brain there)")
    return {
        "axis": axis,
        "first_slice": first,
        "last_slice": last,
        "num_slices": len(fractions),
        "covered_fraction": fractions[first : last + 1].tolist() if some.size else [],
        "statement": f"Lesions are forecast {' and '.join(parts) or 'nowhere in this scan'}, of slices 0 to "
        f"{len(fractions) - 1} along voxel axis {axis}; elsewhere the maps are 0 because nothing is forecast there.",
    }


def _slices(indices: Iterable[int]) -> str:
    """Rising indices as text, e.g. "slices 0 to 2, 5, 7 to 9"."""
    runs: list[list[int]] = []
    for index in map(int, indices):
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    text = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
    return f"slice{'s' * (sum(map(len, runs)) > 1)} {text}"
