import itertools
import math

import numpy as np
import pytest
import statsmodels.api as sm
from sklearn import metrics as reference

from bundle.metrics import (
    average_precision,
    balanced_accuracy,
    calibration_error,
    calibration_in_the_large,
    calibration_line,
    crps,
    f1,
    fair_crps,
    log_skill,
    net_benefit,
    precision,
    quantile,
    recall,
    roc_auc,
    weighted_mean,
)

N = 60


@pytest.fixture
def patients():
    """Scores with many ties, outcomes, and bootstrap draws as weights, the first of them everyone once."""
    rng = np.random.default_rng(0)
    score = rng.integers(0, 8, N) / 10
    truth = rng.random(N) < score
    weights = rng.multinomial(N, np.full(N, 1 / N), size=20)
    weights[0] = 1
    return score, truth, weights


def repeated(weights, *columns):
    """The patients of one draw, each as often as it was drawn."""
    return [np.repeat(column, weights) for column in columns]


@pytest.mark.parametrize(
    ("ours", "theirs"), [(roc_auc, reference.roc_auc_score), (average_precision, reference.average_precision_score)]
)
def test_ranking_scores_are_those_of_scikit_learn_in_every_draw(patients, ours, theirs):
    score, truth, weights = patients
    found = ours(score, weights * truth, weights * ~truth)
    expected = [theirs(*repeated(draw, truth, score)) for draw in weights]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (recall, reference.recall_score),
        (precision, reference.precision_score),
        (f1, reference.f1_score),
        (balanced_accuracy, reference.balanced_accuracy_score),
    ],
)
def test_presence_scores_are_those_of_scikit_learn_in_every_draw(patients, ours, theirs):
    score, truth, weights = patients
    found = ours(score >= 0.4, truth, weights)
    np.testing.assert_allclose(found, [theirs(*repeated(draw, truth, score >= 0.4)) for draw in weights], rtol=1e-12)


def test_auc_is_the_fraction_of_pairs_in_order_ties_counted_half():
    score, active = np.array([0.1, 0.4, 0.4, 0.8, 0.3]), np.array([0, 0, 1, 1, 1])
    pairs = [(a, b) for a in score[active == 1] for b in score[active == 0]]
    expected = sum(float(a > b) + 0.5 * float(a == b) for a, b in pairs) / len(pairs)
    assert roc_auc(score, active, 1 - active) == pytest.approx(expected)


def test_what_is_not_defined_is_nan():
    score, none, every = np.linspace(0, 1, 4), np.zeros(4), np.ones(4)
    assert math.isnan(roc_auc(score, every, none)) and math.isnan(roc_auc(score, none, every))
    assert math.isnan(average_precision(score, none, every)) and average_precision(score, every, none) == 1
    no, yes = none > 0, every > 0
    assert math.isnan(f1(no, no, every)) and f1(no, yes, every) == 0
    assert math.isnan(precision(no, yes, every)) and math.isnan(recall(yes, no, every))
    assert math.isnan(balanced_accuracy(yes, yes, every))
    assert math.isnan(weighted_mean(score, none)) and math.isnan(calibration_error(none, none, none))


def test_the_mean_leaves_out_patients_without_a_value():
    values, weights = np.array([1.0, np.nan, 4.0]), np.array([[1, 1, 1], [2, 5, 1], [0, 3, 0]])
    np.testing.assert_allclose(weighted_mean(values, weights), [2.5, 2, np.nan])


def test_bins_of_voxels_score_as_the_voxels_do():
    rng = np.random.default_rng(1)
    score = rng.integers(0, 11, 3000) / 10
    truth = rng.random(3000) < score**2
    bins = np.linspace(0, 1, 11)
    positive, negative = (np.array([np.isclose(score[kind], b).sum() for b in bins]) for kind in (truth, ~truth))
    assert roc_auc(bins, positive, negative) == pytest.approx(reference.roc_auc_score(truth, score))
    assert average_precision(bins, positive, negative) == pytest.approx(reference.average_precision_score(truth, score))


def test_calibration_error_weighs_the_gaps_by_how_many_fell_there():
    total, forecast, observed = np.array([10, 30]), np.array([1.0, 24.0]), np.array([3, 24])
    assert calibration_error(total, forecast, observed) == pytest.approx(10 / 40 * abs(0.3 - 0.1))


