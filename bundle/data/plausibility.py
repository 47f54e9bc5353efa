"""Whether scans can be what they are named as: extent, brain, contrast, lesions, and the alignment of the visits."""

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes

from bundle.data.tables import TRIAL_MONTHS
from bundle.errors import InputError
from bundle.lesions import Volume, voxel_volume_mm3

_CONTRAST_PERCENTILES = (2, 50, 98)
_BETTER = 0.01  # correlation; noise makes less of a difference
_DIRECTIONS = ("left or right", "forwards or backwards", "up or down")


@dataclass(frozen=True)
class Plausibility:
    """Limits outside which an input is refused or carries a warning.

    Pairs named *_doubtful_wrong hold the value from which a warning is given and that from which the input is refused.
    How alignment and contrast were chosen: docs/experiments/2026-11-alignment.md.

    Args:
        extent_mm: least and greatest field of view along each axis of a scan.
        whole_brain_ml: volume of a whole brain, or of as much of one as is `whole_brain_mm` high.
        whole_brain_mm: of a lower mask, e.g. that of a slab, the mean cross-section is checked instead.
        section_cm2: mean cross-section of part of a brain.
        contrast_doubtful_wrong: of a FLAIR in the brain, (median - 2nd percentile) / (98th percentile - median); dark
            fluid makes it large, an inverted image or a T2-weighted one small.
        alignment_doubtful_wrong: correlation of two visits' FLAIR in the brain.
        overlap_doubtful_wrong: fraction of the slab's brain that both scans cover.
        lesions_ml_doubtful_wrong: volume of one lesion mask.
        outside_doubtful_wrong: fraction of a lesion mask outside the brain; less than `outside_ml` is never refused,
            as small lesions at its border share cells with what lies outside.
        outside_ml: see there.
        months: between the two visits; the network takes them as `TRIAL_MONTHS` apart, the count model does not.
    """

    extent_mm: tuple[float, float] = (10.0, 600.0)
    whole_brain_ml: tuple[float, float] = (500.0, 2500.0)
    whole_brain_mm: float = 70.0
    section_cm2: tuple[float, float] = (60.0, 300.0)
    contrast_doubtful_wrong: tuple[float, float] = (1.0, 0.67)
    alignment_doubtful_wrong: tuple[float, float] = (0.75, 0.6)
    overlap_doubtful_wrong: tuple[float, float] = (0.9, 0.5)
    lesions_ml_doubtful_wrong: tuple[float, float] = (100.0, 200.0)
    outside_doubtful_wrong: tuple[float, float] = (0.2, 0.5)
    outside_ml: float = 0.1
    months: tuple[float, float] = (6.0, 18.0)

    def check_extent(self, volume: Volume, case: str) -> None:
        """Refuses a scan whose field of view is no head's: its header is scaled.

        Raises:
            InputError: it is.
        """
        extent = np.multiply(volume.values.shape, voxel_sizes(volume.affine))
        if extent.min() < self.extent_mm[0] or extent.max() > self.extent_mm[1]:
            problem = f"a field of view of {' x '.join(f'{mm:.4g}' for mm in extent)} mm is no head's"
            raise InputError(problem, "correct the voxel sizes in its header", case=case, file=volume.path)

    def check_brain(self, brain: Volume, case: str) -> None:
        """Refuses a brain mask whose volume or, of part of a brain, mean axial cross-section is no human brain's.

        A slab of 45 mm around the ventricles has 140 to 220 cm2 (two real patients, twelve simulated ones), half of a
        linear scale less than 60, and 1.3 times of it more than 300.

        Args:
            brain: (X, Y, Z) bool, not empty.

        Raises:
            InputError: it is not.
        """
        up = int(np.flatnonzero(nib.io_orientation(brain.affine)[:, 0] == 2)[0])
        slices = np.flatnonzero(brain.values.any(axis=tuple({0, 1, 2} - {up})))
        height_mm = (slices[-1] - slices[0] + 1) * voxel_sizes(brain.affine)[up]
        volume_ml = np.count_nonzero(brain.values) * voxel_volume_mm3(brain.affine) / 1000
        section_cm2 = 10 * volume_ml / height_mm
        low, high = self.whole_brain_ml
        whole = height_mm >= self.whole_brain_mm
        if volume_ml > high or (whole and volume_ml < low):
            problem = f"a brain of {volume_ml:.0f} ml (expected {low:.0f} to {high:.0f})"
        elif not whole and not self.section_cm2[0] <= section_cm2 <= self.section_cm2[1]:
            problem = f"a brain of {section_cm2:.0f} cm2 in cross-section (expected {self.section_cm2[0]:.0f} to "
            problem += f"{self.section_cm2[1]:.0f})"
        else:
            return
        raise InputError(problem, "correct the brain mask or the voxel sizes", case=case, file=brain.path)

    def check_contrast(self, flair: np.ndarray, brain: np.ndarray, case: str, visit: str, file: object) -> list[str]:
        """Warnings on a FLAIR (H, W, S) whose fluid is not darker than tissue.

        Raises:
            InputError: it is inverted, or not a FLAIR.
        """
        low, median, high = np.percentile(flair[brain & (flair > 0)], _CONTRAST_PERCENTILES)
        ratio = (median - low) / max(high - median, 1e-9 * max(high, 1))
        doubtful, wrong = self.contrast_doubtful_wrong
        if ratio < wrong:
            problem = "fluid is not dark in it: inverted, or no FLAIR"
            raise InputError(problem, "give the FLAIR as it was acquired", case=case, file=file)
        unusual = f"the FLAIR of {visit} has unusual contrast: fluid is barely darker than tissue"
        return [unusual] if ratio < doubtful else []

    def check_alignment(
        self,
        flairs: Sequence[np.ndarray],
        covered: np.ndarray,
        brain: np.ndarray,
        case: str,
        visits: Sequence[str],
        file: object,
    ) -> tuple[float, list[str]]:
        """Correlation of the FLAIR (H, W, S) of two visits, and warnings on it.

        Args:
            flairs: of the earlier and the later visit.
            covered: (H, W, S) bool, the part of `brain` that both scans cover.

        Raises:
            InputError: they cannot be aligned scans of one brain.
        """
        overlap = np.count_nonzero(covered) / np.count_nonzero(brain)
        pair, fix = (
            f"{visits[1]} and {visits[0]}",
            "co-register the visits, and check that both are FLAIR of one patient",
        )
        doubtful, wrong = self.overlap_doubtful_wrong
        if overlap < wrong:
            problem = f"{pair} have {overlap:.0%} of the slab's brain in common"
            raise InputError(problem, fix, case=case, file=file)
        warnings = []
        if overlap < doubtful:
            warnings.append(f"{pair} have only {overlap:.0%} of the slab's brain in common")
        alignment = _correlation(*flairs, covered)
        doubtful, wrong = self.alignment_doubtful_wrong
        if not alignment >= wrong:
            problem = f"{pair} do not show one brain in one position (correlation {alignment:.2f}, aligned visits "
            raise InputError(f"{problem}have more than {doubtful:.2f})", fix, case=case, file=file)
        if alignment < doubtful:
            warnings.append(f"{pair} may not be aligned: correlation {alignment:.2f}, usually above {doubtful:.2f}")
        elif np.array_equal(flairs[0][covered], flairs[1][covered]):
            warnings.append(f"{pair} are the same image: nothing can have changed between them")
        elif displaced := _better_neighbour(*flairs, covered, alignment + _BETTER):
            warnings.append(f"{pair} may not be aligned: they agree better when moved {displaced}")
        return alignment, warnings

    def check_lesion_volume(self, mask: Volume, case: str, name: str) -> list[str]:
        """Warnings on a lesion mask (X, Y, Z) of a volume that few patients have.

        Raises:
            InputError: no patient has it.
        """
        volume_ml = np.count_nonzero(mask.values) * voxel_volume_mm3(mask.affine) / 1000
        doubtful, wrong = self.lesions_ml_doubtful_wrong
        if volume_ml > wrong:
            problem = f"{volume_ml:.0f} ml of lesions are more than any patient has ({wrong:.0f})"
            raise InputError(problem, "check that lesions are 1 and all else is 0", case=case, file=mask.path)
        return [f"{name} holds {volume_ml:.0f} ml of lesions, which is rare"] if volume_ml > doubtful else []

    def check_lesion_places(
        self, lesions: np.ndarray, brain: np.ndarray, cell_ml: float, case: str, name: str, file: object
    ) -> list[str]:
        """Warnings on lesions (H, W, S) outside the brain.

        Args:
            cell_ml: volume of a cell.

        Raises:
            InputError: most of them are.
        """
        outside = np.count_nonzero(lesions & ~brain)
        if outside * cell_ml < self.outside_ml:
            return []
        fraction = outside / np.count_nonzero(lesions)
        doubtful, wrong = self.outside_doubtful_wrong
        if fraction > wrong:
            problem = f"{fraction:.0%} of its lesions lie outside the brain"
            raise InputError(problem, "check its orientation and the brain mask", case=case, file=file)
        return [f"{fraction:.0%} of {name} lies outside the brain"] if fraction > doubtful else []

    def check_interval(self, months: float | None) -> list[str]:
        """Warnings on the months between the two visits, None if they are not known."""
        low, high = self.months
        if months is None or low <= months <= high:
            return []
        return [f"the two visits are {months:.1f} months apart; the map takes them as {TRIAL_MONTHS:g}"]


def _correlation(first: np.ndarray, second: np.ndarray, where: np.ndarray) -> float:
    return float(np.corrcoef(first[where], second[where])[0, 1])


def _better_neighbour(first: np.ndarray, second: np.ndarray, where: np.ndarray, correlation: float) -> str:
    """The direction in which `second` moved by one cell has a greater correlation with `first`; "" if there is none."""
    for axis, direction in enumerate(_DIRECTIONS):
        for step in (-1, 1):
            both = where & np.roll(where, step, axis)
            if both.any() and _correlation(first, np.roll(second, step, axis), both) > correlation:
                return direction
    return ""
