"""Configurations say which and how much, Python says how: they parse, resolve, agree, and hold no logic."""

import ast
import json
from importlib.metadata import version
from pathlib import Path
from pydoc import locate

import jsonschema
import pytest
import torch
from conftest import bundle_config
from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow
from monai.bundle.config_item import ComponentLocator, ConfigComponent

import bundle

ROOT = Path(__file__).parents[1]
ARGS = sorted((ROOT / "configs").glob("*_args.json"))
CONFIGS = sorted({*(ROOT / "configs").glob("*.json")} - {ROOT / "configs" / "metadata.json", *ARGS})
LOCATOR = ComponentLocator()
SELF_CONTAINED = ("train.json", "inference.json", "segment.json")
SHARED = ("network_def", "grid", "schedule", "prediction", "foreground_weight", "device")


def read(name):
    return json.loads((ROOT / "configs" / name).read_text())


def values(node):
    """Every leaf and every component of a config."""
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from values(value)
    elif isinstance(node, list):
        for value in node:
            yield from values(value)
    else:
        yield node


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_expressions_are_an_import_a_reference_or_one_call(path):
    """But for the one that finds the bundle where it lies: before its code can be imported only MONAI can be asked."""
    config = json.loads(path.read_text())
    found = config.pop("bundle_root", None)
    assert found == (read("inference.json")["bundle_root"] if path.name in SELF_CONTAINED else None)
    for text in values(config):
        if not (isinstance(text, str) and text.startswith("$")):
            continue
        (statement,) = ast.parse(text[1:].replace("@", "ref_").replace("#", "_")).body
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            continue
        nodes = [type(node) for node in ast.walk(statement)]
        assert nodes.count(ast.Call) <= 1, text
        allowed = {ast.Expr, ast.Call, ast.Name, ast.Load, ast.Attribute, ast.Constant, ast.List, ast.keyword}
        assert set(nodes) <= allowed, text


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_target_resolves_and_ours_are_written_in_full(path):
    for node in values(json.loads(path.read_text())):
        if isinstance(node, dict) and "_target_" in node:
            component = ConfigComponent(config={"_target_": node["_target_"]}, locator=LOCATOR)
            assert locate(component.resolve_module_name()), node["_target_"]
            assert "." in node["_target_"] or component.resolve_module_name().startswith("monai."), node["_target_"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_imports_name_nothing_of_the_bundle(path):
    """MONAI evaluates all of them before it evaluates anything else, when the bundle may not be importable yet."""
    ids = json.loads(path.read_text())
    assert not [text for text in ids.get("imports", ids.get("+imports", [])) if "bundle" in text]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_overlays_add_to_imports_and_initialize_and_never_replace_them(path):
    ids = json.loads(path.read_text())
    whole = {"imports", "initialize"}
    assert whole & set(ids) == (whole if path.name in SELF_CONTAINED else set())


def test_training_and_inference_agree_on_what_they_share():
    train, inference = read("train.json"), read("inference.json")
    assert {name: train[name] for name in SHARED} == {name: inference[name] for name in SHARED}


@pytest.mark.parametrize("overlay", ["paper.json", "multi_gpu_train.json", "evaluate.json", "counterfactual.json"])
def test_overlays_restate_nothing_that_train_and_inference_hold(overlay):
    for name in SHARED:
        assert overlay == "paper.json" or name not in read(overlay), name
    assert not [text for text in values(read(overlay)) if isinstance(text, str) and text.startswith("%")]


@pytest.mark.parametrize("overlay", ["paper.json", "multi_gpu_train.json"])
def test_these_overlays_change_only_what_is_there(overlay):
    parsers = [ConfigParser(read(name)) for name in ("train.json", "inference.json")]
    for name in read(overlay):
        assert any(name.removeprefix("+") in parser for parser in parsers) or name == "finalize", name


@pytest.mark.parametrize("path", ARGS, ids=lambda path: path.name)
def test_args_files_name_a_run_id_of_their_files(path):
    arguments = json.loads(path.read_text())
    config = bundle_config(*(Path(file).name for file in arguments["config_file"]))
    assert arguments["run_id"] in config and config["run"] == config[arguments["run_id"]]
    assert config["initialize"][1] == {"_target_": "bundle.command.begin"}


def test_the_model_of_w000_is_not_trained_by_comparing():
    config = bundle_config("train.json", "inference.json", "evaluate.json", "counterfactual.json")
    assert config["training"] == [f"$@{stage}#trainer.run()" for stage in ("prior", "pretrain", "train")]
    assert config["drop_visits"] == ["w048"]
    for name in ("counterfactual", "comparing", "run"):
        assert "trainer" not in str(config[name])
    assert config.get_parsed_content("weights_w000").endswith("model.pt")


@pytest.mark.parametrize("name, kind", [("train", "train"), ("inference", "infer")])
def test_monai_finds_every_property_it_asks_for(name, kind, trial, tiny_weights, tmp_path, caplog):
    file, places = str(ROOT / "configs" / f"{name}.json"), {"dataset_dir": str(trial), "output_dir": str(tmp_path)}
    workflow = ConfigWorkflow(file, workflow_type=kind, logging_file=False, bundle_root=str(ROOT), **places)
    workflow.initialize()
    assert workflow.check_properties() == []
    created = create_workflow(config_file=file, workflow_type=kind, logging_file=False, bundle_root=str(ROOT), **places)
    assert created.check_properties() == []
    if kind == "train":
        created.max_epochs = 3  # as programs that embed a bundle set it
        created.initialize()
        assert created.trainer.state.max_epochs == 3
        assert len(created.parser.get_parsed_content("train#stage").loader) == 3 * 200


def test_required_ids_of_monai_and_the_run_ids_are_there():
    train, inference = ConfigParser(read("train.json")), ConfigParser(read("inference.json"))
    for name in (
        "bundle_root",
        "device",
        "dataset_dir",
        "network_def",
        "train#trainer",
        "train#dataset",
        "train#inferer",
    ):
        assert name in train, name
    assert isinstance(train["train#handlers"], list)
    for name in ("bundle_root", "device", "dataset_dir", "network_def", "evaluator", "dataset", "inferer"):
        assert name in inference, name
    for name in ("training", "pretraining", "finetuning"):
        assert name in train
    assert train["run"] == train["training"]
    assert inference["run"] == inference["inference"]
    for name in ("case", "arm", "output_dir", "num_members", "num_steps", "guidance_scale", "seed", "member_batch"):
        assert name in inference, name


def test_the_lite_network_is_what_the_metadata_says_and_fits_in_25_mb():
    inference, metadata = ConfigParser(read("inference.json")), read("metadata.json")
    network = inference.get_parsed_content("network_def")
    tensors = metadata["network_data_format"]
    x = torch.zeros(1, tensors["inputs"]["image"]["num_channels"], 80, 96)
    with torch.inference_mode():
        assert network(x).shape == (1, tensors["outputs"]["pred"]["num_channels"], 80, 96)
    assert 2 * sum(value.numel() for value in network.state_dict().values()) < 25e6


@pytest.mark.parametrize("config", ["train.json", "inference.json"])
def test_paper_json_lies_over_both_and_builds_589_million_parameters(config):
    parser = ConfigParser()
    parser.read_config([str(ROOT / "configs" / name) for name in (config, "paper.json")])
    with torch.device("meta"):
        network = parser.get_parsed_content("network_def")
    assert abs(sum(p.numel() for p in network.parameters()) / 1e6 - 589) < 1
    assert parser.get_parsed_content("grid").shape == (256, 256, 15)


def test_metadata_obeys_its_schema_and_names_the_versions_in_use():
    metadata = read("metadata.json")
    jsonschema.validate(metadata, json.loads((ROOT / "tests" / "metadata_schema.json").read_text()))
    assert metadata["version"] in metadata["changelog"]
    assert metadata["version"] == bundle.__version__
    changes = ROOT / "CHANGELOG.md"
    assert not changes.exists() or bundle.__version__ in changes.read_text()
    assert version("monai").startswith(metadata["monai_version"].rpartition(".")[0])
