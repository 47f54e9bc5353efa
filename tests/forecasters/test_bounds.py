import json
from dataclasses import replace

import numpy as np
import pytest

from bundle.data.datalist import load_split
from bundle.data.grid import SlabGrid
from bundle.errors import InputError
from bundle.forecasters.base import SCORED_REGIONS, Role
from bundle.forecasters.bounds import BestEnsemble, BestPossible, Truth
from bundle.forecasters.cohort import CaseReader
from bundle.lesions import LesionRule
from bundle.simulation.observation import read_counts, read_masks, read_observation, read_protocol
from bundle.simulation.oracle import Oracle

pytestmark = pytest.mark.slow

READ = CaseReader(SlabGrid((2, 2, 3), (96, 112, 15)), LesionRule())  # holds the whole simulated brain


@pytest.fixture(scope="module")
def observed(trial):
    """The patient of the training split with most lesions to come."""

    def lesions_to_come(item):
        truth = json.loads((trial / f"derivatives/truth/{item['case']}/{item['case']}_truth.json").read_text())
        return len(truth["arms"][truth["arm"]]["net2_w096"])

    return READ(max(load_split(trial, "training"), key=lesions_to_come))


@pytest.fixture(scope="module")
def oracle(trial):
    return Oracle(read_protocol(trial))


@pytest.fixture(scope="module")
def forecast(observed):
    return BestPossible()(observed.patient)[0]


def test_it_is_the_oracles_forecast(trial, observed, forecast, oracle):
    exact = oracle(read_observation(trial, observed.patient.case), observed.patient.arm)
    assert forecast.p_active == exact.p_active and forecast.expected_count == pytest.approx(
        exact.expected_count, rel=1e-3
    )
    assert forecast.expected_log_count == pytest.approx(exact.expected_log_count)


def test_its_heatmap_keeps_the_expected_volume_on_the_slab(trial, observed, forecast, oracle):
    exact = oracle(read_observation(trial, observed.patient.case), observed.patient.arm)
    assert forecast.heatmap.sum() * 12 == pytest.approx(exact.heatmap.sum() * 3, rel=0.01)


def test_the_lesions_are_divided_between_regions(forecast):
    """White matter holds most lesions, cortex some, and both together nearly all."""
    white, cortex, white_any, cortex_any = (forecast.presence[region] for region in SCORED_REGIONS)
    assert 0 < cortex < white < forecast.p_active
    assert forecast.p_active < white + cortex
    assert white < white_any and cortex < cortex_any < forecast.p_active


@pytest.mark.slow
def test_regions_are_forecast_by_the_rule_that_outcomes_are_counted_by(observed, forecast):
    """The best ensemble counts each region as outcomes are: both state the same chances, up to 60 draws' error."""
    (drawn,) = BestEnsemble(LesionRule(), num_members=60, seed=4)(observed.patient)
    for region in SCORED_REGIONS:
        p = forecast.presence[region]
        assert drawn.presence[region] == pytest.approx(p, abs=3.5 * np.sqrt(p * (1 - p) / 60)), region


def test_from_w000_alone_it_does_not_use_the_first_year(trial, observed, oracle):
    case, arm = observed.patient.case, observed.patient.arm
    (quick,) = BestPossible("w000", with_heatmap=False)(observed.patient)
    assert quick.p_active == oracle(read_counts(trial, case, "w000"), arm).p_active
    assert quick.p_active != oracle(read_counts(trial, case), arm).p_active
    assert quick.heatmap is None


def test_of_masks_it_takes_what_they_show_for_right(trial, observed, oracle):
    exact = oracle(read_masks(trial, observed.patient.case), observed.patient.arm)
    (forecast,) = BestPossible(masks=True)(observed.patient)
    assert forecast.p_active == exact.p_active and forecast.heatmap.max() > 0
    with pytest.raises(ValueError, match="up to w048"):
        BestPossible("w000", masks=True)


def test_the_best_ensemble_is_drawn_from_the_oracles_forecast(observed, forecast):
    (drawn,) = BestEnsemble(LesionRule(), num_members=40)(observed.patient)
    assert drawn.members.shape == (40, *observed.patient.brain.shape) and BestEnsemble.role is Role.CEILING
    assert drawn.p_active == pytest.approx(forecast.p_active, abs=4 * np.sqrt(0.25 / 40))
    spread = np.sqrt(forecast.probabilities @ forecast.counts**2 - forecast.expected_count**2)
    assert drawn.expected_count == pytest.approx(forecast.expected_count, abs=4 * spread / np.sqrt(40))
    assert np.corrcoef(drawn.heatmap.ravel(), forecast.heatmap.ravel())[0, 1] > 0.1


def test_members_of_the_best_ensemble_depend_on_seed_case_and_number_alone(observed):
    three = BestEnsemble(LesionRule(), num_members=3, seed=1)
    (first,) = three(observed.patient)
    (more,) = three.with_members(5)(observed.patient)
    np.testing.assert_array_equal(first.members, more.members[:3])
    (other,) = BestEnsemble(LesionRule(), num_members=3, seed=2)(observed.patient)
    assert not np.array_equal(first.members, other.members)
    with pytest.raises(InputError, match="num_members=0"):
        BestEnsemble(LesionRule(), num_members=0)


def test_real_data_have_no_best_possible_forecast(observed, tmp_path):
    with pytest.raises(InputError, match="simulate_trial"):
        BestPossible()(replace(observed.patient, dataset_dir=str(tmp_path)))


def test_the_truth_is_the_outcome(observed):
    (forecast,) = Truth(READ)(observed.patient)
    np.testing.assert_array_equal(forecast.heatmap > 0, observed.outcome)
    assert (Truth.role, BestPossible.role) == (Role.OUTCOME, Role.CEILING)
    assert forecast.expected_count == observed.record.outcome.count
