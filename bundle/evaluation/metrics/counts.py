"""How many: the number of lesions and its distribution (Favero et al. 2025, table 4)."""

import numpy as np

from bundle.evaluation.metrics.base import Metric, mean_over_draws
from bundle.evaluation.scoring import Scores
from bundle.metrics import Values, weighted_mean


class LogCountError(Metric):
    """Mean over patients of (E[log(1 + count)] - log(1 + true count))^2, natural logarithm; 0 is perfect.

    1 is added to all counts because the count can be 0, whose logarithm is not defined.
    """

    name, score, higher_is_better = "mean squared error of log(1 + count)", "log_count", False

    def compute(self, scores: Scores, weights: Values) -> Values:
        true = np.log1p(scores["true_count"])
        return mean_over_draws(lambda x: weighted_mean(np.square(x - true), weights), scores[self.score])


class CountCRPS(Metric):
    """Mean over patients of the continuous ranked probability score of the count, in lesions; 0 is perfect.

    See `bundle.metrics.crps`, also for its bias with few members.
    """

    name, score, higher_is_better = "CRPS of the count", "crps", False

    def compute(self, scores: Scores, weights: Values) -> Values:
        return mean_over_draws(lambda x: weighted_mean(x, weights), scores[self.score])


class FairCountCRPS(Metric):
    """`CountCRPS` of the distribution that an ensemble was drawn from, estimated without bias; in lesions.

    See `bundle.metrics.fair_crps`. Ensembles of different sizes can be compared by it; of other forecasters it is the
    CRPS. NaN for ensembles of one member.
    """

    name, score, higher_is_better = "fair CRPS of the count", "fair_crps", False

    def compute(self, scores: Scores, weights: Values) -> Values:
        return mean_over_draws(lambda x: weighted_mean(x, weights), scores[self.score])


class Coverage(Metric):
    """Fraction of patients whose count lies in the central forecast interval, ends included; in [0, 1].

    Counts are integers, so that even the exact distribution covers more than nominally, and the quantiles of an
    ensemble are those of few members: the target is the coverage of the best possible ensemble of that size.

    Args:
        percent: of the interval.
    """

    higher_is_better, has_target = None, True

    def __init__(self, percent: int) -> None:
        self.low, self.high = f"low_{percent}", f"high_{percent}"
        self.name, self.score = f"coverage of the {percent} % interval", self.low

    def compute(self, scores: Scores, weights: Values) -> Values:
        count = scores["true_count"][:, None]
        inside = (scores[self.low] <= count) & (count <= scores[self.high])
        return weighted_mean(inside.mean(axis=1), weights)


class MeanForecastCount(Metric):
    """Mean over patients of the expected count, in lesions."""

    name, score, higher_is_better = "mean forecast count", "count", None

    def compute(self, scores: Scores, weights: Values) -> Values:
        return mean_over_draws(lambda x: weighted_mean(x, weights), scores[self.score])


class MeanTrueCount(Metric):
    """Mean over patients of the observed count, in lesions."""

    name, score, higher_is_better = "mean true count", "count", None

    def compute(self, scores: Scores, weights: Values) -> Values:
        return weighted_mean(scores["true_count"].astype(float), weights)
