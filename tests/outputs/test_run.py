"""Forecasting as a user does it: the real configuration and command, on simulated patients, with a tiny network."""

import hashlib
import json
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import processes
import pytest
import torch
from conftest import COMMAND, TINY, inference_config, start_bundle
from monai.inferers import Inferer
from nibabel.processing import resample_from_to
from scipy.spatial import KDTree

from bundle.arms import ARMS, CLASSES
from bundle.data.bids import find_case
from bundle.errors import InputError, input_error
from bundle.forecasters.ensemble import SamplingSettings
from bundle.outputs import writers
from bundle.outputs.run import forecast_items
from bundle.outputs.writers import arm_entity

pytestmark = pytest.mark.slow

FEW = TINY | {"num_members": 3, "num_steps": 2, "foreground_weight": 300}
SUFFIXES = ["forecast.json", "forecast.png", "mask.nii.gz", "probseg.nii.gz"]


@pytest.fixture(scope="module")
def configure(trial, tiny_weights):
    """The configuration with few members of the tiny network, all patients of the trial."""
    return lambda **overrides: inference_config(
        **FEW | {"weights": str(tiny_weights), "dataset_dir": str(trial)} | overrides
    )


@pytest.fixture(scope="module")
def forecast(configure):
    """Runs the configuration in this process."""

    def run(output_dir, **overrides):
        configure(output_dir=str(output_dir), **overrides).get_parsed_content("inference")
        return output_dir

    return run


@pytest.fixture(scope="module")
def patient(trial):
    """The patient with most NET2 voxels at w048."""
    cases = [find_case(folder) for folder in sorted(trial.glob("sub-*"))]
    return max(cases, key=lambda case: nib.load(case.volumes["net2_w048"]).get_fdata().sum())


@pytest.fixture(scope="module")
def forecast_of_one(forecast, patient, tmp_path_factory):
    return forecast(tmp_path_factory.mktemp("one"), case=patient.id)


def file_of(output_dir, case, suffix):
    return output_dir / case / f"{case}_desc-net2_{suffix}"


def contents(output_dir):
    """The bytes of every file, by its path below the folder."""
    return {str(path.relative_to(output_dir)): path.read_bytes() for path in output_dir.rglob("*") if path.is_file()}


def report(output_dir, case):
    return json.loads(file_of(output_dir, case, "forecast.json").read_text())


def test_a_case_gets_four_files_and_no_others(forecast_of_one, patient):
    assert sorted(contents(forecast_of_one)) == [f"{patient.id}/{patient.id}_desc-net2_{end}" for end in SUFFIXES]
    assert file_of(forecast_of_one, patient.id, "forecast.png").read_bytes()[1:4] == b"PNG"


def test_the_heatmap_lies_on_the_flair_and_in_the_brain(forecast_of_one, patient):
    flair = nib.load(patient.volumes["flair_w048"])
    heatmap = nib.load(file_of(forecast_of_one, patient.id, "probseg.nii.gz"))
    consensus = nib.load(file_of(forecast_of_one, patient.id, "mask.nii.gz"))
    for made in (heatmap, consensus):
        np.testing.assert_array_equal(made.affine, flair.affine)
        assert made.shape == flair.shape and nib.aff2axcodes(made.affine) == nib.aff2axcodes(flair.affine)
    chances, brain = heatmap.get_fdata(), nib.load(patient.brain["w048"]).get_fdata()
    assert heatmap.get_data_dtype() == np.float32 and chances.min() == 0 and 0 < chances.max() <= 1
    assert not chances[brain == 0].any()
    agreed = consensus.get_fdata()
    assert set(np.unique(agreed)) <= {0, 1} and not agreed[brain == 0].any()
    assert np.mean((chances >= 0.5) == agreed) > 0.95  # apart from rounded edges: each is resampled by itself


def test_the_report_says_how_it_was_made(forecast_of_one, patient, tiny_weights):
    made = report(forecast_of_one, patient.id)
    assert made["arm"] == CLASSES[patient.arm] != "unknown"
    assert [made["sampling"][name] for name in ("num_members", "num_steps", "guidance_scale", "seed")] == [
        3,
        2,
        1,
        0,
    ]
    assert made["weights_sha256"] == hashlib.sha256(tiny_weights.read_bytes()).hexdigest()
    histogram = {int(count): fraction for count, fraction in made["count"]["histogram"].items()}
    assert sum(histogram.values()) == pytest.approx(1, abs=1e-3)
    assert made["p_active"] == pytest.approx(1 - histogram[0])
    assert made["count"]["mean"] == pytest.approx(sum(n * fraction for n, fraction in histogram.items()), abs=0.02)


