"""Rigid registration of a later visit's FLAIR to the first one's, and how well two scans agree (SimpleITK)."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import SimpleITK as sitk
from nibabel.affines import apply_affine
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bundle.data.preparation.images import LPS, to_itk
from bundle.errors import InputError
from bundle.lesions import Volume

FIX = "check that both are FLAIR of one patient, whole and with the right orientation"

_SIZES_MM = (4.0, 2.0, 1.2)  # of the details that each level sees, coarse to fine
_SAMPLES = (20_000, 50_000, 100_000)  # voxels of the brain at each level
_TILTS_DEGREES = (-24, -12, 0, 12, 24)  # of the starts, about each axis
_STARTS = 3  # of all tilts, those that are followed
_START_POINTS = 5_000
_BORDER_MM = 9.0  # this near the background nothing is compared: the edge of a stripped or cut scan is no anatomy
_LEAST_INNER = 0.2  # of the brain, else all of it is compared
_BINS = 32
_COMPARED = 200_000  # voxels of the brain at most for the figures of agreement


@dataclass(frozen=True)
class Motion:
    """A rigid motion of the head between two visits.

    Attributes:
        matrix: (4, 4), from world coordinates (RAS, mm) of the later scan to those of the first.
        centre_mm: (3,) centre of the brain in the first scan.
    """

    matrix: np.ndarray
    centre_mm: np.ndarray

    @property
    def degrees(self) -> float:
        """Angle of the rotation."""
        return float(np.degrees(Rotation.from_matrix(self.matrix[:3, :3]).magnitude()))

    @property
    def millimetres(self) -> float:
        """How far the centre of the brain moves."""
        return float(np.linalg.norm(self.centre_mm - apply_affine(np.linalg.inv(self.matrix), self.centre_mm)))

    def itk(self) -> sitk.Euler3DTransform:
        """The transform that resamples the later scan onto the first: the first's points to the later's, in LPS."""
        inverse = LPS @ np.linalg.inv(self.matrix) @ LPS
        transform = sitk.Euler3DTransform()
        transform.SetMatrix(inverse[:3, :3].ravel().tolist(), 1e-6)
        transform.SetTranslation(inverse[:3, 3].tolist())
        return transform


@dataclass(frozen=True)
class Agreement:
    """How well two scans agree in the brain of the first: Pearson correlation, mutual information in nats."""

    correlation: float
    mutual_information: float


def register(first: Volume, later: Volume, first_brain: np.ndarray, later_brain: np.ndarray) -> Motion:
    """The rigid motion that maximises the mutual information of two scans in the brain.

    Many rotations about the middle of the brain are tried coarsely, and the best are followed: headers of two studies
    may be decimetres apart. Both scans should be free of bias: uncorrected, one of two real pairs ended twice as far
    from its published transform.

    Args:
        first, later: FLAIR (X, Y, Z) float32 on their own grids, 0 is background.
        first_brain, later_brain: (X, Y, Z) bool, not empty; rough ones do.

    Raises:
        InputError: no start leads to an overlap of the two brains.
    """
    centre, later_centre = _centre(first_brain, first.affine), _centre(later_brain, later.affine)
    transforms = _starts(first, later, first_brain, centre, later_centre)
    masks = (first_brain & _inner(first, first_brain), _inner(later, later_brain))
    for size_mm, samples in zip(_SIZES_MM, _SAMPLES):
        transforms = _follow(first, later, masks, transforms, size_mm, samples)[:1]
    best = transforms[0]
    inverse, pivot = np.eye(4), np.array(best.GetCenter())
    inverse[:3, :3] = np.reshape(best.GetMatrix(), (3, 3))
    inverse[:3, 3] = pivot + best.GetTranslation() - inverse[:3, :3] @ pivot
    return Motion(np.linalg.inv(LPS @ inverse @ LPS), centre)


def agreement(first: Volume, later: Volume, brain: np.ndarray) -> Agreement:
    """How well two scans agree where their affines say that they show the same; NaN where they have nothing in common.

    Args:
        first, later: FLAIR on their own grids.
        brain: (X, Y, Z) bool, on the first one's.
    """
    where = np.argwhere(brain)
    where = where[:: max(1, len(where) // _COMPARED)]
    a = first.values[tuple(where.T)]
    points = apply_affine(np.linalg.inv(later.affine) @ first.affine, where)
    b = ndimage.map_coordinates(later.values, points.T, order=1)
    # Voxels at the border of a stripped or cut scan hold part of the background.
    covered = ndimage.map_coordinates((later.values > 0).astype(np.float32), points.T, order=1) > 0.99
    both = (a > 0) & covered
    a, b = a[both], b[both]
    if a.size < 1000 or a.std() == 0 or b.std() == 0:
        return Agreement(np.nan, np.nan)
    ranges = [np.percentile(x, (0.5, 99.5)) for x in (a, b)]
    joint, _, _ = np.histogram2d(a, b, bins=_BINS, range=ranges)
    joint /= joint.sum()
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    known = joint > 0
    information = float((joint[known] * np.log(joint[known] / independent[known])).sum())
    return Agreement(float(np.corrcoef(a, b)[0, 1]), information)


def _starts(
    first: Volume, later: Volume, brain: np.ndarray, centre: np.ndarray, later_centre: np.ndarray
) -> list[sitk.Euler3DTransform]:
    """The rotations about the middle of the brain under which coarse copies of the scans agree best."""
    where = np.argwhere(brain)
    points = apply_affine(first.affine, where[:: max(1, len(where) // _START_POINTS)])
    seen = _read(_smooth(first, _SIZES_MM[0]), first.affine, points)
    later_values = _smooth(later, _SIZES_MM[0])
    lps = (points - centre) @ LPS[:3, :3]
    found = []
    for tilt in product(_TILTS_DEGREES, repeat=3):
        transform = sitk.Euler3DTransform((LPS[:3, :3] @ centre).tolist(), *np.radians(tilt).tolist())
        transform.SetTranslation((LPS[:3, :3] @ (later_centre - centre)).tolist())
        turned = lps @ np.reshape(transform.GetMatrix(), (3, 3)).T @ LPS[:3, :3]
        read = _read(later_values, later.affine, turned + later_centre)
        with np.errstate(invalid="ignore"):  # of a constant the correlation is not defined
            found.append((np.nan_to_num(np.corrcoef(seen, read)[0, 1], nan=-1.0), transform))
    return [transform for _, transform in sorted(found, key=lambda item: -item[0])[:_STARTS]]


def _follow(
    first: Volume,
    later: Volume,
    masks: tuple[np.ndarray, np.ndarray],
    starts: list[sitk.Euler3DTransform],
    size_mm: float,
    samples: int,
) -> list[sitk.Euler3DTransform]:
    """Each start after optimisation at one level of detail, the best first.

    Args:
        masks: of each scan, bool; voxels outside are not compared.
    """
    fixed, moving = (to_itk(_smooth(scan, size_mm), scan.affine) for scan in (first, later))
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetMetricFixedMask(to_itk(masks[0].astype(np.uint8), first.affine))
    method.SetMetricMovingMask(to_itk(masks[1].astype(np.uint8), later.affine))
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(min(1.0, samples / np.count_nonzero(masks[0])), seed=1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=size_mm,
        minStep=0.002,
        numberOfIterations=100,
        relaxationFactor=0.7,
        gradientMagnitudeTolerance=1e-9,  # the default stops a millimetre short
    )
    method.SetOptimizerScalesFromPhysicalShift()
    ended = []
    for start in starts:
        transform = sitk.Euler3DTransform(start)
        method.SetInitialTransform(transform, inPlace=True)
        try:
            method.Execute(fixed, moving)
        except RuntimeError:  # the scans moved out of each other
            continue
        ended.append((method.GetMetricValue(), transform))
    if not ended:
        raise InputError("the visits cannot be registered: they have too little in common", FIX)
    return [transform for _, transform in sorted(ended, key=lambda item: item[0])]


def _inner(scan: Volume, brain: np.ndarray) -> np.ndarray:
    """Voxels of a scan that are not near its background."""
    spacing = np.linalg.norm(scan.affine[:3, :3], axis=0)
    inner = ndimage.distance_transform_edt(scan.values > 0, sampling=spacing) > _BORDER_MM
    enough = np.count_nonzero(inner & brain) >= _LEAST_INNER * np.count_nonzero(brain)
    return inner if enough else np.ones_like(inner)


def _smooth(scan: Volume, size_mm: float) -> np.ndarray:
    """The scan without details below `size_mm`; axes that are coarser stay as they are."""
    spacing = np.linalg.norm(scan.affine[:3, :3], axis=0)
    # A Gaussian is 2.355 sigma wide at half its height.
    sigma = np.sqrt(np.maximum(size_mm**2 - spacing**2, 0)) / 2.355 / spacing
    return ndimage.gaussian_filter(scan.values, sigma, truncate=3)


def _centre(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return apply_affine(affine, np.argwhere(mask).mean(axis=0))


def _read(values: np.ndarray, affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    return ndimage.map_coordinates(values, apply_affine(np.linalg.inv(affine), points).T, order=1)
