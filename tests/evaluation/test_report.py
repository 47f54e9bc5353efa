"""The whole evaluation as a user runs it, on a simulated trial with a tiny network: once, and many checks on it."""

import copy
import hashlib
import json
import os
import re
import shutil
import socket
import time
from pathlib import Path

import monai.bundle
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, TINY, bundle_config, start_bundle
from processes import CONTEXT

from bundle.arms import ARMS
from bundle.data.bids import find_case
from bundle.data.datalist import load_split
from bundle.diffusion.slabs import VolumeCorrection
from bundle.errors import InputError, input_error
from bundle.evaluation.provenance import Provenance, describe_dataset
from bundle.evaluation.report import Report, summary
from bundle.evaluation.run import compare_arms, evaluate, select
from bundle.evaluation.sections import CAPTIONS, GROUPS, SUMMARY
from bundle.evaluation.tables import COLUMNS, all_tables
from bundle.forecasters.base import SCORED_REGIONS, Role
from bundle.forecasters.ensemble import Diffusion
from bundle.networks.weights import load_weights, write_fitted
from bundle.outputs.calibration import read_calibration

pytestmark = pytest.mark.slow

FEW = TINY | {
    "num_members": 3,
    "num_steps": 2,
    "split": "all",
    "calibration_split": "training",
    "compared_patients": 4,
    "figure_members": 5,
    "weights_w000": "none",
}
TABLES = (
    "regions",
    "activity",
    "log_count",
    "where",
    "detection",
    "calibration",
    "counts",
    "decisions",
    "counterfactual",
)
# Twelve patients are too few for a gap, whose chart is left out.
ALL_FIGURES = {name for sections in GROUPS.values() for section in sections for name in section.figures}


EVALUATE = ("inference.json", "evaluate.json")
COUNTERFACTUAL = ("train.json", *EVALUATE, "counterfactual.json")


@pytest.fixture(scope="module")
def configure(trial, tiny_weights):
    """The configuration of an evaluation with the tiny network; its objects are made when they are asked for."""

    def configure(output_dir, **overrides):
        paths = {"dataset_dir": str(trial), "weights": str(tiny_weights), "output_dir": str(output_dir)}
        return bundle_config(*EVALUATE, **FEW | paths | overrides)

    return configure


@pytest.fixture(scope="module")
def weights_w000(tiny_weights, tmp_path_factory):
    """Of another model than `tiny_weights`."""
    path = tmp_path_factory.mktemp("weights") / "model_w000.pt"
    state = torch.load(tiny_weights, weights_only=True)
    torch.save({name: value.flip(0) for name, value in state.items()}, path)
    return path


@pytest.fixture(scope="module")
def config(configure, weights_w000, tmp_path_factory):
    """The configuration of the evaluation that has been run."""
    config = configure(tmp_path_factory.mktemp("evaluated"), weights_w000=str(weights_w000))
    config.get_parsed_content("evaluating")
    return config


@pytest.fixture(scope="module")
def evaluated(config):
    """The folder of the evaluation that has been run."""
    return Path(config["output_dir"])


def rows(folder, name, **where):
    table = pd.read_csv(folder / "tables" / f"{name}.csv")
    for column, value in where.items():
        table = table[table[column] == value]
    return table


def value(folder, table, metric, forecaster, arm="all"):
    (found,) = rows(folder, table, metric=metric, forecaster=forecaster, arm=arm).value
    return found


def stored(folder, name):
    """Scores by case."""
    return {file.stem: np.load(file) for file in sorted((folder / "cases" / name).glob("*.npz"))}


def test_every_table_and_figure_is_written(evaluated):
    for name in TABLES:
        table = rows(evaluated, name)
        assert tuple(table.columns) == COLUMNS and len(table)
        assert len(json.loads((evaluated / "tables" / f"{name}.json").read_text())) == len(table)
    assert {path.stem for path in (evaluated / "figures").iterdir()} == ALL_FIGURES
    for name in ALL_FIGURES:
        assert (evaluated / "figures" / f"{name}.png").read_bytes()[1:4] == b"PNG"
        assert b"<svg" in (evaluated / "figures" / f"{name}.svg").read_bytes()[:2000]


