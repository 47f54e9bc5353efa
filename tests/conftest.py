"""Real things, small: a simulated trial, and the configuration of a network that trains in a blink."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from bundle.data.datalist import load_split
from bundle.networks.weights import export_weights
from bundle.simulation.trial import simulate_trial

ROOT = Path(__file__).parents[1]
# Overrides of train.json and inference.json: every component the real one, on a coarse grid.
TINY = {
    "device": "cpu",
    "network_def#channels": [16, 32],
    "network_def#attention_levels": [False, True],
    "network_def#num_head_channels": 16,
    "network_def#norm_num_groups": 8,
    "network_def#conditioning_channels": 16,
    "grid#spacing_mm": [8, 8, 3],
    "grid#shape": [20, 24, 15],
}


@pytest.fixture(scope="session")
def trial(tmp_path_factory):
    """BIDS folder of a simulated trial of 12 patients, with its datalist."""
    folder = tmp_path_factory.mktemp("trial")
    simulate_trial(folder, 12, seed=5, workers=2)
    load_split(folder, "training")  # makes the datalist
    return folder


def start_bundle(run_id, config_file, launcher=(sys.executable, "-m"), **overrides):
    """Start `python -m monai.bundle run ID --config_file FILE --id value ...` from the bundle root."""
    arguments = [f"--{name}={value}" for name, value in overrides.items()]
    return subprocess.Popen(
        [*launcher, "monai.bundle", "run", run_id, "--config_file", config_file, *arguments],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def inference_config(**overrides):
    """configs/inference.json with what the command line would override, to be run in this process."""
    config = ConfigParser()
    config.read_config(ROOT / "configs" / "inference.json")
    config.update(overrides)
    return config


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory):
    """File of weights of the tiny network: random, and nowhere zero, so that every input counts."""
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.manual_seed(0)
    network = inference_config(**TINY).get_parsed_content("network_def")
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    export_weights(network, path)
    return path
