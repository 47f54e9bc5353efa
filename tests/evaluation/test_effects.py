import numpy as np
import pytest

from bundle.arms import ARMS
from bundle.evaluation.effects import effects_table, targeted

PLACEBO, MILD, HIGH = ARMS.index("placebo"), ARMS.index("interferon_beta_1a"), ARMS.index("ocrelizumab")
RNG = np.random.default_rng(0)
TRUE = np.sort(RNG.poisson(3, size=(40, 6)), axis=1)[:, ::-1].astype(float)
GIVEN = np.arange(40) % 6


def value(table, metric, arm, name):
    (row,) = table[(table.metric == metric) & (table.arm == arm) & (table.forecaster == name)].itertuples()
    return row


@pytest.fixture(scope="module")
def table():
    off_by_one = TRUE + np.eye(6)[PLACEBO]  # one lesion too many under placebo, everyone
    population = np.tile(TRUE.mean(axis=0), (40, 1))
    return effects_table({"off": off_by_one, "population": population, "oracle": TRUE}, TRUE, GIVEN, draws=200)


def test_effects_and_their_errors(table):
    pair = "placebo - ocrelizumab"
    effect = (TRUE[:, PLACEBO] - TRUE[:, HIGH]).mean()
    assert value(table, "ATE", pair, "truth").value == pytest.approx(effect)
    assert value(table, "ATE error", pair, "off").value == pytest.approx(1)
    assert value(table, "ATE error", pair, "population").value == pytest.approx(0)
    assert value(table, "PEHE", pair, "off").value == pytest.approx(1)
    spread = (TRUE[:, PLACEBO] - TRUE[:, HIGH]).std()
    assert value(table, "PEHE", pair, "population").value == pytest.approx(spread)
    assert value(table, "PEHE", pair, "off").gap_closed == pytest.approx((1 - spread) / (0 - spread))


def test_every_pair_of_arms_is_there_once(table):
    pairs = set(table[table.metric == "PEHE"].arm)
    assert len(pairs) == 15 and (table[table.metric == "PEHE"].n == 40).all()


def test_policies(table):
    assert value(table, "policy value", "all", "oracle").value == pytest.approx(TRUE.min(axis=1).mean())
    assert value(table, "monotone in efficacy", "all", "oracle").value == 1
    few = value(table, "policy value, few", "all", "oracle")
    assert TRUE[:, HIGH].mean() < few.value < TRUE[:, MILD].mean()


def test_the_few_are_those_who_gain_most_and_equals_share():
    true = np.zeros((8, 6))
    true[:, MILD] = [9, 5, 1, 1, 1, 1, 1, 1]
    assert targeted(true, true).tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    alike = np.zeros((8, 6))
    np.testing.assert_allclose(targeted(alike, true), 0.75 * true[:, MILD])
