"""The tables of an evaluation, all in one long form, with bootstrap intervals and the share of the gap closed.

A metric is a function (scores, weights (B, N)) -> (B,), where `weights` says how often each patient counts: the first
row counts each once and gives the value, the others are bootstrap draws. It is added by one line in `TABLES`.

Of forecasters that make several guesses a patient (the Monte Carlo population) a metric is the mean over guesses.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import logit
from sklearn.linear_model import LogisticRegression

from bundle import metrics
from bundle.arms import CLASSES
from bundle.evaluation.scoring import CEILING, FLOOR, FLOOR_OF_PLACES, Scores, Values
from bundle.forecasters.base import SCORED_REGIONS

COLUMNS = ("metric", "arm", "forecaster", "value", "ci_low", "ci_high", "n", "gap_closed")
BASELINES = ("population", "average_count", "no_new_lesions", "persistence", "frequency_map", "regression")
ALL = "all"
PROBABILITY_BINS = np.linspace(0, 1, 11)  # of P(active) in reliability diagrams
HEATMAP_BINS = np.r_[0, np.arange(1, 1001, 50)]  # first of `bundle.evaluation.scoring.BIN_EDGES` that are taken together
Measure = Callable[[Scores, Values], Values]


@dataclass(frozen=True)
class Metric:
    """A figure of merit.

    Attributes:
        name: as in the tables.
        of: the score it is made from; forecasters that do not have it are left out.
        measure: see the module's docstring.
        higher_is_better: else lower; None where it is neither.
        by_arm: whether it is also given for each arm.
    """

    name: str
    of: str
    measure: Measure
    higher_is_better: bool | None = True
    by_arm: bool = True


def over_guesses(score: str, measure: Callable[[Values, Scores, Values], Values]) -> Measure:
    """Mean over guesses r of `measure(scores[score][:, r], scores, weights)`."""
    return lambda s, w: np.mean([measure(guess, s, w) for guess in s[score].T], axis=0)


def activity_auc(p: Values, s: Scores, w: Values) -> Values:
    """ROC AUC of P(active)."""
    return metrics.roc_auc(p, w * s.active, w * ~s.active)


def activity_auc_within_arms(p: Values, s: Scores, w: Values) -> Values:
    """Share of active-inactive pairs of the same arm in the right order: what knowing the arm does not help."""
    arms = [w * (s["arm"] == arm) for arm in np.unique(s["arm"])]
    pairs = np.stack([(w @ s.active) * (w @ ~s.active) for w in arms])
    auc = np.stack([activity_auc(p, s, w) for w in arms])
    return np.nansum(pairs * auc, axis=0) / np.where(pairs.sum(0) > 0, pairs.sum(0), np.nan)


def activity_ap(p: Values, s: Scores, w: Values) -> Values:
    """Average precision of P(active)."""
    return metrics.average_precision(p, w * s.active, w * ~s.active)


def region_metric(region: str, measure: Callable[[Values, Values, Values], Values]) -> Measure:
    """A metric of "a new lesion lies in the region", forecast where its probability is at least one half."""

    def of_guess(p: Values, s: Scores, w: Values) -> Values:
        truth = s[f"true presence of {region}"]
        known = ~np.isnan(truth)
        return measure(p[known] >= 0.5, truth[known] > 0, w[:, known])

    return over_guesses(f"presence of {region}", of_guess)


def mean_of(score: str, error: Callable[[Values, Scores], Values]) -> Measure:
    """Mean over patients of `error(scores[score][:, r], scores)`."""
    return over_guesses(score, lambda x, s, w: metrics.weighted_mean(error(x, s), w))


def ratio(numerator: str, denominator: str) -> Measure:
    """Sum over patients (and bins) of one score by that of another; NaN where that is 0."""

    def measure(s: Scores, w: Values) -> Values:
        above, below = (w @ s[name].reshape(len(s.cases), -1).sum(axis=1) for name in (numerator, denominator))
        return np.divide(above, below, out=np.full(len(w), np.nan), where=below > 0)

    return measure


def lesion_f1(s: Scores, w: Values) -> Values:
    """Harmonic mean of lesion-wise sensitivity and precision; 0 where lesions are missed and none is marked."""
    sensitivity, precision = ratio("lesions_found", "lesions")(s, w), ratio("marked_rightly", "marked")(s, w)
    total = np.nan_to_num(sensitivity) + np.nan_to_num(precision)
    f1 = np.divide(2 * np.nan_to_num(sensitivity) * np.nan_to_num(precision), total, out=np.zeros(len(w)), where=total > 0)
    return np.where((w @ s["lesions"]) + (w @ s["marked"]) > 0, f1, np.nan)


def voxel_ap(s: Scores, w: Values) -> Values:
    """Average precision of the heatmap over all voxels of all brains."""
    positive, total = w @ s["lesion_voxels"], w @ s["voxels"]
    return metrics.average_precision(np.arange(positive.shape[-1]), positive, total - positive)


def heatmap_calibration_error(s: Scores, w: Values) -> Values:
    """Calibration error of the heatmap in 21 bins: 0, then equal steps of the logarithm."""
    return metrics.calibration_error(*heatmap_bins(s, w))


def heatmap_bins(s: Scores, w: Values) -> list[Values]:
    """(B, 21) each: voxels of a bin, sum of their probabilities, how many became NET2."""
    return [np.add.reduceat(w @ s[name], HEATMAP_BINS, axis=-1) for name in ("voxels", "forecast_voxels", "lesion_voxels")]


def activity_calibration_error(p: Values, s: Scores, w: Values) -> Values:
    """Calibration error of P(active) in ten bins of .1."""
    return metrics.calibration_error(*activity_bins(p, s, w))


def activity_bins(p: Values, s: Scores, w: Values) -> list[Values]:
    """(B, 10) each: patients of a bin, sum of their probabilities, how many were active."""
    bins = np.clip(np.searchsorted(PROBABILITY_BINS, p, side="right") - 1, 0, len(PROBABILITY_BINS) - 2)
    of_bin = (bins[:, None] == np.arange(len(PROBABILITY_BINS) - 1)).astype(float)
    return [w @ of_bin, w @ (of_bin * p[:, None]), w @ (of_bin * s.active[:, None])]


def covered(percent: int) -> Measure:
    """Share of patients whose count lies in the forecast interval, ends included."""

    def measure(s: Scores, w: Values) -> Values:
        count = s["true_count"][:, None]
        inside = (s[f"low_{percent}"] <= count) & (count <= s[f"high_{percent}"])
        return metrics.weighted_mean(inside.mean(axis=1), w)

    return measure


def squared_log_error(x: Values, s: Scores) -> Values:
    """(forecast - log(1 + count))^2. The count can be 0, whose logarithm is not defined: so 1 is added, as to all."""
    return np.square(x - np.log1p(s["true_count"]))


def squared_activity_error(x: Values, s: Scores) -> Values:
    """Brier score of P(active)."""
    return np.square(x - s.active)


TABLES: dict[str, tuple[Metric, ...]] = {
    "regions": tuple(
        Metric(f"{name}, {region}", f"presence of {region}", region_metric(region, measure))
        for region in SCORED_REGIONS
        for name, measure in (
            ("balanced accuracy", metrics.balanced_accuracy),
            ("precision", metrics.precision),
            ("recall", metrics.recall),
            ("F1", metrics.f1),
        )
    ),
    "activity": (
        Metric("average precision", "p_active", over_guesses("p_active", activity_ap)),
        Metric("AUC", "p_active", over_guesses("p_active", activity_auc)),
        Metric("AUC within arms", "p_active", over_guesses("p_active", activity_auc_within_arms), by_arm=False),
    ),
    "log_count": (
        Metric("mean squared error of log(1 + count)", "log_count", mean_of("log_count", squared_log_error), False),
    ),
    "detection": (
        Metric("lesion F1", "marked", lesion_f1, by_arm=False),
        Metric("lesion sensitivity", "marked", ratio("lesions_found", "lesions"), by_arm=False),
        Metric("lesion precision", "marked", ratio("marked_rightly", "marked"), by_arm=False),
        Metric("voxel average precision", "voxels", voxel_ap),
        Metric("voxel Brier score", "brier", lambda s, w: metrics.weighted_mean(s["brier"], w), False),
    ),
    "calibration": (
        Metric("Brier score of P(active)", "p_active", mean_of("p_active", squared_activity_error), False),
        Metric(
            "calibration error of P(active)", "p_active", over_guesses("p_active", activity_calibration_error), False,
            by_arm=False,
        ),
        Metric("calibration error of the heatmap", "voxels", heatmap_calibration_error, False, by_arm=False),
        Metric("forecast by true lesion volume", "voxels", ratio("forecast_voxels", "lesion_voxels"), None),
    ),
    "counts": (
        Metric("CRPS of the count", "crps", mean_of("crps", lambda x, s: x), False),
        Metric("coverage of the 80 % interval", "low_80", covered(80), None),
        Metric("coverage of the 95 % interval", "low_95", covered(95), None),
        Metric("mean forecast count", "count", mean_of("count", lambda x, s: x), None),
        Metric("mean true count", "count", lambda s, w: metrics.weighted_mean(s["true_count"].astype(float), w), None),
    ),
}  # fmt: skip


def members_metrics(place: int) -> tuple[Metric, ...]:
    """Figures of merit of the first members alone, `place` of `bundle.evaluation.scoring.ENSEMBLE_SIZES`."""

    def first(score: str, measure: Callable[[Values, Scores, Values], Values]) -> Measure:
        return lambda s, w: measure(s[score][:, place], s, w)

    return (
        Metric("AUC", "sizes", first("p_active of first", activity_auc)),
        Metric("average precision", "sizes", first("p_active of first", activity_ap)),
        Metric(
            "mean squared error of log(1 + count)", "sizes",
            first("log_count of first", lambda x, s, w: metrics.weighted_mean(squared_log_error(x, s), w)), False,
        ),
        Metric(
            "CRPS of the count", "sizes", first("crps of first", lambda x, s, w: metrics.weighted_mean(x, w)), False
        ),
        Metric(
            "voxel Brier score", "sizes", first("brier of first", lambda x, s, w: metrics.weighted_mean(x, w)), False
        ),
    )  # fmt: skip


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


def long_table(metrics_: Sequence[Metric], scores: Mapping[str, Scores], draws: int = 1000) -> pd.DataFrame:
    """Every metric of every forecaster, for all patients and by arm, in the columns `COLUMNS`.

    The interval is the 95 % percentile interval of the bootstrap over patients within arms, with the same draws for all.
    Each forecaster that is neither baseline nor oracle nor truth is also compared with the baseline that does best at
    that metric in that arm, in pairs: "diffusion - regression". gap_closed is that of `gap_closed`.

    Args:
        metrics_: rows.
        scores: by forecaster, of the same patients.
        draws: of the bootstrap.
    """
    arms = next(iter(scores.values()))["arm"]
    weights = bootstrap_weights(arms, draws)
    rows = []
    for metric in metrics_:
        saying = {name: s for name, s in scores.items() if metric.of in s}
        groups = [(ALL, np.ones(len(arms), bool))]
        if metric.by_arm:
            groups += [(CLASSES[arm], arms == arm) for arm in np.unique(arms)]
        for arm, of_arm in groups:
            measured = {name: metric.measure(s, weights * of_arm) for name, s in saying.items()}
            rows += _rows(metric, arm, int(of_arm.sum()), measured)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _rows(metric: Metric, arm: str, n: int, measured: Mapping[str, Values]) -> list[tuple]:
    closed = dict.fromkeys(measured, np.nan) if metric.higher_is_better is None else gap_closed(measured, metric.higher_is_better)
    rows = [(metric.name, arm, name, x[0], *_interval(x), n, closed[name]) for name, x in measured.items()]
    baselines = {name: measured[name][0] for name in BASELINES if name in measured and np.isfinite(measured[name][0])}
    if metric.higher_is_better is None or not baselines:
        return rows
    best = (max if metric.higher_is_better else min)(baselines, key=baselines.get)
    for name in measured:
        if name not in (*BASELINES, CEILING, "truth"):
            difference = measured[name] - measured[best]
            rows.append((metric.name, arm, f"{name} - {best}", difference[0], *_interval(difference), n, np.nan))
    return rows


def gap_closed(measured: Mapping[str, Values], higher_is_better: bool) -> dict[str, float]:
    """(value - floor) / (ceiling - floor) by forecaster.

    The floor is the Monte Carlo population, or the frequency map where voxels are scored, of which the former says nothing; the
    ceiling is the oracle. NaN without these, and where the ceiling is not above the floor beyond what chance can make (the
    95 % interval of their difference in pairs): a share of such a gap would be noise divided by noise.

    Args:
        measured: bootstrap values by forecaster, the first of each being that of the sample itself.
        higher_is_better: else lower.
    """
    floor = measured.get(FLOOR, measured.get(FLOOR_OF_PLACES))
    ceiling = measured.get(CEILING)
    if floor is None or ceiling is None:
        return dict.fromkeys(measured, np.nan)
    gap = ceiling - floor
    low, high = _interval(gap)
    if not (low > 0 if higher_is_better else high < 0):
        return dict.fromkeys(measured, np.nan)
    return {name: float((values[0] - floor[0]) / gap[0]) for name, values in measured.items()}


def _interval(replicates: Values) -> tuple[float, float]:
    drawn = replicates[1:][np.isfinite(replicates[1:])]
    return tuple(np.percentile(drawn, [2.5, 97.5])) if len(drawn) else (np.nan, np.nan)


def members_table(scores: Mapping[str, Scores], draws: int = 1000) -> pd.DataFrame:
    """How figures of merit change with the size of the ensemble; "members" and "settled" are further columns.

    A figure has settled at a size if from there on it stays within a tenth of its interval's width of its last value: what more
    members could change is then little beside what other patients would. Forecasters without members are left out,
    so that there are neither gaps nor differences here.
    """
    tables = []
    for name, s in scores.items():
        if "sizes" not in s:
            continue
        for place, size in enumerate(s["sizes"][0]):
            table = long_table(members_metrics(place), {name: s}, draws)
            tables.append(table.assign(members=int(size)))
    if not tables:
        return pd.DataFrame(columns=[*COLUMNS, "members", "settled"])
    table = pd.concat(tables, ignore_index=True)
    table["settled"] = False
    for _, rows in table.groupby(["metric", "arm", "forecaster"]):
        last = rows.iloc[-1]
        near = (rows.value - last.value).abs() <= (last.ci_high - last.ci_low) / 10
        table.loc[rows.index, "settled"] = near[::-1].cummin()[::-1]
    return table


def all_tables(scores: Mapping[str, Scores], draws: int = 1000) -> dict[str, pd.DataFrame]:
    """By name of `TABLES`, and "members"."""
    tables = {name: long_table(metrics_, scores, draws) for name, metrics_ in TABLES.items()}
    return tables | {"members": members_table(scores, draws)}


class Recalibration:
    """P(active) corrected by logistic regression on its log-odds, fitted where outcomes are known (Platt scaling).

    logit P' = a + b logit P, by maximum likelihood. The order of patients stays (b > 0), so AUC and AP do as well. With an
    ensemble of K members P is taken as (active members + 1/2) / (K + 1), which is never 0 or 1.

    Args:
        scores: of an ensemble, on patients that are not evaluated (the validation split).

    Raises:
        ValueError: all of these patients are active, or none.
    """

    def __init__(self, scores: Scores) -> None:
        if scores.active.all() or not scores.active.any():
            raise ValueError("recalibration needs active and inactive patients")
        model = LogisticRegression(C=np.inf, max_iter=1000).fit(_log_odds(scores), scores.active)
        self.model, self.slope, self.intercept = model, float(model.coef_[0, 0]), float(model.intercept_[0])

    def __call__(self, scores: Scores) -> Scores:
        """Scores whose P(active) is corrected; all that was made from anything else is left out."""
        p = self.model.predict_proba(_log_odds(scores))[:, 1]
        return Scores(scores.cases, {name: scores[name] for name in ("arm", "true_count")} | {"p_active": p[:, None]})


def _log_odds(scores: Scores) -> Values:
    counts = scores["member_counts"]
    return logit(((counts > 0).sum(axis=1) + 0.5) / (counts.shape[1] + 1))[:, None]