def test_the_page_opens_offline_and_names_everything(evaluated):
    page = (evaluated / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page) and "@import" not in page and "<script" not in page
    assert page.count("data:image/png;base64,") == len(ALL_FIGURES)
    for text in (
        "Research use only",
        "Simulated patients.",
        "Only 12 patients: differences between forecasters are mostly chance.",
        "holds patients that model and baselines were fitted to",
        "balanced accuracy, cortex",
        "interferon beta 1a",
        "diffusion - best baseline",
        "log(1 + count)",
        "PEHE",
        "95 % interval over patients",
        "12 of 12 patients",
    ):
        assert text in page, text
    links, targets = (re.findall(pattern, page) for pattern in (r'href="#([a-z_]+)"', r'<details id="([a-z_]+)"'))
    assert links == targets == [section.table for sections in GROUPS.values() for section in sections]
    assert page.index('<table class="summary">') < page.index("<details")
    assert re.findall(r"<h2>(.*?)</h2>", page)[:-1] == ["Who", "How many", "Where", "How sure", "What if"]


def test_it_states_what_it_was_made_with(evaluated, tiny_weights):
    found = json.loads((evaluated / "provenance.json").read_text())
    assert found["dataset"]["simulated"] and (found["dataset"]["version"], found["dataset"]["seed"]) == ("3", 5)
    assert found["weights"]["sha256"] == hashlib.sha256(tiny_weights.read_bytes()).hexdigest()
    assert (found["split"], found["num_members"], found["dataset"]["patients"]) == ("all", 3, 12)
    assert found["forecasters"]["frequency_map"][-1]["smoothing_mm"] in (0, 3, 4, 6, 8)
    page = (evaluated / "report.html").read_text()
    assert found["weights"]["sha256"][:12] in page and found["date"] in page


def test_too_few_positives_have_no_interval(evaluated):
    table = rows(evaluated, "activity")
    few = table[table.positives < 10]
    assert len(few) and few.ci_low.isna().all() and few.gap_closed.isna().all()
    assert f"<small>n = {few.positives.iloc[0]}</small>" in (evaluated / "report.html").read_text()


def test_a_page_is_wide_enough_for_its_tables(evaluated):
    page = (evaluated / "report.html").read_text()
    headings = [row.count("<th>") for row in re.findall(r"<tr><th>.*?</tr>", page)]
    assert headings and max(headings) <= 1 + 8
    assert "<td>placebo - ocrelizumab (n=4)</td>" in page  # pairs of treatments are rows


@pytest.fixture(scope="module")
def made_report(make_scores):
    """Of made-up scores of 60 patients."""
    roles = {
        "frequency_map": Role.FLOOR,
        "regression": Role.BASELINE,
        "diffusion": Role.MODEL,
        "oracle": Role.CEILING,
    }
    scores = {name: make_scores(n, skill=0.2 + 0.25 * n, role=role) for n, (name, role) in enumerate(roles.items())}
    return Report(all_tables(scores, draws=50), {}, "60 patients.", {"dataset": {"name": "<b>made</b>"}})


def test_fractions_of_gaps_are_shown_within_reason(made_report):
    page = made_report.html({})
    fractions = [int(fraction) for fraction in re.findall(r"<b>(-?\d+)%</b>", page)]
    assert fractions and max(map(abs, fractions)) < 1000 and "<b>-0%</b>" not in page
    assert "Simulated patients" not in page and "<b>made" not in page  # names are escaped


def test_the_summary_holds_one_row_for_each_question_and_metric(made_report):
    table = summary(made_report.tables)
    expected = [(question, metric) for question, _, metric in SUMMARY if question != "what if"]
    assert list(zip(table.question, table.metric)) == expected
    auc = made_report.tables["activity"].query("metric == 'AUC' and arm == 'all'").set_index("forecaster")
    row = table.iloc[0]
    assert row["model"].startswith(f"{auc.value['diffusion']:.3g}<small>diffusion; ")
    difference = auc.loc[auc.role == "minus best baseline"].iloc[0]
    assert row["model - best baseline"].startswith(f"{difference.value:.3g}<small>{difference.ci_low:.3g} to ")
    assert row["population (floor)"] == f"{auc.value['frequency_map']:.3g}"


