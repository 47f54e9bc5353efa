"""MONAI's own bundle commands accept the bundle."""

import pytest
import torch
from conftest import ROOT, inference_config
from processes import run_forked

from bundle.networks.weights import export_weights

SCHEMA = ROOT / "tests" / "metadata_schema.json"


def monai_bundle(*arguments):
    code, output = run_forked("monai.bundle", *arguments)
    assert code == 0, output[-3000:]


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
    torch.manual_seed(0)
    network = inference_config().get_parsed_content("network_def").eval()
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
