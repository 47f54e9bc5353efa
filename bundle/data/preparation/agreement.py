"""Registration that is refused where it cannot be trusted."""

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from bundle.data.preparation.registration import FIX, Agreement, Motion, agreement, register
from bundle.errors import InputError
from bundle.lesions import Volume


@dataclass(frozen=True)
class Limits:
    """Limits outside which a registration is refused or carries a warning (docs/experiments/2026-11-registration.md).

    They come before those that inference has for every patient (`bundle.data.plausibility`), as registration makes the
    best even of scans that do not belong together.

    Args:
        correlation_doubtful_wrong: of the two FLAIR in the brain after registration; a warning below the first value,
            refused below the second.
        correlation_sure: below it the later scan is tried mirrored as well: a brain and its mirror image agree better
            than those of two patients.
        most_degrees: rotation; beyond it a scan is more probably upside down than turned.
    """

    correlation_doubtful_wrong: tuple[float, float] = (0.75, 0.7)
    correlation_sure: float = 0.85
    most_degrees: float = 45.0

    def warnings(self, after: Agreement, visits: Sequence[str]) -> list[str]:
        """Warnings on a registration that was not refused."""
        doubtful = self.correlation_doubtful_wrong[0]
        if after.correlation >= doubtful:
            return []
        pair, usual = f"{visits[1]} and {visits[0]}", f"usually above {doubtful:.2f}"
        return [f"{pair} may not be registered: correlation {after.correlation:.2f}, {usual}"]


def register_checked(
    scans: Sequence[Volume],
    brains: Sequence[np.ndarray],
    *,
    case: str,
    visits: Sequence[str],
    limits: Limits | None = None,
) -> tuple[Motion, Agreement]:
    """The motion between two visits, and how well they agree after it.

    Args:
        scans: FLAIR of the first and the later visit, (X, Y, Z) float32, free of bias.
        brains: bool, on their grids.
        case, visits: for messages.
        limits: the defaults if not given.

    Raises:
        InputError: they cannot be two FLAIR of one head.
    """
    limits = limits or Limits()
    pair, (first, later) = f"{visits[1]} and {visits[0]}", scans
    try:
        motion, after = _registered(first, later, *brains)
    except InputError as error:
        raise InputError(error.problem, error.fix, case=case) from error
    if motion.degrees > limits.most_degrees:
        problem = f"{pair} could be registered only with a rotation of {motion.degrees:.0f} degrees"
        raise InputError(problem, FIX, case=case)
    doubtful, wrong = limits.correlation_doubtful_wrong
    if not after.correlation >= wrong:
        problem = f"{pair} cannot be registered (correlation {after.correlation:.2f} after it, usually above "
        raise InputError(f"{problem}{doubtful:.2f})", FIX, case=case)
    if after.correlation < limits.correlation_sure:
        mirrored = [_mirrored(x, later.affine) for x in (later.values, brains[1])]
        _, other = _registered(first, later._replace(values=mirrored[0]), brains[0], mirrored[1])
        if other.correlation > after.correlation:
            figures = f"correlation {other.correlation:.2f} instead of {after.correlation:.2f}"
            problem = f"{pair} agree better when one is mirrored left to right ({figures})"
            raise InputError(problem, "find out which one has the wrong orientation, and correct it", case=case)
    return motion, after


def _registered(
    first: Volume, later: Volume, first_brain: np.ndarray, later_brain: np.ndarray
) -> tuple[Motion, Agreement]:
    motion = register(first, later, first_brain, later_brain)
    moved = later._replace(affine=motion.matrix @ later.affine)
    return motion, agreement(first, moved, first_brain)


def _mirrored(values: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """A volume (X, Y, Z) with the voxels of left and right exchanged."""
    axis = int(np.flatnonzero(nib.io_orientation(affine)[:, 0] == 0)[0])
    return np.ascontiguousarray(np.flip(values, axis))
