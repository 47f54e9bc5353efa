"""A stage of training on patients made of noise."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_network
from torch.utils.data import Dataset

from bundle.data.grid import SlabGrid
from bundle.diffusion.losses import DenoisingLoss, MinSNR
from bundle.diffusion.predictions import BinaryPrediction
from bundle.diffusion.schedules import Cosine
from bundle.training.recipe import Recipe
from bundle.training.stage import Stage

LOSS = DenoisingLoss(Cosine(), MinSNR(), foreground_weight=1.0, contrast_weights=(1.0, 1.0))


class Noise(Dataset):
    """Patients of (16, 16, 3) voxels."""

    def __init__(self, patients=5):
        self.data = [{"case": f"sub-{index}"} for index in range(patients)]
        self.load = SimpleNamespace(grid=SlabGrid((8, 8, 3), (16, 16, 3)), drop_visits=())
        self.expected_outcome, self.keep_on = False, None

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        image = torch.randn(8, 16, 16, 3, generator=generator)
        image[7] = 2
        return {"image": image, "target": torch.randn(2, 16, 16, 3, generator=generator).sign(), "weight": 1.0}


@pytest.fixture(scope="session")
def stage_in():
    """Makes a stage that writes to a folder, with the settings given."""

    def make(output_dir, network=None, patients=5, num_epochs=3, **settings):
        settings = dict(batch_size=2, epoch_length=2, num_warmup=0, amp=False) | settings
        recipe = Recipe(LOSS, BinaryPrediction(), **settings)
        network = tiny_network() if network is None else network
        torch.manual_seed(0)
        return Stage("stage", recipe, network, Noise(patients), num_epochs, output_dir)

    return make


@pytest.fixture
def make_stage(stage_in, tmp_path):
    """Makes a stage that writes to `tmp_path`, with the settings given."""
    return partial(stage_in, tmp_path)
