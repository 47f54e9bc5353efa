"""Made-up scores of 60 patients."""

import numpy as np
import pytest

from bundle.evaluation.scoring import BIN_EDGES, Scores
from bundle.forecasters.base import SCORED_REGIONS, Role

N, K = 60, 7


def made_scores(seed=0, draws=1, skill=1.0, role=Role.MODEL):
    """Scores of a forecaster of `skill` on the same 60 patients whatever the seed."""
    truth = np.random.default_rng(99)
    arm = truth.integers(3, size=N)
    count = truth.poisson(truth.gamma(0.7, 2, size=N))
    present = (count > 0) & (truth.random(N) < 0.8)
    lesion_voxels = np.zeros((N, len(BIN_EDGES) - 1))
    rng = np.random.default_rng(seed)
    p = np.clip(skill * (count > 0)[:, None] * 0.5 + 0.4 * rng.random((N, draws)), 0, 1)
    voxels = rng.integers(1, 50, size=lesion_voxels.shape)
    lesion_voxels = rng.binomial(voxels, np.clip(skill * np.linspace(0, 0.4, voxels.shape[1]), 0, 1))
    member_counts = rng.poisson(count[:, None] + 0.3, size=(N, K))
    values = {
        "arm": arm,
        "true_count": count,
        "p_active": p,
        "log_count": np.log1p(count)[:, None] + rng.normal(size=(N, draws)),
        "count": count[:, None] + rng.random((N, draws)),
        "crps": rng.random((N, draws)),
        "fair_crps": rng.random((N, draws)),
        "low_80": count[:, None] - rng.integers(0, 3, (N, draws)) + 1.0,
        "high_80": count[:, None] + np.ones((N, draws)),
        "low_95": np.zeros((N, draws)),
        "high_95": np.full((N, draws), 1e3),
        "fewer": 0.5 * rng.random((N, draws)),
        "at_most": 0.5 + 0.5 * rng.random((N, draws)),
        "brier": rng.random(N),
        "voxels": voxels,
        "forecast_voxels": voxels * 0.1,
        "lesion_voxels": lesion_voxels,
        "lesions": rng.integers(0, 5, N),
        "marked": rng.integers(0, 5, N),
        "member_counts": member_counts,
        "size of ensemble": np.full(N, K),
        "sizes": np.tile([1, 2, 7], (N, 1)),
    }
    outcome_lesions = np.where(count > 0, rng.integers(1, 4, N), 0)
    values |= {
        "outcome_lesions": outcome_lesions,
        "outcome_voxels": outcome_lesions * 5,
        "log score of voxels": outcome_lesions * rng.normal(2, 1, N),
        "log score of lesions": outcome_lesions * rng.normal(0.5, 0.2, N),
        "lesions in top": outcome_lesions[:, None] * rng.random((N, 3)),
        "false sites": np.where(count > 0, rng.integers(0, 2, (60, N)), 0).T,
        "lesions by site": rng.multinomial(outcome_lesions, np.full(70, 1 / 70))[:, :60],
        "sites": np.full((N, 7), 5.0),
        "site probability": 5 * rng.random((N, 7)),
        "sites with a lesion": rng.integers(0, 5, (N, 7)),
        "lesions near sites": rng.binomial(outcome_lesions[:, None], 0.5, (N, 4)),
    }
    values["lesions_found"] = rng.binomial(values["lesions"], 0.5)
    values["marked_correctly"] = rng.binomial(values["marked"], 0.5)
    for region in SCORED_REGIONS:
        values[f"presence of {region}"] = np.clip(present[:, None] * 0.4 + 0.5 * rng.random((N, draws)), 0, 1)
        values[f"true presence of {region}"] = present.astype(float)
    for score in ("p_active", "log_count", "crps", "brier"):
        values[f"{score} of first members"] = rng.random((N, 3))
    return Scores(tuple(f"sub-{n}" for n in range(N)), values, role)


@pytest.fixture(scope="session")
def make_scores():
    """The function `made_scores`."""
    return made_scores


@pytest.fixture(scope="session")
def scores():
    """Of one forecaster."""
    return made_scores()
