"""What the segmenter is trained on."""

import numpy as np
import pytest
import torch

from bundle.data.datalist import load_split
from bundle.segmentation.samples import DrawBatches, LesionSlices, Variation, lesion_target


@pytest.fixture(scope="module")
def items(trial):
    return load_split(trial, "training")


def test_an_item_depends_on_patient_and_draw_alone(items):
    dataset = LesionSlices(items, variation=Variation())
    first, again, other = dataset[0, 3], dataset[0, 3], dataset[0, 4]
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["image"], other["image"])
    assert first["image"].shape == (6, 6, 160, 192) and first["target"].shape == (6, 2, 160, 192)
    assert first["image"].min() >= -1 and first["image"].max() <= 3


def test_without_an_earlier_visit_new_lesions_are_unknown(items):
    dataset = LesionSlices(items, variation=Variation())
    alone = compared = 0
    for draw in range(12):
        item = dataset[1, draw]
        has_earlier = bool(item["image"][:, 3:].any())
        assert bool((item["target"][:, 1] == -1).all()) is not has_earlier
        assert item["target"][:, 0].min() >= 0
        alone, compared = alone + (not has_earlier), compared + has_earlier
    assert alone and compared


def test_half_of_the_slices_show_lesions_where_there_are_any(items):
    item = LesionSlices(items)[0, 0]
    assert (item["target"][:, 0] > 0).flatten(1).any(1).float().mean() >= 0.5


def test_lesions_move_with_the_scan(items):
    dataset = LesionSlices(items)
    plain = dataset[0, 1]
    mirror = Variation(flip=1, rotation=0, zoom=0, gain=0, offset=0, gamma=0)
    image, target = mirror(plain["image"], plain["target"], np.random.default_rng(0))
    torch.testing.assert_close(image, plain["image"].flip(2), atol=1e-4, rtol=0)
    assert torch.equal(target, plain["target"].flip(2))


MASKS = {
    "t2_w000": np.array([1, 0, 0, 0], bool),
    "t2_w048": np.array([1, 1, 0, 0], bool),
    "net2_w048": np.array([0, 1, 0, 0], bool),
    "net2_w096": np.array([0, 0, 1, 0], bool),
}


@pytest.mark.parametrize(
    ("now", "earlier", "missing", "t2", "net2"),
    [
        (0, None, (), [1, 0, 0, 0], None),
        (1, 0, (), [1, 1, 0, 0], [0, 1, 0, 0]),
        (2, 1, (), [1, 1, 1, 0], [0, 0, 1, 0]),
        (2, 0, (), [1, 1, 1, 0], [0, 1, 1, 0]),
        (2, 0, ("net2_w048",), [1, 1, 1, 0], None),
        (2, 1, ("t2_w048",), None, [0, 0, 1, 0]),
        (0, None, ("t2_w000",), None, None),
    ],
)
def test_the_target_is_what_the_masks_say_and_unknown_where_they_do_not(now, earlier, missing, t2, net2):
    masks = {name: mask.reshape(2, 2, 1) for name, mask in MASKS.items() if name not in missing}
    found = lesion_target(masks, now, earlier, (2, 2, 1)).reshape(2, 4)
    for channel, expected in zip(found, (t2, net2)):
        assert channel.tolist() == ([-1] * 4 if expected is None else expected)


def test_batches_go_on_where_training_stopped():
    whole, rest = (DrawBatches(5, 2, 8, seed=1) for _ in range(2))
    rest.start = 3
    assert list(rest) == list(whole)[3:]
    assert len({draw for batch in whole for _, draw in batch}) == 8
