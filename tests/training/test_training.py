import pickle
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_network
from torch import nn

from bundle.arms import NULL_ARM
from bundle.diffusion.losses import DenoisingLoss, MinSNR
from bundle.diffusion.predictions import BinaryPrediction
from bundle.diffusion.schedules import Cosine
from bundle.diffusion.slabs import SlabDenoiser
from bundle.errors import InputError
from bundle.networks.weights import export_weights, load_weights, save_atomically
from bundle.seeding import Streams
from bundle.training.stage import parameter_groups, warmup_cosine
from bundle.training.step import Augmentation, TrainStep, moving_average


@pytest.fixture
def batch():
    image = torch.rand(64, 8, 4, 4, 3, generator=torch.Generator().manual_seed(0)) + 1
    image[:, 7] = 2
    return image, torch.rand(64, 2, 4, 4, 3)


def streams(n=64):
    return Streams.for_batch(0, 0, range(n), n)


def test_flips_move_image_and_outcome_together(batch):
    image, target = Augmentation(1, 0, 0, 0, 0, 0)(*batch, streams())
    assert torch.equal(image, batch[0].flip(2)) and torch.equal(target, batch[1].flip(2))


def test_volumes_images_and_arm_are_dropped_independently(batch):
    augment = Augmentation(flip=0, drop_volume=0.2, drop_masks=0, drop_visit=0, drop_images=0.3, drop_arm=0.4)
    image, target = augment(*batch, streams())
    unknown = (image[:, :7] == 0).flatten(2)
    assert (unknown.all(2) == unknown.any(2)).all()  # a volume is dropped whole
    unknown, no_arm = unknown.all(2), image[:, 7, 0, 0, 0] == NULL_ARM
    null = unknown.all(1)
    kept = ~unknown[:, :, None, None, None].expand_as(image[:, :7])
    assert torch.equal(image[:, :7][kept], batch[0][:, :7][kept]) and torch.equal(target, batch[1])
    for observed, expected in [(null, 0.3), (no_arm, 0.4), (unknown[~null], 0.2)]:
        n = observed.numel()
        assert abs(observed.float().mean() - expected) < 3.5 * (expected * (1 - expected) / n) ** 0.5
    assert 0 < (null & no_arm).sum() < null.sum()


def test_masks_are_dropped_together_and_so_are_visits(batch):
    flair, w000 = torch.tensor([1, 0, 0, 1, 0, 0, 0]) > 0, torch.tensor([1, 1, 1, 0, 0, 0, 0]) > 0
    image, _ = Augmentation(0, drop_volume=0, drop_masks=1, drop_visit=0, drop_images=0)(*batch, streams())
    assert ((image[:, :7] != 0).flatten(2).all(2) == flair).all()
    image, _ = Augmentation(0, drop_volume=0, drop_masks=0, drop_visit=0.8, drop_images=0)(*batch, streams())
    known = (image[:, :7] != 0).flatten(2).all(2)
    first_dropped, second_dropped = ((known == visit).all(1) for visit in (~w000, w000))
    assert (first_dropped | second_dropped | known.all(1)).all()
    for dropped in (first_dropped, second_dropped):
        assert abs(dropped.float().mean() - 0.4) < 3.5 * (0.24 / 64) ** 0.5


def test_moving_average_warms_up_then_holds_its_decay():
    network = nn.Linear(1, 1)
    average, expected = moving_average(network, decay=0.5), None
    for n, value in enumerate([1.0, 2.0, 3.0, 4.0]):
        network.weight.data.fill_(value)
        average.update_parameters(network)
        decay = min(0.5, (1 + n) / (10 + n)) if n else 0
        expected = value if expected is None else decay * expected + (1 - decay) * value
    torch.testing.assert_close(average.module.weight.item(), expected)


