import json
import math
import shutil

import numpy as np
import pytest
import torch
from conftest import PATIENTS, TINY, inference_config
from torch import nn

from bundle.diffusion.predictions import BinaryPrediction, ContrastwisePrediction, X0Prediction
from bundle.diffusion.samplers import DPMSolverPP2M
from bundle.diffusion.schedules import Cosine, LogSNRUniformGrid
from bundle.diffusion.slabs import VolumeCorrection
from bundle.errors import InputError, input_error
from bundle.forecasters.ensemble import EnsembleInferer
from bundle.networks.weights import volume_correction, write_fitted
from scripts.correct_volume import COUNT, FIRST, correct_volume, next_log_odds, walk

SLICES, SIDE = 3, 64
PRIOR, TOO_LOW = 0.02, 0.3


class Biased(nn.Module):
    """Independent voxels with a known prior; half log-odds too low by TOO_LOW / 2 at log-SNR -4.5 to 1.5."""

    def forward(self, x):
        level = x[:, -2:-1, :1, :1]
        half = torch.tensor(PRIOR).logit() / 2 - TOO_LOW / 2 * ((level > -4.5) & (level < 1.5))
        flair = torch.zeros_like(x[:, :SLICES])
        return torch.cat([flair, flair + half], dim=1)


def test_the_fit_finds_how_much_too_low_a_network_is():
    inferer = EnsembleInferer(
        Cosine(20, -20),
        LogSNRUniformGrid(-4, 4),
        DPMSolverPP2M(),
        ContrastwisePrediction((X0Prediction(), BinaryPrediction())),
        foreground_weight=1.0,
        num_members=8,
        amp=False,
        progress=False,
    )
    patients = [(torch.zeros(1, 8, SIDE, SIDE, SLICES), PRIOR * SIDE * SIDE * SLICES)]
    log_odds, reached = np.zeros(COUNT), []
    for _ in range(4):
        correction = VolumeCorrection(FIRST, tuple(log_odds.tolist()))
        walks = walk(inferer.with_settings(volume_correction=correction), Biased(), patients, torch.device("cpu"))
        reached.append(walks.members)
        log_odds = next_log_odds(log_odds, walks)
    assert reached[0] < 0.85  # what was lost
    assert reached[-1] == pytest.approx(1, abs=0.03)  # the standard error of 8 x 12,288 voxels is .023
    np.testing.assert_allclose(log_odds[1:5], TOO_LOW, atol=0.08)


@pytest.fixture
def config_file(tmp_path):
    file = tmp_path / "inference.json"
    file.write_text(json.dumps(inference_config(**TINY, progress=False, num_steps=2).get()))
    return str(file)


@pytest.mark.slow
def test_the_command_writes_what_inference_reads(trial, tiny_weights, config_file, tmp_path):
    weights = tmp_path / "model.pt"
    shutil.copy(tiny_weights, weights)
    said = correct_volume(str(trial), str(weights), members=1, rounds=1, config_file=config_file)
    written = json.loads((tmp_path / "model_volume_correction.json").read_text())
    fitted = written["fitted"]
    assert fitted["patients"] == PATIENTS and fitted["members"] == 1 and fitted["steps"] == 2
    assert abs(math.log(fitted["volume_after"])) <= abs(math.log(fitted["volume_before"]))
    assert f"members hold {fitted['volume_after']:.3f} of the heatmaps' volume" in said
    assert volume_correction(weights).log_odds == tuple(written["volume_correction"]["log_odds"])


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"members": "x"}, "members='x' is not a whole number"),
        ({"rounds": 0}, "rounds=0 is not a whole number"),
        ({"config_file": "nothing.json"}, "nothing.json: no such configuration; correct --config_file"),
        ({"weights": "nothing.pt"}, "nothing.pt: weights file not found"),
        ({"split": "test"}, "patients with a lesion to come; 10 are needed"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, problem, trial, tiny_weights, config_file):
    settings = {"weights": str(tiny_weights), "config_file": config_file} | change
    with pytest.raises(Exception) as caught:
        correct_volume(str(trial), **settings)
    assert problem in str(input_error(caught.value))
    assert not tiny_weights.with_name("model_volume_correction.json").exists()


def test_inference_finds_the_correction_beside_the_weights_it_was_fitted_for(tmp_path):
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"weights")
    assert volume_correction(weights) is None
    correction = VolumeCorrection(-4.0, (0.1, 0.2))
    file = write_fitted(weights, "volume_correction", correction, {"patients": 3})
    assert file == tmp_path / "model_volume_correction.json"
    assert volume_correction(weights) == correction
    weights.write_bytes(b"other weights")
    with pytest.raises(InputError, match="fitted for weights other than model.pt; fit it again"):
        volume_correction(weights)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: [],
        lambda content: content | {"volume_correction": {"first": "x", "log_odds": []}},
        lambda content: content | {"volume_correction": {"first": -4, "log_odds": [float("nan")]}},
        lambda content: content | {"volume_correction": {"first": -4, "log_odds": [300]}},
        lambda content: content | {"volume_correction": {"first": -4, "log_odds": "123"}},
        lambda content: content | {"volume_correction": {"first": -4, "log_odds": []}},
    ],
)
def test_a_damaged_correction_is_refused(change, tmp_path):
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"weights")
    file = write_fitted(weights, "volume_correction", VolumeCorrection(-4.0, (0.1,)), {})
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(InputError, match="with scripts.correct_volume, or delete it"):
        volume_correction(weights)