@pytest.mark.parametrize("draws", [[0, 2, 5], [1, 1], [4], [0, 0, 9], [3.3]])
@pytest.mark.parametrize("count", [0, 2, 7])
def test_crps_is_the_mean_distance_less_half_the_mean_spread(draws, count):
    """Gneiting & Raftery 2007, eq. 21: E|X - y| - E|X - X'| / 2."""
    x = np.array(draws, float)
    expected = np.abs(x - count).mean() - np.abs(x[:, None] - x).mean() / 2
    assert crps(x, np.full(len(x), 1 / len(x)), count) == pytest.approx(expected)
    values, times = np.unique(x, return_counts=True)
    assert crps(values, times / len(x), count) == pytest.approx(expected)


def test_quantiles_of_a_count():
    counts, probabilities = np.array([3.0, 0, 1, 2]), np.array([0.1, 0.5, 0.2, 0.2])
    found = [quantile(counts, probabilities, level) for level in (0.025, 0.5, 0.6, 0.9, 0.95, 1)]
    assert found == [0, 0, 1, 2, 3, 3]


def test_log_skill_of_constant_and_perfect_maps():
    fraction = np.array([0.0, 0.02, 0.04])
    constant = -(fraction * math.log(0.02) + (1 - fraction) * math.log(0.98))
    assert log_skill(constant, fraction) == pytest.approx(0, abs=1e-6)
    assert log_skill(np.zeros(3), fraction) == 1
    worse = -(fraction * math.log(0.2) + (1 - fraction) * math.log(0.8))
    assert log_skill(worse, fraction) < 0
    assert math.isnan(log_skill(constant, np.zeros(3)))


def test_fair_crps_by_brute_force_and_of_one_member():
    members = np.array([0, 4, 1, 1, 7])
    pairs = np.abs(members[:, None] - members).sum()
    assert fair_crps(members, 2) == pytest.approx(np.abs(members - 2).mean() - pairs / (2 * 5 * 4))
    assert math.isnan(fair_crps(np.array([3]), 2))


@pytest.mark.parametrize("size", [2, 3])
def test_fair_crps_of_drawn_members_is_that_of_their_distribution_on_average(size):
    """Exactly: the mean over all ensembles that can be drawn, each with its probability."""
    counts, p = np.array([0, 1, 5]), np.array([0.5, 0.3, 0.2])
    ensembles = list(itertools.product(range(3), repeat=size))
    found = sum(p[list(e)].prod() * fair_crps(counts[list(e)], 2) for e in ensembles)
    assert found == pytest.approx(crps(counts, p, 2))


def test_calibration_line_is_the_logistic_regression_in_every_draw(patients):
    _, _, weights = patients
    rng = np.random.default_rng(3)
    log_odds = rng.normal(0, 2, N)
    truth = rng.random(N) < 1 / (1 + np.exp(-0.5 * log_odds - 0.3))
    intercept, slope = calibration_line(log_odds, weights * truth, weights * ~truth)
    for b, draw in enumerate(weights[:5]):
        x, y = repeated(draw, log_odds, truth)
        exact = sm.GLM(y.astype(float), sm.add_constant(x), family=sm.families.Binomial()).fit().params
        np.testing.assert_allclose([intercept[b], slope[b]], exact, rtol=1e-5)
    found = calibration_in_the_large(log_odds, weights * truth, weights * ~truth)
    exact = sm.GLM(truth.astype(float), np.ones(N), family=sm.families.Binomial(), offset=log_odds).fit().params
    assert found[0] == pytest.approx(exact[0])


@pytest.mark.parametrize(
    ("log_odds", "truth"),
    [([1, 1, 1, 1], [0, 1, 0, 1]), ([-2, -1, 1, 2], [0, 0, 1, 1]), ([-1, 0, 1, 2], [0, 0, 0, 0])],
)
def test_a_calibration_line_without_a_maximum_is_not_defined(log_odds, truth):
    truth = np.array(truth, bool)
    intercept, slope = calibration_line(np.array(log_odds, float), 1.0 * truth[None], 1.0 * ~truth[None])
    assert np.isnan(intercept[0]) and np.isnan(slope[0])


def test_net_benefit_of_known_decisions():
    """Two true and one false positive of five at odds 1 : 4; all of two positives; nobody."""
    truth = np.array([1, 1, 0, 0, 0], bool)
    for predicted, expected in (([1, 1, 1, 0, 0], (2 - 0.25) / 5), ([1, 1, 1, 1, 1], (2 - 0.75) / 5), ([0] * 5, 0)):
        assert net_benefit(np.array(predicted, bool), truth, np.ones((1, 5)), 0.2)[0] == pytest.approx(expected)