@pytest.mark.parametrize("micro_batch_size", [1, 3, 4])
def test_gradients_accumulated_over_passes_are_those_of_the_whole_batch(micro_batch_size):
    """The same loss, gradient and update, with no more samples in the network than asked for."""

    def step(size):
        network = tiny_network()
        optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
        passes = []
        network.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
        schedule = warmup_cosine(optimizer, 1, 1)
        denoiser = SlabDenoiser(network, BinaryPrediction(), foreground_weight=1.0)
        loss = DenoisingLoss(Cosine(), MinSNR(floor=0), 1.0, (1.0, 1.0))
        average = moving_average(network)
        run = TrainStep(denoiser, loss, Augmentation(), average, schedule, seed=3, amp=False, micro_batch_size=size)
        engine = SimpleNamespace(state=SimpleNamespace(device=torch.device("cpu"), iteration=5), optimizer=optimizer)
        g = torch.Generator().manual_seed(1)
        batch = {"image": torch.randn(4, 8, 16, 16, 3, generator=g), "weight": torch.tensor([1.0, 2.0, 0.5, 1.0])}
        batch["image"][:, 7] = 2
        batch["target"] = torch.randn(4, 2, 16, 16, 3, generator=g).sign()
        return run(engine, batch), network.state_dict(), passes

    ([result], weights, passes), ([result_whole], weights_whole, whole) = step(micro_batch_size), step(None)
    assert whole == [4] and sum(passes) == 4 and max(passes) == micro_batch_size
    assert result == pytest.approx(result_whole, rel=1e-5)
    torch.testing.assert_close(weights, weights_whole, rtol=1e-4, atol=1e-6)


def test_the_local_path_has_its_own_learning_rate_and_frozen_parts_none():
    network = tiny_network(with_control=False)
    rest, local = parameter_groups(network, 0.5)
    assert local["lr"] == 0.5 and "lr" not in rest
    assert {id(p) for p in local["params"]} == {id(p) for p in network.local.parameters()}
    assert {id(p) for p in rest["params"]} == {id(p) for p in network.unet.parameters()}
    [only] = parameter_groups(network.requires_grad_(False).unet.requires_grad_(True), 0.5)
    assert len(only["params"]) == len(rest["params"])


def test_learning_rate_goes_up_linearly_and_down_a_cosine():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    schedule, rates = warmup_cosine(optimizer, 10, 110), []
    for _ in range(110):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(torch.tensor(rates[:10]).diff(), torch.full((9,), 0.1))
    assert rates[9] == rates[10] == 1
    assert abs(rates[60] - (1 + 0.01) / 2) < 1e-3 and abs(schedule.get_last_lr()[0] - 0.01) < 1e-3


def test_weights_travel_as_half_precision_tensors(tmp_path):
    network, other = nn.Linear(3, 2), nn.Linear(3, 2)
    export_weights(network, tmp_path / "model.pt")
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert {value.dtype for value in state.values()} == {torch.float16}
    load_weights(other, tmp_path / "model.pt")
    torch.testing.assert_close(other.weight, network.weight.half().float(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "content, problem",
    [
        (None, "weights file not found"),
        (b"", "not a file of weights"),
        (b"not a zip file", "not a file of weights"),
        ({"weight": torch.full((2, 3), torch.nan), "bias": torch.zeros(2)}, "not finite"),
        ({"weight": torch.zeros(5, 5), "bias": torch.zeros(5)}, "another architecture"),
        ({"other": torch.zeros(1)}, "another architecture"),
        ([1, 2], "not a file of weights"),
    ],
)
def test_wrong_weights_are_refused_in_one_line(tmp_path, content, problem):
    path = tmp_path / "model.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(InputError, match=f"model.pt: .*{problem}") as caught:
        load_weights(nn.Linear(3, 2), path)
    assert "\n" not in str(caught.value)


def test_weights_are_never_unpickled_as_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    torch.save({"weight": Evil()}, tmp_path / "model.pt")
    with pytest.raises(InputError, match="not a file of weights"):
        load_weights(nn.Linear(3, 2), tmp_path / "model.pt")
    assert not (tmp_path / "ran").exists()


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "last.pt"
    save_atomically({"n": 1}, path)
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        save_atomically({"n": lambda: None}, path)  # cannot be pickled
    assert torch.load(path) == {"n": 1}
