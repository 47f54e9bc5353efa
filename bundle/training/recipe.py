"""The settings of a stage of training: checked when they are given, saved with its checkpoint, compared on resuming."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bundle.diffusion.losses import DenoisingLoss
from bundle.diffusion.predictions import Prediction
from bundle.diffusion.schedules import NoisiestLevel
from bundle.errors import InputError, check_count, check_rate
from bundle.training.step import Augmentation

# A checkpoint of another value of these can be resumed; all other settings belong to the training from its start.
ADJUSTABLE = (
    "num_epochs",
    "learning_rate",
    "local_learning_rate",
    "num_warmup",
    "weight_decay",
    "max_grad_norm",
    "micro_batch_size",
    "num_workers",
    "amp",
)


@dataclass(frozen=True)
class Recipe:
    """Settings that the stages of a training have in common.

    Args:
        loss: per-sample loss; the denoiser takes its `foreground_weight` out again.
        prediction: what the network's output means.
        augmentation: of each batch.
        seed: of the order of patients, augmentation, times and noise.
        batch_size: size of the global batch.
        epoch_length: iterations between two validations.
        learning_rate: peak rate of AdamW.
        local_learning_rate: that of the network's `LocalPath`.
        num_warmup: iterations of linear warm-up.
        weight_decay: of AdamW.
        max_grad_norm: norm to which gradients are clipped.
        micro_batch_size: see `bundle.training.step.TrainStep`.
        num_workers: processes that read patients; 0 reads in this one.
        amp: bf16 autocast in the network.

    Raises:
        InputError: a number is out of range.
    """

    loss: DenoisingLoss
    prediction: Prediction
    augmentation: Augmentation = Augmentation()
    seed: int = 0
    batch_size: int = 8
    epoch_length: int = 200
    learning_rate: float = 5e-4
    local_learning_rate: float = 4e-3
    num_warmup: int = 100
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    micro_batch_size: int | None = None
    num_workers: int = 0
    amp: bool = True

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("batch_size", 1), ("epoch_length", 1), ("num_warmup", 0), ("num_workers", 0)):
            check_count(name, getattr(self, name), least)
        if self.micro_batch_size is not None:
            check_count("micro_batch_size", self.micro_batch_size, 1)
        for name in ("learning_rate", "local_learning_rate", "max_grad_norm"):
            check_rate(name, getattr(self, name))
        if self.weight_decay != 0:
            check_rate("weight_decay", self.weight_decay)
        if not isinstance(self.amp, bool):
            raise InputError(f"amp={self.amp!r} is neither True nor False", "correct --amp")


def prior_recipe(recipe: Recipe, learning_rate: float) -> Recipe:
    """The recipe of the prior's stage: the noisiest level alone, the mask (the last contrast) alone, a rate of its own.

    Raises:
        InputError: the rate is out of range.
    """
    check_rate("prior_learning_rate", learning_rate)
    loss = recipe.loss
    *others, mask = loss.contrast_weights
    loss = dataclasses.replace(
        loss, schedule=NoisiestLevel(loss.schedule), contrast_weights=(*(0 for _ in others), mask)
    )
    return dataclasses.replace(recipe, loss=loss, learning_rate=learning_rate)


def flat_settings(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """(name, plain value) of every setting of a nested dataclass; of a dataclass itself, the name of its class."""
    if dataclasses.is_dataclass(value):
        yield name, type(value).__name__
        for field in dataclasses.fields(value):
            yield from flat_settings(f"{name}.{field.name}" if name else field.name, getattr(value, field.name))
    elif isinstance(value, list | tuple) and any(dataclasses.is_dataclass(item) for item in value):
        for position, item in enumerate(value):
            yield from flat_settings(f"{name}.{position}", item)
    else:
        yield name, list(value) if isinstance(value, list | tuple) else value


def compare_settings(saved: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Differences between two trainings' settings, as text: those that may change, and those that must not."""
    adjusted, refused = [], []
    for name in sorted(saved.keys() | now.keys()):
        before, after = saved.get(name), now.get(name)
        if before != after:
            (adjusted if name in ADJUSTABLE else refused).append(f"{name} {before} -> {after}")
    return adjusted, refused
