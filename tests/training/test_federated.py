"""Two clients of MONAI's `MonaiAlgo`, each with half of a trial, and a server that averages their weights."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, bundle_config
from monai.bundle import ConfigWorkflow
from monai.fl.client import MonaiAlgo, MonaiAlgoStats
from monai.fl.utils.constants import ExtraItems, FlStatistics, WeightType
from monai.fl.utils.exchange_object import ExchangeObject

from bundle.data.datalist import load_split
from bundle.data.grid import SlabGrid
from bundle.networks.weights import export_weights, load_weights
from bundle.training.federated import OutcomeStatistics

CONFIGS = ["configs/train.json", "configs/federated.json"]
SETTINGS = {"epoch_length": 2, "batch_size": 2, "num_warmup": 0, "amp": False, "num_rounds": 3}


@pytest.fixture(scope="module")
def halves(trial, tmp_path_factory):
    """The trial cut in two: each patient is in one of two data sets, with a datalist of its own."""
    items = sorted(load_split(trial, "all"), key=lambda item: (item["active"], item["case"]))
    folders = []
    for half in (items[::2], items[1::2]):
        folder = tmp_path_factory.mktemp("hospital")
        shutil.copy(trial / "participants.tsv", folder)
        shutil.copytree(trial / "derivatives", folder / "derivatives")
        for item in half:
            shutil.copytree(trial / item["case"], folder / item["case"])
        listed = [item | {"image": item["case"]} for item in half]
        for item in listed:
            del item["dataset_dir"]
        splits = {"training": listed[1:], "validation": listed[-2:], "test": listed[:1]}
        (folder / "datalist.json").write_text(json.dumps(splits))
        folders.append(folder)
    return folders


def client(dataset_dir, output_dir, **more):
    settings = TINY | SETTINGS | {"dataset_dir": str(dataset_dir), "output_dir": str(output_dir)} | more
    algorithm = MonaiAlgo(
        str(ROOT),
        config_train_filename=CONFIGS,
        config_evaluate_filename=CONFIGS,
        train_kwargs=dict(settings),
        eval_kwargs=dict(settings),
        send_weight_diff=False,
    )
    algorithm.initialize({})
    return algorithm


def mean(exchanged):
    states = [one.weights for one in exchanged]
    return {name: torch.stack([state[name].double() for state in states]).mean(0).float() for name in states[0]}


def sent(weights):
    return ExchangeObject(weights=dict(weights), weight_type=WeightType.WEIGHTS)


def zeros(algorithm):
    return {name: torch.zeros_like(value) for name, value in algorithm.trainer.network.state_dict().items()}


@pytest.mark.slow
def test_three_rounds_of_two_hospitals_train_one_model(halves, tmp_path):
    clients = [client(folder, tmp_path / folder.name) for folder in halves]
    seen = [[] for _ in clients]
    for one, cases in zip(clients, seen):
        handler = partial(lambda engine, cases: cases.append(list(engine.state.batch["case"])), cases=cases)
        one.trainer.add_event_handler("ITERATION_STARTED", handler)
    weights, scores = zeros(clients[0]), []
    for _ in range(3):
        for one in clients:
            one.train(sent(weights))
        weights = mean([one.get_weights() for one in clients])
        scores.append([one.evaluate(sent(weights)).metrics["log_score"] for one in clients])
    assert np.isfinite(scores).all() and (np.array(scores[-1]) > scores[0]).all()
    for one, cases in zip(clients, seen):  # no round repeats the batches of the one before
        sampler, data = one.trainer.data_loader.batch_sampler, one.trainer.data_loader.dataset.dataset.data
        sampler.start = 0
        assert cases == [[data[index]["case"] for index in batch] for batch in sampler] and len(cases) == 6
    clients[0].trainer.network.load_state_dict(weights)
    export_weights(clients[0].trainer.network, tmp_path / "federated.pt")
    network = bundle_config("inference.json", **TINY).get_parsed_content("network_def")
    for name, value in load_weights(network, tmp_path / "federated.pt").state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=1e-3, atol=1e-6)  # the file has half precision


def test_a_local_checkpoint_never_replaces_the_servers_weights(halves, tmp_path):
    one = client(halves[0], tmp_path)
    (tmp_path / "stage2_last.pt").write_bytes(b"of another training")
    states = []
    one.trainer.add_event_handler(
        "EPOCH_STARTED", lambda engine: states.append({k: v.clone() for k, v in engine.network.state_dict().items()})
    )
    one.train(sent(zeros(one)))
    assert all((value == 0).all() for value in states[0].values())


def test_statistics_of_the_data_can_be_asked_for(halves, tmp_path):
    pytest.importorskip("yaml", reason="PyYAML is not installed, with which MONAI writes statistics")
    places = {"dataset_dir": str(halves[0]), "output_dir": str(tmp_path / "out"), "bundle_root": str(ROOT)}
    files = [str(ROOT / name) for name in CONFIGS]
    workflow = ConfigWorkflow(files, workflow_type="train", logging_file=False, **TINY | places)
    read = OutcomeStatistics(SlabGrid(TINY["grid#spacing_mm"], TINY["grid#shape"]))
    asked = MonaiAlgoStats(str(ROOT), workflow=workflow, data_stats_transform_list=[read])
    asked.initialize({ExtraItems.APP_ROOT: str(tmp_path)})
    extra = {FlStatistics.HIST_BINS: [10], FlStatistics.HIST_RANGE: [[0, 1]]}
    found = asked.get_data_stats(extra).statistics["train"]
    items = bundle_config("train.json", **TINY | places).get_parsed_content("train#dataset#data")
    assert found[FlStatistics.DATA_COUNT] == len(items) and found[FlStatistics.FAIL_COUNT] == 0
    intensity = found[FlStatistics.DATA_STATS]["image_stats"]["intensity"]
    assert 0 <= intensity["min"] < intensity["mean"] < intensity["max"] <= 1
