"""Training of the segmenter: MONAI's trainer and loss, and the project's checkpoints, which resume exactly."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.inferers import SimpleInferer
from torch import Tensor, nn

from bundle.errors import check_count, check_rate
from bundle.files import check_writable
from bundle.segmentation.samples import DrawBatches, LesionSlices
from bundle.training.batches import PatientLoader
from bundle.training.recipe import flat_settings
from bundle.training.stage import TrainedState, warmup_cosine
from bundle.training.step import moving_average, not_finite


@dataclass(frozen=True)
class SegmentationRecipe:
    """Settings of the training.

    Args:
        seed: of the order of patients and of what is drawn.
        batch_size: patients a step.
        epoch_length: iterations between two validations.
        learning_rate: peak rate of AdamW.
        num_warmup: iterations of linear warm-up.
        weight_decay: of AdamW.
        max_grad_norm: norm to which gradients are clipped.

    Raises:
        InputError: a number is out of range.
    """

    seed: int = 0
    batch_size: int = 2
    epoch_length: int = 50
    learning_rate: float = 2e-3
    num_warmup: int = 50
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("batch_size", 1), ("epoch_length", 1), ("num_warmup", 0)):
            check_count(name, getattr(self, name), least)
        for name in ("learning_rate", "max_grad_norm"):
            check_rate(name, getattr(self, name))


class SegmentationStage(TrainedState):
    """Everything that training changes, and the settings that it depends on; see `bundle.training.stage.Stage`."""

    def __init__(
        self,
        recipe: SegmentationRecipe,
        network: nn.Module,
        dataset: LesionSlices,
        num_epochs: int,
        output_dir: str | Path,
        device: torch.device | str = "cpu",
    ) -> None:
        check_count("num_epochs", num_epochs, 1, "--epochs")
        check_writable(Path(output_dir))
        self.name, self.recipe, self.num_epochs = "segmenter", recipe, num_epochs
        self.output_dir, self.device = Path(output_dir), torch.device(device)
        self.network = network.to(self.device)
        self.average = moving_average(self.network, 0.99)
        num_iterations = num_epochs * recipe.epoch_length
        batches = DrawBatches(len(dataset), recipe.batch_size, num_iterations, recipe.seed)
        self.loader = PatientLoader(dataset, batch_sampler=batches)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.lr_schedule = warmup_cosine(self.optimizer, recipe.num_warmup, num_iterations)
        self.settings = dict(flat_settings("", recipe)) | {
            "patients": len(dataset),
            "num_epochs": num_epochs,
            **dict(flat_settings("variation", dataset.variation)),
        }


def segmentation_trainer(
    stage: SegmentationStage, max_epochs: int, loss: nn.Module, handlers: list[Any]
) -> SupervisedTrainer:
    """MONAI's trainer of the segmenter."""

    def update(engine: Engine, batch: dict[str, Tensor]) -> list[dict[str, float]]:
        stage.network.train()
        stage.optimizer.zero_grad(set_to_none=True)
        image, label = (batch[key].flatten(0, 1).to(stage.device) for key in ("image", "label"))
        value = loss(stage.network(image), label)
        value.backward()
        norm = nn.utils.clip_grad_norm_(stage.network.parameters(), stage.recipe.max_grad_norm)
        if not (value.isfinite() and norm.isfinite()):
            raise not_finite(f"the loss is {value.item()}", engine.state.iteration)
        stage.optimizer.step()
        stage.lr_schedule.step()
        stage.average.update_parameters(stage.network)
        return [{"loss": value.item(), "grad_norm": norm.item(), "lr": stage.lr_schedule.get_last_lr()[0]}]

    return SupervisedTrainer(
        device=stage.device,
        max_epochs=max_epochs,
        epoch_length=stage.recipe.epoch_length,
        train_data_loader=stage.loader,
        network=stage.network,
        optimizer=stage.optimizer,
        loss_function=loss,
        inferer=SimpleInferer(),
        iteration_update=update,
        train_handlers=handlers,
    )


class PooledDice(Metric):
    """Dice of all voxels of all slices together, at probability .5."""

    def reset(self) -> None:
        self.both = self.either = 0.0

    def update(self, output: Sequence[dict[str, Tensor]]) -> None:
        for one in output:
            marked, true = one["pred"] >= 0.5, one["label"] > 0
            self.both += 2 * float((marked & true).sum())
            self.either += float(marked.sum() + true.sum())

    def compute(self) -> float:
        return self.both / max(self.either, 1)


def segmentation_evaluator(stage: SegmentationStage, dataset: LesionSlices) -> SupervisedEvaluator:
    """MONAI's evaluator of the averaged weights; its key metric `dice` says which weights are best."""

    def update(engine: Engine, batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        stage.average.eval()
        with torch.no_grad():
            image, label = (batch[key].flatten(0, 1).to(stage.device) for key in ("image", "label"))
            return [{"pred": stage.average(image).sigmoid(), "label": label}]

    loader = PatientLoader(dataset, sampler=[(index, 0) for index in range(len(dataset))], batch_size=1)
    return SupervisedEvaluator(
        device=stage.device,
        val_data_loader=loader,
        network=stage.average,
        iteration_update=update,
        key_val_metric={"dice": PooledDice()},
    )
