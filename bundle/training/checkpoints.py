"""Checkpoints from which training resumes exactly."""

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from bundle.errors import InputError
from bundle.networks.slab_unet import ForecastNetwork
from bundle.networks.weights import all_finite, bare, export_weights, read_state, same_architecture, save_atomically
from bundle.runtime import is_follower
from bundle.training.recipe import compare_settings
from bundle.training.stage import Stage
from bundle.training.step import not_finite


class Checkpoints:
    """Handler of the trainer: resumes from `last`, saves it every epoch, and exports the best averaged weights.

    The files are `<output_dir>/<stage>_last.pt` (state, counters and settings) and `<stage>_best.pt` (weights alone).

    Args:
        stage: what is saved.
        evaluator: its key metric says which weights are best (higher is better). By default the last ones are.
        start_from: weights to begin a stage with that has no checkpoint yet: the averaged ones of a `_last.pt`, or
            weights alone (`_best.pt`, the shipped ones), of an earlier stage or of another model's stage 2. Of several
            files each adds to those before it.
    """

    def __init__(
        self,
        stage: Stage,
        evaluator: Engine | None = None,
        start_from: str | Path | Sequence[str | Path] | None = None,
    ) -> None:
        self.stage, self.evaluator, self.start_from = stage, evaluator, start_from
        self.last, self.best = (stage.output_dir / f"{stage.name}_{which}.pt" for which in ("last", "best"))
        self.best_score = -float("inf")

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.resume)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def resume(self, engine: Engine) -> None:
        """Continues from `last` if it exists, else begins with the weights of `start_from`.

        Raises:
            InputError: the file cannot be used, or a setting is another one that must not change.
        """
        if self.last.exists():
            saved = self._read(engine)
            with same_architecture(self.last):
                self.stage.load_state(saved)
            engine.state.iteration, engine.state.epoch = saved["iteration"], saved["epoch"]
            self.best_score = saved["best_score"]
        elif self.start_from is not None:
            files = [self.start_from] if isinstance(self.start_from, str | Path) else self.start_from
            self.take_weights(*files)
        engine.state.dataloader.batch_sampler.start = engine.state.iteration

    def _read(self, engine: Engine) -> dict[str, Any]:
        saved = read_state(self.last, "delete it to start this stage again, or choose another output_dir")
        iteration, epoch = saved.get("iteration"), saved.get("epoch")
        if not (
            isinstance(saved.get("settings"), Mapping)
            and isinstance(saved.get("best_score"), Real)
            and isinstance(epoch, Integral)
            and epoch >= 0
        ):
            raise InputError(
                "not a checkpoint of this version of the training",
                "choose another --output_dir, or delete the file to train this stage from its start",
                file=self.last,
            )
        adjusted, refused = compare_settings(saved["settings"], self.stage.settings)
        if refused:
            raise InputError(
                f"the training there has other settings: {', '.join(refused)}",
                "set them back to resume it, or choose another --output_dir to train from scratch",
                file=self.last,
            )
        if iteration != epoch * self.stage.recipe.epoch_length:
            raise InputError(f"damaged: iteration {iteration} in epoch {epoch}", "delete the file", file=self.last)
        if not is_follower():
            changes = f", changed: {', '.join(adjusted)}" if adjusted else ""
            done = " (nothing left to do)" if epoch >= engine.state.max_epochs else ""
            print(f"{self.stage.name}: resumed after epoch {epoch} of {engine.state.max_epochs}{done}{changes}")
        return saved

    def take_weights(self, *paths: str | Path) -> None:
        """Takes all weights that an earlier stage has trained; a ControlNet that it did not have starts from its UNet.

        Raises:
            InputError: there are none, or they do not fit.
        """
        trained: dict[str, Any] = {}
        for path in paths:
            trained |= trained_weights(path)
        for network in (bare(self.stage.network), self.stage.average.module):
            with same_architecture(paths[-1]):
                network.load_state_dict(network.state_dict() | trained)
            if isinstance(network, ForecastNetwork) and not any(name.startswith("controlnet.") for name in trained):
                network.start_control_from_unet()

    def save(self, engine: Engine) -> None:
        """Writes `last`, and `best` if the weights are the best so far.

        Raises:
            InputError: the weights are not finite (nothing is written), or the files cannot be written.
        """
        if is_follower():
            return
        state = self.stage.state()
        if not all_finite(state):
            raise not_finite("the weights are no longer finite", engine.state.iteration)
        metrics, score = self._validated(engine.state.epoch)
        is_best = score > self.best_score or not self.best.exists()
        if is_best:
            self.best_score = max(score, self.best_score)
            export_weights(self.stage.average.module, self.best)
        counters = {"iteration": engine.state.iteration, "epoch": engine.state.epoch, "best_score": self.best_score}
        save_atomically(state | counters | {"settings": self.stage.settings}, self.last)
        numbers = "".join(f", {name} {value:.4g}" for name, value in metrics.items() if math.isfinite(value))
        best = " (best so far)" if is_best else ""
        print(f"{self.stage.name}: epoch {engine.state.epoch} of {engine.state.max_epochs}{numbers}{best}", flush=True)

    def _validated(self, epoch: int) -> tuple[dict[str, float], float]:
        """Metrics of the weights of this epoch, none if they were not validated, and their score."""
        if self.evaluator is None:
            return {}, float(epoch)
        if self.evaluator.state.epoch != epoch:
            return {}, -math.inf
        metrics = self.evaluator.state.metrics
        return metrics, float(metrics[self.evaluator.state.key_metric_name])


def trained_weights(path: str | Path) -> dict[str, Any]:
    """Weights by name: the averaged ones of a `_last.pt`, or those of a file of weights alone.

    Raises:
        InputError: there are none, or they are not finite.
    """
    if not Path(path).exists():
        raise InputError("no weights to start from", "run the stage before, or set --start_from", file=path)
    state = read_state(path)
    if isinstance(state.get("average"), Mapping):
        prefix = "module."
        averaged = state["average"].items()
        state = {name.removeprefix(prefix): value for name, value in averaged if name.startswith(prefix)}
    if not all_finite(state):
        raise InputError("weights that are not finite", "start from others", file=path)
    return state
