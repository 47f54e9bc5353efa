"""A stage of training: a network that is trained by a recipe on a data set, and the engines that do it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import TensorBoardStatsHandler
from monai.inferers import Inferer
from monai.utils import set_determinism
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from bundle.data.cache import CachedCases
from bundle.diffusion.slabs import SlabDenoiser
from bundle.errors import check_count
from bundle.files import check_writable
from bundle.networks.slab_unet import ForecastNetwork
from bundle.networks.weights import bare
from bundle.seeding import digest_of
from bundle.training.batches import training_loader
from bundle.training.recipe import Recipe, flat_settings
from bundle.training.step import TrainStep, moving_average
from bundle.training.validation import LEVELS, ActivityAUC, HeatmapLogSkill, LogScore, MeanLogSkill, ValidationStep


class TrainedState:
    """What training changes of a network, its average, its optimiser and the schedule of its learning rate."""

    network: nn.Module
    average: nn.Module
    optimizer: Optimizer
    lr_schedule: LambdaLR

    def state(self) -> dict[str, Any]:
        """State of all that training changes, to be saved."""
        return {name: target.state_dict() for name, target in self._changing.items()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes over what `state` gave; the rates of the optimiser remain those of the recipe.

        Raises:
            Exception: what torch raises for a state that does not fit.
        """
        rates = [
            {key: value for key, value in group.items() if key != "params"} for group in self.optimizer.param_groups
        ]
        peaks = self.lr_schedule.base_lrs
        for name, target in self._changing.items():
            target.load_state_dict(state[name])
        self.lr_schedule.base_lrs = peaks
        for group, own, peak, factor in zip(self.optimizer.param_groups, rates, peaks, self.lr_schedule.lr_lambdas):
            group.update(own | {"lr": peak * factor(self.lr_schedule.last_epoch)})
        self.lr_schedule._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    @property
    def _changing(self) -> dict[str, Any]:
        return {
            "network": bare(self.network),
            "average": self.average,
            "optimizer": self.optimizer,
            "lr_schedule": self.lr_schedule,
        }


class Stage(TrainedState):
    """Everything that training changes, and the settings that it depends on.

    Args:
        name: begins the names of the stage's files.
        recipe: settings that stages have in common.
        network: a `ForecastNetwork` or a `PriorAlone`; trained where it requires gradients, moved to `device`, and
            wrapped in DistributedDataParallel where several processes train together (`bundle.runtime.join_processes`).
        dataset: patients to train on.
        num_epochs: length of the stage, in epochs of `recipe.epoch_length` iterations.
        output_dir: folder of checkpoints and logs.
        device: where the network runs.

    Attributes:
        network, average, optimizer, lr_schedule: what training changes.
        loader, step: batches, and what is done with one.
        settings: plain value by name, for the checkpoint.

    Raises:
        InputError: a setting is out of range, or the folder cannot be written.
    """

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        network: nn.Module,
        dataset: CachedCases,
        num_epochs: int,
        output_dir: str | Path,
        device: torch.device | str = "cpu",
    ) -> None:
        check_count("num_epochs", num_epochs, 1, "--pretraining_epochs, --finetuning_epochs or --prior_epochs")
        check_writable(Path(output_dir))
        self.name, self.recipe, self.dataset, self.num_epochs = name, recipe, dataset, num_epochs
        self.output_dir, self.device = Path(output_dir), torch.device(device)
        network = network.to(self.device)
        self.network = DistributedDataParallel(network) if distributed.is_initialized() else network
        self.average = moving_average(network)
        num_iterations = num_epochs * recipe.epoch_length
        if dataset.keep_on is not None:
            dataset.keep_all(recipe.num_workers)
        self.loader = training_loader(dataset, recipe.batch_size, num_iterations, recipe.seed, recipe.num_workers)
        groups = parameter_groups(network, recipe.local_learning_rate)
        self.optimizer = torch.optim.AdamW(groups, recipe.learning_rate, weight_decay=recipe.weight_decay)
        self.lr_schedule = warmup_cosine(self.optimizer, recipe.num_warmup, num_iterations)
        self.step = TrainStep(
            self.denoiser(self.network),
            recipe.loss,
            recipe.augmentation,
            self.average,
            self.lr_schedule,
            recipe.seed,
            recipe.max_grad_norm,
            recipe.amp,
            recipe.micro_batch_size,
        )
        self.settings = dict(flat_settings("", recipe)) | _data_settings(dataset) | {"num_epochs": num_epochs}

    def denoiser(self, network: nn.Module) -> SlabDenoiser:
        """The denoiser around a network of this stage."""
        return SlabDenoiser(network, self.recipe.prediction, self.recipe.loss.foreground_weight)


