"""Which regions: presence of a new lesion in a region (Favero et al. 2025, table 2)."""

from collections.abc import Callable

import numpy as np

from bundle import metrics
from bundle.evaluation.metrics.base import Metric, mean_over_draws
from bundle.evaluation.scoring import Scores
from bundle.forecasters.base import SCORED_REGIONS
from bundle.metrics import Values, roc_auc, weighted_mean

Classify = Callable[[Values, Values, Values], Values]  # (predicted (N,), truth (N,), weights (B, N)) -> (B,)


class RegionMetric(Metric):
    """A metric of "a new lesion lies in the region". Patients without a segmentation are left out.

    Args:
        name: of the metric.
        region: of `SCORED_REGIONS`.
    """

    by_arm = False

    def __init__(self, name: str, region: str) -> None:
        self.name, self.score, self.truth = f"{name}, {region}", f"presence of {region}", f"true presence of {region}"

    def positives(self, scores: Scores) -> Values:
        """(N,) bool, patients with a lesion there."""
        return scores[self.truth] > 0

    def compute(self, scores: Scores, weights: Values) -> Values:
        truth = scores[self.truth]
        known = ~np.isnan(truth)
        return mean_over_draws(
            lambda p: self.of(p, truth[known] > 0, weights[:, known], scores), scores[self.score][known]
        )

    def of(self, p: Values, truth: Values, weights: Values, scores: Scores) -> Values:
        """(B,) from probabilities (N,) and outcomes (N,) bool."""
        raise NotImplementedError


class RegionBrier(RegionMetric):
    """Mean over patients of (probability - presence)^2; in [0, 1], 0 is perfect."""

    higher_is_better = False

    def __init__(self, region: str) -> None:
        super().__init__("Brier score", region)

    def of(self, p: Values, truth: Values, weights: Values, scores: Scores) -> Values:
        return weighted_mean(np.square(p - truth), weights)


class RegionAUC(RegionMetric):
    """AUC of the probability; in [0, 1], chance gives 1/2. NaN unless there are patients with and without a lesion."""

    def __init__(self, region: str) -> None:
        super().__init__("AUC", region)

    def of(self, p: Values, truth: Values, weights: Values, scores: Scores) -> Values:
        return roc_auc(p, weights * truth, weights * ~truth)


class RegionPresence(RegionMetric):
    """A classification score of the presence, forecast where its probability is at least a cut.

    In [0, 1]; NaN as the classification score states. The cut is the forecaster's own, chosen on validation patients
    (`bundle.evaluation.cuts`), 1/2 where there are none.

    Args:
        name: of the classification score.
        region: of `SCORED_REGIONS`.
        classify: of `bundle.metrics`.
        criterion: of `bundle.evaluation.cuts.CRITERIA`, by which the cut was chosen.
    """

    has_gap = False

    def __init__(self, name: str, region: str, classify: Classify, criterion: str) -> None:
        super().__init__(name, region)
        self.classify, self.cut = classify, f"{criterion}, {region}"

    def of(self, p: Values, truth: Values, weights: Values, scores: Scores) -> Values:
        return self.classify(p >= scores.cuts.get(self.cut, 0.5), truth, weights)


CLASSIFICATIONS = (  # name, score, criterion of the cut
    ("balanced accuracy", metrics.balanced_accuracy, "balanced accuracy"),
    ("F1", metrics.f1, "F1"),
    ("precision", metrics.precision, "F1"),
    ("recall", metrics.recall, "F1"),
)
METRICS = tuple(
    metric
    for region in SCORED_REGIONS
    for metric in (
        RegionBrier(region),
        RegionAUC(region),
        *(RegionPresence(name, region, classify, criterion) for name, classify, criterion in CLASSIFICATIONS),
    )
)
