import json
from dataclasses import replace

import numpy as np
import pytest

from bundle.data.datalist import load_split
from bundle.data.grid import SlabGrid
from bundle.errors import InputError
from bundle.forecasters.base import SCORED_REGIONS, Role
from bundle.forecasters.bounds import BestPossible, Truth
from bundle.forecasters.cohort import CaseReader
from bundle.lesions import LesionRule
from bundle.simulation.observation import read_counts, read_masks, read_observation, read_protocol
from bundle.simulation.oracle import Oracle

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
    white, cortex = (forecast.presence[region] for region in SCORED_REGIONS)
    assert 0 < cortex < white < forecast.p_active
    assert forecast.p_active < white + cortex


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


def test_real_data_have_no_best_possible_forecast(observed, tmp_path):
    with pytest.raises(InputError, match="simulate_trial"):
        BestPossible()(replace(observed.patient, dataset_dir=str(tmp_path)))


def test_the_truth_is_the_outcome(observed):
    (forecast,) = Truth(READ)(observed.patient)
    np.testing.assert_array_equal(forecast.heatmap > 0, observed.outcome)
    assert (Truth.role, BestPossible.role) == (Role.OUTCOME, Role.CEILING)
    assert forecast.expected_count == observed.record.outcome.count
