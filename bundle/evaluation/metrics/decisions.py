"""Of what use: net benefit of treating those whose P(active) reaches a threshold (decision curve analysis)."""

import numpy as np

from bundle.evaluation.metrics.base import Metric, mean_over_draws
from bundle.evaluation.scoring import Scores
from bundle.forecasters.base import Role
from bundle.metrics import Values, net_benefit


class NetBenefit(Metric):
    """Net benefit of treating the patients whose P(active) is at least a threshold, in true positives a patient.

    The threshold says how many unnecessary treatments one treatment of an active patient is worth: at 20 %,
    four. At most the fraction of active patients; 0 for treating nobody.

    Args:
        percent: the threshold, between 0 and 100.
    """

    score, has_gap = "p_active", False

    def __init__(self, percent: int) -> None:
        self.threshold, self.name = percent / 100, f"net benefit at {percent} %"

    def compute(self, scores: Scores, weights: Values) -> Values:
        active = scores.active
        return mean_over_draws(
            lambda p: net_benefit(p >= self.threshold, active, weights, self.threshold), scores[self.score]
        )


def treating_all_or_none(scores: Scores) -> dict[str, Scores]:
    """The two policies that need no forecast, as forecasters of the same patients."""
    of_patients = {name: scores[name] for name in ("arm", "true_count")}
    return {
        name: Scores(scores.cases, of_patients | {"p_active": np.full((len(scores.cases), 1), p)}, Role.BASELINE)
        for name, p in (("treat all", 1.0), ("treat none", 0.0))
    }


METRICS = tuple(map(NetBenefit, (10, 20, 30, 50)))
