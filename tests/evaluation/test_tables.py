"""Every metric of the tables against scikit-learn or brute force, with intervals, gaps and differences that are known."""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from bundle import metrics
from bundle.evaluation.scoring import BIN_EDGES, ENSEMBLE_SIZES, Scores
from bundle.evaluation.tables import (
    COLUMNS,
    TABLES,
    Metric,
    Recalibration,
    all_tables,
    bootstrap_weights,
    gap_closed,
    heatmap_bins,
    long_table,
    members_table,
)
from bundle.forecasters.base import SCORED_REGIONS

N, K = 60, 7
WHITE = SCORED_REGIONS[0]


def made_scores(seed=0, guesses=1, skill=1.0):
    """Scores of a forecaster of `skill` on the same 60 patients whatever the seed."""
    truth = np.random.default_rng(99)
    arm = truth.integers(3, size=N)
    count = truth.poisson(truth.gamma(0.7, 2, size=N))
    present = (count > 0) & (truth.random(N) < 0.8)
    lesion_voxels = np.zeros((N, len(BIN_EDGES) - 1))
    rng = np.random.default_rng(seed)
    p = np.clip(skill * (count > 0)[:, None] * 0.5 + 0.4 * rng.random((N, guesses)), 0, 1)
    voxels = rng.integers(1, 50, size=lesion_voxels.shape)
    lesion_voxels = rng.binomial(voxels, np.clip(skill * np.linspace(0, 0.4, voxels.shape[1]), 0, 1))
    member_counts = rng.poisson(count[:, None] + 0.3, size=(N, K))
    values = {
        "arm": arm, "true_count": count, "p_active": p, "log_count": np.log1p(count)[:, None] + rng.normal(size=(N, guesses)),
        "count": count[:, None] + rng.random((N, guesses)), "crps": rng.random((N, guesses)),
        "low_80": count[:, None] - rng.integers(0, 3, (N, guesses)) + 1.0, "high_80": count[:, None] + np.ones((N, guesses)),
        "low_95": np.zeros((N, guesses)), "high_95": np.full((N, guesses), 1e3),
        "brier": rng.random(N), "voxels": voxels, "forecast_voxels": voxels * 0.1, "lesion_voxels": lesion_voxels,
        "lesions": rng.integers(0, 5, N), "marked": rng.integers(0, 5, N), "member_counts": member_counts,
        "sizes": np.tile([1, 2, 7], (N, 1)),
    }  # fmt: skip
    values["lesions_found"] = rng.binomial(values["lesions"], 0.5)
    values["marked_rightly"] = rng.binomial(values["marked"], 0.5)
    for region in SCORED_REGIONS:
        values[f"presence of {region}"] = np.clip(present[:, None] * 0.4 + 0.5 * rng.random((N, guesses)), 0, 1)
        values[f"true presence of {region}"] = present.astype(float)
    for score in ("p_active", "log_count", "crps", "brier"):
        values[f"{score} of first"] = rng.random((N, 3))
    return Scores(tuple(f"sub-{n}" for n in range(N)), values)


def metric(name):
    return next(m for table in TABLES.values() for m in table if m.name == name)


def measured(name, scores, weights=None):
    weights = np.ones((1, N)) if weights is None else weights
    return metric(name).measure(scores, weights)


@pytest.fixture(scope="module")
def scores():
    return made_scores()


def test_ranks_agree_with_scikit_learn(scores):
    p, active = scores["p_active"][:, 0], scores.active
    assert measured("AUC", scores)[0] == pytest.approx(sk.roc_auc_score(active, p))
    assert measured("average precision", scores)[0] == pytest.approx(sk.average_precision_score(active, p))


def test_the_auc_within_arms_compares_only_patients_of_one_arm(scores):
    p, right, pairs = scores["p_active"][:, 0], 0.0, 0
    for i in np.flatnonzero(scores.active):
        for j in np.flatnonzero(~scores.active & (scores["arm"] == scores["arm"][i])):
            right, pairs = right + (p[i] > p[j]) + 0.5 * (p[i] == p[j]), pairs + 1
    assert measured("AUC within arms", scores)[0] == pytest.approx(right / pairs)


def test_regions_agree_with_scikit_learn(scores):
    said, true = scores[f"presence of {WHITE}"][:, 0] >= 0.5, scores[f"true presence of {WHITE}"] > 0
    for name, of in (
        ("balanced accuracy", sk.balanced_accuracy_score), ("precision", sk.precision_score),
        ("recall", sk.recall_score), ("F1", sk.f1_score),
    ):  # fmt: skip
        assert measured(f"{name}, {WHITE}", scores)[0] == pytest.approx(of(true, said)), name


