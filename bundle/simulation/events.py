"""Natural history and treatment: what a patient forms, when and in which territory, in all six arms at once."""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from bundle.arms import ARMS
from bundle.simulation.covariates import CovariateModel, Covariates, hide
from bundle.simulation.protocol import MONTHS, PATIENTS_PER_ARM, WEEKS_PER_MONTH, Protocol


@dataclass(frozen=True)
class Event:
    """What the arms share of one NET2 event.

    Attributes:
        territory: where a new lesion starts, an index in `TERRITORIES`.
        enlarges: it starts beside an old lesion instead, if there is one.
    """

    territory: int
    enlarges: bool


@dataclass(frozen=True)
class History:
    """One patient's disease, in all six arms at once.

    Attributes:
        frailty: g.
        response: uniform in [0, 1); the patient responds partly in the arms with q > response, fully in the others.
        law: (territories,) the patient's own spatial law, adding up to 1.
        diffuse: FLAIR signal of diffusely abnormal white matter, relative to normal white matter.
        covariates, seen_covariates: all of them, and what the table holds.
        months: lengths of the two intervals.
        sees_months, sees_arm: whether the tables hold them.
        growth_mm: how far the borders of the ventricles move in each interval.
        quiet, gd, smouldering: territories of the lesions at w000, in order of formation; gd are those that enhance.
        persistence: uniform numbers, one per smouldering lesion: it is active still at w048 if below a chance that
            depends on the response.
        events: per interval the events that the arms share, in order of time.
        weeks: per arm and interval the formation times in weeks after w000. They come from one Poisson process of unit
            rate, run faster or slower: event j of one arm is event j of every other arm that gets so far.
    """

    frailty: float
    response: float
    law: np.ndarray
    diffuse: float
    covariates: Covariates
    seen_covariates: Covariates
    months: tuple[float, float]
    sees_months: bool
    sees_arm: bool
    growth_mm: tuple[float, float]
    quiet: np.ndarray
    gd: np.ndarray
    smouldering: np.ndarray
    persistence: np.ndarray
    events: tuple[tuple[Event, ...], tuple[Event, ...]]
    weeks: tuple[tuple[np.ndarray, np.ndarray], ...]

    @property
    def num_old(self) -> int:
        """Lesions at w000."""
        return len(self.quiet) + len(self.gd) + len(self.smouldering)

    def count(self, arm: int, interval: int) -> int:
        """NET2 lesions formed in `interval` (0: to w048, 1: to w096) had the patient been in `arm`."""
        return len(self.weeks[arm][interval])

    def partly(self, arm: int, protocol: Protocol) -> bool:
        """Whether the patient would form lesions under the treatment of `arm`."""
        return self.response < protocol.partial_responders[arm]

    def expected(self, arm: int, interval: int, protocol: Protocol) -> float:
        """Mean of `count` given the frailty and the response."""
        rate = protocol.rates[arm, interval] * self.months[interval] / MONTHS
        return self.frailty * rate * self.partly(arm, protocol)

    def num_enhancing(self, arm: int, protocol: Protocol) -> int:
        """Lesions of the first interval that enhance at w048; they are its last."""
        return int((self.weeks[arm][0] > self.months[0] * WEEKS_PER_MONTH - protocol.gd_weeks).sum())

    def active(self, arm: int, protocol: Protocol) -> np.ndarray:
        """(smouldering lesions,) bool: which are visibly active still at w048."""
        chance = protocol.stays_active if self.partly(arm, protocol) else protocol.stays_active_treated
        return self.persistence < chance

    def enlarges(self, arm: int, interval: int, event: int) -> bool:
        """Whether an event enlarges an old lesion; without any old lesion it forms a new one instead."""
        num_before = self.num_old + (self.count(arm, 0) if interval else 0)
        return self.events[interval][event].enlarges and num_before > 0


