"""P(active) of an ensemble, corrected on patients that are not evaluated."""

import numpy as np
from sklearn.linear_model import LogisticRegression

from bundle.evaluation.scoring import Scores


class Recalibration:
    """Platt scaling: P(active) corrected by a logistic regression on its log-odds.

    logit P' = a + b logit P, by maximum likelihood, from `Scores.log_odds`. The order of patients is kept (b > 0),
    hence AUC and AP.

    Args:
        scores: of an ensemble, on the validation split.

    Raises:
        ValueError: all of these patients are active, or none.

    References:
        Platt 1999, Probabilistic outputs for support vector machines.
    """

    def __init__(self, scores: Scores) -> None:
        if scores.active.all() or not scores.active.any():
            raise ValueError("recalibration needs active and inactive patients")
        model = LogisticRegression(C=np.inf, max_iter=1000).fit(scores.log_odds, scores.active)
        self.model, self.slope, self.intercept = model, float(model.coef_[0, 0]), float(model.intercept_[0])

    def __call__(self, scores: Scores) -> Scores:
        """Scores with corrected P(active); all other scores are left out."""
        p = self.model.predict_proba(scores.log_odds)[:, 1]
        values = {name: scores[name] for name in ("arm", "true_count")} | {"p_active": p[:, None]}
        return Scores(scores.cases, values, scores.role)
