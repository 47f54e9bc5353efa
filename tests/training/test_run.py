"""Training as a user runs it: killed, resumed, diverging, on two processes, from elsewhere, with wrong settings."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import COMMAND, ROOT, TINY, bundle_config, start_bundle

from bundle.errors import input_error

TRAINING = {
    "epoch_length": 2,
    "prior_epochs": 2,
    "pretraining_epochs": 2,
    "finetuning_epochs": 3,
    "batch_size": 4,
    "amp": False,
}


def finish(process):
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output[-3000:]
    return output


def saved(folder, name):
    return torch.load(folder / name, weights_only=True)


def same(a, b):
    """Nested equality of checkpoints, exact."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return a == b or (a != a and b != b)


@pytest.fixture(scope="module")
def unbroken(trial, tmp_path_factory):
    """Folder of a training run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("unbroken")
    settings = TINY | TRAINING | {"dataset_dir": trial, "output_dir": folder}
    finish(start_bundle("training", "configs/train.json", COMMAND, **settings))
    return folder


def test_training_killed_in_every_stage_ends_bit_identical(unbroken, trial, tmp_path):
    settings = TINY | TRAINING | {"dataset_dir": trial, "output_dir": tmp_path, "cache_dir": unbroken / "cache"}
    for stage in ("prior", "stage1", "stage2"):
        process = start_bundle("training", "configs/train.json", **settings)
        deadline = time.monotonic() + 300
        while not (tmp_path / f"{stage}_last.pt").exists():
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0][-3000:]
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        whole = saved(unbroken, f"{stage}_last.pt")
        assert saved(tmp_path, f"{stage}_last.pt")["epoch"] < whole["epoch"]
    finish(start_bundle("training", "configs/train.json", **settings))
    for name in (f"{stage}_{which}.pt" for stage in ("prior", "stage1", "stage2") for which in ("last", "best")):
        assert same(saved(tmp_path, name), saved(unbroken, name)), name


def test_a_frozen_unet_is_that_of_stage_1_to_the_end(unbroken, trial, tmp_path):
    paper = json.loads((ROOT / "configs" / "paper.json").read_text())
    overlay = tmp_path / "frozen.json"
    overlay.write_text(json.dumps({"steered": paper["steered"]}))
    shutil.copy(unbroken / "stage1_last.pt", tmp_path)
    settings = TINY | TRAINING | {"dataset_dir": trial, "output_dir": tmp_path, "cache_dir": unbroken / "cache"}
    finish(start_bundle("finetuning", f"['configs/train.json','{overlay}']", **settings))
    stage1 = saved(tmp_path, "stage1_last.pt")["average"]
    unet = {name: value for name, value in stage1.items() if name.startswith("module.unet.")}
    stage2 = saved(tmp_path, "stage2_last.pt")
    assert unet and all(torch.equal(value, stage2["average"][name]) for name, value in unet.items())
    assert all(torch.equal(value, stage2["network"][name.removeprefix("module.")]) for name, value in unet.items())
    control = [name for name in stage2["network"] if name.startswith("controlnet.controlnet_mid")]
    assert any(stage2["network"][name].abs().max() > 0 for name in control)


def test_the_prior_is_trained_first_and_handed_on_unchanged(unbroken):
    prior = saved(unbroken, "prior_last.pt")
    stage1, stage2 = (saved(unbroken, f"{stage}_last.pt")["network"] for stage in ("stage1", "stage2"))
    trained = {name.removeprefix("module."): value for name, value in prior["average"].items() if "prior." in name}
    assert len(trained) > 30 and trained["prior.population"].std() > 0
    for name, value in trained.items():
        assert torch.equal(stage1[name], value) and torch.equal(stage2[name], value), name
    assert any(value.any() for name, value in prior["network"].items() if name.endswith("last.weight"))


def test_two_processes_of_two_passes_a_step_train_the_weights_of_one(unbroken, trial, tmp_path):
    settings = TINY | TRAINING | {"dataset_dir": trial, "output_dir": tmp_path, "cache_dir": unbroken / "cache"}
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m")
    config = "['configs/train.json','configs/multi_gpu_train.json']"
    finish(start_bundle("training", config, launcher, **settings, micro_batch_size=1))
    for name in ("stage1_last.pt", "stage2_last.pt"):
        ours, theirs = saved(tmp_path, name), saved(unbroken, name)
        assert ours["iteration"] == theirs["iteration"]
        for which in ("network", "average"):
            assert ours[which].keys() == theirs[which].keys()
            for name, value in theirs[which].items():
                # Adam scales up gradients near zero, and with them what rounding adds: in a few weights it is seen.
                close = torch.isclose(ours[which][name], value, rtol=1e-3, atol=2e-5)
                assert close.float().mean() > 0.999, name
                torch.testing.assert_close(ours[which][name], value, rtol=1e-3, atol=1e-4)


def test_a_loss_that_is_not_finite_stops_the_run_in_one_line(unbroken, trial, tmp_path):
    prior = {"start_pretraining_from": unbroken / "prior_last.pt"}
    line = refused(
        tmp_path, trial, "pretraining", cache_dir=unbroken / "cache", learning_rate=1e30, num_warmup=1, **prior
    )
    assert re.match(r"error: the (loss|norm of the gradient) is (nan|inf) at iteration \d; run the same command", line)
    assert not (tmp_path / "stage1_last.pt").exists()


def test_resuming_with_another_architecture_is_refused_in_one_line(unbroken, trial, tmp_path):
    shutil.copy(unbroken / "stage1_last.pt", tmp_path)
    line = refused(tmp_path, trial, cache_dir=unbroken / "cache", **{"network_def#channels": [16, 48]})
    assert line.startswith(f"error: {tmp_path / 'stage1_last.pt'}: weights of another architecture")


def refused(folder, trial, run_id="training", **settings):
    """The line that a run ends in."""
    settings = TINY | TRAINING | {"dataset_dir": trial, "output_dir": folder} | settings
    output, _ = start_bundle(run_id, "configs/train.json", **settings).communicate(timeout=300)
    assert "Traceback" not in output, output[-3000:]
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, output[-3000:]
    return errors[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings, line",
    [
        ({"batch_size": 0}, "batch_size=0 is not a whole number of at least 1; correct --batch_size"),
        ({"learning_rate": -1}, "learning_rate=-1 is not a number above 0; correct --learning_rate"),
        ({"seed": 1.5}, "seed=1.5 is not a whole number of at least 0; correct --seed"),
        ({"drop_visits": "w048"}, "drop_visits='w048' is not a list of w000 or w048"),
        ({"output_dir": str(ROOT / "LICENSE")}, str(ROOT / "LICENSE")),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_wrong_settings_are_refused(settings, line, trial, unbroken, tmp_path):
    paths = {"dataset_dir": str(trial), "output_dir": str(tmp_path / "out"), "cache_dir": str(unbroken / "cache")}
    with pytest.raises(RuntimeError) as caught:  # MONAI's around the error of a component
        bundle_config("train.json", **TINY | TRAINING | paths | settings).get_parsed_content("training")
    assert str(input_error(caught.value)).startswith(line)
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.slow
def test_an_unknown_option_ends_in_one_line(trial, tmp_path):
    line = refused(tmp_path / "out", trial, lerning_rate=1)
    assert line == "error: unknown option --lerning_rate; did you mean --learning_rate?"


def test_another_learning_rate_is_taken_and_another_seed_refused_on_resuming(unbroken, trial, tmp_path):
    shutil.copytree(unbroken, tmp_path, dirs_exist_ok=True)
    settings = TINY | TRAINING | {"dataset_dir": trial, "output_dir": tmp_path, "pretraining_epochs": 3}
    output = finish(start_bundle("pretraining", "configs/train.json", **settings, learning_rate=1e-5))
    assert re.search(
        r"^stage1: resumed after epoch 2 of 3, changed: learning_rate 0.0005 -> 1e-05, num_epochs 2 -> 3$", output, re.M
    )
    rates = [group["initial_lr"] for group in saved(tmp_path, "stage1_last.pt")["optimizer"]["param_groups"]]
    assert rates == [1e-5, 4e-3]
    assert "seed 0 -> 1; set them back to resume it" in refused(tmp_path, trial, seed=1)


# python -m MODULE with the usual effect of Ctrl-C, which a test run in the background has switched off
INTERRUPTIBLE = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def test_ctrl_c_prints_a_line_and_training_can_go_on(unbroken, trial, tmp_path):
    settings = TINY | TRAINING | {"dataset_dir": trial, "output_dir": tmp_path, "cache_dir": unbroken / "cache"}
    settings |= {"pretraining_epochs": 500, "num_workers": 1, "start_pretraining_from": unbroken / "prior_last.pt"}
    process = start_bundle("pretraining", "configs/train.json", (sys.executable, "-c", INTERRUPTIBLE), **settings)
    while not (tmp_path / "stage1_last.pt").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert "Traceback" not in output, output[-3000:]
    assert output.splitlines()[-1].endswith("stopped; the same command continues with what is not finished yet")
    assert process.returncode in (130, -signal.SIGINT)


@pytest.mark.slow
def test_it_runs_from_any_folder_with_bundle_root(trial, tmp_path):
    """As installed, without PYTHONPATH, with defaults below `bundle_root`."""
    look = [sys.executable, "-c", "import bundle; print(bundle.__file__)"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run(look, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout.strip()
    if found != str(ROOT / "bundle" / "__init__.py"):
        pytest.skip("the package is not installed from this folder")
    root = tmp_path / "root"
    shutil.copytree(ROOT / "configs", root / "configs")
    shutil.copytree(trial, root / "data" / "trial")
    settings = TINY | TRAINING | {"bundle_root": root, "prior_epochs": 1}
    finish(start_bundle("prior_training", str(root / "configs" / "train.json"), COMMAND, tmp_path, **settings))
    assert (root / "runs" / "lite" / "prior_best.pt").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"root"}


KILLED = """
import json, os, signal, sys, time
import monai.bundle, bundle.training.checkpoints
settings, moments = json.loads(sys.argv[1]), json.loads(sys.argv[2])

