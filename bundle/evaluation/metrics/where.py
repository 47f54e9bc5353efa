"""Where: the location of new lesions in active patients, with every heatmap scaled to the same volume."""

import numpy as np

from bundle.evaluation.locations import NUM_SITES, TOP_FRACTIONS
from bundle.evaluation.metrics.base import Metric, ratio_of_sums
from bundle.evaluation.scoring import Scores
from bundle.metrics import Values, weighted_mean

LOG_SCORE = "log score of voxels"


class VoxelLogScore(Metric):
    """Mean over the voxels of all lesions of log(density / uniform density within the brain), in nats.

    0 for a uniform map; 1 % of each density is spread over the brain, so that the least is log(.01). NaN without
    lesions. Large lesions count more than small ones.
    """

    name, score = "log score per lesion voxel", LOG_SCORE

    def compute(self, scores: Scores, weights: Values) -> Values:
        return ratio_of_sums(scores[LOG_SCORE], scores["outcome_voxels"], weights)


class LesionLogScore(Metric):
    """`VoxelLogScore` averaged within each lesion first, then over all lesions: each lesion counts the same."""

    name, score = "log score per lesion", LOG_SCORE

    def compute(self, scores: Scores, weights: Values) -> Values:
        return ratio_of_sums(scores["log score of lesions"], scores["outcome_lesions"], weights)


class PatientLogScore(Metric):
    """`VoxelLogScore` of each active patient, averaged: each active patient counts the same."""

    name, score = "log score per active patient", LOG_SCORE

    def compute(self, scores: Scores, weights: Values) -> Values:
        voxels = scores["outcome_voxels"].astype(float)
        own = np.divide(scores[LOG_SCORE], voxels, out=np.full(len(voxels), np.nan), where=voxels > 0)
        return weighted_mean(own, weights)


class LesionsInTop(Metric):
    """Fraction of lesions whose centre lies in the top part of the brain by the heatmap; NaN without lesions.

    In [0, 1]. Ties are shared: a uniform map has the size of the part.

    Args:
        index: of `bundle.evaluation.locations.TOP_FRACTIONS`.
    """

    score, by_arm = LOG_SCORE, False

    def __init__(self, index: int) -> None:
        self.index = index
        self.name = f"lesions in the top {TOP_FRACTIONS[index]:.0%} of the brain"

    def compute(self, scores: Scores, weights: Values) -> Values:
        return ratio_of_sums(scores["lesions in top"][:, self.index], scores["outcome_lesions"], weights)


class LesionsNearSites(Metric):
    """Fraction of lesions that come within 10 mm of the first likely sites; in [0, 1], NaN without lesions.

    Args:
        index: of `bundle.evaluation.locations.NUM_SITES`.
    """

    score, by_arm = LOG_SCORE, False

    def __init__(self, index: int) -> None:
        self.index = index
        number = NUM_SITES[index]
        self.name = f"lesions within 10 mm of the first {f'{number} sites' if number > 1 else 'site'}"

    def compute(self, scores: Scores, weights: Values) -> Values:
        return ratio_of_sums(scores["lesions near sites"][:, self.index], scores["outcome_lesions"], weights)


class LesionsAtFalseSites(Metric):
    """Fraction of lesions within 10 mm of a likely site, at so many false sites per active patient (a point of FROC).

    Sites are taken in order of the fraction of the heatmap that they hold, at most ten of each patient; linear between
    the points of the curve. In [0, 1], NaN without lesions.

    Args:
        false_sites: to which no lesion comes within 10 mm, mean per active patient.
    """

    score, by_arm = LOG_SCORE, False

    def __init__(self, false_sites: int) -> None:
        self.false_sites = false_sites
        self.name = f"lesions found at {false_sites} false site{'s' if false_sites > 1 else ''} a patient"

    def compute(self, scores: Scores, weights: Values) -> Values:
        false, found = froc(scores, weights)
        known = np.isfinite(found).all(axis=-1)
        at = [np.interp(self.false_sites, x, y) for x, y in zip(false[known], found[known])]
        values = np.full(len(weights), np.nan)
        values[known] = at
        return values


def froc(scores: Scores, weights: Values) -> tuple[Values, Values]:
    """(B, 61) false sites per active patient and fraction of lesions found, both rising from 0; NaN without lesions."""
    patients, lesions = weights @ (scores["outcome_lesions"] > 0), weights @ scores["outcome_lesions"]
    curves = []
    for name, total in (("false sites", patients), ("lesions by site", lesions)):
        upto = np.cumsum((weights @ scores[name])[:, ::-1], axis=-1)
        upto = np.concatenate([np.zeros((len(weights), 1)), upto], axis=-1)
        curves.append(np.divide(upto, total[:, None], out=np.full(upto.shape, np.nan), where=total[:, None] > 0))
    return curves[0], curves[1]


METRICS = (
    VoxelLogScore(),
    LesionLogScore(),
    PatientLogScore(),
    *map(LesionsInTop, range(len(TOP_FRACTIONS))),
    *map(LesionsNearSites, range(len(NUM_SITES))),
    *map(LesionsAtFalseSites, (1, 2, 4)),
)