def test_means_over_patients(scores):
    log_error = scores["log_count"][:, 0] - np.log1p(scores["true_count"])
    assert measured("mean squared error of log(1 + count)", scores)[0] == pytest.approx(np.mean(log_error**2))
    brier = sk.brier_score_loss(scores.active, scores["p_active"][:, 0])
    assert measured("Brier score of P(active)", scores)[0] == pytest.approx(brier)
    inside = (scores["low_80"][:, 0] <= scores["true_count"]) & (scores["true_count"] <= scores["high_80"][:, 0])
    assert measured("coverage of the 80 % interval", scores)[0] == pytest.approx(inside.mean())
    assert measured("coverage of the 95 % interval", scores)[0] == 1


def test_voxel_average_precision_is_that_of_all_voxels(scores):
    bins = np.arange(scores["voxels"].shape[1])
    total, lesions = scores["voxels"].sum(0), scores["lesion_voxels"].sum(0)
    every = np.repeat(bins, total), np.concatenate([[1] * b + [0] * (a - b) for a, b in zip(total, lesions)])
    assert measured("voxel average precision", scores)[0] == pytest.approx(sk.average_precision_score(every[1], every[0]))


def test_calibration_errors_by_brute_force(scores):
    p, active, error = scores["p_active"][:, 0], scores.active, 0.0
    for low in np.arange(10) / 10:
        of_bin = (p >= low) & ((p < low + 0.1) | (low == 0.9))
        error += abs(active[of_bin].sum() - p[of_bin].sum()) / N
    assert measured("calibration error of P(active)", scores)[0] == pytest.approx(error)
    total, said, came = (x[0] for x in heatmap_bins(scores, np.ones((1, N))))
    assert total.shape == (21,) and total.sum() == scores["voxels"].sum() and total[0] == scores["voxels"][:, 0].sum()
    assert measured("calibration error of the heatmap", scores)[0] == pytest.approx(np.abs(came - said).sum() / total.sum())


def test_lesions_are_pooled_over_patients(scores):
    sensitivity = scores["lesions_found"].sum() / scores["lesions"].sum()
    precision = scores["marked_rightly"].sum() / scores["marked"].sum()
    assert measured("lesion sensitivity", scores)[0] == pytest.approx(sensitivity)
    assert measured("lesion F1", scores)[0] == pytest.approx(2 * sensitivity * precision / (sensitivity + precision))


@pytest.mark.parametrize("name", [m.name for table in TABLES.values() for m in table])
def test_a_weight_is_a_repetition_and_a_weight_of_nothing_an_absence(name, scores):
    weights = np.random.default_rng(1).integers(0, 3, size=(1, N)).astype(float)
    again = np.repeat(np.arange(N), weights[0].astype(int))
    repeated = Scores(tuple(scores.cases[i] for i in again), {key: x[again] for key, x in scores.values.items()})
    expected = metric(name).measure(repeated, np.ones((1, len(again))))
    np.testing.assert_allclose(measured(name, scores, weights), expected)


@pytest.mark.parametrize("name", [m.name for table in TABLES.values() for m in table])
def test_several_guesses_are_averaged(name):
    three = made_scores(guesses=3)
    of_each = []
    for guess in range(3):
        values = {key: x[:, guess : guess + 1] if x.shape[1:] == (3,) else x for key, x in three.values.items()}
        of_each.append(metric(name).measure(Scores(three.cases, values), np.ones((1, N)))[0])
    assert metric(name).measure(three, np.ones((1, N)))[0] == pytest.approx(np.mean(of_each))


@pytest.mark.parametrize("name", ["AUC", "average precision", "AUC within arms", "lesion sensitivity", "voxel average precision"])
def test_without_an_active_patient_it_is_not_defined(name, scores):
    values = dict(scores.values) | {"true_count": np.zeros(N, int), "lesions": np.zeros(N, int)}
    values["lesion_voxels"] = np.zeros_like(scores["lesion_voxels"])
    table = long_table([metric(name)], {"diffusion": Scores(scores.cases, values)}, draws=20)
    assert table.value.isna().all() and table.ci_low.isna().all()


