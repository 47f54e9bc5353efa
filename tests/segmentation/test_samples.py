"""What the segmenter is trained on."""

import shutil

import numpy as np
import pytest
import torch

from bundle.data.bids import find_case
from bundle.data.datalist import load_split
from bundle.data.volumes import read_mask
from bundle.errors import InputError
from bundle.segmentation.samples import DrawBatches, LesionSlices, Variation


@pytest.fixture(scope="module")
def items(trial):
    return load_split(trial, "training")


def test_an_item_depends_on_patient_and_draw_alone(items):
    dataset = LesionSlices(items, variation=Variation())
    first, again, other = dataset[0, 3], dataset[0, 3], dataset[0, 4]
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["image"], other["image"])
    assert first["image"].shape == (6, 3, 160, 192) and first["label"].shape == (6, 1, 160, 192)
    assert first["image"].min() >= -1 and first["image"].max() <= 3


def test_half_of_the_slices_show_lesions_where_there_are_any(items):
    item = LesionSlices(items)[0, 0]
    assert (item["label"] > 0).flatten(1).any(1).float().mean() >= 0.5


def test_lesions_move_with_the_scan(items):
    dataset = LesionSlices(items)
    plain = dataset[0, 1]
    mirror = Variation(flip=1, rotation=0, zoom=0, gain=0, offset=0, gamma=0)
    image, target = mirror(plain["image"], plain["label"], np.random.default_rng(0))
    torch.testing.assert_close(image, plain["image"].flip(2), atol=1e-4, rtol=0)
    assert torch.equal(target, plain["label"].flip(2))


def test_every_visit_is_drawn_and_has_its_own_lesions(items):
    """At w096 the lesions are those of w048 and the new ones."""
    dataset, lesions = LesionSlices(items, slices_each=15), set()
    case = find_case(items[1]["image"], items[1]["dataset_dir"])
    masks = {name: read_mask(case.volumes[name], case.id).values > 0 for name in ("t2_w000", "t2_w048", "net2_w096")}
    expected = {masks["t2_w000"].sum(), masks["t2_w048"].sum(), (masks["t2_w048"] | masks["net2_w096"]).sum()}
    for draw in range(12):
        lesions.add(int(dataset[1, draw]["label"].sum()))
    assert lesions == expected


def test_a_patient_without_masks_is_refused(trial, tmp_path):
    shutil.copytree(trial / "sub-0001", tmp_path / "sub-0001")
    item = {"image": str(tmp_path / "sub-0001"), "dataset_dir": str(tmp_path)}
    with pytest.raises(InputError, match="sub-0001: no mask of T2 lesions"):
        LesionSlices([item])[0, 0]


def test_batches_go_on_where_training_stopped():
    whole, rest = (DrawBatches(5, 2, 8, seed=1) for _ in range(2))
    rest.start = 3
    assert list(rest) == list(whole)[3:]
    assert len({draw for batch in whole for _, draw in batch}) == 8
