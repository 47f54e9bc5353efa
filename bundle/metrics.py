"""Scores of forecasts. Each states its formula, range and edge cases; NaN says that it is not defined.

All are means over patients or voxels with weights, and take many weightings at once: `weights` is (..., N), how often
each of N patients counts, so that a bootstrap over patients is one call with its draws as (B, N). What is counted
in bins instead (voxels) comes as the weights of its bins.
"""

import math

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.floating]


def weighted_mean(values: Values, weights: Values) -> Values:
    """Mean of `values` (N,) under each weighting; NaN without weight. Patients whose value is NaN do not count."""
    known = ~np.isnan(values)
    return _ratio((weights * known) @ np.where(known, values, 0), (weights * known).sum(-1))


def roc_auc(score: Values, positive: Values, negative: Values) -> Values:
    """Area under the ROC curve: the share of positive-negative pairs that the score puts in order, ties half.

    Args:
        score: (N,), higher means more likely positive.
        positive, negative: (..., N), weight of positives and of negatives with that score.

    Returns:
        (...), in [0, 1]; NaN where there are no positives or no negatives.
    """
    positive, negative = (_by_score(score, weight, descending=False) for weight in (positive, negative))
    below = negative.cumsum(-1) - negative / 2
    return _ratio((positive * below).sum(-1), positive.sum(-1) * negative.sum(-1))


def average_precision(score: Values, positive: Values, negative: Values) -> Values:
    """Area under the precision-recall curve as a sum of steps: sum over thresholds of (recall gained) x precision.

    Arguments as for `roc_auc`. The score of chance is the share of positives. NaN where there are no positives.
    """
    positive, negative = (_by_score(score, weight, descending=True) for weight in (positive, negative))
    true, marked = positive.cumsum(-1), (positive + negative).cumsum(-1)
    precision = np.divide(true, marked, out=np.zeros_like(true), where=marked > 0)
    return _ratio((positive * precision).sum(-1), positive.sum(-1))


def recall(predicted: Values, truth: Values, weights: Values) -> Values:
    """Share of the true ones that are predicted; (N,) booleans; NaN where none is true."""
    return _ratio(weights @ (predicted & truth), weights @ truth)


def precision(predicted: Values, truth: Values, weights: Values) -> Values:
    """Share of the predicted ones that are true; NaN where none is predicted."""
    return _ratio(weights @ (predicted & truth), weights @ predicted)


def f1(predicted: Values, truth: Values, weights: Values) -> Values:
    """2 TP / (2 TP + FP + FN); NaN where nothing is true and nothing predicted."""
    return _ratio(2 * (weights @ (predicted & truth)), weights @ predicted + weights @ truth)


def balanced_accuracy(predicted: Values, truth: Values, weights: Values) -> Values:
    """Mean of sensitivity and specificity; NaN where only one kind is there."""
    return (recall(predicted, truth, weights) + recall(~predicted, ~truth, weights)) / 2


def calibration_error(total: Values, forecast: Values, observed: Values) -> Values:
    """Expected calibration error: sum over bins of |observed - forecast| / sum of all.

    Args:
        total: (..., bins), how many fell into the bin.
        forecast: (..., bins), sum of their probabilities.
        observed: (..., bins), how many of them came true.

    Returns:
        (...), in [0, 1]; biased upwards where bins are small, by chance alone. NaN where nothing was forecast.
    """
    return _ratio(np.abs(observed - forecast).sum(-1), total.sum(-1))


def crps(counts: Values, probabilities: Values, count: float) -> float:
    """Continuous ranked probability score of a distribution of counts: integral over x of (P(X <= x) - 1[count <= x])^2.

    For one certain number it is the absolute error; smaller is better. The distribution is taken as it stands: with K
    equally likely members drawn from the true one, it is larger by E|X - X'| / 2K on average.

    Args:
        counts, probabilities: (M,), what may come and how likely; they add up to 1.
        count: what came.
    """
    points, place = np.unique(np.append(counts, count), return_inverse=True)
    cumulative = np.cumsum(np.bincount(place, np.append(probabilities, 0.0)))
    return float((np.square(cumulative - (points >= count))[:-1] * np.diff(points)).sum())


def quantile(counts: Values, probabilities: Values, level: float) -> float:
    """The smallest of the counts that may come, x, with P(X <= x) >= level."""
    order = np.argsort(counts, kind="stable")
    place = np.searchsorted(np.cumsum(probabilities[order]), level - 1e-9)
    return float(counts[order[min(place, len(order) - 1)]])


def log_skill(log_loss: Values, lesion_share: Values) -> float:
    """Share of the outcome maps' entropy that heatmaps explain: 1 - log loss / log loss of the best constant map.

    Args:
        log_loss: (N,), log loss of a patient's heatmap, mean over voxels, in nats.
        lesion_share: (N,), share of the patient's voxels that became NET2.

    Returns:
        1 for perfect heatmaps, 0 for the best constant one, negative for worse; NaN when no patient has a lesion.
    """
    p = float(np.mean(lesion_share, dtype=float))
    if not 0 < p < 1:
        return math.nan
    entropy = -(p * math.log(p) + (1 - p) * math.log1p(-p))
    return 1 - float(np.mean(log_loss, dtype=float)) / entropy


def _by_score(score: Values, weight: Values, *, descending: bool) -> Values:
    """(..., G): weight of each distinct score, in order."""
    order = np.argsort(-score if descending else score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=np.nan) != 0)
    return np.add.reduceat(np.asarray(weight, float)[..., order], starts, axis=-1)


def _ratio(numerator: Values, denominator: Values) -> Values:
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
    return np.divide(numerator, denominator, out=np.full(denominator.shape, np.nan), where=denominator > 0)
