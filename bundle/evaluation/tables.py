"""The tables of an evaluation in one long form: a row is a metric of a forecaster in an arm, with its interval."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from bundle.arms import CLASSES
from bundle.evaluation.bootstrap import bootstrap_weights, interval
from bundle.evaluation.metrics import MEMBERS, TABLES, Metric
from bundle.evaluation.scoring import Scores
from bundle.forecasters.base import Role
from bundle.metrics import Values

COLUMNS = ("metric", "arm", "forecaster", "role", "value", "ci_low", "ci_high", "n", "gap_closed")
ALL = "all"
DIFFERENCE = "difference"  # stands as the role of a row that compares a model with a baseline


def long_table(metrics: Sequence[Metric], scores: Mapping[str, Scores], draws: int = 1000) -> pd.DataFrame:
    """Every metric of every forecaster, for all patients and by arm, in the columns `COLUMNS`.

    The interval is the 95 % percentile interval of the bootstrap over patients within arms, with the same draws for
    all. Each model is also compared, in pairs, with the baseline or floor that does best at that metric in that arm:
    "diffusion - regression", role `DIFFERENCE`. gap_closed is that of `gap_closed`.

    Args:
        metrics: rows.
        scores: by forecaster, of the same patients.
        draws: of the bootstrap.
    """
    arms = next(iter(scores.values()))["arm"]
    weights = bootstrap_weights(arms, draws)
    roles = {name: s.role for name, s in scores.items()}
    rows = []
    for metric in metrics:
        having = {name: s for name, s in scores.items() if metric.score in s}
        groups = [(ALL, np.ones(len(arms), bool))]
        if metric.by_arm:
            groups += [(CLASSES[arm], arms == arm) for arm in np.unique(arms)]
        for arm, of_arm in groups:
            values = {name: metric.compute(s, weights * of_arm) for name, s in having.items()}
            rows += rows_of(metric.name, arm, int(of_arm.sum()), values, roles, metric.higher_is_better)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def rows_of(
    metric: str,
    arm: str,
    n: int,
    values: Mapping[str, Values],
    roles: Mapping[str, Role],
    higher_is_better: bool | None,
) -> list[tuple]:
    """Rows of one metric in one arm of n patients.

    Args:
        values: bootstrap values by forecaster, the first of each being that of the sample itself.
        roles: by forecaster.
        higher_is_better: of the metric; None: neither gap nor comparison.
    """
    closed = gap_closed(values, roles, higher_is_better)
    rows = [(metric, arm, name, roles[name].value, x[0], *interval(x), n, closed[name]) for name, x in values.items()]
    baselines = {
        name: x[0] for name, x in values.items() if roles[name] in (Role.FLOOR, Role.BASELINE) and np.isfinite(x[0])
    }
    if higher_is_better is None or not baselines:
        return rows
    best = (max if higher_is_better else min)(baselines, key=baselines.__getitem__)
    for name in (name for name in values if roles[name] is Role.MODEL):
        difference = values[name] - values[best]
        rows.append((metric, arm, f"{name} - {best}", DIFFERENCE, difference[0], *interval(difference), n, np.nan))
    return rows


def gap_closed(
    values: Mapping[str, Values], roles: Mapping[str, Role], higher_is_better: bool | None
) -> dict[str, float]:
    """(value - floor) / (ceiling - floor) by forecaster.

    The floor is the first forecaster of that role that has the metric (the Monte Carlo population; of voxel scores,
    which it does not forecast, the frequency map), the ceiling likewise (the oracle). NaN without these, and where the
    ceiling is not above the floor beyond chance (95 % interval of their paired difference): the fraction of such a gap
    would be noise divided by noise.

    Args:
        values, roles, higher_is_better: as for `rows_of`.
    """
    floor, ceiling = (
        next((x for name, x in values.items() if roles[name] is r), None) for r in (Role.FLOOR, Role.CEILING)
    )
    if floor is None or ceiling is None or higher_is_better is None:
        return dict.fromkeys(values, np.nan)
    gap = ceiling - floor
    low, high = interval(gap)
    if not (low > 0 if higher_is_better else high < 0):
        return dict.fromkeys(values, np.nan)
    return {name: float((x[0] - floor[0]) / gap[0]) for name, x in values.items()}


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
    """By name of `TABLES`, and "members"."""
    tables = {name: long_table(metrics, scores, draws) for name, metrics in TABLES.items()}
    return tables | {"members": members_table(scores, draws)}
