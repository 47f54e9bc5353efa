"""Rows, gaps and differences that are known."""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from bundle.evaluation.metrics import TABLES, metric_named
from bundle.evaluation.scoring import ENSEMBLE_SIZES, Scores
from bundle.evaluation.tables import COLUMNS, all_tables, gap_closed, long_table, members_table
from bundle.forecasters.base import Role

N = 60
AUC, LOG_COUNT = metric_named("AUC"), metric_named("mean squared error of log(1 + count)")


def test_rows_gaps_and_differences(make_scores):
    scores = {
        "frequency_map": make_scores(1, skill=0.1, role=Role.FLOOR),
        "regression": make_scores(2, skill=0.4, role=Role.BASELINE),
        "diffusion": make_scores(3, skill=0.6),
        "oracle": make_scores(4, role=Role.CEILING),
        "truth": make_scores(5, role=Role.OUTCOME),
    }
    table = long_table([AUC, LOG_COUNT], scores, draws=100)
    assert tuple(table.columns) == COLUMNS
    everyone = table[(table.arm == "all") & (table.metric == "AUC")].set_index("forecaster")
    floor, ceiling = everyone.value["frequency_map"], everyone.value["oracle"]
    expected = (everyone.value["diffusion"] - floor) / (ceiling - floor)
    assert everyone.gap_closed["diffusion"] == pytest.approx(expected)
    assert (everyone.gap_closed["frequency_map"], everyone.gap_closed["oracle"]) == (0, 1)
    assert everyone.gap_low["diffusion"] < everyone.gap_closed["diffusion"] < everyone.gap_high["diffusion"]
    best = everyone.value["regression"]
    expected = (everyone.value["diffusion"] - best) / (ceiling - best)
    assert everyone.gap_from_best["diffusion"] == pytest.approx(expected)
    assert everyone.gap_from_best_low["diffusion"] < expected < everyone.gap_from_best_high["diffusion"]
    difference = everyone.loc["diffusion - regression"]
    assert difference.value == pytest.approx(everyone.value["diffusion"] - everyone.value["regression"])
    assert difference.ci_low < difference.value < difference.ci_high
    compared = {"diffusion - regression": "minus best baseline", "diffusion - oracle": "minus ceiling"}
    assert everyone.role.to_dict() == {name: s.role.value for name, s in scores.items()} | compared
    arms = table[(table.metric == "AUC") & (table.forecaster == "diffusion")].set_index("arm").n
    assert arms["all"] == N == arms.drop("all").sum() and len(arms) == 4


def test_models_are_also_compared_with_the_best_ensemble_and_their_coverage_with_it_alone(make_scores):
    exact = make_scores(4, role=Role.CEILING)
    exact = Scores(exact.cases, {name: x for name, x in exact.values.items() if name != "sizes"}, Role.CEILING)
    scores = {"m": make_scores(2), "oracle": exact, "oracle, 7 members": make_scores(3, role=Role.CEILING)}
    coverage = metric_named("coverage of the 80 % interval")
    table = long_table([AUC, coverage], scores, draws=20)
    everyone = table[(table.arm == "all") & table.role.str.startswith("minus")]
    assert list(zip(everyone.metric, everyone.forecaster, everyone.role)) == [
        ("AUC", "m - oracle", "minus ceiling"),
        ("AUC", "m - oracle, 7 members", "minus best ensemble"),
        (coverage.name, "m - oracle, 7 members", "minus best ensemble"),
    ]


def test_fewer_than_ten_positives_have_neither_interval_nor_gap(make_scores):
    roles = {"floor": Role.FLOOR, "model": Role.MODEL, "oracle": Role.CEILING}
    scores = {name: make_scores(n, skill=0.1 + 0.4 * n, role=role) for n, (name, role) in enumerate(roles.items())}
    count = scores["model"]["true_count"].copy()
    for enough, kept in ((True, 10), (False, 9)):
        few = np.where(np.cumsum(count > 0) <= kept, count, 0)
        changed = {n: Scores(s.cases, dict(s.values) | {"true_count": few}, s.role) for n, s in scores.items()}
        changed["oracle"].values["p_active"] = (few > 0)[:, None] * 1.0
        table = long_table([AUC], changed, draws=50)
        everyone = table[table.arm == "all"]
        assert (everyone.positives == kept).all() and everyone.value.notna().all()
        assert everyone.ci_low.notna().all() == everyone.gap_closed.notna().any() == enough


def test_draws_in_which_a_metric_is_not_defined_are_counted(make_scores):
    """An arm whose only patient without a lesion is left out of about a third of the draws."""
    s = make_scores()
    count = np.where(s["arm"] == 0, 1, s["true_count"])
    count[np.flatnonzero(s["arm"] == 0)[0]] = 0
    table = long_table([AUC], {"m": Scores(s.cases, dict(s.values) | {"true_count": count})}, draws=300)
    undefined = table.set_index("arm").undefined
    assert 80 < undefined["placebo"] < 140 and undefined["all"] == 0


