import shutil

import numpy as np
import pandas as pd
import pytest

from bundle.errors import InputError
from scripts.compare_inputs import _metrics, _table, compare_inputs

DRAWS = np.array([[0, 1, 2, 3], [0, 1, 2, 2]])


def scores(p=(0.9, 0.2, 0.6, 0.1), gain=(4.0, 0.0, 6.0, 0.0)):
    return pd.DataFrame(
        {"gain": gain, "voxels": [2.0, 0, 3, 0], "p": p, "active": [1.0, 0, 1, 0], "crps": [1.0, 0.5, 2, 0.5]},
        index=["sub-1", "sub-2", "sub-3", "sub-4"],
    )


def test_metrics_of_the_sample_and_of_a_draw():
    found = _metrics(scores(), DRAWS)
    np.testing.assert_allclose(found["where"], [10 / 5, 16 / 8])
    np.testing.assert_allclose(found["AUC"], [1, 1])
    np.testing.assert_allclose(found["Brier"], [(0.01 + 0.04 + 0.16 + 0.01) / 4, (0.01 + 0.04 + 2 * 0.16) / 4])
    np.testing.assert_allclose(found["CRPS"], [1, 5.5 / 4])


def test_differences_are_from_the_first_data_set_in_pairs():
    text = _table({"a": scores(), "b": scores(gain=(2.0, 0, 3.0, 0))})
    assert "2.000" in text and "1.000 (-1.000, -1.000 to -1.000)" in text
    assert text.endswith("4 patients, 2 active")


@pytest.mark.slow
def test_data_sets_of_the_same_patients_are_compared(trial, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(trial, bare)
    for visit in ("w000", "w048"):
        for folder in (bare / "derivatives" / "lesions").glob(f"sub-*/ses-{visit}"):
            shutil.rmtree(folder)
    text = compare_inputs(str(trial), str(bare))
    first, other = (next(line for line in text.splitlines() if line.startswith(str(name))) for name in (trial, bare))
    assert len(first.split()) == 5 and "to" in other
    assert first.split()[-1] != other.split()[-1].rstrip(")")
    shutil.rmtree(bare / "sub-0001")
    with pytest.raises(InputError, match="no data set"):
        compare_inputs()
