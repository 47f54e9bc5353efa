"""Which regions: presence of a new lesion in a region (Favero et al. 2025, table 2)."""

from collections.abc import Callable

import numpy as np

from bundle import metrics
from bundle.evaluation.metrics.base import Metric, mean_over_draws
from bundle.evaluation.scoring import Scores
from bundle.forecasters.base import SCORED_REGIONS
from bundle.metrics import Values


class RegionPresence(Metric):
    """A classification score of "a new lesion lies in the region", forecast where its probability is at least 1/2.

    In [0, 1]. Patients without a segmentation are left out; NaN as the classification score states.

    Args:
        name: of the classification score.
        region: of `SCORED_REGIONS`.
        classify: (predicted (N,), truth (N,), weights (B, N)) -> (B,), of `bundle.metrics`.
    """

    has_gap = False

    def __init__(self, name: str, region: str, classify: Callable[[Values, Values, Values], Values]) -> None:
        self.name, self.score = f"{name}, {region}", f"presence of {region}"
        self.truth, self.classify = f"true presence of {region}", classify

    def compute(self, scores: Scores, weights: Values) -> Values:
        truth = scores[self.truth]
        known = ~np.isnan(truth)
        return mean_over_draws(
            lambda p: self.classify(p >= 0.5, truth[known] > 0, weights[:, known]), scores[self.score][known]
        )


METRICS = tuple(
    RegionPresence(name, region, classify)
    for region in SCORED_REGIONS
    for name, classify in (
        ("balanced accuracy", metrics.balanced_accuracy),
        ("precision", metrics.precision),
        ("recall", metrics.recall),
        ("F1", metrics.f1),
    )
)