def test_the_same_seed_gives_the_same_bytes_whatever_the_batch(forecast, forecast_of_one, patient, tmp_path):
    assert contents(forecast(tmp_path, case=patient.id, member_batch=1)) == contents(forecast_of_one)


@pytest.mark.slow
def test_other_arms_guidance_and_months_give_other_maps_and_another_seed_does_not(
    forecast, forecast_of_one, patient, tmp_path
):
    changes = {
        "seed": {"seed": 1},
        "arm": {"arm": "unknown"},
        "guidance": {"guidance_scale": 2},
        "guidance of the arm": {"arm_guidance_scale": 3},
        "horizon": {"horizon_months": 22},
    }
    maps = {"as it is": file_of(forecast_of_one, patient.id, "probseg.nii.gz").read_bytes()}
    for name, change in changes.items():
        folder = forecast(tmp_path / name, case=patient.id, **change)
        maps[name] = file_of(folder, patient.id, "probseg.nii.gz").read_bytes()
    assert maps.pop("seed") == maps["as it is"] and len(set(maps.values())) == 5
    assert report(tmp_path / "seed", patient.id)["sampling"]["seed"] == 1
    assert report(tmp_path / "arm", patient.id)["arm"] == "unknown"
    assert report(tmp_path / "horizon", patient.id)["sampling"]["horizon_months"] == 22
    assert report(tmp_path / "guidance", patient.id)["sampling"]["guidance_scale"] == 2


class Watch:
    """In place of the sampler: keeps the noise that members start from."""

    def __init__(self):
        self.noise = []

    def __call__(self, denoise, noise, grid, streams):
        self.noise.append(noise)
        return torch.full_like(noise, -1)


def test_noise_is_a_function_of_seed_and_case_alone(configure, trial, tmp_path, capsys):
    cases = sorted(folder.name for folder in trial.glob("sub-*"))[:2]

    def noise(case, **overrides):
        overrides |= {"case": case, "output_dir": str(tmp_path), "evaluator#postprocessing": None}
        config = configure(**overrides)
        inferer, watch = config.get_parsed_content("inferer"), Watch()
        inferer.settings = replace(inferer.settings, sampler=watch)
        config.get_parsed_content("evaluator").run()
        return watch.noise[0]

    one = noise(cases[0])
    bar = capsys.readouterr().err
    assert f"{cases[0]}: reading" in bar and f"{cases[0]}, {CLASSES[find_case(trial / cases[0]).arm]}: sampling" in bar
    assert (noise(cases[0], arm="placebo") == noise(cases[0], arm="ocrelizumab")).all()
    assert (noise(cases[0], member_batch=2) == one[:2]).all()
    assert (noise(cases[1]) != one).all() and (noise(cases[0], seed=1) != one).all()


def read_cases(config):
    return [(item["case"], CLASSES[item["arm"]]) for item in config.get_parsed_content("dataset")]


def test_a_case_is_a_label_a_folder_or_a_file(configure, patient, tmp_path, monkeypatch):
    monkeypatch.chdir(patient.dataset_dir)
    itself = [(patient.id, CLASSES[patient.arm])]
    assert read_cases(configure(case=patient.id)) == itself
    assert read_cases(configure(case=patient.id.removeprefix("sub-"))) == itself
    elsewhere = {"dataset_dir": str(tmp_path)}
    assert read_cases(configure(case=f"{patient.id}/", **elsewhere)) == itself
    assert read_cases(configure(case=str(patient.volumes["flair_w048"]), **elsewhere)) == itself
    assert read_cases(configure(case=str(patient.dataset_dir / patient.id), **elsewhere, arm="interferon_beta_1a")) == [
        (patient.id, "interferon_beta_1a")
    ]


