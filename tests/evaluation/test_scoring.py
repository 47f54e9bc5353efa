import numpy as np
import pytest
import torch

from bundle.arms import ARMS
from bundle.errors import Guard, InputError
from bundle.evaluation.run import select
from bundle.evaluation.scoring import BIN_EDGES, Evaluation, Scoring
from bundle.forecasters.base import SCORED_REGIONS, Findings, Forecast, Patient
from bundle.forecasters.cohort import Record, Seen
from bundle.forecasters.ensemble import ensemble_forecast
from bundle.lesions import LesionRule

SHAPE, AFFINE = (9, 8, 6), np.diag([2.0, 2.0, 3.0, 1.0])
WHITE, CORTEX = SCORED_REGIONS
RULE = LesionRule()


def seen_of(outcome, count, case="sub-1", arm=2):
    patient = Patient(case, arm, torch.zeros(8, *SHAPE), np.ones(SHAPE, bool), AFFINE)
    return Seen(patient, Record(case, arm, {}, Findings(count, 0.0, {WHITE: count > 0, CORTEX: False})), outcome)


@pytest.fixture()
def outcome():
    mask = np.zeros(SHAPE, bool)
    mask[2:4, 2:4, 2] = mask[6, 6, 4] = True
    return mask


def test_numbers_of_each_guess(outcome):
    guesses = [Forecast(0.0, np.zeros(1), np.ones(1)), Forecast(0.9, np.array([0, 1, 4]), np.array([0.1, 0.4, 0.5]), {WHITE: 0.7})]
    scores = Scoring(RULE)(guesses, seen_of(outcome, 2))
    assert scores["p_active"].tolist() == [0, 0.9] and scores["count"].tolist() == [0, 2.4]
    assert scores["crps"].tolist() == pytest.approx([2, 0.1**2 + 0.5**2 + 2 * 0.5**2])
    assert (scores["low_80"][1], scores["high_80"][1], scores["low_95"][1]) == (0, 4, 0)
    assert np.isnan(scores[f"presence of {WHITE}"][0]) and scores[f"presence of {WHITE}"][1] == 0.7
    assert (scores["true_count"], scores["arm"], scores[f"true presence of {WHITE}"]) == (2, 2, 1)
    assert "brier" not in scores and "members" not in scores


def test_voxels_are_counted_within_the_brain_and_by_probability(outcome):
    seen = seen_of(outcome, 2)
    seen.patient.brain[:, :, 5] = False
    heatmap = np.zeros(SHAPE, np.float32)
    heatmap[2:4, 2:4, 2], heatmap[0, 0, 0], heatmap[0, 0, 5] = 0.5, 0.01, 1
    scores = Scoring(RULE)([Forecast(1.0, np.ones(1), np.ones(1), heatmap=heatmap)], seen)
    assert scores["voxels"].sum() == 9 * 8 * 5 and scores["voxels"][0] == 9 * 8 * 5 - 5 and scores["lesion_voxels"].sum() == 5
    at = np.flatnonzero(scores["voxels"])
    assert len(at) == 3 and (BIN_EDGES[at] <= [0, 0.01, 0.5]).all() and (BIN_EDGES[at + 1] > [0, 0.01, 0.5]).all()
    assert scores["forecast_voxels"].sum() == pytest.approx(2.01)
    assert scores["brier"] == pytest.approx((4 * 0.25 + 0.01**2 + 1) / (9 * 8 * 5))


def test_lesions_of_the_consensus_against_those_that_came(outcome):
    heatmap = np.zeros(SHAPE, np.float32)
    heatmap[2:4, 2:4, 2] = 0.6  # found
    heatmap[6, 6, 4] = 0.4  # too few members
    heatmap[0, 6, 0] = 0.9  # never came
    scores = Scoring(RULE)([Forecast(1.0, np.ones(1), np.ones(1), heatmap=heatmap)], seen_of(outcome, 2))
    assert [int(scores[name]) for name in ("lesions", "lesions_found", "marked", "marked_rightly")] == [2, 1, 2, 1]


def test_smaller_ensembles_are_the_first_members_alone(outcome):
    rng = np.random.default_rng(0)
    members = (rng.random((6, *SHAPE)) < 0.003) | (outcome & (np.arange(6) % 2 == 0)[:, None, None, None])
    seen, scoring = seen_of(outcome, 2), Scoring(RULE)
    scores = scoring([ensemble_forecast(members, AFFINE, RULE)], seen)
    assert scores["sizes"].tolist() == [1, 2, 3, 5]
    for place, size in enumerate(scores["sizes"]):
        alone = scoring([ensemble_forecast(members[:size], AFFINE, RULE)], seen)
        for name in ("p_active", "log_count", "crps"):
            assert scores[f"{name} of first"][place] == pytest.approx(alone[name][0])
        assert scores["brier of first"][place] == pytest.approx(alone["brier"])
    unpacked = np.unpackbits(scores["members"], axis=1, count=members[0].size).reshape(members.shape)
    np.testing.assert_array_equal(unpacked > 0, members)


