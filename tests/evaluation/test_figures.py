"""What the figures of an evaluation show, read back from the drawn artists."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from sklearn.metrics import roc_auc_score

from bundle.arms import ARMS
from bundle.evaluation import figures
from bundle.evaluation.scoring import Scores
from bundle.evaluation.tables import COLUMNS
from bundle.forecasters.base import Forecast

SHAPE = (20, 24, 6)  # runs to the patient's right, anterior, superior
RIGHT_FRONT = (15, 18)


@pytest.fixture
def brain():
    brain = np.zeros(SHAPE, bool)
    brain[2:18, 2:22] = True
    return brain


@pytest.fixture
def flair():
    return np.random.default_rng(0).uniform(-1, 1, SHAPE)


def mask_at(*voxels):
    mask = np.zeros(SHAPE, bool)
    for voxel in voxels:
        mask[voxel] = True
    return mask


def drawn(axis):
    """Row, column and value of the voxels of the picture on top, row 0 being at its upper edge."""
    picture = axis.images[-1].get_array()
    rows, columns = np.nonzero(~np.ma.getmaskarray(picture))
    return list(zip(rows.tolist(), columns.tolist(), np.ma.getdata(picture)[rows, columns].tolist()))


def test_members_and_outcome_are_shown_as_radiologists_look(flair, brain):
    members = np.stack([mask_at((*RIGHT_FRONT, level)) for level in (1, 2, 3, 4)])
    figure = figures.members_beside_outcome(flair, brain, members, mask_at((*RIGHT_FRONT, 1), (*RIGHT_FRONT, 3), (*RIGHT_FRONT, 5)))
    axes = np.reshape(figure.axes, (3, 4))
    assert [axis.get_title().split(":")[0] for axis in axes[0]] == ["member 1", "member 2", "member 3", "outcome"]
    assert [len(drawn(axis)) for axis in axes[:, 3]] == [1, 1, 1]  # the slices of the outcome, from below
    assert [[len(drawn(axis)) for axis in row[:3]] for row in axes] == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    ((row, column, _),) = drawn(axes[0, 3])
    rows, columns = axes[0, 3].images[-1].get_array().shape
    assert row < rows / 2 and column < columns / 2  # anterior is up, the patient's right on the left


def test_the_heatmap_leaves_out_what_is_below_one_in_a_thousand(flair, brain):
    heatmap = np.zeros(SHAPE)
    heatmap[5, 5, 2], heatmap[6, 5, 2], heatmap[7, 5, 2] = 0.0009, 0.001, 0.5
    figure = figures.heatmaps_and_outcome(flair, brain, {"one": heatmap, "none": 0 * heatmap}, mask_at((7, 5, 2)))
    of_level = [axis for axis in figure.axes[:3] if drawn(axis)]
    assert [sorted(value for *_, value in drawn(axis)) for axis in of_level] == [[0.001, 0.5]]
    assert len(of_level[0].collections) == 1  # the outline of what came


def test_each_arm_says_its_own_numbers(flair, brain):
    heatmap = mask_at((5, 5, 2)) * 0.3
    forecasts = [Forecast(n / 10, np.array([n, n + 1]), np.array([0.5, 0.5]), heatmap=heatmap) for n in range(6)]
    figure = figures.six_arms(flair, brain, forecasts)
    for n, (axis, arm) in enumerate(zip(figure.axes, ARMS)):
        assert axis.get_title() == f"{arm.replace('_', ' ')}\nP(active) {n / 10:.2f}\n{n + 0.5:.1f} lesions expected"


def scores_of(p, count, arm):
    values = {"p_active": p[:, None], "true_count": count, "arm": arm, "log_count": np.log1p(p)[:, None]}
    return Scores(tuple(map(str, range(len(p)))), values)


def test_curves_are_those_of_the_arm():
    rng = np.random.default_rng(1)
    arm, count, p = rng.integers(0, 3, 90), rng.poisson(0.7, 90), rng.random(90)
    count[arm == 2] = 0  # nobody active: no curve
    figure = figures.roc_and_pr({"diffusion": scores_of(p, count, arm)})
    for axis, of_arm in zip(figure.axes[:3], (arm >= 0, arm == 0, arm == 1)):
        curve = axis.lines[-1]
        area = np.trapezoid(curve.get_ydata(), curve.get_xdata())
        assert area == pytest.approx(roc_auc_score(count[of_arm] > 0, p[of_arm]))
    assert len(figure.axes[3].lines) == 1


def test_every_patient_is_a_point_at_count_and_forecast():
    count, arm, p = np.array([0, 3, 8]), np.array([0, 0, 1]), np.array([0.2, 0.4, 0.9])
    (axis,) = figures.count_scatter({"diffusion": scores_of(p, count, arm)}).axes
    points = np.concatenate([group.get_offsets() for group in axis.collections if isinstance(group, PathCollection)])
    assert np.allclose(points[:, 1], np.log1p(p)) and np.abs(points[:, 0] - np.log1p(count)).max() <= 0.06


def test_reliability_shows_what_came_of_what_was_said():
    p, count = np.array([0.05, 0.05, 0.95, 0.95, 0.95, 0.95]), np.array([0, 1, 1, 2, 3, 0])
    left = figures.reliability({"diffusion": scores_of(p, count, np.zeros(6, int))}).axes[0]
    ((line, *_),) = left.containers
    assert np.allclose(line.get_xydata(), [[0.05, 0.5], [0.95, 0.75]])


def table(**columns):
    return pd.DataFrame([{**dict.fromkeys(COLUMNS, 0.0), "arm": "all", "metric": "AUC"} | row for row in columns["rows"]])


def test_the_gap_is_drawn_where_it_is():
    rows = [{"forecaster": "diffusion", "gap_closed": 0.8}, {"forecaster": "oracle", "gap_closed": 1.0}]
    axis = figures.gap_closed({"activity": table(rows=rows)}).axes[0]
    assert [line.get_xdata().tolist() for line in axis.lines if line.get_marker() == "o" and len(line.get_xdata())] == [[0.8]]


def test_the_line_is_where_a_figure_settles():
    sizes = {1: False, 2: True, 5: True}
    rows = [{"forecaster": "diffusion", "value": 0.9, "members": n, "settled": settled} for n, settled in sizes.items()]
    (axis,) = figures.convergence(table(rows=rows)).axes
    assert [line.get_xdata()[0] for line in axis.lines if line.get_linestyle() == ":"] == [2]
