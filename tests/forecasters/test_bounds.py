from dataclasses import replace

import numpy as np
import pytest

from bundle.data.datalist import load_split
from bundle.data.grid import SlabGrid
from bundle.errors import InputError
from bundle.forecasters.base import SCORED_REGIONS
from bundle.forecasters.bounds import BestPossible, Truth
from bundle.forecasters.cohort import CaseReader
from bundle.lesions import LesionRule
from bundle.simulation.oracle import Oracle, read_counts, read_observation

READ = CaseReader(SlabGrid((2, 2, 3), (96, 112, 15)), LesionRule())  # holds the whole simulated brain


@pytest.fixture(scope="module")
def seen(trial):
    """The patient of the trial with most lesions to come."""
    return max((READ(item) for item in load_split(trial, "training")), key=lambda seen: seen.record.outcome.count)


@pytest.fixture(scope="module")
def forecast(seen):
    return BestPossible()(seen.patient)[0]


def test_it_is_the_oracles_forecast(trial, seen, forecast):
    told = Oracle()(read_observation(trial, seen.patient.case), seen.patient.arm)
    assert forecast.p_active == told.p_active and forecast.expected_count == pytest.approx(told.expected_count, rel=1e-3)
    assert forecast.expected_log_count == pytest.approx(told.expected_log_count)


def test_its_heatmap_keeps_the_expected_volume_on_the_slab(trial, seen, forecast):
    told = Oracle()(read_observation(trial, seen.patient.case), seen.patient.arm)
    assert forecast.heatmap.sum() * 12 == pytest.approx(told.heatmap.sum() * 3, rel=0.01)


def test_regions_share_the_lesions(forecast):
    """White matter holds most lesions, cortex some, and both together nearly all."""
    white, cortex = (forecast.presence[region] for region in SCORED_REGIONS)
    assert 0 < cortex < white < forecast.p_active
    assert forecast.p_active < white + cortex


def test_from_w000_alone_it_knows_nothing_of_the_first_year(trial, seen):
    told = Oracle()(read_counts(trial, seen.patient.case, "w000"), seen.patient.arm)
    (quick,) = BestPossible("w000", places=False)(seen.patient)
    assert quick.p_active == told.p_active != Oracle()(read_counts(trial, seen.patient.case), seen.patient.arm).p_active
    assert quick.heatmap is None


def test_real_data_have_no_best_possible_forecast(seen, tmp_path):
    with pytest.raises(InputError, match="simulate_trial"):
        BestPossible()(replace(seen.patient, dataset_dir=str(tmp_path)))


def test_the_truth_is_what_came(seen):
    (forecast,) = Truth(READ)(seen.patient)
    np.testing.assert_array_equal(forecast.heatmap > 0, seen.outcome)
    assert forecast.expected_count == seen.record.outcome.count
