"""Training that resumes exactly: every random number is a function of (seed, iteration, place in the global batch).

Two stages run through MONAI's `SupervisedTrainer`: the UNet alone, then with the ControlNet (in the paper over the frozen
UNet, `freeze_unet`). What is saved is therefore short (weights, their average, optimiser, counters) and an interrupted
run ends bit-identical on the CPU to an unbroken one, and n processes train the same weights as one with the same global
batch.
"""

import math
import os
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Mapping

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from torch import Tensor, distributed, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset, Sampler

from bundle.arms import NULL_ARM
from bundle.denoiser import Denoiser
from bundle.errors import InputError
from bundle.files import written_whole
from bundle.forecasting import NUM_VOLUMES, condition_of
from bundle.losses import DenoisingLoss
from bundle.networks import ForecastNetwork
from bundle.randomness import Streams, seed_of
from bundle.slabs import fold_slices


def rank_and_world() -> tuple[int, int]:
    """This process's rank and how many there are; (0, 1) outside torchrun."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def join_processes() -> None:
    """Join the processes torchrun started: nccl on GPUs, gloo on CPUs."""
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if torch.cuda.is_available():
        torch.cuda.set_device(pick_device())


def is_follower() -> bool:
    """Whether another process than this one reports and saves."""
    return rank_and_world()[0] > 0


class IterationBatches(Sampler[list[int]]):
    """Batches of indices as a function of the iteration alone: shuffled epochs laid end to end.

    Args:
        num_items: size of the data set.
        batch_size: size of the global batch; each process takes its equal share.
        num_iterations: length of the whole training.
        seed: of the shuffling.
    """

    def __init__(self, num_items: int, batch_size: int, num_iterations: int, seed: int = 0) -> None:
        self.rank, self.world = rank_and_world()
        if num_items < 1:
            raise ValueError("there is nothing to train on")
        if batch_size % self.world:
            raise ValueError(f"batch_size={batch_size} does not divide over {self.world} processes")
        self.num_items, self.batch_size, self.num_iterations, self.seed = num_items, batch_size, num_iterations, seed
        self.start = 0

    def __len__(self) -> int:
        return self.num_iterations

    def __iter__(self) -> Iterator[list[int]]:
        epoch, order = -1, None
        for iteration in range(self.start, self.num_iterations):
            batch = []
            for place in range(iteration * self.batch_size, (iteration + 1) * self.batch_size):
                if place // self.num_items != epoch:
                    epoch = place // self.num_items
                    order = np.random.default_rng(seed_of("order", self.seed, epoch)).permutation(self.num_items)
                batch.append(int(order[place % self.num_items]))
            share = self.batch_size // self.world
            yield batch[self.rank * share : (self.rank + 1) * share]


def training_loader(
    dataset: Dataset, batch_size: int, num_epochs: int, epoch_length: int, seed: int = 0, num_workers: int = 0
) -> DataLoader:
    """Loader of `num_epochs` x `epoch_length` global batches that can start at any iteration (see `Checkpoints`)."""
    batches = IterationBatches(len(dataset), batch_size, num_epochs * epoch_length, seed)
    return DataLoader(dataset, batch_sampler=batches, num_workers=num_workers)


@dataclass(frozen=True)
class Augmentation:
    """Left-right flips and unknowns: the states the network must know at inference.

    Args:
        flip: probability of swapping left and right.
        drop_volume: probability that a volume is unknown, each by itself.
        drop_images: probability that all are (the null image).
        drop_arm: probability that the arm is (the null arm), independent of the images.
    """

    flip: float = 0.5
    drop_volume: float = 0.05
    drop_images: float = 0.1
    drop_arm: float = 0.1

    def __call__(self, image: Tensor, target: Tensor, streams: Streams) -> tuple[Tensor, Tensor]:
        """New (B, 8, H, W, S) and (B, 2, H, W, S)."""
        draws = streams.uniform((NUM_VOLUMES + 3,), image.device)  # (B, 10)
        flip = (draws[:, 0] < self.flip)[:, None, None, None, None]
        image, target = (torch.where(flip, x.flip(2), x) for x in (image, target))
        unknown = (draws[:, 3:] < self.drop_volume) | (draws[:, 1:2] < self.drop_images)  # (B, 7)
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
        augmentation: what happens to a batch before it is noised.
        average: moving average of the network, updated after each step.
        lr_schedule: stepped after each step.
        seed: of times, noise and augmentation.
        max_grad_norm: gradients are clipped to it.
        amp: bf16 autocast in the network.
        micro_batch_size: samples that go through the network together; the gradients of a batch are accumulated over several
            passes, which takes less memory and gives the same step. All of this process's share of the batch if not given.
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
        if micro_batch_size is not None and micro_batch_size < 1:
            raise InputError(f"micro_batch_size={micro_batch_size} is less than 1", "correct --micro_batch_size")
        self.denoiser, self.loss, self.augmentation = denoiser, loss, augmentation
        self.average, self.lr_schedule = average, lr_schedule
        self.seed, self.max_grad_norm, self.amp = seed, max_grad_norm, amp
        self.micro_batch_size = micro_batch_size

    def __call__(self, engine: Engine, batch: dict[str, Any]) -> dict[str, float]:
        device, optimizer = engine.state.device, engine.optimizer
        self.denoiser.train()
        optimizer.zero_grad(set_to_none=True)
        share, loss = len(batch["image"]), 0.0
        size = self.micro_batch_size or share
        for first in range(0, share, size):
            places = slice(first, min(first + size, share))
            with self._gradients_shared(last=places.stop == share):
                part = self._loss(batch, places, engine.state.iteration, device) / share
                part.backward()
            loss += part.item()
        if not math.isfinite(loss):
            raise InputError(
                f"the loss is {loss} at iteration {engine.state.iteration}",
                "run again with a lower learning rate; it goes on from the last checkpoint",
            )
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        grad_norm = nn.utils.clip_grad_norm_(trained, self.max_grad_norm)
        optimizer.step()
        self.lr_schedule.step()
        self.average.update_parameters(bare(self.denoiser.network))
        return {"loss": loss, "grad_norm": grad_norm.item(), "lr": self.lr_schedule.get_last_lr()[0]}

    def _loss(self, batch: dict[str, Any], places: slice, iteration: int, device: torch.device) -> Tensor:
        """Sum over the samples at these places of the batch, each with its own random numbers."""
        image, target, weight = (
            batch[key][places].to(device, torch.float32, non_blocking=True) for key in ("image", "target", "weight")
        )
        rank, world = rank_and_world()
        share = len(batch["image"])
        positions = range(rank * share, (rank + 1) * share)[places]
        streams = Streams.for_batch(self.seed, iteration, positions, world * share)
        image, target = self.augmentation(image, target, streams)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.amp):
            losses = self.loss(self.denoiser, fold_slices(target), condition_of(image), streams)
        return (losses * weight).sum()

    def _gradients_shared(self, last: bool) -> AbstractContextManager:
        """Processes share their gradients once a step, not once a pass."""
        network = self.denoiser.network
        return nullcontext() if last or network is bare(network) else network.no_sync()


class LossBar(ProgressBar):
    """Progress bar of an epoch that shows what `TrainStep` returns."""

    def attach(self, engine: Engine) -> None:
        super().attach(engine, output_transform=lambda output: output)


def bare(network: nn.Module) -> nn.Module:
    """The network without its DistributedDataParallel wrapper."""
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network


def pick_device() -> torch.device:
    """The GPU of this process if there is one, else the CPU."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else torch.device("cpu")


