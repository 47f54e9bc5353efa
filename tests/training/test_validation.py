import numpy as np
import pytest
import torch
from ignite.engine import Engine

from bundle.arms import NULL_ARM
from bundle.diffusion.schedules import Cosine
from bundle.diffusion.slabs import fold_slices
from bundle.metrics import log_skill
from bundle.training.validation import ActivityAUC, HeatmapLogSkill, LogScore, MeanLogSkill, ValidationStep

H, W, S = 8, 8, 5
METRICS = {"auc": ActivityAUC, "heatmap": HeatmapLogSkill, "mean": MeanLogSkill, "score": LogScore}


def batch(count=6):
    target = -torch.ones(count, 2, H, W, S)
    for patient in range(0, count, 2):
        target[patient, 1, 2, 2 : 3 + patient, 2] = 1
    image = torch.zeros(count, 8, H, W, S)
    image[:, -1] = NULL_ARM
    image[:, 6] = (
        target[:, 1] if count else 0
    )  # a patient's outcome is known to the condition, for a denoiser that cheats
    return {"image": image, "target": target}


class Sees(torch.nn.Module):
    """Denoises to the condition's NET2 mask, as far as `certainty`, from a log-SNR on; to a constant before."""

    def __init__(self, certainty, from_level):
        super().__init__()
        self.certainty, self.from_level = certainty, from_level

    def forward(self, z_t, logsnr, condition):
        mask = condition.images[:, 6 * S :] * self.certainty
        fraction = (condition.images[:, 6 * S :] > 0).float().mean()
        unknown = torch.full_like(mask, float(2 * fraction - 1))
        knows = (logsnr >= self.from_level)[:, None, None, None]
        return torch.cat([torch.zeros_like(mask), torch.where(knows, mask, unknown)], dim=1)


def validate(denoiser, batches, **settings):
    engine = Engine(ValidationStep(denoiser, Cosine(), amp=False, **settings))
    engine.state.device = torch.device("cpu")
    for name, metric in METRICS.items():
        metric().attach(engine, name)
    return engine.run(batches).metrics


def test_a_perfect_denoiser_scores_one_everywhere():
    metrics = validate(Sees(1.0, -99.0), [batch(), batch()])
    assert metrics.pop("score") == pytest.approx(0, abs=1e-5)
    assert metrics == {name: pytest.approx(1, abs=1e-4) for name in metrics}


def test_the_log_score_ranks_as_the_mean_log_skill_and_needs_no_lesion():
    """skill = 1 + score / entropy; a mask that is nowhere 1 has a score, log(.9) at a certainty of .8, but no skill."""
    scores = [validate(Sees(certainty, -99.0), [batch()]) for certainty in (0.2, 0.5, 0.8)]
    p = float((batch()["target"][:, 1] > 0).float().mean())
    entropy = -(p * np.log(p) + (1 - p) * np.log1p(-p))
    for metrics in scores:
        assert metrics["mean"] == pytest.approx(1 + metrics["score"] / entropy, rel=1e-4)
    inactive = batch()
    inactive["target"][:, 1], inactive["image"][:, 6] = -1, -1
    metrics = validate(Sees(0.8, -99.0), [inactive])
    assert metrics["score"] == pytest.approx(np.log(0.9), rel=1e-4)
    assert np.isnan([metrics["mean"], metrics["heatmap"], metrics["auc"]]).all()


def test_the_mean_is_over_the_heatmap_and_all_levels():
    """Blind at the noisiest level and at -2, seeing at 0 and 1: half of four, and the heatmap has no skill."""
    metrics = validate(Sees(1.0, -1.0), [batch()])
    assert metrics["heatmap"] == pytest.approx(0, abs=1e-5) and metrics["mean"] == pytest.approx(0.5, abs=1e-4)
    assert metrics["auc"] == 0.5


def test_without_levels_the_heatmap_alone_is_scored():
    metrics = validate(Sees(0.8, -99.0), [batch(), batch()], levels=())
    assert metrics["mean"] == metrics["heatmap"] == validate(Sees(0.8, -99.0), [batch(), batch()])["heatmap"]


def test_a_step_gives_log_losses_of_every_patient_and_level():
    engine = Engine(lambda *_: None)
    engine.state.device, engine.state.iteration = torch.device("cpu"), 1
    data = batch()
    out = ValidationStep(Sees(0.8, -99.0), Cosine(), amp=False)(engine, data)
    assert out["log_losses"].shape == (6, 4) and out["active"].tolist() == [1, 0, 1, 0, 1, 0]
    np.testing.assert_allclose(out["log_losses"], -np.log(0.9), rtol=1e-5)
    np.testing.assert_allclose(
        out["lesion_fraction"], (fold_slices(data["target"])[:, S:] > 0).flatten(1).float().mean(1)
    )
    fraction = out["lesion_fraction"].numpy()
    assert log_skill(out["log_losses"][:, 0].numpy(), fraction) < 1


def test_the_noise_is_the_same_at_every_validation():
    class Echo(torch.nn.Module):
        def forward(self, z_t, logsnr, condition):
            return z_t.clamp(-1, 1)

    assert validate(Echo(), [batch(), batch()]) == validate(Echo(), [batch(), batch()])