def _data_settings(dataset: CachedCases) -> dict[str, Any]:
    """What distinguishes a data set from others."""
    cases = [str(item["case"]) for item in dataset.data]
    data = {
        "patients": f"{len(cases)} ({digest_of(cases)})",
        "drop_visits": list(dataset.load.drop_visits),
        "expected_outcome": dataset.expected_outcome,
    }
    return data | dict(flat_settings("grid", dataset.load.grid))


def stage_trainer(stage: Stage, max_epochs: int, inferer: Inferer, train_handlers: list[Any]) -> SupervisedTrainer:
    """MONAI's trainer of a stage. It requires an inferer, which `TrainStep` does without."""
    return SupervisedTrainer(
        device=stage.device,
        max_epochs=max_epochs,
        epoch_length=stage.recipe.epoch_length,
        train_data_loader=stage.loader,
        network=stage.network,
        optimizer=stage.optimizer,
        loss_function=stage.recipe.loss,
        inferer=inferer,
        iteration_update=stage.step,
        train_handlers=train_handlers,
    )


def stage_evaluator(
    stage: Stage,
    val_data_loader: DataLoader,
    val_handlers: list[Any] | None = None,
    levels: Sequence[float] = LEVELS,
    averaged: bool = True,
) -> SupervisedEvaluator:
    """MONAI's evaluator of a stage; its key metric, `log_score`, says which weights are best.

    Args:
        stage: to validate.
        val_data_loader, val_handlers: see MONAI.
        levels: see `ValidationStep`.
        averaged: of the moving average of the weights; else of the weights themselves, into which a server of
            federated training loads its own.
    """
    recipe, network = stage.recipe, stage.average if averaged else bare(stage.network)
    return SupervisedEvaluator(
        device=stage.device,
        val_data_loader=val_data_loader,
        network=network,
        iteration_update=ValidationStep(stage.denoiser(network), recipe.loss.schedule, recipe.amp, levels=levels),
        key_val_metric={"log_score": LogScore()},
        additional_metrics={
            "mean_log_skill": MeanLogSkill(),
            "heatmap_log_skill": HeatmapLogSkill(),
            "activity_auc": ActivityAUC(),
        },
        val_handlers=val_handlers,
    )


class LossLog(ProgressBar):
    """Shows what `TrainStep` returns in a progress bar an epoch, and writes every loss for TensorBoard.

    Args:
        log_dir: folder of the event files.
    """

    def __init__(self, log_dir: str | Path) -> None:
        super().__init__()
        self.curve = TensorBoardStatsHandler(
            log_dir=str(log_dir), tag_name="loss", output_transform=lambda output: output[0]["loss"], epoch_log=False
        )

    def attach(self, engine: Engine) -> None:
        super().attach(engine, output_transform=lambda output: output[0])
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._clear)
        self.curve.attach(engine)

    def _clear(self, engine: Engine, error: Exception) -> None:
        """Clears the line for the error; ignite leaves it to handlers of this event to raise it."""
        self._close(engine)
        raise error


def parameter_groups(network: nn.Module, local_learning_rate: float) -> list[dict[str, Any]]:
    """The parameters to train, without the frozen ones; the `LocalPath`, if there is one, at a rate of its own."""
    trained = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    local = [parameter for name, parameter in trained if "local." in name]
    rest = [parameter for name, parameter in trained if "local." not in name]
    return [{"params": rest}] + ([{"params": local, "lr": local_learning_rate}] if local else [])


def warmup_cosine(optimizer: Optimizer, num_warmup: int, num_iterations: int) -> LambdaLR:
    """Learning rate up linearly over `num_warmup` iterations, then down a half cosine to a hundredth of its peak."""

    def fraction_of_peak(iteration: int) -> float:
        if iteration < num_warmup:
            return (iteration + 1) / num_warmup
        progress = (iteration - num_warmup) / max(1, num_iterations - num_warmup)
        return 0.01 + 0.99 * (1 + math.cos(math.pi * min(progress, 1))) / 2

    return LambdaLR(optimizer, fraction_of_peak)


def freeze_unet(network: ForecastNetwork) -> ForecastNetwork:
    """Stage 2 trains the ControlNet only (Favero et al. 2025)."""
    network.unet.requires_grad_(False)
    return network


def fix_seed(seed: int) -> None:
    """Seeds the initial weights; everything later in training draws from streams of its own.

    Raises:
        InputError: the seed is not a whole number.
    """
    check_count("seed", seed, 0)
    set_determinism(seed)
