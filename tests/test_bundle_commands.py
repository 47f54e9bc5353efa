"""MONAI's own bundle commands accept the bundle."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bundle.networks.weights import export_weights

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "tests" / "metadata_schema.json"


def monai_bundle(*arguments):
    result = subprocess.run(
        [sys.executable, "-m", "monai.bundle", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]


@pytest.mark.slow
def test_verify_net_in_out():
    monai_bundle(
        *("verify_net_in_out", "network_def", "--meta_file", "configs/metadata.json"),
        *("--config_file", "configs/inference.json", "--n", "2", "--p", "1", "--any", "16"),
    )


@pytest.mark.slow
def test_verify_metadata(tmp_path):
    copy = tmp_path / SCHEMA.name
    copy.write_bytes(SCHEMA.read_bytes())
    monai_bundle("verify_metadata", "--meta_file", "configs/metadata.json", "--filepath", str(copy))


@pytest.mark.slow
def test_ckpt_export_gives_a_script_that_agrees(tmp_path):
    from monai.bundle import ConfigParser

    config = ConfigParser()
    config.read_config(ROOT / "configs" / "inference.json")
    torch.manual_seed(0)
    network = config.get_parsed_content("network_def").eval()
    for parameter in network.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape)
    export_weights(network, tmp_path / "model.pt")
    monai_bundle(
        *("ckpt_export", "network_def", "--filepath", str(tmp_path / "model.ts")),
        *("--ckpt_file", str(tmp_path / "model.pt")),
        *("--meta_file", "configs/metadata.json", "--config_file", "configs/inference.json"),
    )
    network.load_state_dict(torch.load(tmp_path / "model.pt"))
    x = torch.randn(2, 137, 80, 96)
    x[:, -1] = 3
    with torch.inference_mode():
        torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(x), network(x), rtol=1e-3, atol=1e-3)
