from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import nbinom

from bundle.arms import NULL_ARM
from bundle.forecasters.base import SCORED_REGIONS, Findings, Patient, Role, ensembles
from bundle.forecasters.baselines import (
    AverageCount,
    FreeOfLesions,
    FrequencyMap,
    NoNewLesions,
    Persistence,
    Population,
    Regression,
    Uniform,
)
from bundle.forecasters.cohort import MASKS, Cohort, Record
from bundle.lesions import LesionRule

SHAPE = (10, 12, 5)
AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
BRAIN = np.zeros(SHAPE, bool)
BRAIN[1:-1, 1:-1] = True
WHITE, CORTEX = SCORED_REGIONS[:2]


def record(arm, count, gd=0, white=None, **unknown):
    presence = dict.fromkeys(SCORED_REGIONS, False) | {WHITE: count > 0 if white is None else white}
    lesions = dict.fromkeys(MASKS, 1) | {"gd_w000": gd} | unknown
    return Record("sub-1", arm, lesions, Findings(count, 0.024 * count, presence))


def cohort_of(*records):
    frequency = np.zeros(SHAPE, np.float32)
    frequency[5, 6, 2] = 0.5
    return Cohort(records, frequency, "key")


def patient(arm=0, net2=(), gd=()):
    image = torch.full((8, *SHAPE), -1.0)
    for voxel in net2:
        image[(6, *voxel)] = 1
    for voxel in gd:
        image[(2, *voxel)] = 1
    image[-1] = arm
    return Patient("sub-2", arm, image, BRAIN, AFFINE)


def all_baselines(cohort):
    rule = LesionRule()
    fitted = [cls(cohort) for cls in (Population, AverageCount, FrequencyMap, Uniform)]
    return [NoNewLesions(), Persistence(rule), Regression(cohort, rule), FreeOfLesions(fitted[2]), *fitted]


SMALL = cohort_of(record(0, 2), record(0, 0), record(0, 4), record(5, 0))


def test_each_declares_its_role_and_that_it_has_no_members():
    baselines = {type(baseline).__name__: baseline for baseline in all_baselines(SMALL)}
    floors = {name for name, baseline in baselines.items() if baseline.role is Role.FLOOR}
    assert floors == {"FrequencyMap"} and not ensembles(baselines)
    assert all(baseline.role is Role.BASELINE for name, baseline in baselines.items() if name not in floors)


def test_keys_differ_between_forecasters_and_cohorts():
    other = Cohort(SMALL.records, SMALL.frequency, "another key")
    keys = [baseline.key for cohort in (SMALL, other) for baseline in all_baselines(cohort)]
    assert len(set(keys)) == 8 + 6  # two of them need no cohort


def test_no_new_lesions_means_none():
    (forecast,) = NoNewLesions()(patient())
    assert forecast.p_active == forecast.expected_count == forecast.expected_log_count == forecast.heatmap.max() == 0


def test_persistence_repeats_the_first_year():
    (forecast,) = Persistence(LesionRule())(patient(net2=[(3, 3, 2), (3, 4, 2), (7, 7, 1)]))
    assert forecast.p_active == 1 and forecast.expected_count == 2 and forecast.heatmap.sum() == 3
    assert Persistence(LesionRule())(patient())[0].p_active == 0


def test_the_population_draws_from_the_patients_own_arm():
    draws = Population(SMALL, runs=3000)(patient(arm=0))
    assert len(draws) == 3000 and {draw.expected_count for draw in draws} == {0, 2, 4}
    assert np.mean([draw.p_active for draw in draws]) == pytest.approx(2 / 3, abs=0.04)
    assert {draw.p_active for draw in Population(SMALL)(patient(arm=5))} == {0}


