"""Training of the segmenter."""

import pytest
import torch
from conftest import bundle_config
from ignite.engine import Events
from segmentation_network import TINY

from bundle.errors import InputError
from bundle.networks.weights import load_weights
from bundle.segmentation.training import PooledDice, SegmentationRecipe

SMALL = TINY | {"epoch_length": 2, "batch_size": 1, "slices_each": 2}


def test_dice_is_that_of_all_voxels_of_all_slices():
    pred, label = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    pred[0, 0, 0, 0] = pred[0, 0, 0, 1] = label[0, 0, 0, 0] = label[1, 0, 1, 1] = 0.9
    metric = PooledDice()
    metric.update([{"pred": pred[:1], "label": label[:1]}])
    metric.update([{"pred": pred[1:], "label": label[1:]}])
    assert metric.compute() == pytest.approx(2 * 1 / (2 + 2))


def test_a_stopped_training_goes_on_to_the_same_weights(trial, tmp_path):
    def train(folder, epochs, **more):
        config = bundle_config(
            "segment.json", **SMALL, dataset_dir=str(trial), output_dir=str(folder), epochs=2, **more
        )
        config.parse()
        torch.manual_seed(0)
        trainer = config.get_parsed_content("train#trainer")
        if epochs < 2:
            trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: engine.terminate())
        trainer.run()
        return config.get_parsed_content("network_def")

    train(tmp_path / "whole", 2)
    train(tmp_path / "parts", 1)
    network = train(tmp_path / "parts", 2)
    whole, parts = (torch.load(tmp_path / name / "segmenter_last.pt", weights_only=True) for name in ("whole", "parts"))
    assert whole["iteration"] == parts["iteration"] == 4
    for name, value in whole["network"].items():
        assert torch.equal(value, parts["network"][name])
    load_weights(network, tmp_path / "whole" / "segmenter_best.pt")
    with pytest.raises(Exception, match="other settings: seed 0 -> 1"):
        train(tmp_path / "parts", 2, seed=1)


@pytest.mark.parametrize("changes", [{"batch_size": 0}, {"learning_rate": 0}, {"epoch_length": 1.5}, {"seed": -1}])
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(InputError, match=next(iter(changes))):
        SegmentationRecipe(**changes)