def test_every_figure_of_a_section_has_a_caption_and_every_table_a_section():
    sections = [section for sections in GROUPS.values() for section in sections]
    assert {name for section in sections for name in section.figures} <= set(CAPTIONS)
    assert {section.table for section in sections} == {*TABLES, "members"}


def test_a_measured_data_set_is_described_by_its_name(tmp_path):
    assert describe_dataset(tmp_path) == {"name": tmp_path.name, "simulated": False}
    (tmp_path / "dataset_description.json").write_text('{"GeneratedBy": [{"Version": "3"}]}')
    described = Provenance("test", "none", None, tmp_path / "no.pt", 20, 0).describe(tmp_path, ["a"], {})
    assert described["dataset"]["version"] == "3" and described["weights"] is described["weights_w000"] is None


def test_all_forecasters_are_side_by_side_with_n(evaluated):
    everyone = rows(evaluated, "activity", metric="AUC", arm="all").set_index("forecaster")
    forecasters = {
        "oracle",
        "oracle_masks",
        "oracle, 3 members",
        "population",
        "no_new_lesions",
        "persistence",
        "frequency_map",
        "regression",
        "truth",
    }
    assert forecasters | {"diffusion", "diffusion, recalibrated"} <= set(everyone.index)
    assert (everyone.n == 12).all() and any(name.startswith("diffusion - ") for name in everyone.index)
    assert "average_count" in set(rows(evaluated, "log_count").forecaster)
    assert {"uniform", "free_of_lesions"} < set(rows(evaluated, "where").forecaster)
    assert not {"uniform", "free_of_lesions"} & set(rows(evaluated, "activity").forecaster)
    assert {"all", "ocrelizumab"} < set(rows(evaluated, "activity").arm) <= {"all", *ARMS}


def test_the_figures_show_a_larger_ensemble_whose_first_members_are_the_same(evaluated):
    ((case, shown),) = stored(evaluated, "diffusion of 5").items()
    assert len(shown["members"]) == 5
    assert np.array_equal(shown["members"][:3], stored(evaluated, "diffusion")[case]["members"])


def test_two_models_in_one_evaluation_keep_their_own_weights(config, evaluated, tiny_weights, weights_w000):
    """What is stored of each is what a model made from its weights alone forecasts."""
    evaluation, comparison, rule = (
        config.get_parsed_content(name) for name in ("evaluation", "comparison", "lesion_rule")
    )

    def alone(weights):
        network = load_weights(copy.deepcopy(config.get_parsed_content("network_def")), weights)
        return Diffusion(network.eval(), config.get_parsed_content("inferer"), rule)

    patient = evaluation.read(evaluation.items[0]).patient
    (forecast,) = alone(tiny_weights)(patient)
    packed = np.packbits(forecast.members.reshape(3, -1), axis=1)
    assert np.array_equal(stored(evaluated, "diffusion")[patient.case]["members"], packed)
    patient = comparison.read(comparison.items[0]).patient
    expected = alone(weights_w000).heatmap(patient)
    found = stored(evaluated / "from_w000", f"diffusion under {ARMS[patient.arm]}")[patient.case]["heatmap"]
    np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(found, alone(tiny_weights).heatmap(patient))


def test_two_models_in_one_evaluation_keep_their_own_correction(configure, tiny_weights, weights_w000, tmp_path):
    corrections = [VolumeCorrection(-4.0, (log_odds,) * 6) for log_odds in (0.1, 0.9)]
    files = [shutil.copy(file, tmp_path) for file in (tiny_weights, weights_w000)]
    for file, correction in zip(files, corrections):
        write_fitted(file, "volume_correction", correction, {})
    config = configure(tmp_path / "out", weights=str(files[0]), weights_w000=str(files[1]))
    evaluation, comparison = (config.get_parsed_content(name) for name in ("evaluation", "comparison"))
    models = [x.forecasters["diffusion"] for x in (evaluation, comparison)]
    assert [model.inferer.settings.volume_correction for model in models] == corrections


