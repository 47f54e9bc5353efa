"""The benchmark on the tiny network: its calls, its pairs and its rows."""

import json

import pytest
import torch
from conftest import TINY, inference_config

from scripts import benchmark


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rows(trial, tiny_weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("benchmark")
    config = inference_config(**TINY, weights=str(tiny_weights))
    file = out / "tiny.json"
    file.write_text(json.dumps(config.get()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(benchmark.METHODS, "reference", benchmark.METHODS["reference"] | {"num_steps": 16})
        names = "default; preview; 6 steps from -4 to 4"
        benchmark.run(
            str(out), patients=3, members=4, repeats=2, dataset_dir=str(trial), split="all", methods=names, config_file=str(file)
        )
    told = json.loads((out / "benchmark.json").read_text())
    assert (out / "benchmark.md").read_text().count("\n") == 2 + len(told)
    return {row["name"]: row for row in told}


def test_calls_are_counted(rows):
    assert {name: row["calls_per_member"] for name, row in rows.items()} == {
        "reference": 32, "default": 10, "preview": 0.01, "6 steps from -4 to 4": 6,
    }  # fmt: skip


def test_speed_and_memory_are_those_of_a_real_run(rows):
    for row in rows.values():
        assert 0 < row["seconds_low"] <= row["seconds_per_100_members"] <= row["seconds_high"]
        assert 0 < row["share_of_matmul_peak"] < 1
        assert row["peak_memory_mb"] > 100
    assert rows["reference"]["speedup_over_reference"] == 1
    assert rows["reference"]["flops_per_member"] == pytest.approx(3.2 * rows["default"]["flops_per_member"], rel=0.2)


def test_the_reference_does_not_differ_from_itself(rows):
    for column in ("foreground_bias", "heatmap_brier_difference"):
        assert [rows["reference"][column + end] for end in ("", "_low", "_high")] == [0, 0, 0]
    assert rows["default"]["heatmap_brier"] - rows["reference"]["heatmap_brier"] == pytest.approx(
        rows["default"]["heatmap_brier_difference"]
    )
    assert "auc" in rows["default"] and "auc" not in rows["preview"]


def test_plain_network_says_the_same(tiny_weights):
    network = inference_config(**TINY, weights=str(tiny_weights)).get_parsed_content("network").eval()
    x = torch.randn(2, 137, 24, 20)
    assert torch.equal(benchmark.Plain(network)(x), network(x))
    assert not hasattr(benchmark.Plain(network), "encode")
