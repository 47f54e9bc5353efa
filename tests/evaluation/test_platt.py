import numpy as np
import pytest

from bundle.evaluation.metrics import metric_named
from bundle.evaluation.platt import Recalibration
from bundle.evaluation.scoring import Scores


def test_it_undoes_a_known_distortion():
    """Odds of activity four times too large come back to the frequencies."""
    rng = np.random.default_rng(0)
    true = rng.beta(3, 4, size=4000)
    active = rng.random(4000) < true
    forecast = 4 * true / (1 + 3 * true)
    counts = (rng.random((4000, 100)) < forecast[:, None]).astype(int)
    values = {
        "arm": np.zeros(4000, int),
        "true_count": active.astype(int),
        "member_counts": counts,
        "size of ensemble": np.full(4000, 100),
        "p_active": counts.mean(1, keepdims=True),
    }
    before = Scores(tuple(map(str, range(4000))), values)
    correct = Recalibration(before)
    assert correct.intercept == pytest.approx(-np.log(4), abs=0.15) and correct.slope == pytest.approx(1, abs=0.12)
    after = correct(before)
    assert "member_counts" not in after
    error, auc, ones = metric_named("calibration error of P(active)"), metric_named("AUC"), np.ones((1, 4000))
    assert error.compute(after, ones)[0] < 0.03 < 0.2 < error.compute(before, ones)[0]
    np.testing.assert_allclose(auc.compute(after, ones), auc.compute(before, ones), atol=1e-9)


def test_it_needs_active_and_inactive_patients(scores):
    none = Scores(scores.cases, dict(scores.values) | {"true_count": np.zeros(60, int)})
    with pytest.raises(ValueError, match="active and inactive"):
        Recalibration(none)