class Counting:
    """A forecaster that counts its calls, and says 1 lesion for each class index of the arm."""

    def __init__(self, key="counting"):
        self.key, self.asked = key, []

    def __call__(self, patient):
        self.asked.append((patient.case, patient.arm))
        heatmap = np.full(SHAPE, 0.1 * patient.arm, np.float32)
        return [Forecast(0.5, np.array([float(patient.arm)]), np.ones(1), heatmap=heatmap)]


CASES = [{"case": f"sub-{n}", "arm": "avonex"} for n in range(5)]


def evaluation(folder, forecasters, scoring=Scoring(RULE), unreadable=()):
    def read(item):
        if item["case"] in unreadable:
            raise InputError("broken", "repair it", case=item["case"])
        return seen_of(np.zeros(SHAPE, bool), 1, item["case"])

    class Reader:
        __call__ = staticmethod(read)
        __repr__ = lambda self: "reader"  # noqa: E731

    return Evaluation("data", CASES, Reader(), forecasters, scoring, folder, Guard())


def test_each_patient_is_forecast_once_whatever_happens_in_between(tmp_path):
    forecaster = Counting()
    evaluation(tmp_path, {"model": forecaster}).score()
    assert len(forecaster.asked) == 5
    (tmp_path / "cases" / "model" / "sub-3.npz").unlink()
    evaluation(tmp_path, {"model": forecaster, "other": Counting()}).score()
    assert [case for case, _ in forecaster.asked[5:]] == ["sub-3"]


@pytest.mark.parametrize("change", [{"key": "other weights"}, {"scoring": Scoring(LesionRule(min_volume_mm3=9))}])
def test_what_was_made_otherwise_is_made_anew(tmp_path, change):
    evaluation(tmp_path, {"model": Counting()}).score()
    forecaster = Counting(change.get("key", "counting"))
    evaluation(tmp_path, {"model": forecaster}, change.get("scoring", Scoring(RULE))).score()
    assert len(forecaster.asked) == 5


def test_processes_share_the_patients(tmp_path):
    first, second = Counting(), Counting()
    evaluation(tmp_path, {"model": first}).score(0, 2)
    evaluation(tmp_path, {"model": second}).score(1, 2)
    assert sorted(first.asked + second.asked) == [(item["case"], 2) for item in CASES]
    assert evaluation(tmp_path, {"model": Counting()}).scores()["model"].cases == tuple(item["case"] for item in CASES)


def test_a_patient_that_cannot_be_read_is_told_and_left_out(tmp_path, capsys):
    run = evaluation(tmp_path, {"model": Counting()}, unreadable=["sub-2"])
    run.score()
    assert capsys.readouterr().err.count("error: sub-2: broken; repair it\n") == 1
    assert "sub-2" not in run.scores()["model"].cases and len(run.scores()["model"].cases) == 4


def test_no_patient_at_all_is_told(tmp_path):
    with pytest.raises(InputError, match="no patient"):
        evaluation(tmp_path, {"model": Counting()}).scores()


def test_under_each_arm_everything_else_stays_and_it_is_kept(tmp_path):
    forecaster = Counting()
    for _ in range(2):
        forecasts = evaluation(tmp_path, {"model": forecaster}).under_each_arm("model", CASES[0])
    assert forecaster.asked == [("sub-0", arm) for arm in range(len(ARMS))]
    assert [f.expected_count for f in forecasts] == list(range(6)) and forecasts[5].heatmap.max() == np.float32(0.5)


def test_floor_and_ceiling_are_always_there_where_they_can_be(tmp_path):
    registry = dict.fromkeys(("population", "frequency_map", "oracle", "diffusion", "regression"))
    floors = {"population", "frequency_map"}
    assert set(select("diffusion", registry, tmp_path)) == {"diffusion", *floors}
    assert set(select(["oracle"], registry, tmp_path)) == floors
    (tmp_path / "derivatives" / "truth").mkdir(parents=True)
    assert set(select(["diffusion"], registry, tmp_path)) == {"diffusion", *floors, "oracle"}
    with pytest.raises(InputError, match="no forecaster 'magic'; choose of population"):
        select(["magic"], registry, tmp_path)
