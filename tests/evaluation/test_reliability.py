import numpy as np
import pytest

from bundle.evaluation.reliability import measured_calibration
from bundle.outputs.calibration import KEYS
from bundle.outputs.summary import jeffreys_interval


def test_bins_hold_the_patients_and_what_became_of_them(scores):
    given = {"data_set": "trial", "simulated": True, "split": "test", "weights_sha256": "abc", "sampling": {"seed": 1}}
    measured = measured_calibration(scores, **given)
    assert set(KEYS) < set(measured) and measured["patients"] == len(scores.cases)
    p, active = scores["p_active"][:, 0], scores["true_count"] > 0
    for found in measured["bins"]:
        inside = (p >= found["from"]) & ((p < found["to"]) | (found["to"] == 1))
        assert found["patients"] == inside.sum() and found["active"] == active[inside].sum()
        if inside.any():
            assert found["forecast"] == pytest.approx(p[inside].mean(), abs=1e-4)
            assert found["observed"] == pytest.approx(active[inside].mean(), abs=1e-4)
            expected = jeffreys_interval(int(active[inside].sum()), int(inside.sum()))
            np.testing.assert_allclose(found["interval"], expected, atol=1e-4)
        else:
            assert found["forecast"] is found["observed"] is found["interval"] is None
    assert sum(found["patients"] for found in measured["bins"]) == len(scores.cases)
