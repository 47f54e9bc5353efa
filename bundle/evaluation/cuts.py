"""The probability from which on a region is said to hold a new lesion, chosen on patients that are not evaluated.

A cut of 1/2 suits few forecasters: presence is rare, so that a calibrated forecast hardly ever reaches it, and one that
forecasts too much gains from it.
"""

import numpy as np

from bundle import metrics
from bundle.evaluation.scoring import Scores
from bundle.forecasters.base import SCORED_REGIONS
from bundle.metrics import Values

CRITERIA = {"balanced accuracy": metrics.balanced_accuracy, "F1": metrics.f1}


def choose_cuts(scores: Scores) -> dict[str, float]:
    """By "<criterion>, <region>": the cut at which a forecaster's criterion is greatest; of several that nearest 1/2.

    Left out where the criterion is not defined, and for forecasters that state yes or no.

    Args:
        scores: of one forecaster, on the validation split.
    """
    cuts = {}
    for region in SCORED_REGIONS:
        p, truth = scores[f"presence of {region}"], scores[f"true presence of {region}"]
        known = np.isfinite(p).all(axis=1) & np.isfinite(truth)
        if not known.any() or np.isin(p[known], (0, 1)).all():
            continue
        for name, criterion in CRITERIA.items():
            candidates = np.unique(p[known])
            reached = np.array([_mean(criterion, p[known] >= cut, truth[known] > 0) for cut in candidates])
            if np.isfinite(reached).any():
                best = candidates[reached >= np.nanmax(reached) - 1e-12]
                cuts[f"{name}, {region}"] = float(best[np.abs(best - 0.5).argmin()])
    return cuts


def _mean(criterion, predicted: Values, truth: Values) -> float:
    """Mean over the draws (N, R) of a forecaster."""
    ones = np.ones((1, len(truth)))
    return float(np.mean([criterion(draw, truth, ones)[0] for draw in predicted.T]))
