"""What the charts of an evaluation show, read back from the drawn artists."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from scipy.stats import poisson
from sklearn.metrics import roc_auc_score

from bundle.evaluation import charts
from bundle.evaluation.scoring import Scores
from bundle.evaluation.tables import COLUMNS
from bundle.forecasters.base import Role


def scores_of(p, count, arm, role=Role.MODEL):
    values = {"p_active": p[:, None], "true_count": count, "arm": arm, "log_count": np.log1p(p)[:, None]}
    return Scores(tuple(map(str, range(len(p)))), values, role)


def labels(axis):
    return axis.get_legend_handles_labels()[1]


def test_colours_go_by_role_and_differ_within_a_role():
    roles = {"a": Role.BASELINE, "b": Role.MODEL, "c": Role.BASELINE, "d": Role.CEILING}
    colours = charts.colours_of(roles)
    assert set(colours) == set(roles) and len(set(colours.values())) == 4
    assert charts.colours_of(dict(reversed(roles.items())))["b"] == colours["b"]


def test_constants_draws_and_the_outcome_are_not_drawn():
    count, arm = np.array([0, 1, 3, 0]), np.zeros(4, int)
    p = np.array([0.2, 0.7, 0.9, 0.1])
    draws = Scores(tuple("abcd"), {"p_active": np.eye(4), "true_count": count, "arm": arm}, Role.FLOOR)
    scores = {
        "none": scores_of(0 * p, count, arm, Role.BASELINE),
        "draws": draws,
        "first_year": scores_of((p > 0.5) * 1.0, count, arm, Role.BASELINE),
        "model": scores_of(p, count, arm),
        "outcome": scores_of((count > 0) * 1.0, count, arm, Role.OUTCOME),
    }
    assert labels(charts.roc_and_pr(scores).axes[0]) == ["first year", "model"]
    assert [axis.get_title() for axis in charts.count_scatter(scores).axes] == ["first year", "model"]
    assert labels(charts.reliability(scores).axes[0]) == ["model"]  # a yes or no is no probability


def test_curves_are_those_of_the_arm():
    rng = np.random.default_rng(1)
    arm, count, p = rng.integers(0, 3, 90), rng.poisson(0.7, 90), rng.random(90)
    count[arm == 2] = 0  # nobody active: no curve
    figure = charts.roc_and_pr({"diffusion": scores_of(p, count, arm)})
    for axis, of_arm in zip(figure.axes[:3], (arm >= 0, arm == 0, arm == 1)):
        curve = axis.lines[-1]
        area = np.trapezoid(curve.get_ydata(), curve.get_xdata())
        assert area == pytest.approx(roc_auc_score(count[of_arm] > 0, p[of_arm]))
    assert len(figure.axes[3].lines) == 1


def test_every_patient_is_a_point_at_count_and_forecast():
    count, arm, p = np.array([0, 3, 8]), np.array([0, 0, 1]), np.array([0.2, 0.4, 0.9])
    (axis,) = charts.count_scatter({"diffusion": scores_of(p, count, arm)}).axes
    points = np.concatenate([group.get_offsets() for group in axis.collections if isinstance(group, PathCollection)])
    assert np.allclose(points[:, 1], np.log1p(p)) and np.abs(points[:, 0] - np.log1p(count)).max() <= 0.06


def test_reliability_shows_observed_against_forecast_frequency():
    p, count = np.array([0.05, 0.05, 0.95, 0.95, 0.95, 0.95]), np.array([0, 1, 1, 2, 3, 0])
    left = charts.reliability({"diffusion": scores_of(p, count, np.zeros(6, int))}).axes[0]
    ((line, *_),) = left.containers
    assert np.allclose(line.get_xydata(), [[0.05, 0.5], [0.95, 0.75]])


def test_pit_histograms_are_flat_for_a_calibrated_forecast_and_left_out_for_a_number():
    rng = np.random.default_rng(0)
    count = rng.poisson(1.0, 2000)
    scores = {}
    for name, law in (("calibrated", poisson(1.0)), ("low", poisson(0.4))):
        values = {"fewer": law.cdf(count - 1)[:, None], "at_most": law.cdf(count)[:, None]}
        scores[name] = scores_of(rng.random(2000), count, np.zeros(2000, int))
        scores[name] = Scores(scores[name].cases, scores[name].values | values)
    number = {"fewer": (count > 1)[:, None] * 1.0, "at_most": (count >= 1)[:, None] * 1.0}
    scores["number"] = Scores(scores["low"].cases, scores["low"].values | number, Role.BASELINE)
    figure = charts.pit_histograms(scores)
    heights = {axis.get_title(): [bar.get_height() for bar in axis.containers[0]] for axis in figure.axes[:2]}
    assert set(heights) == {"calibrated", "low"} and len(figure.axes) == 2
    assert np.abs(np.subtract(heights["calibrated"], 1)).max() < 0.25 and heights["low"][-1] > 1.5


def test_decision_curves_show_models_beside_treating_all_and_none():
    count, p = np.array([0, 0, 1, 0, 2]), np.array([0.1, 0.2, 0.6, 0.3, 0.9])
    (axis,) = charts.decision_curves({"diffusion": scores_of(p, count, np.zeros(5, int))}).axes
    curves = {line.get_label(): line.get_xydata() for line in axis.lines}
    assert list(curves) == ["treat all", "treat none", "diffusion"]
    at_half = {name: xy[np.abs(xy[:, 0] - 0.5).argmin(), 1] for name, xy in curves.items()}
    assert at_half == pytest.approx({"treat all": (2 - 3) / 5, "treat none": 0, "diffusion": 2 / 5})


def table(rows):
    empty = dict.fromkeys(COLUMNS, 0.0) | {"arm": "all", "metric": "AUC", "role": "model"}
    return pd.DataFrame([empty | row for row in rows])


COLOUR = {"diffusion": "red", "oracle": "black", "population": "grey"}


def test_the_gap_is_drawn_for_models_and_baselines():
    rows = [
        {"forecaster": "diffusion", "gap_closed": 0.8, "gap_low": 0.6, "gap_high": 0.9},
        {"forecaster": "population", "gap_closed": 0.0, "role": "floor"},
        {"forecaster": "oracle", "gap_closed": 1.0, "role": "ceiling"},
    ]
    axis = charts.gap_closed({"activity": table(rows)}, COLOUR).axes[0]
    points = [line.get_xdata().tolist() for line in axis.lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert points == [[0.8]]


def test_the_line_is_where_a_metric_converges():
    sizes = {1: False, 2: True, 5: True}
    rows = [{"forecaster": "diffusion", "value": 0.9, "members": n, "converged": done} for n, done in sizes.items()]
    (axis,) = charts.convergence(table(rows), COLOUR).axes
    assert [line.get_xdata()[0] for line in axis.lines if line.get_linestyle() == ":"] == [2]