def test_when_nothing_is_marked_and_nothing_there_lesion_f1_is_not_defined_and_when_missed_it_is_zero(scores):
    none = {name: np.zeros(N, int) for name in ("lesions", "lesions_found", "marked", "marked_rightly")}
    assert np.isnan(measured("lesion F1", Scores(scores.cases, dict(scores.values) | none))[0])
    missed = none | {"lesions": np.ones(N, int)}
    assert measured("lesion F1", Scores(scores.cases, dict(scores.values) | missed))[0] == 0


def test_bootstrap_draws_keep_the_size_of_each_arm():
    arms = np.repeat([0, 1, 4], [5, 1, 30])
    weights = bootstrap_weights(arms, draws=50)
    assert weights.shape == (51, 36) and (weights[0] == 1).all() and (weights[1:, 5] == 1).all()
    for arm, size in ((0, 5), (4, 30)):
        assert (weights[:, arms == arm].sum(1) == size).all()
    assert len(np.unique(weights[1:], axis=0)) > 40


def test_the_interval_of_a_mean_is_the_one_of_the_textbook():
    values = np.random.default_rng(0).normal(size=N)
    s = Scores(tuple(map(str, range(N))), {"arm": np.zeros(N, int), "x": values})
    mean = Metric("mean", "x", lambda s, w: metrics.weighted_mean(s["x"], w), by_arm=False)
    (row,) = long_table([mean], {"diffusion": s}, draws=4000).itertuples()
    half = 1.96 * values.std() / np.sqrt(N)
    assert (row.ci_low, row.ci_high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)


def test_rows_gaps_and_differences():
    scores = {"population": made_scores(1, skill=0.1, guesses=4), "regression": made_scores(2, skill=0.5),
              "diffusion": made_scores(3, skill=0.8), "oracle": made_scores(4), "truth": made_scores(5)}  # fmt: skip
    table = long_table([metric("AUC"), metric("mean squared error of log(1 + count)")], scores, draws=100)
    assert tuple(table.columns) == COLUMNS
    everyone = table[(table.arm == "all") & (table.metric == "AUC")].set_index("forecaster")
    floor, ceiling = everyone.value["population"], everyone.value["oracle"]
    assert everyone.gap_closed["diffusion"] == pytest.approx((everyone.value["diffusion"] - floor) / (ceiling - floor))
    assert (everyone.gap_closed["population"], everyone.gap_closed["oracle"]) == (0, 1)
    difference = everyone.loc["diffusion - regression"]
    assert difference.value == pytest.approx(everyone.value["diffusion"] - everyone.value["regression"])
    assert difference.ci_low < difference.value < difference.ci_high
    assert set(everyone.index) == {*scores, "diffusion - regression"}
    arms = table[(table.metric == "AUC") & (table.forecaster == "diffusion")].set_index("arm").n
    assert arms["all"] == N == arms.drop("all").sum() and len(arms) == 4


@pytest.mark.parametrize(
    ("ceiling", "higher_is_better", "closed"),
    [([3, 2.5, 3.5], True, 0.5), ([3, 0.9, 3.5], True, None), ([0.5, 0.4, 0.6], True, None), ([0, 0, 0.2], False, -1.0)],
)
def test_a_gap_that_chance_could_make_is_none(ceiling, higher_is_better, closed):
    """Draws are paired; the model lies at 2, the floor at 1."""
    measured = {"population": np.ones(3), "diffusion": np.full(3, 2.0), "oracle": np.array(ceiling, float)}
    told = gap_closed(measured, higher_is_better)
    assert np.isnan(told["diffusion"]) if closed is None else told == {"population": 0, "oracle": 1, "diffusion": closed}
    assert np.isnan(list(gap_closed({"diffusion": np.ones(3)}, True).values())).all()


def test_where_the_floor_says_nothing_of_voxels_the_frequency_map_takes_its_place():
    voxels = {name: made_scores(seed, skill=skill) for seed, (name, skill) in enumerate(
        [("frequency_map", 0.2), ("diffusion", 0.6), ("oracle", 1.0)], start=1)}  # fmt: skip
    silent = made_scores(7, skill=0.1)
    silent = Scores(silent.cases, {name: silent[name] for name in silent.values if name != "voxels"})
    table = long_table([metric("voxel average precision"), metric("AUC")], {"population": silent, **voxels}, draws=5)
    rows = table[table.arm == "all"].set_index(["metric", "forecaster"])
    of_voxels, of_activity = rows.loc["voxel average precision"], rows.loc["AUC"]
    assert "population" not in of_voxels.index and of_voxels.gap_closed["frequency_map"] == 0
    floor, ceiling = of_voxels.value["frequency_map"], of_voxels.value["oracle"]
    assert of_voxels.gap_closed["diffusion"] == pytest.approx((of_voxels.value["diffusion"] - floor) / (ceiling - floor))
    assert of_activity.gap_closed["population"] == 0 != of_activity.gap_closed["frequency_map"]


