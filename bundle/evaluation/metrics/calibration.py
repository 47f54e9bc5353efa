"""Can the probabilities be trusted: P(active) and the heatmap against observed frequencies."""

from collections.abc import Callable

import numpy as np

from bundle.evaluation.metrics.base import Metric, mean_over_draws, ratio_of_sums
from bundle.evaluation.scoring import Scores
from bundle.metrics import Values, calibration_error, calibration_in_the_large, calibration_line, weighted_mean

PROBABILITY_BINS = np.linspace(0, 1, 11)  # of P(active)
HEATMAP_BINS = np.r_[0, np.arange(1, 1001, 50)]  # first of `bundle.evaluation.scoring.BIN_EDGES` that are pooled


class ActivityBrier(Metric):
    """Mean over patients of (P(active) - active)^2; in [0, 1], 0 is perfect."""

    name, score, higher_is_better = "Brier score of P(active)", "p_active", False

    def compute(self, scores: Scores, weights: Values) -> Values:
        return mean_over_draws(lambda p: weighted_mean(np.square(p - scores.active), weights), scores[self.score])


class ActivityCalibrationError(Metric):
    """Expected calibration error of P(active) in ten bins of .1; in [0, 1], biased upwards in small samples."""

    name, score, higher_is_better, by_arm = "calibration error of P(active)", "p_active", False, False
    has_gap = False

    def compute(self, scores: Scores, weights: Values) -> Values:
        return mean_over_draws(lambda p: calibration_error(*activity_bins(p, scores, weights)), scores[self.score])


class CalibrationSlope(Metric):
    """Slope of the logistic regression of activity on the log-odds of P(active); 1 is perfect, less is too extreme.

    NaN for forecasters that state yes or no, and as `bundle.metrics.calibration_line` states.
    """

    name, score, higher_is_better, has_target = "calibration slope", "p_active", None, True

    def compute(self, scores: Scores, weights: Values) -> Values:
        return _of_probabilities(lambda *arguments: calibration_line(*arguments)[1], scores, weights)


class CalibrationInTheLarge(Metric):
    """Intercept of that regression with slope 1; 0 is perfect, above 0 activity is forecast too rarely."""

    name, score, higher_is_better, has_target = "calibration intercept", "p_active", None, True

    def compute(self, scores: Scores, weights: Values) -> Values:
        return _of_probabilities(calibration_in_the_large, scores, weights)


class HeatmapCalibrationError(Metric):
    """Expected calibration error of the heatmap in 21 bins (0, then equal steps of the logarithm); in [0, 1]."""

    name, score, higher_is_better, by_arm = "calibration error of the heatmap", "voxels", False, False
    has_gap = False

    def compute(self, scores: Scores, weights: Values) -> Values:
        return calibration_error(*heatmap_bins(scores, weights))


class SiteCalibrationError(Metric):
    """Expected calibration error of the likely sites' probabilities in seven bins; in [0, 1].

    A site is a hit if the centre of a lesion lies within its radius of 10 mm; the first ten sites of every patient.
    """

    name, score, higher_is_better, by_arm = "calibration error of likely sites", "sites", False, False
    has_gap = False

    def compute(self, scores: Scores, weights: Values) -> Values:
        return calibration_error(*site_bins(scores, weights))


class SiteRatio(Metric):
    """Sum of the likely sites' probabilities / number of hits; 1 is perfect, more is too sure. NaN without hits."""

    name, score, higher_is_better, by_arm = "forecast / observed hits of likely sites", "sites", None, False

    def compute(self, scores: Scores, weights: Values) -> Values:
        return ratio_of_sums(scores["site probability"], scores["sites with a lesion"], weights)


class VolumeRatio(Metric):
    """Sum of the heatmaps / number of lesion voxels, all patients together; 1 is perfect. NaN without lesion voxels."""

    name, score, higher_is_better = "forecast / true lesion volume", "voxels", None

    def compute(self, scores: Scores, weights: Values) -> Values:
        return ratio_of_sums(scores["forecast_voxels"], scores["lesion_voxels"], weights)


def _of_probabilities(compute: Callable[[Values, Values, Values], Values], scores: Scores, weights: Values) -> Values:
    """(B,) from log odds and weights of active and inactive patients; NaN for yes or no in place of probabilities."""
    if np.isin(scores["p_active"], (0, 1)).all() or not np.isfinite(scores["p_active"]).all():
        return np.full(len(weights), np.nan)
    active = scores.active
    return mean_over_draws(lambda x: compute(x, weights * active, weights * ~active), scores.log_odds)


def activity_bins(p: Values, scores: Scores, weights: Values) -> list[Values]:
    """(B, 10) each: patients of a bin, sum of their probabilities p (N,), number of active patients."""
    bins = np.clip(np.searchsorted(PROBABILITY_BINS, p, side="right") - 1, 0, len(PROBABILITY_BINS) - 2)
    of_bin = (bins[:, None] == np.arange(len(PROBABILITY_BINS) - 1)).astype(float)
    return [weights @ of_bin, weights @ (of_bin * p[:, None]), weights @ (of_bin * scores.active[:, None])]


def heatmap_bins(scores: Scores, weights: Values) -> list[Values]:
    """(B, 21) each: voxels of a bin, sum of their probabilities, number of lesion voxels."""
    names = ("voxels", "forecast_voxels", "lesion_voxels")
    return [np.add.reduceat(weights @ scores[name], HEATMAP_BINS, axis=-1) for name in names]


def site_bins(scores: Scores, weights: Values) -> list[Values]:
    """(B, 7) each: likely sites of a bin, sum of their probabilities, number of hits."""
    return [weights @ scores[name] for name in ("sites", "site probability", "sites with a lesion")]
