"""ONNX graphs, checked by ONNX and computed by onnxruntime, and training that MLflow tracks."""

import json
import os
import subprocess

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, inference_config

from bundle.networks.weights import export_weights

ENVIRONMENT = ROOT / ".environments" / "onnx"
PYTHON = ENVIRONMENT / "bin" / "python"
REASON = "ONNX and MLflow are not installed; `make test-worlds` installs them, or prints why it cannot"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not (ENVIRONMENT / "installed").is_file(), reason=REASON)]
COMPUTE = """
import sys
import numpy as np, onnx, onnxruntime
onnx.checker.check_model(sys.argv[1], full_check=True)
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
(output,) = session.run(None, {session.get_inputs()[0].name: np.load(sys.argv[2])})
np.save(sys.argv[3], output)
"""
READ = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient(f"sqlite:///{sys.argv[1]}/mlruns.db")
(experiment,) = [e for e in client.search_experiments() if e.name == "monai_experiment"]
found = []
for run in client.search_runs([experiment.experiment_id]):
    history = {k: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, k)] for k in run.data.metrics}
    found.append({"status": run.info.status, "params": run.data.params, "metrics": history})
print(json.dumps(found))
"""


def run(*arguments, code=0):
    """Stdout and stderr of the environment's Python, started from the bundle root."""
    settings = {"PYTHONPATH": "", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [PYTHON, *map(str, arguments)], cwd=ROOT, env=os.environ | settings, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout, done.stderr


def computed(graph, inputs, folder):
    """Output of a valid graph for one array."""
    np.save(folder / "in.npy", inputs)
    run("-c", COMPUTE, graph, folder / "in.npy", folder / "out.npy")
    return np.load(folder / "out.npy")


def options(**values):
    return [f"--{name}={value}" for name, value in values.items()]


def export(weights, out, code=0):
    """MONAI's command, for a network of the tiny architecture and any number of inputs."""
    converter = {"input_names": ["x"], "output_names": ["pred"], "dynamic_axes": {"x": {0: "batch"}}}
    network = {name: value for name, value in TINY.items() if name.startswith("network_def")}
    arguments = {"filepath": out, "ckpt_file": weights, "config_file": "configs/inference.json"}
    arguments |= {"meta_file": "configs/metadata.json", "input_shape": [2, 137, 16, 24], "converter_kwargs": converter}
    return run("-m", "monai.bundle", "onnx_export", "network_def", *options(**arguments, **network), code=code)


def test_the_network_that_monai_exports_is_valid_and_agrees(tmp_path):
    torch.manual_seed(0)
    network = inference_config(**TINY).get_parsed_content("network_def").eval()
    for parameter in network.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape)
    export_weights(network, tmp_path / "model.pt")
    network.load_state_dict(torch.load(tmp_path / "model.pt"))
    export(tmp_path / "model.pt", tmp_path / "model.onnx")
    for count in (1, 3):
        x = torch.rand(count, 137, 16, 24)
        x[:, -1] = 3
        with torch.inference_mode():
            expected = network(x).numpy()
        np.testing.assert_allclose(computed(tmp_path / "model.onnx", x.numpy(), tmp_path), expected, atol=1e-4, rtol=0)


def test_weights_that_do_not_fit_leave_no_file_and_exit_code_1(tmp_path):
    out = tmp_path / "model.onnx"
    export(ROOT / "models" / "model.pt", out, code=1)
    _, error = run("-m", "scripts.export_onnx", tmp_path / "no.pt", "--out", out, code=1)
    assert error.splitlines()[-1].startswith(f"error: {tmp_path / 'no.pt'}: weights file not found; ")
    assert not out.exists()


def test_the_graph_of_the_heatmap_agrees_with_inference(trial, tmp_path):
    run("-m", "scripts.export_onnx", "models/model.pt", "--out", tmp_path / "heatmap.onnx")
    config = inference_config(dataset_dir=str(trial), amp=False, device="cpu", progress=False, case="sub-0001")
    (case,) = config.get_parsed_content("dataset")
    image = case["image"].as_tensor()[None].float()
    expected = config.get_parsed_content("inferer").heatmap(image, config.get_parsed_content("network")).numpy()
    heatmap = computed(tmp_path / "heatmap.onnx", image.numpy(), tmp_path)
    assert heatmap.shape == (1, 80, 96, 15) and expected.max() > 0.01
    np.testing.assert_allclose(heatmap, expected, atol=1e-4, rtol=0)


def test_mlflow_has_parameters_losses_and_scores_of_every_epoch(trial, tmp_path):
    lengths = {"epoch_length": 2, "prior_epochs": 1, "pretraining_epochs": 1, "finetuning_epochs": 2, "batch_size": 4}
    settings = TINY | lengths | {"amp": False, "dataset_dir": trial, "output_dir": tmp_path, "tracking": "mlflow"}
    run("-m", "monai.bundle", "run", "training", *options(config_file="configs/train.json", **settings))
    output, _ = run("-c", READ, tmp_path)
    (tracked,) = json.loads(output)
    assert tracked["status"] == "FINISHED" and tracked["params"] == {"max_epochs": "2", "epoch_length": "2"}
    assert [step for step, _ in tracked["metrics"]["train_loss"]] == [1, 2, 3, 4]
    assert [step for step, _ in tracked["metrics"]["log_score"]] == [1, 2]
    assert len(list(tmp_path.glob("config_*.json"))) == 1
