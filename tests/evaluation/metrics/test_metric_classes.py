"""Every metric of the tables against scikit-learn or brute force, and the rules that all of them obey."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics as sk

from bundle.evaluation.metrics import TABLES, metric_named
from bundle.evaluation.metrics.calibration import heatmap_bins
from bundle.evaluation.scoring import NUMBERS, Scores
from bundle.forecasters.base import SCORED_REGIONS

N = 60
ONES = np.ones((1, N))
WHITE = SCORED_REGIONS[0]
ALL_METRICS = [metric for table in TABLES.values() for metric in table]


def computed(name, scores, weights=ONES):
    return metric_named(name).compute(scores, weights)


def changed(scores, **values):
    return Scores(scores.cases, dict(scores.values) | values)


def test_names_are_unique_and_every_metric_states_its_contract():
    assert len({metric.name for metric in ALL_METRICS}) == len(ALL_METRICS)
    for metric in ALL_METRICS:
        assert metric.__doc__ and metric.score and metric.higher_is_better in (True, False, None)


def test_ranking_metrics_agree_with_scikit_learn(scores):
    p, active = scores["p_active"][:, 0], scores.active
    assert computed("AUC", scores)[0] == pytest.approx(sk.roc_auc_score(active, p))
    assert computed("average precision", scores)[0] == pytest.approx(sk.average_precision_score(active, p))
    arms = [scores["arm"] == arm for arm in range(3)]
    pairs = [active[a].sum() * (~active[a]).sum() for a in arms]
    within = np.average([sk.roc_auc_score(active[a], p[a]) for a in arms], weights=pairs)
    assert computed("AUC within arms", scores)[0] == pytest.approx(within)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("balanced accuracy", sk.balanced_accuracy_score),
        ("precision", sk.precision_score),
        ("recall", sk.recall_score),
        ("F1", sk.f1_score),
    ],
)
def test_region_metrics_agree_with_scikit_learn(name, expected, scores):
    p, true = scores[f"presence of {WHITE}"][:, 0], scores[f"true presence of {WHITE}"] > 0
    assert computed(f"{name}, {WHITE}", scores)[0] == pytest.approx(expected(true, p >= 0.5))
    criterion = "balanced accuracy" if name == "balanced accuracy" else "F1"
    cut = replace(scores, cuts={f"{criterion}, {WHITE}": 0.3})
    assert computed(f"{name}, {WHITE}", cut)[0] == pytest.approx(expected(true, p >= 0.3))


def test_region_probabilities_are_scored_as_such(scores):
    p, true = scores[f"presence of {WHITE}"][:, 0], scores[f"true presence of {WHITE}"] > 0
    assert computed(f"Brier score, {WHITE}", scores)[0] == pytest.approx(sk.brier_score_loss(true, p))
    assert computed(f"AUC, {WHITE}", scores)[0] == pytest.approx(sk.roc_auc_score(true, p))


def test_patients_without_a_segmentation_are_left_out_of_regions(scores):
    truth, presence = scores[f"true presence of {WHITE}"].copy(), scores[f"presence of {WHITE}"].copy()
    truth[:9], presence[:9] = np.nan, np.nan
    fewer = changed(scores, **{f"true presence of {WHITE}": truth, f"presence of {WHITE}": presence})
    expected = sk.recall_score(truth[9:] > 0, presence[9:, 0] >= 0.5)
    assert computed(f"recall, {WHITE}", fewer)[0] == pytest.approx(expected)


def test_means_over_patients(scores):
    log_error = scores["log_count"][:, 0] - np.log1p(scores["true_count"])
    assert computed("mean squared error of log(1 + count)", scores)[0] == pytest.approx(np.mean(log_error**2))
    brier = sk.brier_score_loss(scores.active, scores["p_active"][:, 0])
    assert computed("Brier score of P(active)", scores)[0] == pytest.approx(brier)
    inside = (scores["low_80"][:, 0] <= scores["true_count"]) & (scores["true_count"] <= scores["high_80"][:, 0])
    assert computed("coverage of the 80 % interval", scores)[0] == pytest.approx(inside.mean())
    assert computed("coverage of the 95 % interval", scores)[0] == 1


def test_voxel_average_precision_is_that_of_all_voxels(scores):
    bins = np.arange(scores["voxels"].shape[1])
    total, lesions = scores["voxels"].sum(0), scores["lesion_voxels"].sum(0)
    truth = np.concatenate([[1] * b + [0] * (a - b) for a, b in zip(total, lesions)])
    expected = sk.average_precision_score(truth, np.repeat(bins, total))
    assert computed("voxel average precision (who x where)", scores)[0] == pytest.approx(expected)


def test_calibration_errors_by_brute_force(scores):
    p, active, error = scores["p_active"][:, 0], scores.active, 0.0
    for low in np.arange(10) / 10:
        of_bin = (p >= low) & ((p < low + 0.1) | (low == 0.9))
        error += abs(active[of_bin].sum() - p[of_bin].sum()) / N
    assert computed("calibration error of P(active)", scores)[0] == pytest.approx(error)
    total, forecast, observed = (x[0] for x in heatmap_bins(scores, ONES))
    assert total.shape == (21,) and total.sum() == scores["voxels"].sum() and total[0] == scores["voxels"][:, 0].sum()
    expected = np.abs(observed - forecast).sum() / total.sum()
    assert computed("calibration error of the heatmap", scores)[0] == pytest.approx(expected)


def test_log_scores_weight_voxels_lesions_or_patients_equally(scores):
    voxels, total, active = scores["outcome_voxels"], scores["log score of voxels"], scores["outcome_voxels"] > 0
    assert computed("log score per lesion voxel", scores)[0] == pytest.approx(total.sum() / voxels.sum())
    per_lesion = scores["log score of lesions"].sum() / scores["outcome_lesions"].sum()
    assert computed("log score per lesion", scores)[0] == pytest.approx(per_lesion)
    per_patient = (total[active] / voxels[active]).mean()
    assert computed("log score per active patient", scores)[0] == pytest.approx(per_patient)
    near = scores["lesions near sites"][:, 1].sum() / scores["outcome_lesions"].sum()
    assert computed("lesions within 10 mm of the first 3 sites", scores)[0] == pytest.approx(near)


def test_lesions_are_pooled_over_patients(scores):
    sensitivity = scores["lesions_found"].sum() / scores["lesions"].sum()
    precision = scores["marked_correctly"].sum() / scores["marked"].sum()
    assert computed("lesion sensitivity", scores)[0] == pytest.approx(sensitivity)
    f1 = 2 * sensitivity * precision / (sensitivity + precision)
    assert computed("lesion F1", scores)[0] == pytest.approx(f1)


@pytest.mark.parametrize("metric", ALL_METRICS, ids=lambda metric: metric.name)
def test_a_weight_of_two_is_a_repetition_and_a_weight_of_zero_an_absence(metric, scores):
    weights = np.random.default_rng(1).integers(0, 3, size=(1, N)).astype(float)
    index = np.repeat(np.arange(N), weights[0].astype(int))
    repeated = Scores(tuple(scores.cases[i] for i in index), {key: x[index] for key, x in scores.values.items()})
    expected = metric.compute(repeated, np.ones((1, len(index))))
    np.testing.assert_allclose(metric.compute(scores, weights), expected)


@pytest.mark.parametrize("metric", ALL_METRICS, ids=lambda metric: metric.name)
def test_the_draws_of_a_monte_carlo_forecaster_are_averaged(metric, make_scores):
    three, of_each, drawn = make_scores(draws=3), [], ("presence of", *NUMBERS)
    for draw in range(3):
        values = {
            key: x[:, draw : draw + 1] if key.startswith(drawn) and "first" not in key else x
            for key, x in three.values.items()
        }
        of_each.append(metric.compute(Scores(three.cases, values), ONES)[0])
    assert metric.compute(three, ONES)[0] == pytest.approx(np.mean(of_each))


@pytest.mark.parametrize(
    "name",
    ["AUC", "average precision", "AUC within arms", "lesion sensitivity", "voxel average precision (who x where)"]
    + [metric.name for metric in TABLES["where"]],
)
def test_without_active_patients_it_is_not_defined(name, scores):
    none = changed(
        scores,
        true_count=np.zeros(N, int),
        lesions=np.zeros(N, int),
        lesion_voxels=np.zeros_like(scores["lesion_voxels"]),
        outcome_voxels=np.zeros(N, int),
        outcome_lesions=np.zeros(N, int),
    )
    assert np.isnan(computed(name, none)).all()


def test_a_patient_without_a_forecast_makes_it_undefined_and_is_not_taken_as_a_no(scores):
    p = scores["p_active"].copy()
    p[3] = np.nan
    for name in ("AUC", "average precision", "Brier score of P(active)"):
        assert np.isnan(computed(name, changed(scores, p_active=p))).all()
    presence = scores[f"presence of {WHITE}"].copy()
    presence[3] = np.nan
    assert np.isnan(computed(f"recall, {WHITE}", changed(scores, **{f"presence of {WHITE}": presence}))).all()


def test_lesion_f1_is_zero_if_all_are_missed_and_not_defined_if_there_are_none(scores):
    none = {name: np.zeros(N, int) for name in ("lesions", "lesions_found", "marked", "marked_correctly")}
    assert np.isnan(computed("lesion F1", changed(scores, **none))[0])
    missed = none | {"lesions": np.ones(N, int)}
    assert computed("lesion F1", changed(scores, **missed))[0] == 0


def test_calibration_slope_and_intercept_of_a_calibrated_and_of_an_extreme_forecast():
    rng = np.random.default_rng(0)
    log_odds = rng.normal(-1, 1.5, 20000)
    active = rng.random(20000) < 1 / (1 + np.exp(-log_odds))
    for factor, shift in ((1, 0), (2, 0), (1, 1)):
        p = 1 / (1 + np.exp(-factor * log_odds - shift))
        values = {"arm": np.zeros(20000, int), "true_count": active.astype(int), "p_active": p[:, None]}
        scores, ones = Scores(tuple(map(str, range(20000))), values), np.ones((1, 20000))
        assert computed("calibration slope", scores, ones)[0] == pytest.approx(1 / factor, abs=0.05)
        if factor == 1:
            assert computed("calibration intercept", scores, ones)[0] == pytest.approx(-shift, abs=0.05)


def test_a_yes_or_no_has_no_calibration_slope(scores):
    certain = changed(scores, p_active=np.round(scores["p_active"]))
    assert np.isnan(computed("calibration slope", certain)).all()


def test_net_benefit_counts_treated_patients(scores):
    p, active = scores["p_active"][:, 0], scores.active
    expected = ((p >= 0.2) & active).sum() / N - ((p >= 0.2) & ~active).sum() / N / 4
    assert computed("net benefit at 20 %", scores)[0] == pytest.approx(expected)


def test_froc_is_read_where_the_curve_passes_so_many_false_sites(scores):
    """Two patients: three lesions found at sites of fraction 1, one at lower ones, with 1 and 3 false sites."""
    false, found = np.zeros((N, 60)), np.zeros((N, 60))
    found[0, 59], found[1, 40], false[0, 59], false[1, 40] = 3, 1, 2, 6
    lesions = np.zeros(N, int)
    lesions[:2] = 3
    known = changed(scores, **{"false sites": false, "lesions by site": found, "outcome_lesions": lesions})
    assert computed("lesions found at 1 false site a patient", known)[0] == pytest.approx(3 / 6)
    assert computed("lesions found at 2 false sites a patient", known)[0] == pytest.approx((3 + 1 / 3) / 6)
    assert computed("lesions found at 4 false sites a patient", known)[0] == pytest.approx(4 / 6)


def test_likely_sites_are_calibrated_where_hits_are_as_many_as_was_said(scores):
    sites, p, hits = scores["sites"].sum(0), scores["site probability"].sum(0), scores["sites with a lesion"].sum(0)
    error = np.abs(p - hits).sum() / sites.sum()
    assert computed("calibration error of likely sites", scores)[0] == pytest.approx(error)
    assert computed("forecast / observed hits of likely sites", scores)[0] == pytest.approx(p.sum() / hits.sum())
