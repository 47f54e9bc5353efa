"""The tables of an evaluation in one long form: a row is a metric of a forecaster in an arm, with its interval."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bundle.arms import CLASSES
from bundle.evaluation.bootstrap import bootstrap_weights, interval, undefined
from bundle.evaluation.metrics import MEMBERS, TABLES, Metric
from bundle.evaluation.metrics.decisions import treating_all_or_none
from bundle.evaluation.scoring import Scores
from bundle.forecasters.base import Role
from bundle.metrics import Values

COLUMNS = (
    *("metric", "arm", "forecaster", "role", "value", "ci_low", "ci_high", "n", "positives", "undefined"),
    *("gap_closed", "gap_low", "gap_high", "gap_from_best", "gap_from_best_low", "gap_from_best_high"),
)
MIN_POSITIVES = 10  # with fewer, percentiles of a bootstrap say nothing: no interval is given
ALL = "all"
NO_GAP = (np.nan, np.nan, np.nan)
NO_INTERVAL = (np.nan, np.nan)
# Stand as the roles of rows that compare a model.
FROM_BEST, FROM_CEILING, FROM_ENSEMBLE = "minus best baseline", "minus ceiling", "minus best ensemble"


@dataclass(frozen=True)
class Group:
    """Patients of a row: the arm or "all", their number, and how many of them are positives of the metric."""

    arm: str
    n: int
    positives: int

    def interval(self, replicates: Values) -> tuple[float, float]:
        """Of `bundle.evaluation.bootstrap.interval`; NaN if there are fewer than `MIN_POSITIVES`."""
        return interval(replicates) if self.positives >= MIN_POSITIVES else NO_INTERVAL


def long_table(metrics: Sequence[Metric], scores: Mapping[str, Scores], draws: int = 1000) -> pd.DataFrame:
    """Every metric of every forecaster, for all patients and by arm, in the columns `COLUMNS`.

    The interval is the 95 % percentile interval of the bootstrap over patients within arms, with the same draws for
    all. Each model is also compared, in pairs, with the baseline or floor that does best at that metric in that arm
    ("diffusion - regression", role `FROM_BEST`), with the best possible forecast (role `FROM_CEILING`) and with the
    best possible ensemble (role `FROM_ENSEMBLE`; of metrics with a target only with this one). gap_closed, with its
    interval, is the fraction of the gap between floor and ceiling, gap_from_best, with its interval, that between best
    baseline and ceiling; see `gap_closed`. Neither interval nor gap is given with fewer than `MIN_POSITIVES` positives,
    and "undefined" counts the draws in which the metric is not defined, which the interval leaves out.

    Args:
        metrics: rows.
        scores: by forecaster, of the same patients.
        draws: of the bootstrap.
    """
    arms = next(iter(scores.values()))["arm"]
    weights = bootstrap_weights(arms, draws)
    roles = {name: s.role for name, s in scores.items()}
    ceilings = [name for name, s in scores.items() if s.role is Role.CEILING]
    ensemble = next((name for name in ceilings if "sizes" in scores[name]), None)
    rows = []
    for metric in metrics:
        having = {name: s for name, s in scores.items() if metric.score in s}
        if not having:
            continue
        positive = metric.positives(next(iter(having.values())))
        groups = [(ALL, np.ones(len(arms), bool))]
        if metric.by_arm:
            groups += [(CLASSES[arm], arms == arm) for arm in np.unique(arms)]
        for arm, of_arm in groups:
            values = {name: metric.compute(s, weights * of_arm) for name, s in having.items()}
            group = Group(arm, int(of_arm.sum()), int((positive & of_arm).sum()))
            better = metric.higher_is_better
            rows += rows_of(metric.name, group, values, roles, better, metric.has_gap)
            if ensemble in values and (metric.has_target or (better is not None and ensemble != ceilings[0])):
                rows += _differences(metric.name, group, values, roles, FROM_ENSEMBLE, ensemble)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def rows_of(
    metric: str,
    group: Group,
    values: Mapping[str, Values],
    roles: Mapping[str, Role],
    higher_is_better: bool | None,
    has_gap: bool = True,
) -> list[tuple]:
    """Rows of one metric in one group of patients.

    Args:
        metric: its name.
        group: the patients.
        values: bootstrap values by forecaster, the first of each being that of the sample itself.
        roles: by forecaster.
        higher_is_better: of the metric; None: neither gap nor comparison.
        has_gap: of the metric.
    """
    floor = next((name for name in values if roles[name] is Role.FLOOR), None)
    ceiling = next((name for name in values if roles[name] is Role.CEILING), None)
    best = None
    if higher_is_better is not None:
        known = {name: x[0] for name, x in values.items() if roles[name] in (Role.FLOOR, Role.BASELINE)}
        known = {name: x for name, x in known.items() if np.isfinite(x)}
        best = (max if higher_is_better else min)(known, key=known.__getitem__, default=None)
    rows = []
    for name, x in values.items():
        gap, of_best = NO_GAP, NO_GAP
        enough = group.positives >= MIN_POSITIVES
        if enough and has_gap and higher_is_better is not None and ceiling is not None:
            top = values[ceiling]
            gap = NO_GAP if floor is None else gap_closed(x, values[floor], top, higher_is_better)
            of_best = NO_GAP if best is None else gap_closed(x, values[best], top, higher_is_better)
        rows.append(_row(metric, group, name, roles[name].value, x, gap, of_best))
    for role, other in ((FROM_BEST, best), (FROM_CEILING, ceiling)):
        if other is not None and higher_is_better is not None:
            rows += _differences(metric, group, values, roles, role, other)
    return rows


def _differences(
    metric: str, group: Group, values: Mapping[str, Values], roles: Mapping[str, Role], role: str, other: str
) -> list[tuple]:
    """Rows of each model minus another forecaster, in pairs."""
    return [
        _row(metric, group, f"{name} - {other}", role, values[name] - values[other])
        for name in values
        if roles[name] is Role.MODEL
    ]


def _row(
    metric: str, group: Group, name: str, role: str, x: Values, gap: tuple = NO_GAP, of_best: tuple = NO_GAP
) -> tuple:
    counted = (group.n, group.positives, undefined(x))
    return (metric, group.arm, name, role, x[0], *group.interval(x), *counted, *gap, *of_best)


def gap_closed(x: Values, floor: Values, ceiling: Values, higher_is_better: bool) -> tuple[float, float, float]:
    """(x - floor) / (ceiling - floor) of the sample, with its 95 % interval by the paired bootstrap.

    NaN where the ceiling is not above the floor beyond chance (95 % interval of their paired difference): the fraction
    of such a gap would be noise divided by noise. Draws in which it is not above are left out of the interval.

    Args:
        x, floor, ceiling: (1 + draws,) bootstrap values.
        higher_is_better: else lower.
    """
    gap = (ceiling - floor) * (1 if higher_is_better else -1)
    if not interval(gap)[0] > 0:
        return NO_GAP
    gained = (x - floor) * (1 if higher_is_better else -1)
    fraction = np.divide(gained, gap, out=np.full(len(gap), np.nan), where=gap > 0)
    return float(gained[0] / gap[0]), *interval(fraction)


def members_table(scores: Mapping[str, Scores], draws: int = 1000) -> pd.DataFrame:
    """Metrics over the size of the ensemble; "members" and "converged" are further columns.

    A metric has converged at a size if from there on it stays within a tenth of its interval's width of its last
    value: what more members could change is then small compared with what other patients would. Only forecasters with
    members.
    """
    tables = []
    for name, s in scores.items():
        if "sizes" not in s:
            continue
        for index, size in enumerate(s["sizes"][0]):
            table = long_table(MEMBERS, {name: s.first_members(index)}, draws)
            tables.append(table.assign(members=int(size)))
    if not tables:
        return pd.DataFrame(columns=[*COLUMNS, "members", "converged"])
    table = pd.concat(tables, ignore_index=True)
    table["converged"] = False
    for _, rows in table.groupby(["metric", "arm", "forecaster"]):
        last = rows.iloc[-1]
        near = (rows.value - last.value).abs() <= (last.ci_high - last.ci_low) / 10
        table.loc[rows.index, "converged"] = near[::-1].cummin()[::-1]
    return table


def all_tables(scores: Mapping[str, Scores], draws: int = 1000) -> dict[str, pd.DataFrame]:
    """By name of `TABLES`, and "members". Decisions are also compared with treating all patients and none."""
    further = {"decisions": treating_all_or_none(next(iter(scores.values())))}
    tables = {name: long_table(metrics, {**scores, **further.get(name, {})}, draws) for name, metrics in TABLES.items()}
    return tables | {"members": members_table(scores, draws)}
