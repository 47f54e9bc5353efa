"""One iteration of training; every random number is a function of (seed, iteration, position in the global batch)."""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from ignite.engine import Engine
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from bundle.arms import NULL_ARM
from bundle.data.bids import CONDITION
from bundle.diffusion.denoiser import Denoiser
from bundle.diffusion.losses import DenoisingLoss
from bundle.diffusion.slabs import NUM_VOLUMES, Condition, fold_slices
from bundle.errors import InputError
from bundle.networks.weights import bare
from bundle.runtime import rank_and_world
from bundle.seeding import Streams

_VOLUMES = {
    "masks": [not name.startswith("flair") for name in CONDITION],
    "w000": [name.endswith("w000") for name in CONDITION],
}


@dataclass(frozen=True)
class Augmentation:
    """Left-right flips and unknowns: the states the network must know at inference.

    Args:
        flip: probability of swapping left and right.
        drop_volume: probability that a volume is unknown, each by itself.
        drop_masks: probability that all masks are: FLAIR alone, as a hospital has it.
        drop_visit: probability that all of a visit is, w000 or w048 with equal chances.
        drop_images: probability that all volumes are (the null image).
        drop_arm: probability that the arm is (the null arm), independent of the images.
    """

    flip: float = 0.5
    drop_volume: float = 0.05
    drop_masks: float = 0.2
    drop_visit: float = 0.2
    drop_images: float = 0.1
    drop_arm: float = 0.1

    def __call__(self, image: Tensor, target: Tensor, streams: Streams) -> tuple[Tensor, Tensor]:
        """New (B, 8, H, W, S) and (B, 2, H, W, S)."""
        draws = streams.uniform((NUM_VOLUMES + 5,), image.device)  # (B, 12)
        flip = (draws[:, 0] < self.flip)[:, None, None, None, None]
        image, target = (torch.where(flip, x.flip(2), x) for x in (image, target))
        masks, first = (torch.tensor(_VOLUMES[kind], device=image.device) for kind in ("masks", "w000"))  # (7,) bool
        unknown = (draws[:, 5:] < self.drop_volume) | (draws[:, 1:2] < self.drop_images)  # (B, 7)
        unknown |= (draws[:, 3:4] < self.drop_masks) & masks
        unknown |= (draws[:, 4:5] < self.drop_visit / 2) & first
        unknown |= (draws[:, 4:5] >= self.drop_visit / 2) & (draws[:, 4:5] < self.drop_visit) & ~first
        volumes = image[:, :NUM_VOLUMES].masked_fill(unknown[:, :, None, None, None], 0)
        no_arm = (draws[:, 2] < self.drop_arm)[:, None, None, None, None]
        arm = image[:, NUM_VOLUMES:].masked_fill(no_arm, NULL_ARM)
        return torch.cat([volumes, arm], dim=1), target


def moving_average(network: nn.Module, decay: float = 0.999) -> AveragedModel:
    """Exponential moving average of the weights, warmed up as min(decay, (1 + n) / (10 + n)) after n updates."""

    def lerp(averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor) -> None:
        n = int(num_averaged)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(bare(network), multi_avg_fn=lerp)


class TrainStep:
    """One iteration, given to MONAI's trainer as `iteration_update`.

    Args:
        denoiser: around the network being trained (wrapped in DistributedDataParallel or not).
        loss: per-sample loss.
        augmentation: of a batch, before noise is added.
        average: moving average of the network, updated after each step.
        lr_schedule: stepped after each step.
        seed: of times, noise and augmentation.
        max_grad_norm: gradients are clipped to it.
        amp: bf16 autocast in the network.
        micro_batch_size: samples that go through the network together; the gradients of a batch are accumulated over
            several passes, which takes less memory and gives the same step. By default all samples of this process.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        loss: DenoisingLoss,
        augmentation: Augmentation,
        average: AveragedModel,
        lr_schedule: LRScheduler,
        seed: int = 0,
        max_grad_norm: float = 1.0,
        amp: bool = True,
        micro_batch_size: int | None = None,
    ) -> None:
        self.denoiser, self.loss, self.augmentation = denoiser, loss, augmentation
        self.average, self.lr_schedule = average, lr_schedule
        self.seed, self.max_grad_norm, self.amp = seed, max_grad_norm, amp
        self.micro_batch_size = micro_batch_size

    def __call__(self, engine: Engine, batch: dict[str, Any]) -> list[dict[str, float]]:
        """Loss, gradient norm and learning rate of one step of the optimiser, as one item: MONAI's handlers read lists.

        Raises:
            InputError: the loss or the gradient is not finite; the weights are those of the step before.
        """
        device, optimizer = engine.state.device, engine.optimizer
        self.denoiser.train()
        optimizer.zero_grad(set_to_none=True)
        count, loss = len(batch["image"]), 0.0  # samples of this process
        size = self.micro_batch_size or count
        for first in range(0, count, size):
            part = slice(first, min(first + size, count))
            with self._gradients_shared(last=part.stop == count):
                mean = self._loss(batch, part, engine.state.iteration, device) / count
                mean.backward()
            loss += mean.item()
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        grad_norm = nn.utils.clip_grad_norm_(trained, self.max_grad_norm).item()
        for name, value in {"loss": loss, "norm of the gradient": grad_norm}.items():
            if not math.isfinite(value):
                raise not_finite(f"the {name} is {value}", engine.state.iteration)
        optimizer.step()
        self.lr_schedule.step()
        self.average.update_parameters(bare(self.denoiser.network))
        return [{"loss": loss, "grad_norm": grad_norm, "lr": self.lr_schedule.get_last_lr()[0]}]

    def _loss(self, batch: dict[str, Any], part: slice, iteration: int, device: torch.device) -> Tensor:
        """Sum over the samples of a part of the batch, each with its own random numbers."""
        image, target, weight = (
            batch[key][part].to(device, torch.float32, non_blocking=True) for key in ("image", "target", "weight")
        )
        rank, world = rank_and_world()
        count = len(batch["image"])
        positions = range(rank * count, (rank + 1) * count)[part]
        streams = Streams.for_batch(self.seed, iteration, positions, world * count)
        image, target = self.augmentation(image, target, streams)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.amp):
            losses = self.loss(self.denoiser, fold_slices(target), Condition.of(image), streams)
        return (losses * weight).sum()

    def _gradients_shared(self, last: bool) -> AbstractContextManager:
        """Processes share their gradients once a step, not once a pass."""
        network = self.denoiser.network
        return nullcontext() if last or network is bare(network) else network.no_sync()


def not_finite(problem: str, iteration: int) -> InputError:
    """The error to raise where training has diverged."""
    return InputError(
        f"{problem} at iteration {iteration}",
        "run the same command again with a lower --learning_rate; it resumes from the last checkpoint",
    )
