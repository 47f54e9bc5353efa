"""The benchmark on the tiny network: its calls, its pairs and its rows."""

import json
from dataclasses import replace
from functools import partial

import matplotlib.pyplot as plt
import pytest
import torch
from conftest import TINY, inference_config

from bundle.errors import InputError
from scripts import benchmark

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(trial, tiny_weights, tmp_path_factory):
    file = tmp_path_factory.mktemp("benchmark") / "tiny.json"
    out = file.parent / "to be made"
    config = inference_config(**TINY, weights=str(tiny_weights))
    file.write_text(json.dumps(config.get()))
    with pytest.MonkeyPatch.context() as patch:
        reference = benchmark.METHODS["reference"]
        shorter = replace(reference, changes=reference.changes | {"num_steps": 8})
        patch.setitem(benchmark.METHODS, "reference", shorter)
        # Memory takes a process for each method; it is measured in a test of its own.
        patch.setattr(benchmark, "peak_memory", lambda config_file, name, image: len(name))
        patch.setattr(benchmark, "matmul_peak", partial(benchmark.matmul_peak, side=512, times=3))
        names = "default; preview; in one call a step; default in fp32; guided from -2, 6 steps"
        names += "; DPM-Solver++ from -4 to 4, 6 steps"
        same = {"patients": 3, "members": 4, "dataset_dir": str(trial), "split": "all", "methods": names}
        same["config_file"] = str(file)
        benchmark.run(str(out), repeats=2, **same)
        measured = (out / "benchmark.json").read_text()
        benchmark.run(str(out), repeats=0, **same)
        assert (out / "benchmark.json").read_text() == measured  # times and scores are both stored
    return out


@pytest.fixture(scope="module")
def rows(folder):
    found = json.loads((folder / "benchmark.json").read_text())
    assert (folder / "benchmark.md").read_text().count("\n") == 2 + len(found)
    return {row["name"]: row for row in found}


def test_calls_are_counted(rows):
    assert {name: row["calls_per_member"] for name, row in rows.items()} == {
        "reference": 16,
        "default": 9,
        "preview": 0.01,
        "in one call a step": 24,
        "default in fp32": 9,
        "guided from -2, 6 steps": 6 + 3,
        "DPM-Solver++ from -4 to 4, 6 steps": 6,
    }


def test_speed_and_memory_are_those_of_a_real_run(rows):
    for row in rows.values():
        assert 0 < row["seconds_low"] <= row["seconds_per_100_members"] <= row["seconds_high"]
        assert 0 < row["fraction_of_matmul_peak"] < 1
        assert row["peak_memory_mb"] == len(row["name"])
    assert rows["reference"]["speedup_over_reference"] == 1
    flops = {name: row["flops_per_member"] for name, row in rows.items()}
    assert flops["reference"] == pytest.approx(16 / 24 * flops["in one call a step"], rel=0.01)
    assert flops["in one call a step"] > flops["default"]  # images are encoded in every call


def test_memory_of_the_process_that_asks_does_not_count(trial, tiny_weights, folder):
    held = torch.ones(2**29)  # 2 GiB
    image = torch.zeros(8, 24, 20, 15)
    assert 100 < benchmark.peak_memory(str(folder.parent / "tiny.json"), "default", image) < held.nbytes / 1e6


def test_the_reference_does_not_differ_from_itself(rows):
    for column in ("foreground_bias", "heatmap_brier_difference"):
        assert [rows["reference"][column + end] for end in ("", "_low", "_high")] == [0, 0, 0]
    assert rows["default"]["heatmap_brier"] - rows["reference"]["heatmap_brier"] == pytest.approx(
        rows["default"]["heatmap_brier_difference"]
    )
    volumes = [rows[name]["volume_ratio"] for name in ("default", "reference")]
    assert rows["default"]["foreground_bias"] == pytest.approx(volumes[0] / volumes[1] - 1)
    assert "auc" in rows["default"] and "auc" not in rows["preview"]


def test_members_are_not_scored_twice(rows, folder):
    """What a method changes for speed alone leaves its members those of another."""
    assert "auc" not in rows["in one call a step"]
    assert not (folder / "cases" / "in one call a step").exists()


def test_fractions_of_the_profile_add_up(folder):
    lines = (folder / "profile.md").read_text().splitlines()
    fractions = [float(line.split(" | ")[2].rstrip(" |")) for line in lines[2:]]
    assert sum(fractions) == pytest.approx(1, abs=0.02) and "all others" in lines[-1]
    assert any("conv" in line for line in lines)


def test_curves_are_drawn(folder):
    assert plt.imread(folder / "quality.png").std() > 0.05


def test_a_curve_stands_for_its_methods_and_other_names_are_refused():
    names = benchmark.methods_named("default", "guided", "default", "guided, 8 steps")
    assert names == ["default", *(f"guided, {steps} steps" for steps in benchmark.STEPS)]
    with pytest.raises(InputError, match="no method 'fastest'; choose from reference, "):
        benchmark.methods_named("fastest")


def test_a_peer_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="diffusers is not installed; pip install"):
        benchmark.methods_named("default", "diffusers")


def test_the_plain_network_has_the_same_output(tiny_weights):
    network = inference_config(**TINY, weights=str(tiny_weights)).get_parsed_content("network").eval()
    x = torch.randn(2, 137, 24, 20)
    assert torch.equal(benchmark.Plain(network)(x), network(x))
    assert not hasattr(benchmark.Plain(network), "encode")
