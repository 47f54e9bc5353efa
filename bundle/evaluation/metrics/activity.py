"""Who: discrimination between patients with and without new or enlarging lesions (Favero et al. 2025, table 3)."""

import numpy as np

from bundle.evaluation.metrics.base import Metric, mean_over_draws
from bundle.evaluation.scoring import Scores
from bundle.metrics import Values, average_precision, roc_auc


class AveragePrecision(Metric):
    """Area under the precision-recall curve of P(active), as a sum of steps.

    In [0, 1]; chance gives the fraction of active patients. NaN without active patients.
    """

    name, score = "average precision", "p_active"

    def compute(self, scores: Scores, weights: Values) -> Values:
        active = scores.active
        return mean_over_draws(lambda p: average_precision(p, weights * active, weights * ~active), scores[self.score])


class AUC(Metric):
    """Area under the ROC curve of P(active): fraction of active-inactive pairs in the right order, ties counting half.

    In [0, 1]; chance gives 1/2. NaN unless there are active and inactive patients.
    """

    name, score = "AUC", "p_active"

    def compute(self, scores: Scores, weights: Values) -> Values:
        active = scores.active
        return mean_over_draws(lambda p: roc_auc(p, weights * active, weights * ~active), scores[self.score])


class AUCWithinArms(Metric):
    """AUC over the active-inactive pairs of the same arm only: the ranking that knowing the arm does not give.

    In [0, 1]; chance gives 1/2. NaN if no arm has both active and inactive patients.
    """

    name, score, by_arm = "AUC within arms", "p_active", False

    def compute(self, scores: Scores, weights: Values) -> Values:
        active = scores.active
        arms = [weights * (scores["arm"] == arm) for arm in np.unique(scores["arm"])]
        pairs = np.stack([(w @ active) * (w @ ~active) for w in arms])

        def within(p: Values) -> Values:
            auc = np.stack([roc_auc(p, w * active, w * ~active) for w in arms])
            return np.nansum(pairs * auc, axis=0) / np.where(pairs.sum(0) > 0, pairs.sum(0), np.nan)

        return mean_over_draws(within, scores[self.score])