def parameter_groups(network: nn.Module, local_learning_rate: float) -> list[dict[str, Any]]:
    """What an optimiser is to train, frozen parameters left out; the `LocalPath`, if there is one, at its own rate."""
    trained = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    local = [parameter for name, parameter in trained if "local." in name]
    rest = [parameter for name, parameter in trained if "local." not in name]
    return [{"params": rest}] + ([{"params": local, "lr": local_learning_rate}] if local else [])


def warmup_cosine(optimizer: Optimizer, num_warmup: int, num_epochs: int, epoch_length: int) -> LRScheduler:
    """Learning rate up linearly over `num_warmup` iterations, then down a half cosine to a hundredth of its peak."""

    def share_of_peak(iteration: int) -> float:
        if iteration < num_warmup:
            return (iteration + 1) / num_warmup
        progress = (iteration - num_warmup) / max(1, num_epochs * epoch_length - num_warmup)
        return 0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2

    return torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_peak)


def freeze_unet(network: ForecastNetwork) -> ForecastNetwork:
    """Stage 2 trains the ControlNet only (Favero et al. 2025)."""
    network.unet.requires_grad_(False)
    return network


def save_atomically(state: Any, path: str | Path) -> None:
    """torch.save that leaves either the old file or the whole new one, even if the machine goes down."""
    with written_whole(Path(path)) as file:
        torch.save(state, file)


