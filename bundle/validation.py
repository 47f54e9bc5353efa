"""Validation in training: the one-call heatmap of every patient, scored as a forecast."""

from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from ignite.metrics import EpochMetric
from torch import Tensor
from torch.nn import functional as F

from bundle.denoiser import Denoiser
from bundle.forecasting import condition_of, one_call_heatmap
from bundle.metrics import log_skill, roc_auc
from bundle.randomness import Streams
from bundle.schedules import Schedule


class ValidationStep:
    """One batch of validation, given to MONAI's evaluator as `iteration_update`.

    Args:
        denoiser: around the averaged weights.
        schedule: whose noisy end the heatmap is read at.
        amp: bf16 autocast in the network.
        seed: of the noise, which is the same at every validation.
    """

    def __init__(self, denoiser: Denoiser, schedule: Schedule, amp: bool = True, seed: int = 0) -> None:
        self.denoiser, self.schedule, self.amp, self.seed = denoiser, schedule, amp, seed

    @torch.inference_mode()
    def __call__(self, engine: Engine, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Per patient: `expected_volume` and mean `log_loss` of the heatmap, `lesion_share` and `active` of the truth."""
        device = engine.state.device
        image, target = (batch[key].to(device, torch.float32) for key in ("image", "target"))
        streams = Streams.for_batch(self.seed, engine.state.iteration, range(len(image)), len(image))
        self.denoiser.eval()
        with torch.autocast(device.type, torch.bfloat16, enabled=self.amp):
            heatmap = one_call_heatmap(self.denoiser, condition_of(image), self.schedule, streams)
        lesion = (target[:, -1] > 0).float()
        log_loss = F.binary_cross_entropy(heatmap.clamp(1e-7, 1 - 1e-7), lesion, reduction="none")
        return {
            "expected_volume": heatmap.flatten(1).sum(1),
            "log_loss": log_loss.flatten(1).mean(1),
            "lesion_share": lesion.flatten(1).mean(1),
            "active": lesion.flatten(1).amax(1),
        }


class ActivityAUC(EpochMetric):
    """`roc_auc` of the expected lesion volume for "has a new lesion"."""

    def __init__(self) -> None:
        super().__init__(
            lambda volume, active: float(roc_auc(_array(volume), _array(active), 1 - _array(active))),
            lambda o: (o["expected_volume"], o["active"]),
            check_compute_fn=False,
        )


class LogSkill(EpochMetric):
    """`log_skill` of the heatmap."""

    def __init__(self) -> None:
        super().__init__(
            lambda log_loss, share: log_skill(_array(log_loss), _array(share)),
            lambda o: (o["log_loss"], o["lesion_share"]),
            check_compute_fn=False,
        )


def _array(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy()
