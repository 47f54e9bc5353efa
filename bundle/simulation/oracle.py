"""The Bayes-optimal forecaster of the simulated trial: the ceiling that no model can pass."""

import json
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.signal import fftconvolve
from scipy.special import gammaln
from scipy.stats import poisson

from bundle.arms import NULL_ARM
from bundle.errors import InputError
from bundle.simulation.anatomy import Anatomy
from bundle.simulation.drawing import grow, placement
from bundle.simulation.events import PATIENTS_PER_ARM, Protocol, net2_volume_mm3
from bundle.simulation.patient import patient_anatomy

MAX_COUNT = 256  # the last entry of a count distribution means "this many or more"

# Trapezoids in log frailty. The integrand is analytic and dies out at both ends, so the error falls exponentially with
# the step: .02 resolves posteriors as narrow as those of several hundred lesions. Below e^-64 lies a share of
# e^(-64 k) < 1e-12 at k = .45.
LOG_FRAILTY = np.arange(-64.0, 6.0, 0.02)
FRAILTY = np.exp(LOG_FRAILTY)


@dataclass(frozen=True)
class Observation:
    """What the images of a patient up to w048 show; None is not seen.

    Attributes:
        num_gd: gadolinium-enhancing lesions at w000.
        num_t2: T2 lesions at w000 other than these.
        num_net2: new or enlarging lesions between w000 and w048.
        anatomy, lesions: the brain and its T2 lesions at w048 (bool); only the heatmap needs them.

    Where they lie, how large they are and which enhance at w048 tells nothing more of the frailty: in this trial these
    are independent of it given the counts, so the counts suffice. Old lesions that have merged are counted as they
    formed, a little more than an eye sees.

    Raises:
        ValueError: a count is negative, or of anatomy and lesions only one is given.
    """

    num_gd: int | None = None
    num_t2: int | None = None
    num_net2: int | None = None
    anatomy: Anatomy | None = None
    lesions: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("num_gd", "num_t2", "num_net2"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} is negative: {getattr(self, name)}")
        if (self.anatomy is None) != (self.lesions is None):
            raise ValueError("a heatmap needs both anatomy and lesions")


@dataclass(frozen=True)
class OracleForecast:
    """The exact forecast of NET2 lesions at w096.

    Attributes:
        count_pmf: (MAX_COUNT + 1,) probabilities of 0, 1, ... lesions.
        expected_count: posterior mean of the count.
        partial_response: posterior probability that the treatment lets some lesions through.
        footprint: float32 `SHAPE`, the probability that one lesion covers a voxel; None without images.
    """

    count_pmf: np.ndarray
    expected_count: float
    partial_response: float
    footprint: np.ndarray | None

    @property
    def p_active(self) -> float:
        """Probability of at least one lesion."""
        return float(1 - self.count_pmf[0])

    @property
    def expected_log_count(self) -> float:
        """Mean of log(1 + count): the forecast with the least mean squared error of the log count."""
        return float(self.count_pmf @ np.log1p(np.arange(MAX_COUNT + 1)))

    @cached_property
    def heatmap(self) -> np.ndarray | None:
        """Probability of every voxel to lie in a lesion: float32 `SHAPE`.

        Lesions are taken as independent given their number; that they keep a voxel apart from each other is neglected.
        """
        if self.footprint is None:
            return None
        # P(no lesion here) is the generating function of the count at 1 - footprint: a smooth function of one number.
        table = np.linspace(0, float(self.footprint.max()), 1001)
        covered = 1 - np.polynomial.polynomial.polyval(1 - table, self.count_pmf)
        covered[0] = 0  # and not the rounding error of the sum
        return np.interp(self.footprint, table, covered).astype(np.float32)


class Oracle:
    """Forecasts w096 from what the images up to w048 show, knowing how the trial was simulated.

    Args:
        protocol: of the trial.
    """

    def __init__(self, protocol: Protocol = Protocol()) -> None:
        self.protocol = protocol
        k = protocol.frailty_shape
        self._log_prior = k * LOG_FRAILTY - k * FRAILTY  # density of log frailty, up to a constant

    def __call__(self, observation: Observation, arm: int) -> OracleForecast:
        """Posterior forecast.

        Args:
            observation: of one patient.
            arm: class index of the treatment given; 6 (unknown) weighs the arms by the trial's shares and by what was
                seen.
        """
        arms = range(NULL_ARM) if arm == NULL_ARM else [arm]
        weights = self._posterior(observation, arms)  # (arms, partial or full response, frailty)
        expected = self.protocol.rates[arms, 1][:, None] * FRAILTY
        partial = weights[:, 0]
        pmf = sum(w @ _count_table(self.protocol.rates[a, 1]) for a, w in zip(arms, partial))
        pmf[0] += weights[:, 1].sum()
        footprint = None if observation.anatomy is None else lesion_footprint(observation.anatomy, observation.lesions)
        return OracleForecast(pmf, float((partial * expected).sum()), float(partial.sum()), footprint)

    def _posterior(self, observation: Observation, arms) -> np.ndarray:
        """(arms, 2, frailty): joint posterior of arm, response (0 partial, 1 full) and frailty; adds up to 1."""
        before = self._log_prior + self._log_baseline(observation)
        share = np.array(PATIENTS_PER_ARM, float)[arms]
        q = np.array(self.protocol.partial_responders)[arms]
        with np.errstate(divide="ignore"):  # the logarithm of an impossible response is -inf, as it should be
            weights = before + np.log(share[:, None] * np.stack([q, 1 - q], 1))[..., None]
        n = observation.num_net2
        if n is not None:
            weights[:, 0] += _log_poisson(n, self.protocol.rates[arms, 0][:, None])
            weights[:, 1] += 0 if n == 0 else -np.inf
        weights = np.exp(weights - weights.max())
        return weights / weights.sum()

    def _log_baseline(self, observation: Observation) -> np.ndarray | float:
        """log P(what is seen at w000 | frailty), up to a constant."""
        total = 0.0
        if observation.num_gd is not None:
            total = total + _log_poisson(observation.num_gd, self.protocol.gd_mean)
        if observation.num_t2 is not None:
            size, mean = self.protocol.t2_size, self.protocol.t2_mean_given(FRAILTY)
            total = total + observation.num_t2 * np.log(mean) - (observation.num_t2 + size) * np.log(size + mean)
        return total


