import json

import pytest
from processes import run_forked

from scripts.make_datalist import main


@pytest.fixture
def trial(tmp_path):
    for case in (f"sub-{number}" for number in range(10)):
        for visit in ("w000", "w048"):
            path = tmp_path / "trial" / case / f"ses-{visit}" / "anat" / f"{case}_ses-{visit}_FLAIR.nii.gz"
            path.parent.mkdir(parents=True)
            path.touch()
    return tmp_path / "trial"


def test_the_file_is_written_and_its_sizes_told(trial, tmp_path, capsys):
    main(str(trial), out=str(tmp_path / "split.json"), seed=2)
    datalist = json.loads((tmp_path / "split.json").read_text())
    assert [len(datalist[split]) for split in ("training", "validation", "test")] == [8, 1, 1]
    assert "8 training, 1 validation, 1 test, 0 left out" in capsys.readouterr().out
    main(str(trial))
    assert json.loads((trial / "datalist.json").read_text())["seed"] == 0


@pytest.mark.slow
def test_bad_participants_end_in_one_line(trial):
    (trial / "participants.tsv").write_text("participant_id\ttreatment_arm\nsub-0\taspirin\n")
    code, output = run_forked("scripts.make_datalist", "--dataset_dir", trial)
    assert code == 1
    assert output.startswith("error: sub-0: ") and output.count("\n") == 1
    assert not (trial / "datalist.json").exists()
