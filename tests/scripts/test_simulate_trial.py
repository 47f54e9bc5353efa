import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.simulate_trial import main

ROOT = Path(__file__).parents[2]


def simulate(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "scripts.simulate_trial", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_command_writes_a_data_set(tmp_path):
    done = simulate("--out", str(tmp_path / "trial"), "--patients", "1", "--seed", "4", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "trial" / "participants.tsv").read_text().splitlines()[1].startswith("sub-0001\t")
    assert "1/1" in done.stderr


@pytest.mark.slow
def test_bad_arguments_end_in_one_line(tmp_path):
    failed = simulate("--out", str(tmp_path / "trial"), "--patients", "none")
    assert failed.returncode == 1
    assert failed.stderr == "error: --patients 'none' is not a whole number of 1 or more; give e.g. --patients 10\n"
    assert not (tmp_path / "trial").exists()


def test_presets_and_slabs_are_arguments(tmp_path):
    main(str(tmp_path / "slabs"), patients=1, workers=1, preset="clinic", compact=True)
    (description,) = json.loads((tmp_path / "slabs" / "dataset_description.json").read_text())["GeneratedBy"]
    assert description["Preset"] == "clinic"
    assert (tmp_path / "slabs" / "sub-0001" / "sub-0001_slab.npz").is_file()
