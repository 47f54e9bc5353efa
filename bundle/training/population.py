"""What a population shows before any training: where its new lesions come."""

import torch
from ignite.engine import Engine, Events

from bundle.data.cache import CachedCases
from bundle.diffusion.slabs import NUM_VOLUMES
from bundle.networks.prior import brain_of, to_map
from bundle.networks.weights import bare
from bundle.training.stage import Stage


class StartFromPopulation:
    """Handler of the trainer: gives the prior the population's frequency map where its training begins.

    Args:
        stage: trains a `PriorAlone`.
        max_patients: of the training patients, in their order; more change the map little.
    """

    def __init__(self, stage: Stage, max_patients: int = 2000) -> None:
        self.stage, self.max_patients = stage, max_patients

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)

    def start(self, engine: Engine) -> None:
        """Takes the map unless the training is resumed."""
        if engine.state.iteration:
            return
        frequency = frequency_map(self.stage.dataset, self.max_patients)
        for network in (bare(self.stage.network), self.stage.average.module):
            network.start_from_population(frequency)


def frequency_map(dataset: CachedCases, max_patients: int) -> torch.Tensor:
    """Mean NET2 of the patients, in coordinates of the brain (`bundle.networks.prior.to_map`)."""
    total, count = torch.zeros(()), min(max_patients, len(dataset))
    for index in range(count):
        item = dataset[index]
        image, net2 = item["image"][:NUM_VOLUMES], (item["target"][-1:] + 1) / 2
        volumes, net2 = (x.permute(0, 3, 1, 2)[None] for x in (image, net2))
        total = total + to_map(net2, brain_of(volumes))[0, 0]
    return total / count