@pytest.mark.parametrize("arm", [3, 0, True, 2.0, "", "3", ["avonex"], {"avonex": 1}])
def test_an_arm_that_is_no_name_is_refused(trial, arm):
    """The command line makes a number of --arm 3, which is no class index: trials number their arms in other ways."""
    with pytest.raises(InputError, match="unknown treatment arm .*; use one of placebo, .*, or 'all' to compare"):
        forecast_items(trial, arm=arm)


def test_a_datalist_names_the_patients_and_their_arms(trial, tmp_path):
    everyone = {folder.name for folder in trial.glob("sub-*")}
    assert {item["image"] for item in forecast_items(trial)} == {str(trial / name) for name in everyone}
    listed = json.loads((trial / "datalist.json").read_text())
    listed["test"][0]["arm"] = "unknown"
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(listed))
    assert {item["image"] for item in forecast_items(trial, datalist=path)} == {str(trial / name) for name in everyone}
    held_out = forecast_items(trial, datalist=path, split="test")
    assert [item["arm"] for item in held_out] == ["unknown", *(item["arm"] for item in listed["test"][1:])]
    assert [item["image"] for item in held_out] == [item["image"] for item in forecast_items(trial, split="test")]
    assert {item["arm"] for item in forecast_items(trial, arm="avonex", split="test")} == {"avonex"}


class Recall(Inferer):
    """In place of the network: every member marks the lesions of w048, so that the forecast's place is known."""

    settings = SamplingSettings(None, None, None, None, 1.0)

    def __call__(self, inputs, network):
        return (inputs[:, 6:7] + 1) / 2

    def heatmap(self, inputs, network):
        return (inputs[:, 6] + 1) / 2


def placed_anew(case, root, space):
    """A copy of the two visits of a patient; `space` turns each image into another grid."""
    for name, path in (case.volumes | {f"brain_{visit}": path for visit, path in case.brain.items()}).items():
        copy = root / path.relative_to(case.dataset_dir)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not name.endswith("w096"):
            nib.save(space(nib.load(path), 1 if name.startswith("flair") else 0), copy)
    return root / case.id


def in_lps(image, order):
    ornt = nib.orientations.axcodes2ornt
    return image.as_reoriented(nib.orientations.ornt_transform(ornt("RAS"), ornt("LPS")))


def sideways_and_tilted(image, order):
    """1.6 x 2 x 1.25 mm in the axes P, I, R, tilted by six degrees, with a wider field of view."""
    angle = np.deg2rad(6)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([[0, 0, 1.25], [-1.6, 0, 0], [0, -2, 0]])
    shape = (160, 40, 160)
    middle = image.affine[:3, :3] @ (np.array(image.shape) - 1) / 2 + image.affine[:3, 3]
    affine[:3, 3] = middle - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return resample_from_to(image, (shape, affine), order=order)


def marked_mm(scan):
    """World coordinates (N, 3) of what is marked."""
    return nib.affines.apply_affine(scan.affine, np.argwhere(scan.get_fdata() >= 0.5))


@pytest.mark.parametrize("space", [in_lps, sideways_and_tilted])
def test_a_forecast_returns_to_its_place_whatever_the_scans_grid(forecast, patient, tmp_path, space):
    case = find_case(placed_anew(patient, tmp_path / "data", space))
    grid = {"grid#spacing_mm": [2, 2, 3], "grid#shape": [80, 96, 15]}
    folder = forecast(tmp_path / "out", case=str(tmp_path / "data" / case.id), inferer=Recall(), **grid)
    heatmap = nib.load(file_of(folder, case.id, "probseg.nii.gz"))
    flair = nib.load(case.volumes["flair_w048"])
    np.testing.assert_array_equal(heatmap.affine, flair.affine)
    assert heatmap.shape == flair.shape
    made, true = marked_mm(heatmap), marked_mm(nib.load(patient.volumes["net2_w048"]))
    assert KDTree(true).query(made)[0].max() < 4  # twice the half diagonal of a cell
    assert np.mean(KDTree(made).query(true)[0] < 4) > 0.85  # a tilted scan's slab holds other corners
    assert not heatmap.get_fdata()[nib.load(case.brain["w048"]).get_fdata() == 0].any()


