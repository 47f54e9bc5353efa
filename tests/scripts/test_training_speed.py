"""Memory that is added up, and a real if short training."""

import json

import pytest
import torch
from conftest import ROOT, TINY

from scripts.training_speed import PeakMemory, step_memory, training_speed


def test_memory_is_that_of_what_is_alive():
    with PeakMemory() as memory:
        a = torch.zeros(1000)
        view = a[:10].reshape(2, 5)
        b = torch.ones(500) + 1  # two of 2000 bytes, for a moment
        assert memory.now == 4000 + 2000
        del a
        assert memory.now == 4000 + 2000  # the view holds it
        del view
        assert memory.now == 2000
    assert memory.peak == 4000 + 2000 + 2000 and b.sum() == 1000


@pytest.mark.slow
def test_checkpointing_and_smaller_passes_need_less(tmp_path):
    """Of the paper's network, made smaller; with the UNet frozen, a step holds its weights and average alone."""
    paper = json.loads((ROOT / "configs" / "paper.json").read_text())
    narrow = {"channels": [16] * 2, "attention_levels": [False, True], "num_res_blocks": 2}
    narrow |= {"norm_num_groups": 8, "num_head_channels": 8, "conditioning_channels": 16}
    overlay = tmp_path / "narrow.json"
    overlay.write_text(json.dumps({"network_def": paper["network_def"] | narrow, "grid": paper["grid"]}))
    settings = [("stage 1", 4, False), ("stage 1", 1, False), ("stage 1", 4, True), ("stage 2", 4, True)]
    whole, single, recomputed, frozen = (step_memory(*setting, overlay=str(overlay)) for setting in settings)
    assert single < whole / 3 and recomputed < 0.6 * whole
    assert frozen > recomputed  # two nets hold what passes between their blocks


@pytest.mark.slow
def test_ours_and_plain_train_the_same_samples(trial, tmp_path):
    config = json.loads((ROOT / "configs" / "train.json").read_text()) | {"batch_size": 2}
    for name, value in TINY.items():
        block, _, key = name.partition("#")
        config[block] = config[block] | {key: value} if key else value
    file = tmp_path / "train.json"
    file.write_text(json.dumps(config))
    rows = training_speed(str(trial), str(tmp_path / "cache"), 3, 1, config_file=str(file))
    assert [(row["stage"], row["name"]) for row in rows] == [
        ("stage 1", "ours"),
        ("stage 1", "plain fp32 loop"),
        ("stage 2", "ours"),
        ("stage 2", "plain fp32 loop"),
    ]
    for row in rows:
        assert row["samples_per_second"] > 0 and 0 < row["fraction_waiting_for_data"] < 1
        assert row["name"] == "ours" or row["speedup_over_plain"] == 1
