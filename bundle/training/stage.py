"""What a stage of training is made of: batches as a function of the iteration, optimiser groups, learning rate."""

import math
from typing import Any, Iterator

import numpy as np
import torch
from ignite.engine import Engine
from ignite.handlers import ProgressBar
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler

from bundle.networks.slab_unet import ForecastNetwork
from bundle.runtime import rank_and_world
from bundle.seeding import seed_of


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


class LossBar(ProgressBar):
    """Progress bar of an epoch that shows what `TrainStep` returns."""

    def attach(self, engine: Engine) -> None:
        super().attach(engine, output_transform=lambda output: output)


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