def test_paired_intervals_are_narrower_than_those_of_independent_draws():
    one = made_scores(2)
    alike = Scores(one.cases, dict(one.values) | {"log_count": one["log_count"] + 0.01})
    table = long_table([metric("mean squared error of log(1 + count)")], {"regression": one, "diffusion": alike}, draws=200)
    widths = (table.ci_high - table.ci_low)[table.arm == "all"].values
    assert widths[2] < 0.1 * widths[:2].min()


def test_a_forecaster_that_says_nothing_of_a_score_has_no_row(scores):
    silent = Scores(scores.cases, dict(scores.values) | {"p_active": np.full((N, 1), np.nan)})
    assert "average_count" not in set(long_table([metric("AUC")], {"average_count": silent, "diffusion": scores}, 5).forecaster)


def test_smaller_ensembles_are_rows_of_their_own(scores):
    table = members_table({"diffusion": scores, "regression": Scores(scores.cases, {"arm": scores["arm"]})}, draws=10)
    assert sorted(table.members.unique()) == [1, 2, 7] and set(table.forecaster) == {"diffusion"}
    auc = table[(table.metric == "AUC") & (table.arm == "all")].set_index("members").value
    assert auc[7] == pytest.approx(sk.roc_auc_score(scores.active, scores["p_active of first"][:, 2]))
    assert set(table.members) <= set(ENSEMBLE_SIZES)


def test_a_figure_has_settled_once_it_stays_near_its_last_value(scores):
    """Ensembles of 1, 2 and 7 members, one of which is 3 off: what came near and went away again has not settled."""
    errors = np.stack([scores["log_count of first"][:, 2] + shift for shift in (3, 0, 0)], axis=1)
    table = members_table({"diffusion": Scores(scores.cases, dict(scores.values) | {"log_count of first": errors})}, draws=50)
    rows = table[table.metric.str.startswith("mean squared error") & (table.arm == "all")]
    assert rows.members.tolist() == [1, 2, 7] and rows.settled.tolist() == [False, True, True]
    there_and_back = np.stack([errors[:, 1], errors[:, 0], errors[:, 2]], axis=1)
    table = members_table({"diffusion": Scores(scores.cases, dict(scores.values) | {"log_count of first": there_and_back})}, draws=50)
    rows = table[table.metric.str.startswith("mean squared error") & (table.arm == "all")]
    assert rows.settled.tolist() == [False, False, True]


def test_all_tables_have_the_columns(scores):
    tables = all_tables({"diffusion": scores}, draws=5)
    assert set(tables) == {*TABLES, "members"}
    assert all(tuple(table.columns)[: len(COLUMNS)] == COLUMNS for table in tables.values())


def test_recalibration_takes_a_known_distortion_back():
    """Members that are active twice as often in odds as patients are come back to the patients' share."""
    rng = np.random.default_rng(0)
    true = rng.beta(3, 4, size=4000)
    active = rng.random(4000) < true
    said = 4 * true / (1 + 3 * true)  # odds times four
    counts = (rng.random((4000, 100)) < said[:, None]).astype(int)
    values = {"arm": np.zeros(4000, int), "true_count": active.astype(int), "member_counts": counts,
              "p_active": counts.mean(1, keepdims=True)}  # fmt: skip
    s = Scores(tuple(map(str, range(4000))), values)
    correct = Recalibration(s)
    assert correct.intercept == pytest.approx(-np.log(4), abs=0.15) and correct.slope == pytest.approx(1, abs=0.12)
    after = correct(s)
    assert "member_counts" not in after
    error = metric("calibration error of P(active)").measure
    ones = np.ones((1, 4000))
    assert error(after, ones)[0] < 0.03 < 0.2 < error(s, ones)[0]
    np.testing.assert_allclose(metric("AUC").measure(after, ones), metric("AUC").measure(s, ones), atol=1e-9)


def test_recalibration_needs_both_kinds(scores):
    none = Scores(scores.cases, dict(scores.values) | {"true_count": np.zeros(N, int)})
    with pytest.raises(ValueError, match="active and inactive"):
        Recalibration(none)


def test_tables_hold_numbers_only(scores):
    table = all_tables({"diffusion": scores}, draws=5)["activity"]
    assert pd.api.types.is_float_dtype(table.value) and pd.api.types.is_integer_dtype(table.n)
