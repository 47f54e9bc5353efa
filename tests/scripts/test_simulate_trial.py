import json

import pytest
from processes import run_forked

from scripts.simulate_trial import main


def simulate(*arguments):
    return run_forked("scripts.simulate_trial", *arguments)


@pytest.mark.slow
def test_the_command_writes_a_data_set(tmp_path):
    code, output = simulate("--out", tmp_path / "trial", "--patients", "1", "--seed", "4", "--workers", "1")
    assert code == 0, output
    assert (tmp_path / "trial" / "participants.tsv").read_text().splitlines()[1].startswith("sub-0001\t")
    assert "1/1" in output


@pytest.mark.slow
def test_bad_arguments_end_in_one_line(tmp_path):
    code, output = simulate("--out", tmp_path / "trial", "--patients", "none")
    assert code == 1
    assert output == "error: --patients 'none' is not a whole number of 1 or more; give e.g. --patients 10\n"
    assert not (tmp_path / "trial").exists()


def test_presets_and_slabs_are_arguments(tmp_path):
    main(str(tmp_path / "slabs"), patients=1, workers=1, preset="clinic", compact=True)
    (description,) = json.loads((tmp_path / "slabs" / "dataset_description.json").read_text())["GeneratedBy"]
    assert description["Preset"] == "clinic"
    assert (tmp_path / "slabs" / "sub-0001" / "sub-0001_slab.npz").is_file()
