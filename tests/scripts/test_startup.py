"""What inference imports, in a process of its own."""

import pytest

from scripts.startup import PHASES, first_call


@pytest.mark.slow
def test_inference_imports_nothing_that_monai_has_not_imported_already(trial, tmp_path):
    found = first_call(dataset_dir=trial, case="sub-0001", output_dir=tmp_path)
    assert set(found["packages"]) <= {"bundle", "fire", "termcolor"}  # MONAI's command line takes fire, fire termcolor
    assert list(found["seconds"]) == list(PHASES) and min(found["seconds"].values()) > 0
