"""Federated training: clients of MONAI's `MonaiAlgo`, which NVFlare runs, train in rounds from the server's weights."""

from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events

from bundle.data.grid import SlabGrid
from bundle.data.transforms import LoadCased
from bundle.errors import check_count


def total_epochs(num_rounds: int, local_epochs: int) -> int:
    """Epochs of all rounds together, over which the learning rate falls.

    Raises:
        InputError: the number of rounds is no whole number of at least 1.
    """
    check_count("num_rounds", num_rounds)
    return num_rounds * local_epochs


class NextRound:
    """Handler of the trainer of a client: each round goes on with the batches that follow those of the last one.

    It takes the place of `bundle.training.checkpoints.Checkpoints`, which would lay the client's own weights over those
    that the server has averaged.
    """

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)

    def start(self, engine: Engine) -> None:
        engine.state.dataloader.batch_sampler.start = engine.state.iteration


class OutcomeStatistics:
    """Reads an item of `train#dataset#data` for the statistics of `monai.fl.client.MonaiAlgoStats`.

    Args:
        grid: of the slab.

    Returns:
        image: (1, H, W, S) float32, FLAIR of w096 in [0, 1]; label: (1, H, W, S) uint8, 1 in NET2 lesions of w096.
    """

    def __init__(self, grid: SlabGrid) -> None:
        self.load = LoadCased(grid=grid, with_outcome=True)

    def __call__(self, item: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        # MONAI lays the data set's folder before every text of an item, the arm's name included.
        flair, lesions = self.load({"image": item["image"], "arm": "unknown"})["target"].split(1)
        return {"image": (flair + 1) / 2, "label": (lesions > 0).to(torch.uint8)}
