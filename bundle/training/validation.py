"""Validation in training: the one-call heatmap of every patient, scored as a forecast, and denoising at lower noise.

The lesions of a member form between noise and mask. For good members x0 must be good at all noise levels in between,
not only at the noisiest, whose x0 is the heatmap: the key metric is the mean over both.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from ignite.metrics import EpochMetric
from torch import Tensor
from torch.nn import functional as F

from bundle.diffusion.denoiser import Denoiser
from bundle.diffusion.samplers import DenoiseAt
from bundle.diffusion.schedules import Schedule, alpha_sigma, expand_to
from bundle.diffusion.slabs import Condition, fold_slices, net2_probability, one_call_heatmap
from bundle.metrics import log_skill, roc_auc
from bundle.seeding import Streams

LEVELS = (-2.0, 0.0, 1.0)  # log-SNRs between which lesions form


class ValidationStep:
    """One batch of validation, given to MONAI's evaluator as `iteration_update`.

    Args:
        denoiser: around the averaged weights.
        schedule: the heatmap is x0 at its noisiest level.
        amp: bf16 autocast in the network.
        seed: of the noise, which is the same at every validation.
        levels: log-SNRs at which the noisy outcome is denoised as well.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        amp: bool = True,
        seed: int = 0,
        levels: Sequence[float] = LEVELS,
    ) -> None:
        self.denoiser, self.schedule, self.amp, self.seed, self.levels = denoiser, schedule, amp, seed, tuple(levels)

    @torch.inference_mode()
    def __call__(self, engine: Engine, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Per patient: `expected_volume` of the heatmap, `lesion_fraction` and `active` of the outcome.

        `log_losses` (B, 1 + levels) are those of the heatmap and of NET2 as denoised at each level.
        """
        device = engine.state.device
        image, target = (batch[key].to(device, torch.float32) for key in ("image", "target"))
        streams = Streams.for_batch(self.seed, engine.state.iteration, range(len(image)), len(image))
        self.denoiser.eval()
        x0 = fold_slices(target)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.amp):
            denoise = partial(self.denoiser, condition=Condition.of(image))
            heatmap = one_call_heatmap(denoise, x0.shape, self.schedule, device)
            maps = [heatmap] + [self._denoised(denoise, x0, level, streams) for level in self.levels]
        lesion = (target[:, -1] > 0).float()
        log_losses = [F.binary_cross_entropy(p.clamp(1e-7, 1 - 1e-7), lesion, reduction="none") for p in maps]
        return {
            "expected_volume": heatmap.flatten(1).sum(1),
            "log_losses": torch.stack([loss.flatten(1).mean(1) for loss in log_losses], dim=1),
            "lesion_fraction": lesion.flatten(1).mean(1),
            "active": lesion.flatten(1).amax(1),
        }

    @staticmethod
    def _denoised(denoise: DenoiseAt, x0: Tensor, level: float, streams: Streams) -> Tensor:
        """P(NET2), (B, H, W, S), of the outcome with noise of this level."""
        logsnr = x0.new_full((len(x0),), level)
        alpha, sigma = (expand_to(value, x0) for value in alpha_sigma(logsnr))
        z_t = alpha * x0 + sigma * streams.normal(x0.shape[1:], x0.device)
        return net2_probability(denoise(z_t, logsnr))


class LogScore(EpochMetric):
    """Logarithmic score: mean log-probability of the outcome's voxels over the heatmap and all levels, in nats.

    At most 0, higher is better. It ranks weights as `MeanLogSkill` does, which is 1 + score / entropy of the outcomes,
    and is also defined where no patient has a lesion.
    """

    def __init__(self) -> None:
        super().__init__(
            lambda losses, _: -float(_array(losses).mean()),
            lambda o: (o["log_losses"], o["lesion_fraction"]),
            check_compute_fn=False,
        )


class ActivityAUC(EpochMetric):
    """`roc_auc` of the expected lesion volume for "has a new lesion"; NaN where no patient, or every one, has."""

    def __init__(self) -> None:
        super().__init__(
            lambda volume, active: float(roc_auc(_array(volume), _array(active), 1 - _array(active))),
            lambda o: (o["expected_volume"], o["active"]),
            check_compute_fn=False,
        )


class HeatmapLogSkill(EpochMetric):
    """`log_skill` of the heatmap; NaN where no patient has a lesion."""

    def __init__(self) -> None:
        super().__init__(
            lambda losses, fraction: log_skill(_by_level(losses)[0], _array(fraction)),
            lambda o: (o["log_losses"], o["lesion_fraction"]),
            check_compute_fn=False,
        )


class MeanLogSkill(EpochMetric):
    """Mean `log_skill` of the heatmap and of NET2 as denoised at each level; NaN where no patient has a lesion."""

    def __init__(self) -> None:
        super().__init__(
            lambda losses, fraction: float(
                np.mean([log_skill(level, _array(fraction)) for level in _by_level(losses)])
            ),
            lambda o: (o["log_losses"], o["lesion_fraction"]),
            check_compute_fn=False,
        )


def _by_level(losses: Tensor) -> np.ndarray:
    """(1 + levels, patients); ignite squeezes a single column."""
    return _array(losses).reshape(len(losses), -1).T


def _array(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy()