def export_weights(network: nn.Module, path: str | Path) -> None:
    """Weights alone, float16, as `models/model.pt` ships them."""
    save_atomically({name: value.half() for name, value in network.state_dict().items()}, path)


def load_weights(network: nn.Module, path: str | Path) -> nn.Module:
    """Load what `export_weights` wrote into a network of the same architecture.

    Raises:
        InputError: no file, not a file of weights, or of another architecture.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError("no weights there", "train some or give their path with --weights", file=path) from None
    except Exception as error:  # unpickling fails in many ways on what is not a file of weights
        raise InputError("not a file of weights", "give a file written by training", file=path) from error
    if not isinstance(state, Mapping):
        raise InputError("not a file of weights", "give a file written by training", file=path)
    with same_architecture(path):
        bare(network).load_state_dict(state)
    return network


@contextmanager
def same_architecture(path: str | Path) -> Iterator[None]:
    """What is loaded inside comes from `path` and must fit.

    Raises:
        InputError: it does not.
    """
    try:
        yield
    except (RuntimeError, KeyError, TypeError, AttributeError, ValueError) as error:  # how torch refuses a state
        raise InputError(
            "weights of another architecture", "run with the configuration they were trained with", file=path
        ) from error


class Checkpoints:
    """Handler of the trainer: resumes where `last` stands, saves it every epoch, exports the best average weights.

    Args:
        directory: where the files go.
        stage: name of the stage; the files are `<stage>_last.pt` (to resume) and `<stage>_best.pt` (weights alone).
        network, average, optimizer, lr_schedule: what is saved.
        evaluator: validates; its key metric says which weights are best (higher is better). None: the last are.
        start_from: `_last.pt` of an earlier stage, whose averaged weights are taken when this stage starts afresh, or weights alone
            (`_best.pt`, the shipped ones): of stage 1, or of another model's stage 2.
    """

    def __init__(
        self,
        directory: str | Path,
        stage: str,
        network: nn.Module,
        average: AveragedModel,
        optimizer: Optimizer,
        lr_schedule: LRScheduler,
        evaluator: Engine | None = None,
        start_from: str | Path | None = None,
    ) -> None:
        self.last, self.best = (Path(directory) / f"{stage}_{which}.pt" for which in ("last", "best"))
        self.objects = {
            "network": bare(network),
            "average": average,
            "optimizer": optimizer,
            "lr_schedule": lr_schedule,
        }
        self.evaluator, self.start_from = evaluator, start_from
        self.best_score = -float("inf")

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.resume)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def resume(self, engine: Engine) -> None:
        if self.last.exists():
            saved = torch.load(self.last, map_location="cpu", weights_only=True)
            with same_architecture(self.last):
                for name, target in self.objects.items():
                    target.load_state_dict(saved[name])
            engine.state.iteration, engine.state.epoch = saved["iteration"], saved["epoch"]
            self.best_score = saved["best_score"]
        elif self.start_from is not None:
            self.take_weights(self.start_from)
        engine.state.dataloader.batch_sampler.start = engine.state.iteration

    def take_weights(self, path: str | Path) -> None:
        """All that an earlier stage has trained; a ControlNet that it did not have starts from its UNet."""
        if not Path(path).exists():
            raise InputError("no weights to start from there", "run pretraining first, or set start_from", file=path)
        trained = torch.load(path, map_location="cpu", weights_only=True)
        if "average" in trained:  # a `_last.pt`; else weights alone
            prefix = "module."
            trained = {name.removeprefix(prefix): value for name, value in trained["average"].items() if name.startswith(prefix)}
        for network in (self.objects["network"], self.objects["average"].module):
            with same_architecture(path):
                network.load_state_dict(network.state_dict() | trained)
            if not any(name.startswith("controlnet.") for name in trained):
                network.start_control_from_unet()

    def save(self, engine: Engine) -> None:
        if is_follower():
            return
        score = engine.state.epoch
        if self.evaluator is not None:
            score = self.evaluator.state.metrics[self.evaluator.state.key_metric_name]
        if score > self.best_score or not self.best.exists():  # a score may be NaN, and some weights must be there
            self.best_score = max(self.best_score, float(score))
            export_weights(self.objects["average"].module, self.best)
        saved = {name: target.state_dict() for name, target in self.objects.items()}
        counters = {"iteration": engine.state.iteration, "epoch": engine.state.epoch, "best_score": self.best_score}
        save_atomically(saved | counters, self.last)
