"""Bootstrap over patients within arms, as weights: a metric of all draws is one call."""

import numpy as np

from bundle.metrics import Values


def bootstrap_weights(arms: Values, draws: int, seed: int = 0) -> Values:
    """(1 + draws, N): ones, then how often each patient was drawn; each arm keeps its number of patients."""
    rng = np.random.default_rng(seed)
    weights = np.zeros((1 + draws, len(arms)))
    weights[0] = 1
    for arm in np.unique(arms):
        of_arm = np.flatnonzero(arms == arm)
        drawn = rng.multinomial(len(of_arm), np.full(len(of_arm), 1 / len(of_arm)), size=draws)
        weights[1:, of_arm] = drawn
    return weights


def interval(replicates: Values) -> tuple[float, float]:
    """95 % percentile interval over patients of (1 + draws,) values, the first of which is that of the sample itself.

    Draws in which the metric is not defined are left out; NaN if it is defined in none.
    """
    drawn = replicates[1:][np.isfinite(replicates[1:])]
    return tuple(np.percentile(drawn, [2.5, 97.5]).tolist()) if len(drawn) else (np.nan, np.nan)


def undefined(replicates: Values) -> int:
    """In how many of the draws, of (1 + draws,) values, the metric is not defined."""
    return int((~np.isfinite(replicates[1:])).sum())
