import numpy as np
import pandas as pd
import pytest

from bundle.errors import InputError
from bundle.simulation.disease import patient_history
from bundle.simulation.events import assigned_arm
from bundle.simulation.protocol import PRESETS
from scripts.score_maps import patient_rows, score_maps, summarise


def rows_of(name, gains, voxels=(1.0, 3.0, 0.0)):
    common = {"forecaster": name, "arm": 0, "volume": 2.0, "loss": 1.0}
    return [
        common | {"patient": i, "active": v > 0, "gain": g, "voxels": v, "score": v + i / 10}
        for i, (g, v) in enumerate(zip(gains, voxels))
    ]


def test_scores_are_means_over_lesion_voxels_and_differences_are_paired():
    table = summarise(pd.DataFrame(rows_of("network", (1.0, 5.0, 0.0)) + rows_of("oracle", (2.0, 8.0, 0.0))))
    assert table.loc["network", "where (nats)"].startswith("1.500 (")
    assert table.loc["oracle", "where (nats)"].startswith("2.500 (")
    assert table.loc["network", "less the oracle's"] == "-1.000 (-1.000 to -1.000)"
    assert table.loc["network", "AUC"] == "1.000" and table.loc["network", "volume"] == "1.50"
    assert table.loc["network", "n"] == "3, 2 active"


def test_a_wrong_preset_is_refused():
    with pytest.raises(InputError, match="--preset 'hospital' is none of"):
        score_maps(preset="hospital")


@pytest.mark.slow
def test_a_uniform_map_scores_nothing_and_the_oracle_something():
    def flat(image):
        return {"flat": np.full(image.shape[1:], 0.01, np.float32)}

    def expected(index):
        return patient_history(101, index).expected(assigned_arm(101, index), 1, PRESETS["trial"])

    index = next(i for i in range(99) if expected(i) > 3)
    uniform, oracle = patient_rows(flat, 101, index, "trial", 6)
    assert (uniform["forecaster"], oracle["forecaster"]) == ("flat", "oracle")
    assert uniform["gain"] == pytest.approx(0, abs=1e-4) and oracle["gain"] > 0.2 * oracle["voxels"]
    assert uniform["voxels"] == oracle["voxels"] > 0 and oracle["loss"] < uniform["loss"]