PERFECT = [
    ("activity", "AUC", 1),
    ("activity", "average precision", 1),
    ("log_count", "mean squared error of log(1 + count)", 0),
    ("detection", "lesion F1", 1),
    ("detection", "voxel average precision (who x where)", 1),
    ("detection", "voxel Brier score (who x where)", 0),
    ("calibration", "Brier score of P(active)", 0),
    ("calibration", "calibration error of the heatmap", 0),
    ("counts", "CRPS of the count", 0),
    ("calibration", "coverage of the 80 % interval", 1),
    ("regions", f"F1, {SCORED_REGIONS[0]}", 1),
    ("regions", f"balanced accuracy, {SCORED_REGIONS[0]}", 1),
]


def test_the_calibration_names_its_patients_weights_and_settings(evaluated, tiny_weights):
    measured = read_calibration(evaluated / "calibration.json")
    assert measured["weights_sha256"] == hashlib.sha256(tiny_weights.read_bytes()).hexdigest()
    assert measured["split"] == "all" and measured["simulated"] and measured["sampling"]["num_members"] == 3
    assert sum(part["patients"] for part in measured["bins"]) == measured["patients"]
    assert sum(part["active"] for part in measured["bins"]) == (rows_of_truth(evaluated) > 0).sum()


def rows_of_truth(evaluated):
    """True number of lesions of each patient."""
    return np.array([float(np.load(file)["true_count"]) for file in (evaluated / "cases" / "diffusion").glob("*.npz")])


@pytest.mark.parametrize(("table", "metric", "perfect"), PERFECT)
def test_truth_reaches_the_perfect_score(evaluated, table, metric, perfect):
    assert value(evaluated, table, metric, "truth") == pytest.approx(perfect, abs=1e-9)


def test_the_oracle_is_the_ceiling_and_the_population_as_probabilities_the_floor(evaluated):
    for name in TABLES[:-1]:
        roles = rows(evaluated, name).set_index("forecaster").role.to_dict()
        assert roles["oracle"] == roles["oracle, 3 members"] == "ceiling" and roles["frequency_map"] == "floor", name


def test_a_constant_has_the_scores_of_chance(evaluated):
    assert value(evaluated, "activity", "AUC", "no_new_lesions") == 0.5
    true = rows(evaluated, "counts", metric="mean true count", arm="all").value.iloc[0]
    assert value(evaluated, "counts", "CRPS of the count", "no_new_lesions") == pytest.approx(true)
    assert value(evaluated, "regions", "recall, cerebral white matter", "no_new_lesions") == 0
    assert value(evaluated, "regions", "balanced accuracy, cerebral white matter", "no_new_lesions") == 0.5


def test_effects_are_measured_for_the_model_beside_baselines_and_oracle(evaluated):
    table = rows(evaluated, "counterfactual", metric="PEHE")
    forecasters = set(table[~table.role.str.startswith("minus")].forecaster)
    assert forecasters == {"population", "regression", "oracle", "diffusion"} and len(table.arm.unique()) == 15
    assert (table.n == 4).all()


def test_what_if_is_drawn_by_the_model_of_w000_that_its_text_describes(evaluated):
    assert list((evaluated / "from_w000" / "cases" / "diffusion under placebo").iterdir())
    assert not (evaluated / "cases" / "diffusion under placebo").exists()


def test_a_replaced_scan_is_scored_again_and_no_other(config, evaluated):
    """The scan is given another time, and its own again: nothing is left changed for the other tests."""
    evaluation = config.get_parsed_content("evaluation")
    scan = find_case(evaluation.items[0]["image"], arm="placebo").volumes["t2_w048"]
    times = scan.stat().st_atime_ns, scan.stat().st_mtime_ns
    missing = []
    for mtime in (times[1] + 10**9, times[1]):
        os.utime(scan, ns=(times[0], mtime))
        cases = [s["case"] for s in evaluation.items if evaluation._stored(s) is None]
        missing.append(cases)
    assert missing == [[evaluation.items[0]["case"]], []]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"compared_patients": -1},
            "compared_patients=-1 is not a whole number of at least 0; correct --compared_patients",
        ),
        ({"compared_patients": 1.5}, "compared_patients=1.5 is not a whole number"),
        ({"figure_members": 0}, "figure_members=0 is not a whole number of at least 1"),
        ({"case": "sub-9999"}, "sub-9999: no such patient in this split; correct --case or --split"),
        ({"calibration_split": "magic"}, "no datalist with 'magic' in it"),
    ],
)
def test_arguments_out_of_range_are_one_line_before_any_work(config, overrides, message):
    arguments = {name: config[name] for name in ("calibration_split", "compared_patients", "figure_members", "case")}
    evaluation, comparison, provenance = (
        config.get_parsed_content(name) for name in ("evaluation", "comparison", "provenance")
    )
    with pytest.raises(InputError, match=re.escape(message)):
        evaluate(evaluation, comparison=comparison, provenance=provenance, **arguments | overrides)