@lru_cache(maxsize=NULL_ARM)
def _count_table(rate: float) -> np.ndarray:
    """(frailty, MAX_COUNT + 1): P(count | frailty) at a rate per unit of frailty."""
    expected = rate * FRAILTY[:, None]
    pmf = poisson.pmf(np.arange(MAX_COUNT + 1), expected)
    pmf[:, -1] = poisson.sf(MAX_COUNT - 1, expected[:, 0])
    return pmf


def _log_poisson(count: int, rate: np.ndarray | float) -> np.ndarray:
    return count * np.log(rate * FRAILTY) - rate * FRAILTY - gammaln(count + 1)


def lesion_footprint(anatomy: Anatomy, lesions: np.ndarray) -> np.ndarray:
    """Probability of every voxel to be covered by the next lesion; adds up to its mean volume in voxels.

    The density of starts is spread by the mean shape of a lesion in open space; what would fall on fluid, background
    or an old lesion is spread over the free voxels of the same shape instead, as a growing lesion does.

    Args:
        anatomy: the brain.
        lesions: bool `SHAPE`, T2 lesions so far.

    Returns:
        float32 `SHAPE` in [0, 1].
    """
    shape = mean_lesion_shape()
    free = (anatomy.parenchyma & ~lesions).astype(np.float32)
    room = fftconvolve(free, shape / shape.sum(), mode="same")  # the shape is symmetric: correlation is convolution
    starts = placement(anatomy, lesions) * free / np.maximum(room, 0.05)
    return np.clip(free * fftconvolve(starts, shape, mode="same"), 0, 1).astype(np.float32)


@lru_cache(maxsize=1)
def mean_lesion_shape(num_lesions: int = 1000) -> np.ndarray:
    """float32 (47, 47, 17): how often a lesion started in the centre covers each voxel, over all volumes and shapes."""
    room = np.zeros((47, 47, 17), np.float32)
    free, centre = np.ones(room.shape, bool), tuple(n // 2 for n in room.shape)
    rng = np.random.default_rng(0)
    for quantile in (np.arange(num_lesions) + 0.5) / num_lesions:
        room[grow(free, centre, net2_volume_mm3(quantile), rng)] += 1
    for axis in range(3):  # a shape and its mirror images are equally likely
        room = (room + np.flip(room, axis)) / 2
    return room / num_lesions


def read_truth(dataset_dir: str | Path, case: str) -> dict:
    """The sidecar of one simulated patient.

    Raises:
        InputError: the data set has no truth for this case.
    """
    file = Path(dataset_dir) / "derivatives" / "truth" / case / f"{case}_truth.json"
    try:
        return json.loads(file.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(
            "no readable truth", "the oracle needs a data set of scripts.simulate_trial", case=case, file=file
        ) from error


def read_counts(dataset_dir: str | Path, case: str, visit: str = "w048") -> Observation:
    """What a simulated patient's images show up to a visit, counts only: quick."""
    truth = read_truth(dataset_dir, case)
    return Observation(
        num_gd=truth["num_gd_w000"],
        num_t2=truth["num_t2_w000"] - truth["num_gd_w000"],
        num_net2=len(truth["arms"][truth["arm"]]["net2_w048"]) if visit == "w048" else None,
    )


def read_observation(dataset_dir: str | Path, case: str, visit: str = "w048") -> Observation:
    """Counts, brain and lesions of a simulated patient. The brain is drawn again from the seed, the lesions are read.

    Args:
        visit: the last one seen. From w000 alone the heatmap is near the best: first-year lesions, unseen, attract too.

    Raises:
        InputError: the case has no truth or no T2 mask at that visit.
    """
    truth = read_truth(dataset_dir, case)
    file = (
        Path(dataset_dir) / f"derivatives/lesions/{case}/ses-{visit}/anat/{case}_ses-{visit}_label-T2lesion_mask.nii.gz"
    )
    try:
        lesions = np.asarray(nib.load(file).dataobj) > 0
    except (OSError, EOFError, nib.filebasedimages.ImageFileError) as error:
        raise InputError("no readable T2 lesion mask", "simulate the data set again", case=case, file=file) from error
    counts = read_counts(dataset_dir, case, visit)
    return replace(counts, anatomy=patient_anatomy(truth["seed"], truth["index"]), lesions=lesions)
