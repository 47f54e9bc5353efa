import json
import shutil

import numpy as np
import pytest
from conftest import PATIENTS, TINY, inference_config

from bundle.errors import input_error
from bundle.forecasters.counts import count_model
from scripts.fit_counts import features_and_counts, main

pytestmark = pytest.mark.slow


@pytest.fixture
def config_file(tmp_path):
    file = tmp_path / "inference.json"
    file.write_text(json.dumps(inference_config(**TINY).get()))
    return str(file)


def test_the_command_writes_what_inference_reads(trial, tiny_weights, config_file, tmp_path):
    weights = tmp_path / "model.pt"
    shutil.copy(tiny_weights, weights)
    said = main(str(trial), str(weights), split="all", states=2, config_file=config_file)
    fitted = json.loads((tmp_path / "model_count_model.json").read_text())["fitted"]
    assert fitted["patients"] == PATIENTS and fitted["states"] == 2 and str(fitted) in said
    mean, _ = count_model(weights).mean_and_size(np.array([[1.0, 0.0, 0.0, 0.0, 0.0]]))
    assert mean > 0


def test_every_patient_is_seen_whole_and_with_volumes_left_out(trial, tiny_weights):
    config = inference_config(**TINY, weights=str(tiny_weights))
    features, counts, longer = features_and_counts(config, str(trial), "all", 3, 0)
    unknown = features.reshape(PATIENTS, 3, 5)[:, :, 2]
    assert not unknown[:, 0].any() and unknown[:, 1:].any() and (unknown[:, 1:] <= 1).all()
    assert (counts.reshape(PATIENTS, 3).std(axis=1) == 0).all() and counts.any()
    assert (longer.reshape(PATIENTS, 3).std(axis=1) == 0).all() and (abs(longer - 1) < 0.1).all() and longer.std() > 0


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"states": 0}, "states=0 is not a whole number"),
        ({"weights": "nothing.pt"}, "nothing.pt: weights file not found"),
        ({"config_file": "nothing.json"}, "nothing.json: no such configuration"),
        ({"split": "none"}, "no datalist with 'none' in it"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, problem, trial, tiny_weights, config_file):
    with pytest.raises(Exception) as caught:
        main(str(trial), **({"weights": str(tiny_weights), "config_file": config_file} | change))
    assert problem in str(input_error(caught.value))
