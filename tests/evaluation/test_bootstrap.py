import numpy as np
import pytest

from bundle.evaluation.bootstrap import bootstrap_weights, interval, undefined
from bundle.metrics import weighted_mean


def test_draws_keep_the_size_of_each_arm():
    arms = np.repeat([0, 1, 4], [5, 1, 30])
    weights = bootstrap_weights(arms, draws=50)
    assert weights.shape == (51, 36) and (weights[0] == 1).all() and (weights[1:, 5] == 1).all()
    for arm, size in ((0, 5), (4, 30)):
        assert (weights[:, arms == arm].sum(1) == size).all()
    assert len(np.unique(weights[1:], axis=0)) > 40


def test_the_interval_of_a_mean_is_that_of_the_textbook():
    values = np.random.default_rng(0).normal(size=60)
    replicates = weighted_mean(values, bootstrap_weights(np.zeros(60, int), draws=4000))
    half = 1.96 * values.std() / np.sqrt(60)
    assert interval(replicates) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)


def test_undefined_draws_are_left_out_of_the_interval():
    assert interval(np.array([9.0, 1, np.nan, 1])) == (1, 1)
    assert np.isnan(interval(np.array([9.0, np.nan]))).all()


def test_draws_without_a_value_are_counted():
    assert undefined(np.array([np.nan, 1.0, np.nan, 2.0, np.inf])) == 2
