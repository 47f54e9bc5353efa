"""The whole evaluation as a user runs it, on a simulated trial with a tiny network."""

import json
import re
import signal
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, bundle_config, start_bundle

from bundle.arms import ARMS
from bundle.errors import InputError
from bundle.evaluation.run import compare_arms
from bundle.evaluation.tables import COLUMNS
from bundle.forecasters.base import SCORED_REGIONS

FEW = TINY | {
    "num_members": 3, "num_steps": 2, "split": "all", "calibration_split": "training", "compared_patients": 4, "figure_members": 5,
    "weights_w000": "none",
}  # fmt: skip
TABLES = ("regions", "activity", "log_count", "detection", "calibration", "counts", "counterfactual")
FIGURES = ("arms", "convergence", "counts", "gap_closed", "heatmap", "members", "reliability", "roc_pr")


EVALUATE = ("inference.json", "evaluate.json")
COUNTERFACTUAL = ("train.json", *EVALUATE, "counterfactual.json")


@pytest.fixture(scope="module")
def run(trial, tiny_weights):
    """Runs evaluate.json in this process."""

    def run(output_dir, **overrides):
        paths = {"dataset_dir": str(trial), "weights": str(tiny_weights), "output_dir": str(output_dir)}
        bundle_config(*EVALUATE, **FEW | paths | overrides).get_parsed_content("evaluating")
        return output_dir

    return run


@pytest.fixture(scope="module")
def weights_w000(tiny_weights, tmp_path_factory):
    """Of another model than `tiny_weights`."""
    path = tmp_path_factory.mktemp("weights") / "model_w000.pt"
    state = torch.load(tiny_weights, weights_only=True)
    torch.save({name: value.flip(0) for name, value in state.items()}, path)
    return path


@pytest.fixture(scope="module")
def evaluated(run, weights_w000, tmp_path_factory):
    return run(tmp_path_factory.mktemp("evaluated"), weights_w000=str(weights_w000))


def rows(folder, name, **where):
    table = pd.read_csv(folder / "tables" / f"{name}.csv")
    for column, value in where.items():
        table = table[table[column] == value]
    return table


def value(folder, table, metric, forecaster, arm="all"):
    (found,) = rows(folder, table, metric=metric, forecaster=forecaster, arm=arm).value
    return found


def test_every_table_and_figure_is_there(evaluated):
    for name in TABLES:
        table = rows(evaluated, name)
        assert tuple(table.columns) == COLUMNS and len(table)
        assert len(json.loads((evaluated / "tables" / f"{name}.json").read_text())) == len(table)
    assert {path.stem for path in (evaluated / "figures").iterdir()} == set(FIGURES)
    for name in FIGURES:
        assert (evaluated / "figures" / f"{name}.png").read_bytes()[1:4] == b"PNG"
        assert b"<svg" in (evaluated / "figures" / f"{name}.svg").read_bytes()[:2000]


def test_the_page_opens_offline_and_names_everything(evaluated):
    page = (evaluated / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page) and "@import" not in page and "<script" not in page
    assert page.count("data:image/png;base64,") == len(FIGURES)
    for text in ("Research use only", "balanced accuracy, cortex", "interferon beta 1a", "diffusion - best baseline", "log(1 + count)", "PEHE"):
        assert text in page, text
    links, places = (set(re.findall(pattern, page)) for pattern in (r'href="#([a-z_]+)"', r'id="([a-z_]+)"'))
    assert links == places and {"activity", "counterfactual", "members"} <= links


def test_a_page_is_wide_enough_for_its_tables(evaluated):
    page = (evaluated / "report.html").read_text()
    headings = [row.count("<th>") for row in re.findall(r"<tr><th>.*?</tr>", page)]
    assert headings and max(headings) <= 1 + 8
    assert "<td>placebo - ocrelizumab (n=4)</td>" in page  # pairs of treatments are rows
    shares = [int(share) for share in re.findall(r"<b>(-?\d+)%</b>", page)]
    assert shares and max(map(abs, shares)) < 1000 and "<b>-0%</b>" not in page