def test_a_preview_is_the_heatmap_alone_in_one_call_a_patient(configure, forecast_of_one, patient, tmp_path, capsys):
    config = configure(output_dir=str(tmp_path / "out"), case=patient.id)
    calls = []
    unet = config.get_parsed_content("network").unet
    unet.register_forward_pre_hook(lambda unet, inputs: calls.append(len(inputs[0])))
    config.get_parsed_content("preview")
    assert calls == [1]
    written = sorted((tmp_path / "out").rglob("*.*"))
    assert [path.name for path in written] == [f"{patient.id}_desc-preview_probseg.{end}" for end in ("json", "nii.gz")]
    lines = capsys.readouterr().out.splitlines()
    assert {str(path) for path in written} < set(lines) and lines[-1] == "forecast 1 of 1 case"
    preview = nib.load(next((tmp_path / "out").rglob("*.nii.gz")))
    heatmap = nib.load(file_of(forecast_of_one, patient.id, "probseg.nii.gz"))
    np.testing.assert_array_equal(preview.affine, heatmap.affine)
    np.testing.assert_allclose(preview.get_fdata(), heatmap.get_fdata(), rtol=1e-5, atol=1e-7)


def test_a_preview_names_whom_it_leaves_out(configure, tmp_path, capsys):
    with pytest.raises(SystemExit, match="forecast 0 of 1 case; 1 not forecast"):
        configure(output_dir=str(tmp_path / "out"), case="sub-none").get_parsed_content("preview")
    assert "no patient 'sub-none'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_turned_axes_give_the_very_same_forecast(forecast, forecast_of_one, patient, tmp_path):
    place = placed_anew(patient, tmp_path / "data", in_lps)
    folder = forecast(tmp_path / "out", case=str(place), arm=CLASSES[patient.arm])
    turned = nib.load(file_of(folder, patient.id, "probseg.nii.gz"))
    assert nib.aff2axcodes(turned.affine) == ("L", "P", "S")
    original = nib.load(file_of(forecast_of_one, patient.id, "probseg.nii.gz"))
    np.testing.assert_array_equal(nib.as_closest_canonical(turned).get_fdata(), original.get_fdata())


def command(launcher=None, **overrides):
    """Exit code and output of the command."""
    process = start_bundle("inference", "configs/inference.json", launcher, **overrides)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


@pytest.mark.slow
def test_the_command_takes_every_setting_and_agrees_with_the_library(trial, tiny_weights, forecast, patient, tmp_path):
    settings = {
        "case": patient.id,
        "arm": "placebo",
        "num_members": 4,
        "num_steps": 3,
        "guidance_scale": 1.5,
        "seed": 7,
        "member_batch": 2,
    }
    places = {"dataset_dir": trial, "output_dir": tmp_path / "command", "weights": tiny_weights}
    code, output = command(COMMAND, **FEW | places | settings)
    assert code == 0 and f"{patient.id}, placebo: sampling: 100%" in output, output[-2000:]
    made = report(tmp_path / "command", patient.id)
    assert (made["arm"], made["num_members"], made["sampling"]["num_steps"]) == (
        "placebo",
        4,
        3,
    )
    assert (made["sampling"]["guidance_scale"], made["sampling"]["seed"]) == (1.5, 7)
    assert contents(tmp_path / "command") == contents(forecast(tmp_path / "library", **settings))


@pytest.mark.slow
def test_the_command_forecasts_a_whole_data_set(trial, tiny_weights, tmp_path):
    """Of four patients of the trial."""
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(trial, data, ignore=shutil.ignore_patterns("sub-000[5-9]", "sub-001*"))
    places = {"dataset_dir": data, "output_dir": out, "weights": tiny_weights}
    code, output = command(**FEW | places | {"num_members": 1, "num_steps": 1, "foreground_weight": 10**4})
    assert code == 0, output[-2000:]
    cases = [f"sub-000{number}" for number in range(1, 5)]
    assert sorted(contents(out)) == [f"{case}/{case}_desc-net2_{end}" for case in cases for end in SUFFIXES]
    assert sorted(set(re.findall(r"(sub-\w+), \w+: sampling: 100%", output))) == cases
    assert f"forecast {len(cases)} of {len(cases)} cases" in output
    assert all(path in output for path in map(str, out.rglob("*.*")))
    assert not any(noise in output for noise in ("Engine run", "Complete. Time taken", "ignite."))


