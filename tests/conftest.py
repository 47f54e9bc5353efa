"""Real data and networks, small: a simulated trial, and the configuration of a network that trains in a second."""

import hashlib
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from filelock import FileLock
from processes import ForkedCommand

# What takes seconds to import is imported where it is needed: pytest-xdist starts its workers after this module.

ROOT = Path(__file__).parents[1]
# Overrides of train.json and inference.json: every component the real one, on a coarse grid.
TINY = {
    "device": "cpu",
    "network_def#channels": [16, 32],
    "network_def#attention_levels": [False, True],
    "network_def#num_head_channels": 16,
    "network_def#norm_num_groups": 8,
    "network_def#conditioning_channels": 16,
    "network_def#prior_channels": [8, 8],
    "grid#spacing_mm": [8, 8, 3],
    "grid#shape": [20, 24, 15],
}
PATIENTS, SEED = 12, 5
# What takes more than a few seconds: an evaluation, a training, a batch of bad cases, simulated patients, six arms.
SLOW_FIXTURES = {"compared", "evaluated", "prepared_dicom", "simulated_patients", "small_trial", "unbroken", "ward"}
LONGEST = (
    "training/test_run.py",
    "evaluation/test_report.py",
    "outputs/test_run.py",
    "scripts/test_training_speed.py",
    "preparation/test_patient.py",
    "preparation/test_cohort.py",
    "scripts/test_benchmark.py",
    "test_anywhere.py",
)


def pytest_configure(config):
    if hasattr(config, "workerinput"):  # of pytest-xdist: one thread a worker
        import torch

        torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(config, items):
    """Tests of a slow fixture are slow; those that kill a command twenty times are run by `make test-kill` alone."""
    # One worker runs all tests of a file: one that takes minutes must not begin last.
    items.sort(key=lambda item: next((n for n, file in enumerate(LONGEST) if item.path.match(file)), len(LONGEST)))
    for item in items:
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("kill") and os.environ.get("KILL_TESTS") != "1":
            item.add_marker(pytest.mark.skip(reason="kills a command twenty times: make test-kill"))


@pytest.fixture(scope="session")
def trial(request, tmp_path_factory):
    """BIDS folder of a simulated trial of 12 patients, with its datalist: a copy that a test session may change.

    The original is simulated once, by one of pytest's workers, and kept in pytest's cache until its code changes.
    """
    from bundle.data.datalist import load_split
    from bundle.simulation.trial import simulate_trial

    cache = request.config.cache.mkdir("trial")
    original = cache / _version_of_simulation()
    with FileLock(cache / "lock"):
        if not original.is_dir():
            part = cache / "part"
            shutil.rmtree(part, ignore_errors=True)
            simulate_trial(part, PATIENTS, seed=SEED)
            for old in cache.iterdir():
                if old.is_dir() and old != part:
                    shutil.rmtree(old)
            part.rename(original)
    folder = shutil.copytree(original, tmp_path_factory.mktemp("trial"), dirs_exist_ok=True)
    load_split(folder, "training")  # makes the datalist
    return folder


def _version_of_simulation():
    """Digest of the code and libraries that the simulated patients depend on."""
    digest = hashlib.sha256(f"{PATIENTS} {SEED}".encode())
    leaves = [ROOT / "bundle" / name for name in ("arms.py", "files.py", "data/bids.py")]
    for path in [*sorted((ROOT / "bundle" / "simulation").rglob("*")), *leaves]:
        if path.is_file() and path.suffix != ".pyc":
            digest.update(path.read_bytes())
    for library in ("numpy", "scipy", "nibabel", "nilearn"):
        digest.update(version(library).encode())
    return digest.hexdigest()[:16]


COMMAND = (sys.executable, "-m")


def start_bundle(run_id, config_file, launcher=None, cwd=ROOT, **overrides):
    """Start `python -m monai.bundle run ID --config_file FILE --id value ...`, by default from the bundle root.

    Args:
        launcher: of a process of its own, e.g. `COMMAND`; by default one is forked that need not import everything.
    """
    command = ["run", run_id, "--config_file", config_file]
    arguments = [*command, *(f"--{name}={value}" for name, value in overrides.items())]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    environment.pop("PYTHONPATH", None)
    if launcher is None:
        return ForkedCommand("monai.bundle", arguments, cwd, environment)
    return subprocess.Popen(
        [*launcher, "monai.bundle", *arguments],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def bundle_config(*names, **overrides):
    """Files of configs/, each laid over the one before, with what the command line would override."""
    from monai.bundle import ConfigParser

    config = ConfigParser()
    config.read_config([str(ROOT / "configs" / name) for name in names])
    config.update(overrides)
    return config


def inference_config(**overrides):
    """configs/inference.json with what the command line would override, to be run in this process."""
    return bundle_config("inference.json", **overrides)


def tiny_network(**changes):
    """A network of (16, 16, 3) voxels or so, the same random weights each time; keyword arguments are the network's."""
    import torch

    from bundle.networks.slab_unet import ForecastNetwork

    torch.manual_seed(0)
    arguments = dict(
        num_slices=3,
        channels=(8, 16),
        attention_levels=(False, True),
        num_res_blocks=1,
        num_head_channels=8,
        norm_num_groups=4,
        conditioning_channels=8,
        local_channels=8,
        prior_channels=(),
    )
    return ForecastNetwork(**arguments | changes)


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory):
    """File of weights of the tiny network: random, and nowhere zero, so that every input counts."""
    import torch

    from bundle.networks.weights import export_weights

    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.manual_seed(0)
    network = inference_config(**TINY).get_parsed_content("network_def")
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    export_weights(network, path)
    return path