def test_all_forecasters_are_side_by_side_with_n(evaluated):
    everyone = rows(evaluated, "activity", metric="AUC", arm="all").set_index("forecaster")
    assert {"oracle", "population", "no_new_lesions", "persistence", "frequency_map", "regression", "diffusion", "truth",
            "diffusion, recalibrated"} <= set(everyone.index)  # fmt: skip
    assert (everyone.n == 12).all() and any(name.startswith("diffusion - ") for name in everyone.index)
    assert "average_count" in set(rows(evaluated, "log_count").forecaster)
    assert {"all", "ocrelizumab"} < set(rows(evaluated, "activity").arm) <= {"all", *ARMS}


def test_the_figures_show_a_larger_ensemble_whose_first_members_are_the_same(evaluated):
    (shown,) = (evaluated / "cases" / "diffusion of 5").glob("*.npz")
    members = {name: np.load(evaluated / "cases" / name / shown.name)["members"] for name in ("diffusion", "diffusion of 5")}
    assert len(members["diffusion of 5"]) == 5 and np.array_equal(members["diffusion of 5"][:3], members["diffusion"])


def test_two_models_in_one_evaluation_keep_their_own_weights(evaluated, run, tiny_weights, weights_w000, tmp_path):
    def kept(folder, name):
        files = sorted((folder / "cases" / name).glob("*.npz"))
        return {file.stem: np.load(file) for file in files}

    alone = run(tmp_path / "alone", forecasters=["diffusion"], calibration_split="none", compared_patients=0)
    ours, theirs = (kept(folder, "diffusion") for folder in (evaluated, alone))
    assert len(theirs) == 12 and all(np.array_equal(ours[case]["members"], theirs[case]["members"]) for case in theirs)
    same = run(tmp_path / "same", forecasters=["diffusion"], calibration_split="none", weights_w000=str(tiny_weights))
    of_w000, of_main = (kept(folder / "from_w000", "diffusion under placebo") for folder in (evaluated, same))
    assert len(of_w000) == 4 and not any(np.array_equal(of_w000[case]["heatmap"], of_main[case]["heatmap"]) for case in of_w000)


def test_truth_reaches_the_perfect_score(evaluated):
    for table, metric, perfect in (
        ("activity", "AUC", 1), ("activity", "average precision", 1), ("log_count", "mean squared error of log(1 + count)", 0),
        ("detection", "lesion F1", 1), ("detection", "voxel average precision", 1), ("detection", "voxel Brier score", 0),
        ("calibration", "Brier score of P(active)", 0), ("calibration", "calibration error of the heatmap", 0),
        ("counts", "CRPS of the count", 0), ("counts", "coverage of the 80 % interval", 1),
        *(("regions", f"{name}, {region}", 1) for name in ("F1", "balanced accuracy") for region in SCORED_REGIONS[:1]),
    ):  # fmt: skip
        assert value(evaluated, table, metric, "truth") == pytest.approx(perfect, abs=1e-9), metric


def test_the_oracle_as_a_forecaster_reaches_the_ceiling(run, tmp_path):
    fed = {"registry#regression": {"_target_": "bundle.forecasters.bounds.BestPossible"}}
    folder = run(tmp_path, forecasters=["regression"], calibration_split="none", **fed)
    for name in TABLES[:-1]:
        table = rows(folder, name, forecaster="regression")
        assert len(table) and np.allclose(table.gap_closed.dropna(), 1), name


def test_a_constant_reaches_the_floor(evaluated):
    assert value(evaluated, "activity", "AUC", "no_new_lesions") == 0.5
    true = rows(evaluated, "counts", metric="mean true count", arm="all").value.iloc[0]
    assert value(evaluated, "counts", "CRPS of the count", "no_new_lesions") == pytest.approx(true)
    assert value(evaluated, "regions", "recall, cerebral white matter", "no_new_lesions") == 0
    assert value(evaluated, "regions", "balanced accuracy, cerebral white matter", "no_new_lesions") == 0.5
    assert (rows(evaluated, "activity", forecaster="population").gap_closed.dropna() == 0).all()