def draw_history(protocol: Protocol, rng: np.random.Generator) -> History:
    """A random patient."""
    frailty = rng.gamma(protocol.frailty_shape, 1 / protocol.frailty_shape)
    response = rng.random()
    law = rng.dirichlet(protocol.dirichlet)
    sign = protocol.soft_log(frailty) + protocol.diffuse_noise * rng.standard_normal()
    covariates = CovariateModel(protocol, np.array([frailty])).draw(rng)
    months = tuple(rng.choice(protocol.interval_months, 2).tolist())
    growth_mm = tuple(
        rng.gamma(protocol.growth_shape * m / 12, protocol.growth_mm_per_year / protocol.growth_shape) for m in months
    )
    mean_t2 = protocol.t2_mean_given(frailty, covariates.disease_duration)
    counts = (
        rng.negative_binomial(protocol.t2_size, 1 / (1 + mean_t2 / protocol.t2_size)),
        rng.poisson(protocol.gd_mean * frailty),
        rng.poisson(protocol.smouldering_mean * frailty),
    )
    quiet, gd, smouldering = (rng.choice(len(law), n, p=law) for n in counts)
    expected = frailty * protocol.rates * (response < np.array(protocol.partial_responders))[:, None]
    expected = expected * np.array(months) / MONTHS  # (arm, interval)
    weeks, events = [], []
    for interval, length in enumerate(np.array(months) * WEEKS_PER_MONTH):
        start = interval * months[0] * WEEKS_PER_MONTH
        highest = expected[:, interval].max()
        arrivals = np.sort(rng.uniform(0, highest, rng.poisson(highest))) if highest > 0 else np.empty(0)
        weeks.append(
            [start + length * arrivals[arrivals < e] / e if e > 0 else np.empty(0) for e in expected[:, interval]]
        )
        territories = rng.choice(len(law), len(arrivals), p=law)
        enlarges = rng.random(len(arrivals)) < protocol.enlarging
        events.append(tuple(Event(int(t), bool(e)) for t, e in zip(territories, enlarges)))
    return History(
        frailty=frailty,
        response=response,
        law=law,
        diffuse=protocol.diffuse_level + protocol.diffuse_slope * sign,
        covariates=covariates,
        seen_covariates=hide(covariates, protocol.unknown_covariate, rng),
        months=months,
        sees_months=bool(rng.random() >= protocol.unknown_months),
        sees_arm=bool(rng.random() >= protocol.unknown_arm),
        growth_mm=growth_mm,
        quiet=quiet,
        gd=gd,
        smouldering=smouldering,
        persistence=rng.random(counts[2]),
        events=tuple(events),
        weeks=tuple(zip(*weeks)),
    )


def assigned_arm(seed: int, index: int) -> int:
    """Arm of patient `index` (from 0): permuted blocks of 2131 with exactly the paper's proportions."""
    block, place = divmod(index, sum(PATIENTS_PER_ARM))
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0, block)))
    return int(rng.permutation(np.repeat(np.arange(len(ARMS)), PATIENTS_PER_ARM))[place])


def net2_volume_mm3(quantile: np.ndarray | float) -> np.ndarray | float:
    """Volume of a new lesion at a quantile in [0, 1): two half log-normals, between 9 and 8000 mm3.

    The upper half is the wider one, so that the largest changes are as large as real ones: quartiles 24, 48, 122 mm3,
    95th percentile 570 mm3.
    """
    median, below, above = np.log(46.0), 1.05, 1.52  # of ln mm3
    low, high = ndtr((np.log(9.0) - median) / below), ndtr((np.log(8000.0) - median) / above)
    score = ndtri(low + (high - low) * quantile)
    return np.exp(median + np.where(score < 0, below, above) * score)


def t2_volume_mm3(
    quantile: np.ndarray | float, patient_effect: float, periventricular: np.ndarray | float
) -> np.ndarray | float:
    """Volume of an old lesion: log-normal from 6 to 30000 mm3, larger in some patients, most of all at the ventricles.

    Args:
        quantile: in [0, 1).
        patient_effect: standard normal; a patient's lesions are large together.
        periventricular: in [0, 1], 1 beside the ventricles.
    """
    mean, deviation = 2.1 + 0.6 * patient_effect + (2.9 + 1.3 * patient_effect) * periventricular, 1.4
    low, high = ndtr((np.log(6.0) - mean) / deviation), ndtr((np.log(30000.0) - mean) / deviation)
    return np.exp(mean + deviation * ndtri(low + (high - low) * quantile))