def start():
    child = os.fork()
    if child == 0:
        monai.bundle.run("training", config_file="configs/train.json", **settings)
        os._exit(0)
    return child

started = time.monotonic()
root, killed = settings["output_dir"], 0
settings["output_dir"] = os.path.join(root, "unbroken")
assert os.waitpid(start(), 0)[1] == 0
duration = time.monotonic() - started
run = 0
while killed < len(moments):
    settings["output_dir"] = os.path.join(root, str(run))
    child = start()
    deadline = time.monotonic() + moments[killed] * duration
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            killed += 1
            break
        time.sleep(0.01)
    else:
        run += 1  # finished: the next kill falls into a new training
assert os.waitpid(start(), 0)[1] == 0
print("runs", run + 1)
"""


@pytest.mark.kill
def test_killed_at_twenty_random_moments_it_ends_bit_identical(unbroken, trial, tmp_path):
    """Each time the same command goes on; the children are forked so that only the training is repeated."""
    draw = random.Random(0)
    moments = [draw.random() for _ in range(20)]
    settings = TINY | TRAINING | {"dataset_dir": trial, "output_dir": tmp_path, "cache_dir": unbroken / "cache"}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps(settings, default=str), json.dumps(moments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    runs = int(re.search(r"^runs (\d+)$", done.stdout, re.M)[1])
    for run in range(runs):
        for name in (f"{stage}_{which}.pt" for stage in ("prior", "stage1", "stage2") for which in ("last", "best")):
            assert same(saved(tmp_path / str(run), name), saved(unbroken, name)), (run, name)
        assert not [path for path in (tmp_path / str(run)).iterdir() if path.name.startswith(".")]