def test_figures_of_no_members_are_refused_before_any_patient_is_read(configure, tmp_path):
    config = configure(tmp_path, figure_members=0)
    with pytest.raises(Exception) as caught:
        config.get_parsed_content(f"initialize#{len(config['initialize']) - 1}")
    assert "figure_members=0 is not a whole number of at least 1" in str(input_error(caught.value))


@pytest.mark.parametrize(
    "content", ["", "[1, 2]", '{"test": 3}', '{"test": [1]}', '{"test": [{"case": 1}]}', '{"test": {"a": 1}}', "\0"]
)
def test_a_broken_datalist_is_one_line(configure, tmp_path, content):
    (tmp_path / "sub-1").mkdir()
    (tmp_path / "datalist.json").write_text(content)
    with pytest.raises(Exception) as caught:
        configure(tmp_path / "out", dataset_dir=str(tmp_path), split="test").get_parsed_content("evaluating")
    error = input_error(caught.value)
    assert error is not None and "\n" not in str(error)


class Named:
    def __init__(self, role, num_members=None):
        self.role, self.num_members = role, num_members


def test_floor_and_ceiling_are_always_evaluated_where_they_can_be(tmp_path):
    registry = {"a floor": Named(Role.FLOOR), "a ceiling": Named(Role.CEILING)}
    registry |= {name: Named(Role.MODEL) for name in ("diffusion", "another")}
    assert set(select("diffusion", registry, tmp_path)) == {"diffusion", "a floor"}
    assert set(select(["a ceiling"], registry, tmp_path)) == {"a floor"}
    (tmp_path / "derivatives" / "truth").mkdir(parents=True)
    assert set(select(["diffusion"], registry, tmp_path)) == {"diffusion", "a floor", "a ceiling"}
    registry["oracle_members"] = Named(Role.CEILING, 20)
    assert "oracle, 20 members" in select(["diffusion"], registry, tmp_path)
    with pytest.raises(InputError, match="no forecaster 'magic'; choose from a floor, a ceiling"):
        select(["magic"], registry, tmp_path)


def test_without_weights_of_w000_there_is_nothing_to_compare(trial, tmp_path):
    settings = {"dataset_dir": str(trial), "output_dir": str(tmp_path / "out"), "split": "all", "weights_w000": "none"}
    comparison = bundle_config(*COUNTERFACTUAL, **TINY, **settings).get_parsed_content("comparison")
    with pytest.raises(InputError, match="no weights of the model of w000 alone; train it, or give their path"):
        compare_arms(comparison, 4, Provenance("all", "none", None, None, 3, 0))


def command_line(tmp_path, trial, tiny_weights, weights_w000, output_dir):
    """Arguments of the command itself, with the tiny network as an overlay."""
    config = bundle_config(*EVALUATE, **FEW).get()
    overlay = tmp_path / "tiny.json"
    overlay.write_text(json.dumps({name: config[name] for name in ("network_def", "grid", "device")}))
    names = ("num_members", "num_steps", "split", "calibration_split", "compared_patients", "figure_members")
    paths = {"dataset_dir": trial, "weights": tiny_weights, "weights_w000": weights_w000, "output_dir": output_dir}
    return [*(str(ROOT / "configs" / name) for name in EVALUATE), str(overlay)], {
        name: FEW[name] for name in names
    } | paths