@pytest.mark.slow
def test_all_arms_are_forecast_and_compared_in_one_run(forecast, forecast_of_one, patient, tmp_path):
    folder = forecast(tmp_path, case=patient.id, arm="all") / patient.id
    entities = [arm_entity(arm) for arm in ARMS]
    names = {f"{patient.id}_arm-{entity}_desc-net2_{suffix}" for entity in entities for suffix in SUFFIXES}
    names |= {f"{patient.id}_desc-arms_comparison.{suffix}" for suffix in ("json", "png")}
    assert {path.name for path in folder.iterdir()} == names
    comparison = json.loads((folder / f"{patient.id}_desc-arms_comparison.json").read_text())
    assert comparison["reference_arm"] == CLASSES[patient.arm]
    recorded = folder / f"{patient.id}_arm-{arm_entity(CLASSES[patient.arm])}_desc-net2_probseg.nii.gz"
    assert recorded.read_bytes() == file_of(forecast_of_one, patient.id, "probseg.nii.gz").read_bytes()


@pytest.mark.slow
def test_a_bad_case_and_a_full_disk_never_stop_the_cases_after_them(configure, trial, tmp_path, capsys, monkeypatch):
    first, second, third = sorted(folder.name for folder in trial.glob("sub-*"))[:3]
    items = [{"image": str(trial / name)} for name in (first, "sub-none", second, third)]
    real = writers.write_together

    def write(folder, files):
        if folder.name == first:
            raise OSError(28, "No space left on device")
        return real(folder, files)

    monkeypatch.setattr(writers, "write_together", write)
    config = configure(output_dir=str(tmp_path), items=items, num_members=1, num_steps=1)
    with pytest.raises(SystemExit, match="forecast 2 of 4 cases; 2 not forecast"):
        config.get_parsed_content("inference")
    errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(errors) == 2 and f"{first}: " in errors[0] and "No space left" in errors[0] and "sub-none" in errors[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [second, third]


@pytest.mark.parametrize(
    "settings",
    [
        {"num_members": 0},
        {"num_steps": "many"},
        {"member_batch": 0},
        {"seed": 1.5},
        {"guidance_scale": "nan"},
        {"reuse_within": -1},
        {"horizon_months": 2},
        {"arm": "aspirin"},
        {"case": "x" * 300},
        {"split": "nonsense"},
        {"dataset_dir": 123},
    ],
)
def test_settings_out_of_range_are_one_line(configure, tmp_path, capsys, settings):
    with pytest.raises((Exception, SystemExit)) as error:
        configure(output_dir=str(tmp_path / "out"), progress=False, **settings).get_parsed_content("inference")
    found = input_error(error.value)
    lines = str(found) if found else capsys.readouterr().err.strip().splitlines()[-1]
    assert found or (isinstance(error.value, SystemExit) and lines.startswith("error: "))
    assert "\n" not in lines and "; " in lines and not (tmp_path / "out").exists()


@pytest.mark.kill
@pytest.mark.slow
def test_killed_at_any_moment_inference_leaves_whole_files_and_a_rerun_completes(configure, trial, tmp_path):
    items = [{"image": str(folder)} for folder in sorted(trial.glob("sub-*"))[:3]]
    overrides = FEW | {"num_members": 1, "num_steps": 1, "progress": False, "items": items}
    overrides["weights"] = str(configure().get_parsed_content("weights"))
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"

    def start(folder):
        process = processes.CONTEXT.Process(target=processes.forecast, args=(overrides | {"output_dir": str(folder)},))
        process.start()
        return process

    begun = time.monotonic()
    process = start(undisturbed)
    process.join()
    whole = time.monotonic() - begun
    assert process.exitcode == 0
    expected = contents(undisturbed)
    for moment in np.random.default_rng(0).uniform(0, 0.9 * whole, 20):
        process = start(disturbed)
        process.join(moment)
        process.kill()
        process.join()
        found = contents(disturbed) if disturbed.exists() else {}
        visible = {name: content for name, content in found.items() if not Path(name).name.startswith(".")}
        assert visible.items() <= expected.items()  # each file is either whole or not there
    process = start(disturbed)
    process.join()
    assert process.exitcode == 0 and contents(disturbed) == expected  # no temporary file is left
