"""What a metric is, and the averages that several metrics use."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np

from bundle.evaluation.scoring import Scores
from bundle.metrics import Values


class Metric(ABC):
    """A figure of merit of one forecaster on N patients.

    Attributes:
        name: as in the tables.
        score: what it is computed from (`bundle.evaluation.scoring.Scoring`); forecasters without it have no row.
        higher_is_better: False: lower is; None: neither, so that there is no gap and no comparison.
        by_arm: whether it is also computed for each arm.
        has_gap: whether the fraction of the gap closed is meaningful: not for calibration errors, which a constant can
            have as low as the best forecast, nor for metrics at a threshold.
        has_target: whether models are compared with the best possible ensemble although neither greater nor smaller
            values are better.
    """

    name: str
    score: str
    higher_is_better: bool | None = True
    by_arm: bool = True
    has_gap: bool = True
    has_target: bool = False

    def positives(self, scores: Scores) -> Values:
        """(N,) bool, the patients that most of its information comes from: where they are few, it has no interval."""
        return scores.active

    @abstractmethod
    def compute(self, scores: Scores, weights: Values) -> Values:
        """(B,), one value for each weighting.

        Args:
            scores: of N patients.
            weights: (B, N), how often each patient counts: a bootstrap draw is a row.
        """


def mean_over_draws(compute: Callable[[Values], Values], draws: Values) -> Values:
    """Mean of compute(draws[:, r]) over the R draws (N, R) of a Monte Carlo forecaster; others have R = 1.

    NaN where a patient has no value: a comparison with NaN would count as "no".
    """
    return np.mean([compute(draw) if np.isfinite(draw).all() else np.nan for draw in draws.T], axis=0)


def ratio_of_sums(numerator: Values, denominator: Values, weights: Values) -> Values:
    """(B,) sum over patients (and bins) of one score (N, ...) divided by that of another; NaN where that is 0."""
    above, below = (weights @ x.reshape(len(x), -1).sum(axis=1) for x in (numerator, denominator))
    return np.divide(above, below, out=np.full(len(weights), np.nan), where=below > 0)
