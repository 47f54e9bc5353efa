import json
from dataclasses import dataclass, replace

import numpy as np
import pytest

from bundle.arms import ARMS
from bundle.errors import Guard, InputError
from bundle.evaluation.cases import Evaluation
from bundle.evaluation.effects import (
    complete_patients,
    effects_table,
    expected_counts,
    forecast_arms,
    targeted,
    true_counts,
)
from bundle.evaluation.run import _effects
from bundle.forecasters.base import Forecast, Patient, Role
from bundle.forecasters.cohort import ObservedCase

PLACEBO, MILD, HIGH = ARMS.index("placebo"), ARMS.index("interferon_beta_1a"), ARMS.index("ocrelizumab")
RNG = np.random.default_rng(0)
TRUE = np.sort(RNG.poisson(3, size=(40, 6)), axis=1)[:, ::-1].astype(float)
MEANS = TRUE + 0.5 * np.arange(6)
GIVEN = np.arange(40) % 6


def value(table, metric, arm, name):
    (row,) = table[(table.metric == metric) & (table.arm == arm) & (table.forecaster == name)].itertuples()
    return row


@pytest.fixture(scope="module")
def table():
    off_by_one = TRUE + np.eye(6)[PLACEBO]  # one lesion too many under placebo, everyone
    population = np.tile(TRUE.mean(axis=0), (40, 1))
    roles = {"off": Role.MODEL, "population": Role.FLOOR, "oracle": Role.CEILING}
    return effects_table(
        {"off": off_by_one, "population": population, "oracle": TRUE}, TRUE, MEANS, GIVEN, roles, draws=200
    )


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


def test_errors_and_policies_are_also_measured_against_expected_counts(table):
    """The means of the last arm are 2.5 above its counts, by which the oracle of counts is wrong."""
    pair = "placebo - ocrelizumab"
    assert value(table, "PEHE, expected", pair, "oracle").value == pytest.approx(2.5)
    assert value(table, "PEHE, expected", pair, "off").value == pytest.approx(3.5)
    chosen = MEANS[np.arange(40), TRUE.argmin(axis=1)].mean()
    found = value(table, "policy value, expected", "all", "oracle")
    assert found.value == pytest.approx(chosen) and found.ci_low < found.value < found.ci_high
    assert value(table, "policy value, expected", "all", "truth").value == pytest.approx(MEANS.min(axis=1).mean())


def test_every_pair_of_arms_is_there_once(table):
    pairs = set(table[table.metric == "PEHE"].arm)
    assert len(pairs) == 15 and (table[table.metric == "PEHE"].n == 40).all()


def test_the_model_is_compared_with_the_best_baseline_in_pairs(table):
    pair = "placebo - ocrelizumab"
    difference = value(table, "PEHE", pair, "off - population")
    expected = value(table, "PEHE", pair, "off").value - value(table, "PEHE", pair, "population").value
    assert difference.value == pytest.approx(expected) and difference.role == "minus best baseline"


def test_policies(table):
    assert value(table, "policy value", "all", "oracle").value == pytest.approx(TRUE.min(axis=1).mean())
    assert value(table, "monotone in efficacy", "all", "oracle").value == 1
    limited = value(table, "policy value, limited", "all", "oracle")
    assert TRUE[:, HIGH].mean() < limited.value < TRUE[:, MILD].mean()


def test_the_limited_drug_goes_to_those_who_gain_most_and_equal_gains_have_equal_chances():
    true = np.zeros((8, 6))
    true[:, MILD] = [9, 5, 1, 1, 1, 1, 1, 1]
    assert targeted(true, true).tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    alike = np.zeros((8, 6))
    np.testing.assert_allclose(targeted(alike, true), 0.75 * true[:, MILD])


class UnderArms:
    """Expects one lesion under every arm but the last, where it fails for the patients of `failing`."""

    role, num_members, key = Role.MODEL, None, "under arms"

    def __init__(self, failing=()):
        self.failing = failing

    def __call__(self, patient):
        if patient.case in self.failing and patient.arm == 5:
            raise InputError("the network's output is not finite", "use other weights", case=patient.case)
        return [Forecast(0.5, np.array([1.0 + (patient.arm == 0)]), np.ones(1))]


@dataclass(init=False)
class Reader:
    def __call__(self, item):
        return ObservedCase(Patient(item["case"], 2, None, None, None), None, None)

    def version(self, item):
        return item["case"]


@pytest.fixture
def comparison(tmp_path):
    """Evaluation of four patients, of whom "sub-1" fails under the last arm and "sub-2" has no truth."""
    for case in ("sub-0", "sub-1", "sub-3"):
        truth = tmp_path / "derivatives" / "truth" / case / f"{case}_truth.json"
        truth.parent.mkdir(parents=True)
        truth.write_text(
            json.dumps({"arms": {a: {"net2_w096": [0] * (a == "placebo"), "expected_net2_w096": 0.5} for a in ARMS}})
        )
    items = [{"case": f"sub-{n}", "arm": "placebo"} for n in range(4)]
    return Evaluation(tmp_path, items, Reader(), {"model": UnderArms(["sub-1"])}, None, tmp_path / "out", Guard())


def test_a_failed_patient_is_left_out_of_the_effects_and_not_given_placebo(comparison, capsys):
    forecast_arms(comparison)
    expected, (true, means) = expected_counts(comparison), true_counts(comparison)
    assert complete_patients(expected, true).tolist() == [True, False, False, True]
    assert (means[[0, 1, 3]] == 0.5).all() and np.isnan(means[2]).all()
    assert len(comparison.guard.failures) == 2 and "sub-1" in str(comparison.guard.failures[0])
    tables, notes = _effects(comparison)
    table = tables["counterfactual"]
    assert (table.n == 2).all() and np.isfinite(table.value).all()
    assert value(table, "policy value", "all", "model").value == 0  # of the two patients; placebo would give 1
    assert notes == ["Effects: 2 of 4 patients are left out; a forecast or truth is missing."]
    assert f"warning: {notes[0]}" in capsys.readouterr().err


def test_without_a_complete_patient_there_are_no_effects(comparison):
    nobody = replace(comparison, forecasters={"model": UnderArms([f"sub-{n}" for n in range(4)])})
    forecast_arms(nobody)
    tables, notes = _effects(nobody)
    assert not tables and notes == ["Effects: 4 of 4 patients are left out; a forecast or truth is missing."]


def test_the_table_itself_refuses_nan():
    with pytest.raises(ValueError, match="every patient under every arm"):
        effects_table({"model": np.full((40, 6), np.nan)}, TRUE, MEANS, GIVEN, {"model": Role.MODEL})
