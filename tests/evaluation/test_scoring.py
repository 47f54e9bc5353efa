import numpy as np
import pytest
import torch

from bundle.evaluation.scoring import BIN_EDGES, Scores, Scoring
from bundle.forecasters.base import SCORED_REGIONS, Findings, Forecast, Patient, Role
from bundle.forecasters.cohort import ObservedCase, Record
from bundle.forecasters.ensemble import ensemble_forecast
from bundle.lesions import LesionRule

SHAPE, AFFINE = (9, 8, 6), np.diag([2.0, 2.0, 3.0, 1.0])
WHITE = SCORED_REGIONS[0]
RULE = LesionRule()


def observed_case(outcome, count, case="sub-1", arm=2):
    patient = Patient(case, arm, torch.zeros(8, *SHAPE), np.ones(SHAPE, bool), AFFINE)
    return ObservedCase(
        patient, Record(case, arm, {}, Findings(count, 0.0, dict.fromkeys(SCORED_REGIONS, count > 0))), outcome
    )


@pytest.fixture()
def outcome():
    mask = np.zeros(SHAPE, bool)
    mask[2:4, 2:4, 2] = mask[6, 6, 4] = True
    return mask


def test_numbers_of_each_draw(outcome):
    draws = [
        Forecast(0.0, np.zeros(1), np.ones(1)),
        Forecast(0.9, np.array([0, 1, 4]), np.array([0.1, 0.4, 0.5]), {WHITE: 0.7}),
    ]
    scores = Scoring(RULE)(draws, observed_case(outcome, 2))
    assert scores["p_active"].tolist() == [0, 0.9] and scores["count"].tolist() == [0, 2.4]
    assert scores["crps"].tolist() == pytest.approx([2, 0.1**2 + 0.5**2 + 2 * 0.5**2])
    assert (scores["low_80"][1], scores["high_80"][1], scores["low_95"][1]) == (0, 4, 0)
    assert scores["fewer"].tolist() == [1, 0.5] and scores["at_most"].tolist() == [1, 0.5]
    assert np.isnan(scores[f"presence of {WHITE}"][0]) and scores[f"presence of {WHITE}"][1] == 0.7
    assert (scores["true_count"], scores["arm"], scores[f"true presence of {WHITE}"]) == (2, 2, 1)
    assert "brier" not in scores and "members" not in scores


def test_the_fair_crps_is_that_of_the_members_and_of_a_distribution_its_own(outcome):
    counts = {"counts": np.array([0, 3]), "probabilities": np.array([0.5, 0.5])}
    observed = observed_case(outcome, 2)
    drawn = {"member_counts": np.array([0, 3])}
    members = Scoring(RULE)([Forecast(0.5, **counts, **drawn, of_members=True)], observed)
    assert members["fair_crps"] == 1.5 - 1.5 and members["crps"] == 1.5 - 0.75
    for beside in ({}, drawn):  # members that the distribution was not made of do not matter
        stated = Scoring(RULE)([Forecast(0.5, **counts, **beside)], observed)
        assert stated["fair_crps"] == stated["crps"] == 0.75


def test_log_odds_are_those_of_the_members_only_where_they_make_the_forecast(outcome):
    observed = observed_case(outcome, 2)
    marks = np.zeros((4, *SHAPE), bool)
    drawn = {"member_counts": np.array([0, 0, 0, 1]), "members": marks, "heatmap": marks[0].astype(np.float32)}
    for of_members, expected in ((True, (1 + 0.5) / (4 + 1)), (False, 0.9)):
        p = 0.25 if of_members else 0.9
        forecast = Forecast(p, np.array([0, 1]), np.array([1 - p, p]), **drawn, of_members=of_members)
        scores = Scores.of(["sub-1"], [Scoring(RULE)([forecast], observed)], Role.MODEL)
        assert 1 / (1 + np.exp(-scores.log_odds)) == pytest.approx(expected)


def test_voxels_are_counted_within_the_brain_and_by_probability(outcome):
    observed = observed_case(outcome, 2)
    observed.patient.brain[:, :, 5] = False
    heatmap = np.zeros(SHAPE, np.float32)
    heatmap[2:4, 2:4, 2], heatmap[0, 0, 0], heatmap[0, 0, 5] = 0.5, 0.01, 1
    scores = Scoring(RULE)([Forecast(1.0, np.ones(1), np.ones(1), heatmap=heatmap)], observed)
    assert (
        scores["voxels"].sum() == 9 * 8 * 5
        and scores["voxels"][0] == 9 * 8 * 5 - 5
        and scores["lesion_voxels"].sum() == 5
    )
    at = np.flatnonzero(scores["voxels"])
    assert len(at) == 3 and (BIN_EDGES[at] <= [0, 0.01, 0.5]).all() and (BIN_EDGES[at + 1] > [0, 0.01, 0.5]).all()
    assert scores["forecast_voxels"].sum() == pytest.approx(2.01)
    assert scores["brier"] == pytest.approx((4 * 0.25 + 0.01**2 + 1) / (9 * 8 * 5))


def test_lesions_of_the_consensus_against_those_of_the_outcome(outcome):
    heatmap = np.zeros(SHAPE, np.float32)
    heatmap[2:4, 2:4, 2] = 0.6  # found
    heatmap[6, 6, 4] = 0.4  # too few members
    heatmap[0, 6, 0] = 0.9  # not in the outcome
    scores = Scoring(RULE)([Forecast(1.0, np.ones(1), np.ones(1), heatmap=heatmap)], observed_case(outcome, 2))
    assert [int(scores[name]) for name in ("lesions", "lesions_found", "marked", "marked_correctly")] == [2, 1, 2, 1]


def test_smaller_ensembles_are_the_first_members_alone(outcome):
    rng = np.random.default_rng(0)
    members = (rng.random((6, *SHAPE)) < 0.003) | (outcome & (np.arange(6) % 2 == 0)[:, None, None, None])
    observed, scoring = observed_case(outcome, 2), Scoring(RULE)
    scores = scoring([ensemble_forecast(members, AFFINE, RULE)], observed)
    assert scores["sizes"].tolist() == [1, 2, 3, 5]
    for place, size in enumerate(scores["sizes"]):
        alone = scoring([ensemble_forecast(members[:size], AFFINE, RULE)], observed)
        for name in ("p_active", "log_count", "crps"):
            assert scores[f"{name} of first members"][place] == pytest.approx(alone[name][0])
        assert scores["brier of first members"][place] == pytest.approx(alone["brier"])
    unpacked = np.unpackbits(scores["members"], axis=1, count=members[0].size).reshape(members.shape)
    np.testing.assert_array_equal(unpacked > 0, members)
