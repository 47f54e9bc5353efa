"""Patients are forecast and scored once, and again only when something they depend on has changed."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from bundle.arms import ARMS
from bundle.errors import Guard, InputError
from bundle.evaluation import cases
from bundle.evaluation.cases import Evaluation
from bundle.evaluation.scoring import Scoring
from bundle.forecasters.base import Findings, Forecast, Patient, Role
from bundle.forecasters.cohort import ObservedCase, Record
from bundle.lesions import LesionRule

SHAPE, AFFINE = (9, 8, 6), np.diag([2.0, 2.0, 3.0, 1.0])
SCORING = Scoring(LesionRule())
ITEMS = [{"case": f"sub-{n}", "arm": "avonex"} for n in range(5)]


class Counting:
    """A forecaster that counts its calls, and expects as many lesions as the arm's class index."""

    role, num_members = Role.MODEL, None

    def __init__(self, key="counting"):
        self.key, self.calls = key, []

    def __call__(self, patient):
        self.calls.append((patient.case, patient.arm))
        heatmap = np.full(SHAPE, 0.1 * patient.arm, np.float32)
        return [Forecast(0.5, np.array([float(patient.arm)]), np.ones(1), heatmap=heatmap)]


@dataclass(init=False)
class Reader:
    """Reads patients that are not on disk; the files of `changed` are not those that another reader has seen."""

    def __init__(self, unreadable=(), changed=()):
        self.unreadable, self.changed = unreadable, changed

    def __call__(self, item):
        case = item["case"]
        if case in self.unreadable:
            raise InputError("broken", "repair it", case=case)
        patient = Patient(case, 2, torch.zeros(8, *SHAPE), np.ones(SHAPE, bool), AFFINE)
        return ObservedCase(patient, Record(case, 2, {}, Findings(1, 0.0)), np.zeros(SHAPE, bool))

    def version(self, item):
        return f"{item['case']} {item['case'] in self.changed}"


def evaluation(folder, forecasters, scoring=SCORING, **reader):
    return Evaluation("data", ITEMS, Reader(**reader), forecasters, scoring, folder, Guard())


def calls_of_second_run(folder, **changes):
    evaluation(folder, {"model": Counting()}).score()
    forecaster = Counting(changes.pop("key", "counting"))
    evaluation(folder, {"model": forecaster}, **changes).score()
    return [case for case, _ in forecaster.calls]


def test_each_patient_is_forecast_once_whatever_happens_in_between(tmp_path):
    forecaster = Counting()
    evaluation(tmp_path, {"model": forecaster}).score()
    assert len(forecaster.calls) == 5
    (tmp_path / "cases" / "model" / "sub-3.npz").unlink()
    evaluation(tmp_path, {"model": forecaster, "other": Counting()}).score()
    assert [case for case, _ in forecaster.calls[5:]] == ["sub-3"]


@pytest.mark.parametrize("change", [{"key": "other weights"}, {"scoring": Scoring(LesionRule(min_volume_mm3=9))}])
def test_other_settings_score_everyone_again(tmp_path, change):
    assert len(calls_of_second_run(tmp_path, **change)) == 5


def test_a_patient_whose_files_have_changed_is_scored_again_and_no_other(tmp_path):
    assert calls_of_second_run(tmp_path, changed=("sub-2",)) == ["sub-2"]


def test_another_version_of_the_scores_is_scored_again(tmp_path, monkeypatch):
    evaluation(tmp_path, {"model": Counting()}).score()
    monkeypatch.setattr(cases, "SCORES_VERSION", cases.SCORES_VERSION + 1)
    forecaster = Counting()
    evaluation(tmp_path, {"model": forecaster}).score()
    assert len(forecaster.calls) == 5


@pytest.mark.parametrize("damage", [lambda x: x[: len(x) // 2], lambda x: b"", lambda x: x[:90] + bytes(40) + x[130:]])
def test_damaged_score_files_are_made_again(tmp_path, damage):
    evaluation(tmp_path, {"model": Counting()}).score()
    file = tmp_path / "cases" / "model" / "sub-1.npz"
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    forecaster = Counting()
    run = evaluation(tmp_path, {"model": forecaster})
    run.score()
    assert [case for case, _ in forecaster.calls] == ["sub-1"] and len(run.scores()["model"].cases) == 5
    assert len(file.read_bytes()) == len(whole)


def test_processes_divide_the_patients(tmp_path):
    first, second = Counting(), Counting()
    evaluation(tmp_path, {"model": first}).score(0, 2)
    evaluation(tmp_path, {"model": second}).score(1, 2)
    assert sorted(first.calls + second.calls) == [(item["case"], 2) for item in ITEMS]
    scores = evaluation(tmp_path, {"model": Counting()}).scores()["model"]
    assert scores.cases == tuple(item["case"] for item in ITEMS) and scores.role is Role.MODEL


def test_a_patient_that_cannot_be_read_is_reported_and_left_out(tmp_path, capsys):
    run = evaluation(tmp_path, {"model": Counting()}, unreadable=["sub-2"])
    run.score()
    assert capsys.readouterr().err.count("error: sub-2: broken; repair it\n") == 1
    assert "sub-2" not in run.scores()["model"].cases and len(run.scores()["model"].cases) == 4


def test_no_patient_at_all_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no patient"):
        evaluation(tmp_path, {"model": Counting()}).scores()


def test_under_each_arm_everything_else_stays_and_it_is_stored(tmp_path):
    forecaster = Counting()
    for _ in range(2):
        forecasts = evaluation(tmp_path, {"model": forecaster}).under_each_arm("model", ITEMS[0])
    assert forecaster.calls == [("sub-0", arm) for arm in range(len(ARMS))]
    assert [f.expected_count for f in forecasts] == list(range(6)) and forecasts[5].heatmap.max() == np.float32(0.5)
