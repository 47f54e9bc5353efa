"""Which lesions and voxels: the consensus of an ensemble and the heatmap against the outcome."""

import numpy as np

from bundle.evaluation.metrics.base import Metric, ratio_of_sums
from bundle.evaluation.scoring import Scores
from bundle.metrics import Values, average_precision, weighted_mean


class LesionSensitivity(Metric):
    """Fraction of the lesions of all patients that the consensus finds; in [0, 1], NaN without lesions."""

    name, score, by_arm = "lesion sensitivity", "marked", False
    has_gap = False

    def compute(self, scores: Scores, weights: Values) -> Values:
        return ratio_of_sums(scores["lesions_found"], scores["lesions"], weights)


class LesionPrecision(Metric):
    """Fraction of the lesions of all consensus maps that match a lesion; in [0, 1], NaN if none is marked."""

    name, score, by_arm = "lesion precision", "marked", False
    has_gap = False

    def compute(self, scores: Scores, weights: Values) -> Values:
        return ratio_of_sums(scores["marked_correctly"], scores["marked"], weights)


class LesionF1(Metric):
    """Harmonic mean of lesion sensitivity and precision; in [0, 1].

    0 if lesions exist and none is marked, or the other way round; NaN if there are none of either.
    """

    name, score, by_arm = "lesion F1", "marked", False
    has_gap = False

    def compute(self, scores: Scores, weights: Values) -> Values:
        parts = (LesionSensitivity(), LesionPrecision())
        sensitivity, precision = (np.nan_to_num(part.compute(scores, weights)) for part in parts)
        total = sensitivity + precision
        f1 = np.divide(2 * sensitivity * precision, total, out=np.zeros(len(weights)), where=total > 0)
        return np.where(weights @ scores["lesions"] + weights @ scores["marked"] > 0, f1, np.nan)


class VoxelAveragePrecision(Metric):
    """Average precision of the heatmap over the brain voxels of all patients together.

    In [0, 1]; chance gives the fraction of lesion voxels. NaN without lesion voxels.
    """

    name, score = "voxel average precision (who x where)", "voxels"

    def compute(self, scores: Scores, weights: Values) -> Values:
        positive, total = weights @ scores["lesion_voxels"], weights @ scores["voxels"]
        return average_precision(np.arange(positive.shape[-1]), positive, total - positive)


class VoxelBrier(Metric):
    """Mean over patients of the mean squared error of the heatmap in the brain; in [0, 1], 0 is perfect."""

    name, score, higher_is_better = "voxel Brier score (who x where)", "brier", False

    def compute(self, scores: Scores, weights: Values) -> Values:
        return weighted_mean(scores[self.score], weights)
