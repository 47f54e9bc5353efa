"""Natural history and treatment: how many lesions a patient forms, when, and how many in every other arm."""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from bundle.arms import ARMS

PATIENTS_PER_ARM = (327, 237, 271, 529, 193, 574)
WEEKS = 48.0  # length of each of the two intervals
# (arm, interval): the means of the paper's training set (Favero et al. 2025).
MEAN_NET2 = np.array([[4.60, 3.33], [5.51, 4.49], [4.37, 4.37], [0.63, 1.59], [0.60, 1.03], [0.07, 0.07]])


@dataclass(frozen=True)
class Protocol:
    """What the simulated trial is made of; the oracle knows all of it.

    Attributes:
        frailty_shape: k; a patient's frailty is Gamma(k, 1/k), of mean 1.
        partial_responders: q per arm; the other patients of the arm form no lesion under treatment.
        gd_mean: gadolinium lesions at w000 are Poisson(gd_mean * frailty).
        t2_mean, t2_floor, t2_size: lesions at w000 without gadolinium are negative binomial with mean
            t2_mean * (t2_floor + (1 - t2_floor) * frailty) and size t2_size: they tell a little of the frailty.
        gd_weeks: a lesion enhances this long after it has formed.
    """

    frailty_shape: float = 0.45
    partial_responders: tuple[float, ...] = (0.939, 0.884, 0.771, 0.578, 0.454, 0.050)
    gd_mean: float = 1.0
    t2_mean: float = 90.0
    t2_floor: float = 0.8
    t2_size: float = 2.0
    gd_weeks: float = 6.0

    @property
    def rates(self) -> np.ndarray:
        """(arm, interval): expected NET2 lesions of a partial responder of frailty 1; times q it is `MEAN_NET2`."""
        return MEAN_NET2 / np.array(self.partial_responders)[:, None]

    def t2_mean_given(self, frailty: np.ndarray | float) -> np.ndarray | float:
        return self.t2_mean * (self.t2_floor + (1 - self.t2_floor) * frailty)


@dataclass(frozen=True)
class History:
    """One patient's disease, in all six arms at once.

    Attributes:
        frailty: g.
        response: uniform in [0, 1); the patient responds partly in the arms with q > response, fully in the others.
        num_gd, num_t2: gadolinium lesions at w000, and other T2 lesions at w000.
        weeks: per arm and interval the formation times in weeks after w000. They come from one Poisson process of unit
            rate, run faster or slower: event j of one arm is event j of every other arm that gets so far.
    """

    frailty: float
    response: float
    num_gd: int
    num_t2: int
    weeks: tuple[tuple[np.ndarray, np.ndarray], ...]

    def count(self, arm: int, interval: int) -> int:
        """NET2 lesions formed in `interval` (0: to w048, 1: to w096) had the patient been in `arm`."""
        return len(self.weeks[arm][interval])


def draw_history(protocol: Protocol, rng: np.random.Generator) -> History:
    """A random patient."""
    frailty = rng.gamma(protocol.frailty_shape, 1 / protocol.frailty_shape)
    response = rng.random()
    num_gd = rng.poisson(protocol.gd_mean * frailty)
    num_t2 = rng.negative_binomial(protocol.t2_size, 1 / (1 + protocol.t2_mean_given(frailty) / protocol.t2_size))
    partly = response < np.array(protocol.partial_responders)
    expected = frailty * protocol.rates * partly[:, None]  # (arm, interval)
    weeks = []
    for interval in range(2):
        highest = expected[:, interval].max()
        arrivals = np.sort(rng.uniform(0, highest, rng.poisson(highest))) if highest > 0 else np.empty(0)
        weeks.append(
            [WEEKS * (interval + arrivals[arrivals < e] / e) if e > 0 else np.empty(0) for e in expected[:, interval]]
        )
    return History(frailty, response, int(num_gd), int(num_t2), tuple(zip(*weeks)))


def assigned_arm(seed: int, index: int) -> int:
    """Arm of patient `index` (from 0): permuted blocks of 2131 with exactly the paper's proportions."""
    block, place = divmod(index, sum(PATIENTS_PER_ARM))
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0, block)))
    return int(rng.permutation(np.repeat(np.arange(len(ARMS)), PATIENTS_PER_ARM))[place])


def net2_volume_mm3(quantile: np.ndarray | float) -> np.ndarray | float:
    """Volume of a new lesion at a quantile in [0, 1): log-normal between 9 and 3000 mm3, quartiles 23, 48, 113 mm3."""
    mean, deviation = 3.6, 1.4  # of ln mm3
    low, high = ndtr((np.log([9.0, 3000.0]) - mean) / deviation)
    return np.exp(mean + deviation * ndtri(low + (high - low) * quantile))


def t2_volume_mm3(
    quantile: np.ndarray | float, patient_effect: float, periventricular: np.ndarray | float
) -> np.ndarray | float:
    """Volume of an old lesion: log-normal from 6 to 8000 mm3, larger in some patients and next to the ventricles."""
    mean, deviation = 2.4 + patient_effect + 2.6 * periventricular, 1.4
    low, high = ndtr((np.log(6.0) - mean) / deviation), ndtr((np.log(8000.0) - mean) / deviation)
    return np.exp(mean + deviation * ndtri(low + (high - low) * quantile))