def test_the_same_seed_draws_the_same_outcomes():
    draws = [[draw.expected_count for draw in Population(SMALL, seed=seed)(patient())] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_an_unknown_or_unseen_arm_gets_all_patients():
    for arm in (NULL_ARM, 3):
        (forecast,) = AverageCount(SMALL)(patient(arm))
        assert forecast.expected_count == pytest.approx(1.5)


def test_the_frequency_map_holds_the_arms_volume_within_the_brain():
    (forecast,) = FrequencyMap(SMALL)(patient(arm=0))
    assert forecast.p_active == forecast.presence[WHITE] == pytest.approx(2 / 3) and forecast.presence[CORTEX] == 0
    assert forecast.heatmap.sum() == pytest.approx(0.024 * 2 * 1000 / 12)  # mean volume by the voxel's, 12 mm3
    assert not forecast.heatmap[~BRAIN].any() and np.unravel_index(forecast.heatmap.argmax(), SHAPE) == (5, 6, 2)
    assert forecast.expected_count == pytest.approx(2)


def test_forecasters_of_places_alone_state_neither_activity_nor_counts():
    someone = patient(arm=0, net2=[(5, 6, 2)])
    volume = FrequencyMap(SMALL)(someone)[0].heatmap.sum()
    for forecaster in (Uniform(SMALL), FreeOfLesions(FrequencyMap(SMALL))):
        (forecast,) = forecaster(someone)
        assert np.isnan(forecast.p_active) and np.isnan(forecast.expected_count) and not forecast.presence
        assert forecast.heatmap.sum() == pytest.approx(volume) and not forecast.heatmap[~BRAIN].any()
    assert np.ptp(Uniform(SMALL)(someone)[0].heatmap[BRAIN]) == 0
    free = FreeOfLesions(FrequencyMap(SMALL))(someone)[0].heatmap
    assert free[5, 6, 2] == 0 and free[5, 7, 2] > 0


def test_regression_finds_the_coefficients_it_was_simulated_from():
    """Counts from a negative binomial of known slope in log(1 + gd) and arm are forecast with their true mean."""
    rng = np.random.default_rng(0)
    arms, gd = rng.integers(2, size=4000), rng.poisson(1.5, size=4000)
    mean = np.exp(-0.5 + 1.2 * np.log1p(gd) - 1.0 * arms)
    counts = nbinom.rvs(2, 2 / (2 + mean), random_state=rng)
    fitted = Regression(cohort_of(*(record(int(a), int(c), int(g)) for a, c, g in zip(arms, counts, gd))), LesionRule())
    voxels = [(3, 3, 1), (7, 7, 3)]
    for arm, found in ((0, 0), (0, 2), (1, 2)):
        (forecast,) = fitted(patient(arm, gd=voxels[:found]))
        expected = np.exp(-0.5 + 1.2 * np.log1p(found) - arm)
        assert forecast.expected_count == pytest.approx(expected, rel=0.12)
        assert forecast.p_active == pytest.approx(1 - (2 / (2 + expected)) ** 2, abs=0.05)
        assert forecast.probabilities.sum() == pytest.approx(1)
        assert forecast.presence[CORTEX] == 0 and forecast.presence[WHITE] == pytest.approx(forecast.p_active, abs=0.01)


def test_regression_uses_covariates_and_the_logarithm_of_months():
    """Counts in proportion to the months and falling with age: unknown ones take the training mean."""
    rng = np.random.default_rng(1)
    age, months = rng.normal(40, 8, 3000), rng.uniform(6, 24, 3000)
    counts = rng.poisson(0.1 * months * np.exp(-0.05 * (age - 40)))
    rows = zip(counts.tolist(), age.tolist(), months.tolist())
    records = [replace(record(0, c), covariates={"age": a, "months_w096": m}) for c, a, m in rows]
    fitted = Regression(cohort_of(*records), LesionRule(), covariates=("age", "months_w096"))
    expected = {
        (40, 12): 1.2,
        (50, 24): 2.4 * np.exp(-0.5),
        (None, 12): 1.2,
        (40, None): 0.1 * np.exp(np.log(months).mean()),
    }
    for (a, m), mean in expected.items():
        (forecast,) = fitted(replace(patient(), covariates={"age": a, "months_w096": m}))
        assert forecast.expected_count == pytest.approx(mean, rel=0.08)
    (unknown,) = fitted(patient())
    assert np.isfinite(unknown.expected_count)


def test_regression_takes_the_training_mean_where_a_mask_is_unknown():
    records = [record(0, n % 3, n % 4) for n in range(40)]
    fitted = Regression(cohort_of(*records, record(0, 1, t2_w000=None)), LesionRule())
    unknown = patient()
    unknown.image[1] = 0
    known = patient()
    known.image[(1, 2, 2, 2)] = 1  # one lesion, as in all training patients
    assert fitted(unknown)[0].expected_count == pytest.approx(fitted(known)[0].expected_count)