def test_a_forecaster_of_any_name_is_treated_by_its_role(make_scores):
    scores = {
        "a": make_scores(1, skill=0.1, role=Role.FLOOR),
        "b": make_scores(2, skill=0.7, role=Role.BASELINE),
        "c": make_scores(3),
    }
    table = long_table([AUC], scores, draws=5)
    assert set(table.forecaster) == {"a", "b", "c", "c - b"}


@pytest.mark.parametrize(
    ("ceiling", "higher_is_better", "closed"),
    [
        ([3, 2.5, 3.5], True, 0.5),
        ([3, 0.9, 3.5], True, None),
        ([0.5, 0.4, 0.6], True, None),
        ([0, 0, 0.2], False, -1.0),
    ],
)
def test_a_gap_that_chance_could_make_is_not_reported(ceiling, higher_is_better, closed):
    """Draws are paired; the model lies at 2, the floor at 1."""
    found = gap_closed(np.full(3, 2.0), np.ones(3), np.array(ceiling, float), higher_is_better)
    if closed is None:
        assert np.isnan(found).all()
    else:
        assert found[0] == closed and found[1] <= found[2]


def test_without_floor_or_ceiling_and_for_metrics_without_one_there_is_no_gap(make_scores):
    scores = {"floor": make_scores(1, skill=0.1, role=Role.FLOOR), "model": make_scores(2)}
    oracle = {"oracle": make_scores(3, role=Role.CEILING)}
    assert long_table([AUC], scores, draws=50).gap_closed.isna().all()
    assert long_table([AUC], scores | oracle, draws=50).gap_closed.notna().any()
    assert long_table([metric_named("lesion F1")], scores | oracle, draws=50).gap_closed.isna().all()
    assert [m.name for table in TABLES.values() for m in table if not m.has_gap and "calibration" in m.name] == [
        "calibration error of P(active)",
        "calibration error of the heatmap",
        "calibration error of likely sites",
    ]


def test_paired_intervals_are_narrower_than_those_of_independent_draws(make_scores):
    one = make_scores(2, role=Role.BASELINE)
    alike = Scores(one.cases, dict(one.values) | {"log_count": one["log_count"] + 0.01})
    table = long_table([LOG_COUNT], {"regression": one, "diffusion": alike}, draws=200)
    widths = (table.ci_high - table.ci_low)[table.arm == "all"].values
    assert widths[2] < 0.1 * widths[:2].min()


def test_a_forecaster_without_a_score_has_no_row(scores):
    silent = Scores(scores.cases, dict(scores.values) | {"p_active": np.full((N, 1), np.nan)})
    assert "average_count" not in set(long_table([AUC], {"average_count": silent, "diffusion": scores}, 5).forecaster)


def test_smaller_ensembles_are_rows_of_their_own(scores):
    table = members_table({"diffusion": scores, "regression": Scores(scores.cases, {"arm": scores["arm"]})}, draws=10)
    assert sorted(table.members.unique()) == [1, 2, 7] and set(table.forecaster) == {"diffusion"}
    auc = table[(table.metric == "AUC") & (table.arm == "all")].set_index("members").value
    assert auc[7] == pytest.approx(sk.roc_auc_score(scores.active, scores["p_active of first members"][:, 2]))
    assert set(table.members) <= set(ENSEMBLE_SIZES)


@pytest.mark.parametrize(("shifts", "converged"), [((3, 0, 0), [False, True, True]), ((0, 3, 0), [False, False, True])])
def test_a_metric_has_converged_once_it_stays_near_its_last_value(scores, shifts, converged):
    """Ensembles of 1, 2 and 7 members, one of which is 3 off: what comes near and leaves again has not converged."""
    errors = np.stack([scores["log_count of first members"][:, 2] + shift for shift in shifts], axis=1)
    changed = Scores(scores.cases, dict(scores.values) | {"log_count of first members": errors})
    table = members_table({"diffusion": changed}, draws=50)
    rows = table[table.metric.str.startswith("mean squared error") & (table.arm == "all")]
    assert rows.members.tolist() == [1, 2, 7] and rows.converged.tolist() == converged


def test_decisions_are_compared_with_treating_all_and_none(scores):
    table = all_tables({"diffusion": scores}, draws=5)["decisions"]
    assert {"treat all", "treat none"} < set(table.forecaster)
    none = table[table.forecaster == "treat none"]
    assert (none.value == 0).all() and set(none.metric) == {f"net benefit at {t} %" for t in (10, 20, 30, 50)}


def test_all_tables_have_the_columns_and_hold_numbers(scores):
    tables = all_tables({"diffusion": scores}, draws=5)
    assert set(tables) == {*TABLES, "members"}
    assert all(tuple(table.columns)[: len(COLUMNS)] == COLUMNS for table in tables.values())
    assert pd.api.types.is_float_dtype(tables["activity"].value) and pd.api.types.is_integer_dtype(tables["activity"].n)