def test_effects_are_measured_for_the_model_beside_baselines_and_oracle(evaluated):
    table = rows(evaluated, "counterfactual", metric="PEHE")
    assert set(table.forecaster) == {"population", "regression", "oracle", "diffusion"} and len(table.arm.unique()) == 15
    assert (table.n == 4).all()


@pytest.fixture()
def command(trial, tiny_weights, tmp_path):
    """Starts the command itself, with the tiny network as an overlay."""

    def command(output_dir, launcher=(sys.executable, "-m"), **overrides):
        config = bundle_config(*EVALUATE, **FEW).get()
        overlay = tmp_path / "tiny.json"
        overlay.write_text(json.dumps({name: config[name] for name in ("network_def", "grid", "device")}))
        names = ("num_members", "num_steps", "split", "compared_patients", "figure_members", "weights_w000")
        settings = {name: FEW[name] for name in names}
        return start_bundle(
            "evaluating", f"['configs/inference.json','configs/evaluate.json','{overlay}']", launcher,
            **settings | dict(dataset_dir=trial, weights=tiny_weights, output_dir=output_dir, calibration_split="none"),
            **overrides,
        )  # fmt: skip

    return command


def finish(process):
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def made(folder):
    return {path: path.stat().st_mtime_ns for path in (folder / "cases").rglob("*.npz")}


@pytest.mark.slow
def test_killed_it_goes_on_where_it_was_and_two_processes_find_the_same(command, tmp_path):
    process = command(tmp_path / "one")
    while len(done := made(tmp_path / "one")) < 20 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(done) >= 20 and not (tmp_path / "one" / "report.html").exists()
    code, output = finish(command(tmp_path / "one"))
    assert code == 0, output
    after = made(tmp_path / "one")
    assert all(after[path] == when for path, when in done.items()) and len(after) > len(done)
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m")
    code, output = finish(command(tmp_path / "two", launcher))
    assert code == 0, output
    for name in TABLES:
        pd.testing.assert_frame_equal(rows(tmp_path / "one", name), rows(tmp_path / "two", name))


@pytest.mark.slow
def test_what_cannot_be_is_told_in_one_line(command, tmp_path):
    code, output = finish(command(tmp_path, forecasters="['magic']"))
    assert code == 1 and "Traceback" not in output
    assert output.splitlines()[-1].startswith("error: no forecaster 'magic'; choose of ")


def test_without_weights_of_w000_there_is_nothing_to_compare(trial, tmp_path):
    settings = {"dataset_dir": str(trial), "output_dir": str(tmp_path / "out"), "split": "all", "weights_w000": "none"}
    comparison = bundle_config(*COUNTERFACTUAL, **TINY, **settings).get_parsed_content("comparison")
    with pytest.raises(InputError, match="no weights of the model of w000 alone; train it, or give their path with --weights_w000"):
        compare_arms(comparison, 4)


@pytest.mark.slow
def test_the_model_of_w000_alone_is_trained_and_compared(trial, tmp_path):
    """Both stages are trained from w000 alone, and the effects are measured."""
    training = {"batch_size": 2, "epoch_length": 2, "pretraining_epochs": 1, "finetuning_epochs": 1, "num_warmup": 1}
    settings = FEW | training | {"dataset_dir": str(trial), "output_dir": str(tmp_path)}
    settings = {name: settings[name] for name in settings if name not in ("calibration_split", "figure_members", "weights_w000")}
    bundle_config(*COUNTERFACTUAL, **settings).get_parsed_content("training")
    settings["weights_w000"] = str(tmp_path / "stage2_best.pt")
    bundle_config(*COUNTERFACTUAL, **settings).get_parsed_content("counterfactual")
    table = rows(tmp_path / "from_w000", "counterfactual", metric="PEHE")
    assert "diffusion" in set(table.forecaster) and (tmp_path / "from_w000" / "figures" / "arms.png").exists()
