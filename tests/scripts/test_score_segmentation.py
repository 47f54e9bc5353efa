import json

import numpy as np
import pytest
import torch
from conftest import bundle_config
from segmentation_network import TINY

from bundle.networks.weights import export_weights
from bundle.segmentation.scoring import mask_score
from bundle.segmentation.segmenter import fitted_thresholds
from scripts.score_segmentation import _row, score_segmentation

AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "segmenter.pt"
    torch.manual_seed(0)
    network = bundle_config("segment.json", **TINY).get_parsed_content("network_def")
    export_weights(network, path)
    return path


@pytest.fixture
def config(tmp_path):
    """segment.json with the tiny network."""
    content = bundle_config("segment.json", **TINY).get()
    path = tmp_path / "segment.json"
    path.write_text(json.dumps(content))
    return str(path)


def test_a_row_sums_patients_and_gives_sensitivity_by_size():
    true = np.zeros((2, 20, 20, 4), bool)
    true[0, 2:4, 2:4, 1] = true[1, 5:15, 5:15, 1] = True  # 12 and 300 mm3
    marked = true.copy()
    marked[0] = False
    row = _row([mask_score(*pair, AFFINE) for pair in zip(marked, true)])
    assert (row["patients"], row["lesions"], row["sensitivity"], row["precision"]) == (2, 2, 0.5, 1)
    assert (row["0-30 mm3"], row["> 300 mm3"]) == (0, 1) and np.isnan(row["30-100 mm3"])
    assert row["Dice"] == pytest.approx(2 * 100 / (100 + 104)) and row["median Dice"] == 0.5


@pytest.mark.slow
def test_thresholds_are_fitted_and_read_again_and_a_table_is_printed(trial, weights, config):
    text = score_segmentation(str(trial), "validation", weights=str(weights), config_file=config, fit=True)
    fitted = fitted_thresholds(weights)
    assert str(fitted) in text and all(0.1 <= value <= 0.9 for value in (fitted.t2, fitted.net2))
    table = score_segmentation(str(trial), "test", weights=str(weights), config_file=config)
    assert {"segmenter", "bright"} <= set(table.split()) and "t2 w000" in table and "F1" in table
