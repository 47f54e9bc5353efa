"""Scores of forecasts. Each states its formula, range and edge cases; NaN where it is not defined.

All are means over patients or voxels with weights, and take many weightings at once: `weights` is (..., N), how often
each of N patients counts, so that a bootstrap over patients is one call with its draws as (B, N). What is counted
in bins instead (voxels) comes as the weights of its bins.

scikit-learn's ROC AUC and average precision agree (tests) but take one weighting a call: a thousand draws would take
a thousand sorts.
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
    """Area under the ROC curve: the fraction of positive-negative pairs in the right order, ties counting half.

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

    Arguments as for `roc_auc`. Chance gives the fraction of positives. NaN where there are no positives.
    """
    positive, negative = (_by_score(score, weight, descending=True) for weight in (positive, negative))
    true, marked = positive.cumsum(-1), (positive + negative).cumsum(-1)
    precision = np.divide(true, marked, out=np.zeros_like(true), where=marked > 0)
    return _ratio((positive * precision).sum(-1), positive.sum(-1))


def recall(predicted: Values, truth: Values, weights: Values) -> Values:
    """Fraction of the true ones that are predicted; (N,) booleans; NaN where none is true."""
    return _ratio(weights @ (predicted & truth), weights @ truth)


def precision(predicted: Values, truth: Values, weights: Values) -> Values:
    """Fraction of the predicted ones that are true; NaN where none is predicted."""
    return _ratio(weights @ (predicted & truth), weights @ predicted)


def f1(predicted: Values, truth: Values, weights: Values) -> Values:
    """2 TP / (2 TP + FP + FN); NaN where nothing is true and nothing predicted."""
    return _ratio(2 * (weights @ (predicted & truth)), weights @ predicted + weights @ truth)


def balanced_accuracy(predicted: Values, truth: Values, weights: Values) -> Values:
    """Mean of sensitivity and specificity; NaN where only one class is present."""
    return (recall(predicted, truth, weights) + recall(~predicted, ~truth, weights)) / 2


def calibration_error(total: Values, forecast: Values, observed: Values) -> Values:
    """Expected calibration error: sum over bins of |observed - forecast| / sum of all.

    Args:
        total: (..., bins), number in the bin.
        forecast: (..., bins), sum of their probabilities.
        observed: (..., bins), number of positives among them.

    Returns:
        (...), in [0, 1]; biased upwards where bins are small. NaN where all bins are empty.
    """
    return _ratio(np.abs(observed - forecast).sum(-1), total.sum(-1))


def calibration_line(log_odds: Values, positive: Values, negative: Values) -> tuple[Values, Values]:
    """Intercept and slope of logit P(positive) = intercept + slope * log odds, by maximum likelihood.

    The slope of a calibrated forecast is 1; below 1 it is too extreme, above 1 too timid.

    Args:
        log_odds: (N,) of the forecast probabilities, finite.
        positive, negative: (B, N), weight of positives and of negatives.

    Returns:
        (B,) each; NaN where the likelihood has no finite maximum: all log odds are equal, there are no positives or
        no negatives, or the log odds separate them.
    """
    return _logistic(log_odds, positive, negative, np.stack([np.ones_like(log_odds), log_odds]), 0.0)


def calibration_in_the_large(log_odds: Values, positive: Values, negative: Values) -> Values:
    """Intercept of logit P(positive) = intercept + log odds; arguments as for `calibration_line`.

    0 of a forecast that is right on average, positive where it forecasts too little. NaN unless both kinds occur.
    """
    return _logistic(log_odds, positive, negative, np.ones((1, len(log_odds))), 1.0)[0]


def _logistic(log_odds: Values, positive: Values, negative: Values, terms: Values, offset: float) -> tuple[Values, ...]:
    """Coefficients (B,) of the terms (T, N), beside offset * log odds, by Newton's method, all weightings at once."""
    total = positive + negative
    coefficients = np.zeros((len(total), len(terms)))
    converged = np.zeros(len(total), bool)
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(coefficients @ terms + offset * log_odds, -500, 500)))
        gradient = (positive - total * p) @ terms.T
        curvature = np.einsum("bn,sn,tn->bst", total * p * (1 - p), terms, terms, optimize=True)
        solvable = np.linalg.det(curvature) > 1e-9
        curvature[~solvable] = np.eye(len(terms))
        step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
        longest = np.abs(step).max(axis=1)
        converged = solvable & (longest < 1e-7)
        if converged.all():
            break
        # A full step may overshoot. Where there is no maximum the coefficients wander off and never converge.
        coefficients = coefficients + step / np.maximum(longest, 1)[:, None]
    return tuple(np.where(converged, coefficients.T, np.nan))


def net_benefit(predicted: Values, truth: Values, weights: Values, threshold: float) -> Values:
    """(TP - FP * threshold / (1 - threshold)) / N: true positives, less false ones at the price the threshold sets.

    At most the fraction of positives; 0 if nobody is treated. (N,) booleans and (B, N) weights; NaN without weight.

    References:
        Vickers, Elkin 2006, Decision curve analysis, Med. Decis. Making 26:565.
    """
    gained = predicted * np.where(truth, 1.0, -threshold / (1 - threshold))
    return _ratio(weights @ gained, weights.sum(-1))


def crps(counts: Values, probabilities: Values, count: float) -> float:
    """Continuous ranked probability score of counts: the integral over x of (P(X <= x) - 1[count <= x])^2.

    In lesions, at least 0, lower is better; of a single number it is the absolute error. With K equally likely members
    drawn from the true distribution it is larger than that distribution's by E|X - X'| / 2K on average.

    Args:
        counts, probabilities: (M,), the forecast distribution; probabilities add up to 1.
        count: observed.
    """
    points, place = np.unique(np.append(counts, count), return_inverse=True)
    cumulative = np.cumsum(np.bincount(place, np.append(probabilities, 0.0)))
    return float((np.square(cumulative - (points >= count))[:-1] * np.diff(points)).sum())


def fair_crps(members: Values, count: float) -> float:
    """CRPS of the distribution from which K members were drawn, estimated without bias: fair for any K.

    mean_k |x_k - y| - sum_jk |x_j - x_k| / (2 K (K - 1)). In lesions; it may be negative for a single patient, and only
    its mean over patients has a meaning. NaN for a single member.

    Args:
        members: (K,) counts.
        count: observed.

    References:
        Ferro 2014, Fair scores for ensemble forecasts, Q. J. R. Meteorol. Soc. 140:1917, equation 4.
    """
    size = len(members)
    if size < 2:
        return math.nan
    members = np.sort(np.asarray(members, float))
    spread = 2 * (members @ (2 * np.arange(size) - size + 1))  # sum over all pairs, both orders
    return float(np.abs(members - count).mean() - spread / (2 * size * (size - 1)))


def quantile(counts: Values, probabilities: Values, level: float) -> float:
    """The smallest of the counts (M,), x, with P(X <= x) >= level, up to rounding of the sum."""
    return float(np.quantile(counts, max(level - 1e-9, 0), weights=probabilities, method="inverted_cdf"))


def log_skill(log_loss: Values, lesion_fraction: Values) -> float:
    """Fraction of the outcome maps' entropy that heatmaps explain: 1 - log loss / log loss of the best constant map.

    Args:
        log_loss: (N,), log loss of a patient's heatmap, mean over voxels, in nats.
        lesion_fraction: (N,), fraction of the patient's voxels that became NET2.

    Returns:
        1 for perfect heatmaps, 0 for the best constant one, negative for worse; NaN when no patient has a lesion.
    """
    p = float(np.mean(lesion_fraction, dtype=float))
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
