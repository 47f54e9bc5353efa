from types import SimpleNamespace

import torch
from conftest import tiny_network

from bundle.networks.prior import PriorNetwork
from bundle.training.population import StartFromPopulation, frequency_map


class Patients:
    """Patients of (16, 16, 3) voxels that are all brain; one in two has NET2 in the voxels on one side."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        image, target = torch.zeros(8, 16, 16, 3), torch.full((2, 16, 16, 3), -1.0)
        if index % 2:
            target[1, :8] = 1
        return {"image": image, "target": target}


def test_the_map_is_the_mean_over_patients_in_coordinates_of_the_brain():
    frequency = frequency_map(Patients(), 4)
    assert frequency.shape == PriorNetwork.map_shape
    inside = frequency[8:16, 14:34, 16:40]
    torch.testing.assert_close(inside[:, :8], torch.full_like(inside[:, :8], 0.5))
    assert not inside[:, -8:].any() and torch.equal(frequency_map(Patients(), 1), torch.zeros_like(frequency))


def test_a_training_begins_with_the_map_but_is_not_resumed_with_it():
    network, average = (tiny_network(prior_channels=(8, 8)).prior_alone() for _ in range(2))
    stage = SimpleNamespace(network=network, average=SimpleNamespace(module=average), dataset=Patients())
    before = network.prior.population.clone()
    handler = StartFromPopulation(stage)
    handler.start(SimpleNamespace(state=SimpleNamespace(iteration=3)))
    assert torch.equal(network.prior.population, before)
    handler.start(SimpleNamespace(state=SimpleNamespace(iteration=0)))
    assert not torch.equal(network.prior.population, before)
    assert torch.equal(network.prior.population, average.prior.population)