def test_two_processes_find_what_one_does(evaluated, trial, tiny_weights, weights_w000, tmp_path, monkeypatch):
    """For three patients; the scores of the others are there already."""
    shutil.copytree(evaluated, tmp_path / "two", ignore=shutil.ignore_patterns("tables", "figures", "*.html"))
    for item in load_split(trial, "all")[:3]:
        removed = list((tmp_path / "two").rglob(f"{item['case']}.npz"))
        assert removed
        for scores in removed:
            scores.unlink()
    files, settings = command_line(tmp_path, trial, tiny_weights, weights_w000, tmp_path / "two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1], "WORLD_SIZE": 2}
    processes = []
    for rank in range(2):  # as torchrun starts them
        with monkeypatch.context() as patch:
            for name, value in (place | {"RANK": rank, "LOCAL_RANK": rank}).items():
                patch.setenv(name, str(value))
            processes.append(start_bundle("evaluating", str(files), **settings))
    for process in processes:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
    for name in TABLES:
        pd.testing.assert_frame_equal(rows(evaluated, name), rows(tmp_path / "two", name))


def run_from_root(**arguments):
    os.chdir(ROOT)
    monai.bundle.run("evaluating", **arguments)


@pytest.mark.kill
@pytest.mark.slow
def test_killed_at_twenty_random_moments_it_resumes_and_finds_the_same(trial, tiny_weights, tmp_path):
    """What is on disk is whole after every kill; in the end the tables are those of an evaluation never stopped."""
    data = tmp_path / "data"
    for item in load_split(trial, "all")[:4]:
        for found in trial.rglob(item["case"]):
            if "truth" not in found.parts:  # without the oracle and the effects it is quick
                shutil.copytree(found, data / found.relative_to(trial))
    shutil.copy(trial / "participants.tsv", data)

    def start(out):
        files, settings = command_line(tmp_path, data, tiny_weights, "none", out)
        settings = {name: x if isinstance(x, int) else str(x) for name, x in settings.items()}
        process = CONTEXT.Process(target=run_from_root, kwargs={"config_file": files} | settings)
        process.start()
        return process

    def finish(process):
        process.join(timeout=600)
        assert process.exitcode == 0

    finish(start(tmp_path / "never stopped"))
    out, rng, progress = tmp_path / "killed", np.random.default_rng(0), []
    total = len(list((tmp_path / "never stopped").rglob("*.npz")))
    for kill in range(20):
        if kill % 5 == 0:  # from the beginning again
            shutil.rmtree(out, ignore_errors=True)
            moments = sorted(
                rng.integers(0, total + 1, 5).tolist()
            )  # files after which it is killed, and a little later
        process = start(out)
        while len(list(out.rglob("*.npz"))) < moments[kill % 5] and process.is_alive():
            time.sleep(0.001)
        process.join(timeout=rng.uniform(0, 0.5))
        process.kill()
        process.join()
        progress.append(len(list(out.rglob("*.npz"))))
        for file in out.rglob("[!.]*.npz"):
            with np.load(file) as content:
                assert content["key"].size
        for file in out.rglob("[!.]*.json"):
            json.loads(file.read_text())
    assert any(0 < done < total for done in progress)
    finish(start(out))
    for name in TABLES[:-1]:
        pd.testing.assert_frame_equal(rows(tmp_path / "never stopped", name), rows(out, name))


@pytest.mark.slow
def test_the_model_of_w000_alone_is_trained_and_compared(trial, tmp_path):
    """Both stages are trained from w000 alone, and the effects are measured."""
    training = {"batch_size": 2, "epoch_length": 2, "pretraining_epochs": 1, "finetuning_epochs": 1, "num_warmup": 1}
    settings = FEW | training | {"dataset_dir": str(trial), "output_dir": str(tmp_path)}
    unused = ("calibration_split", "figure_members", "weights_w000")
    settings = {name: value for name, value in settings.items() if name not in unused}
    bundle_config(*COUNTERFACTUAL, **settings).get_parsed_content("training")
    settings["weights_w000"] = str(tmp_path / "stage2_best.pt")
    bundle_config(*COUNTERFACTUAL, **settings).get_parsed_content("counterfactual")
    table = rows(tmp_path / "from_w000", "counterfactual", metric="PEHE")
    assert "diffusion" in set(table.forecaster) and (tmp_path / "from_w000" / "figures" / "arms.png").exists()
