"""Checkpoints from which training resumes exactly."""

from pathlib import Path

import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from bundle.errors import InputError
from bundle.networks.weights import bare, export_weights, same_architecture, save_atomically
from bundle.runtime import is_follower


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
