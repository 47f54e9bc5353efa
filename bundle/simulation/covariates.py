"""Age, sex, disease duration, EDSS and relapses: how they are drawn, and what they say about the frailty."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache

import numpy as np
from scipy.special import expit, gammaln, ndtr

from bundle.simulation.protocol import Protocol

AGES = np.arange(18, 61)
DURATIONS = np.arange(0, 44)  # whole years since onset
EDSS = np.array([0.0, *np.arange(1.0, 6.6, 0.5)])
MAX_RELAPSES = 8  # this many or more


@dataclass(frozen=True)
class Covariates:
    """Covariates of a patient, from participants.tsv; None where it is not known.

    Attributes:
        age: whole years at w000.
        sex: "F" or "M".
        disease_duration: whole years since onset.
        edss: Expanded Disability Status Scale at w000.
        relapses: in the year before w000; 8 means 8 or more.
    """

    age: int | None = None
    sex: str | None = None
    disease_duration: int | None = None
    edss: float | None = None
    relapses: int | None = None

    @classmethod
    def of(cls, row: Mapping[str, object]) -> "Covariates":
        """From a mapping with the names of `COLUMNS`."""
        return cls(**{name: row[name] for name in COLUMNS})


COLUMNS = tuple(f.name for f in fields(Covariates))


class CovariateModel:
    """The laws of the covariates given the frailty, on a grid of frailties; all covariates are discrete.

    Args:
        protocol: of the trial.
        frailty: (G,) values.
    """

    def __init__(self, protocol: Protocol, frailty: np.ndarray) -> None:
        sign = protocol.soft_log(frailty) + 1
        offset = AGES - (protocol.age_mean + protocol.age_slope * sign)[:, None]
        age = np.exp(-0.5 * (offset / protocol.age_deviation) ** 2)
        mean = (protocol.relapses_mean * np.exp(protocol.relapses_slope * sign))[:, None]
        number = np.arange(MAX_RELAPSES)
        relapses = np.exp(number * np.log(mean) - mean - gammaln(number + 1))
        self.age = age / age.sum(1, keepdims=True)  # (G, ages)
        self.female = expit(protocol.female_logit + protocol.female_slope * sign)  # (G,)
        self.relapses = np.concatenate([relapses, 1 - relapses.sum(1, keepdims=True)], axis=1)  # (G, 9)
        self.duration, self.edss = _given_age(protocol)

    def draw(self, rng: np.random.Generator) -> Covariates:
        """Covariates of one patient, whose frailty is the first of the grid."""
        age = rng.choice(len(AGES), p=self.age[0])
        duration = rng.choice(len(DURATIONS), p=self.duration[age])
        edss = rng.choice(len(EDSS), p=self.edss[:, age, duration])
        relapses = rng.choice(MAX_RELAPSES + 1, p=self.relapses[0])
        sex = "F" if rng.random() < self.female[0] else "M"
        return Covariates(int(AGES[age]), sex, int(DURATIONS[duration]), float(EDSS[edss]), int(relapses))

    def likelihood(self, seen: Covariates, given_duration: np.ndarray) -> np.ndarray:
        """P(covariates seen and other findings | frailty), exactly: what is not known is summed over.

        Args:
            seen: what is known.
            given_duration: (G, `durations_of(seen)`) likelihood of other findings given frailty and disease duration.

        Returns:
            (G,) likelihood.
        """
        ages = np.arange(len(AGES)) if seen.age is None else np.flatnonzero(AGES == seen.age)
        path = self.duration[np.ix_(ages, durations_of(seen))]
        if seen.edss is not None:
            path = path * self.edss[np.flatnonzero(EDSS == seen.edss)[0]][np.ix_(ages, durations_of(seen))]
        likelihood = ((self.age[:, ages] @ path) * given_duration).sum(1)
        if seen.sex is not None:
            likelihood = likelihood * (self.female if seen.sex == "F" else 1 - self.female)
        if seen.relapses is not None:
            likelihood = likelihood * self.relapses[:, seen.relapses]
        return likelihood


def durations_of(seen: Covariates) -> np.ndarray:
    """Years since onset that are possible; all of `DURATIONS` where it is not known."""
    return DURATIONS if seen.disease_duration is None else np.array([seen.disease_duration])


def hide(covariates: Covariates, fraction: float, rng: np.random.Generator) -> Covariates:
    """The same covariates, each unknown in a fraction of cases, independently of anything else."""
    return Covariates(**{name: None if rng.random() < fraction else v for name, v in asdict(covariates).items()})


@lru_cache
def _given_age(protocol: Protocol) -> tuple[np.ndarray, np.ndarray]:
    """P(duration | age) (ages, durations) and P(EDSS | age, duration) (EDSS, ages, durations)."""
    duration = np.exp(-DURATIONS / protocol.duration_mean) * (DURATIONS <= AGES[:, None] - 17)
    intercept, per_year, per_age, deviation = protocol.edss
    mean = intercept + per_year * DURATIONS + per_age * (AGES[:, None] - 36)
    cuts = np.concatenate([[-np.inf], (EDSS[1:] + EDSS[:-1]) / 2, [np.inf]])
    below = ndtr((cuts[:, None, None] - mean) / deviation)
    return duration / duration.sum(1, keepdims=True), np.diff(below, axis=0)
