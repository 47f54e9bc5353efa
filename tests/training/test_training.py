import json
import re
import shutil
import signal
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, TINY, start_bundle
from torch import nn

from bundle.arms import NULL_ARM
from bundle.diffusion.losses import DenoisingLoss, MinSNR
from bundle.diffusion.predictions import BinaryPrediction
from bundle.diffusion.schedules import Cosine
from bundle.diffusion.slabs import SlabDenoiser
from bundle.errors import InputError
from bundle.networks.slab_unet import ForecastNetwork
from bundle.networks.weights import export_weights, load_weights, save_atomically
from bundle.seeding import Streams
from bundle.training.checkpoints import Checkpoints
from bundle.training.stage import IterationBatches, parameter_groups, warmup_cosine
from bundle.training.step import Augmentation, TrainStep, moving_average

TRAINING = {"epoch_length": 2, "pretraining_epochs": 2, "finetuning_epochs": 3, "batch_size": 4, "amp": False}


def test_batches_are_a_function_of_the_iteration():
    whole = list(IterationBatches(10, 4, 12, seed=1))
    resumed = IterationBatches(10, 4, 12, seed=1)
    resumed.start = 7
    assert list(resumed) == whole[7:] and len(whole) == 12
    assert list(IterationBatches(10, 4, 12, seed=2)) != whole


def test_every_item_is_seen_once_an_epoch():
    laid_end_to_end = [index for batch in IterationBatches(10, 4, 10) for index in batch]
    epochs = [laid_end_to_end[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_processes_share_the_global_batch(monkeypatch):
    whole = list(IterationBatches(10, 4, 6))
    shares = []
    for rank in range(2):
        monkeypatch.setattr("bundle.training.stage.rank_and_world", lambda rank=rank: (rank, 2))
        shares.append(list(IterationBatches(10, 4, 6)))
    assert [a + b for a, b in zip(*shares)] == whole
    with pytest.raises(ValueError, match="batch_size=3"):
        IterationBatches(10, 3, 6)


@pytest.fixture
def batch():
    image = torch.rand(64, 8, 4, 4, 3, generator=torch.Generator().manual_seed(0)) + 1
    image[:, 7] = 2
    return image, torch.rand(64, 2, 4, 4, 3)


def streams(n=64):
    return Streams.for_batch(0, 0, range(n), n)


def test_flips_move_image_and_outcome_together(batch):
    image, target = Augmentation(flip=1, drop_volume=0, drop_images=0, drop_arm=0)(*batch, streams())
    assert torch.equal(image, batch[0].flip(2)) and torch.equal(target, batch[1].flip(2))


def test_volumes_images_and_arm_are_dropped_independently(batch):
    augment = Augmentation(flip=0, drop_volume=0.2, drop_images=0.3, drop_arm=0.4)
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


def test_moving_average_warms_up_then_holds_its_decay():
    network = nn.Linear(1, 1)
    average, expected = moving_average(network, decay=0.5), None
    for n, value in enumerate([1.0, 2.0, 3.0, 4.0]):
        network.weight.data.fill_(value)
        average.update_parameters(network)
        decay = min(0.5, (1 + n) / (10 + n)) if n else 0
        expected = value if expected is None else decay * expected + (1 - decay) * value
    torch.testing.assert_close(average.module.weight.item(), expected)


def tiny(**changes):
    arguments = dict(
        num_slices=3, channels=(8, 16), attention_levels=(False, True), num_res_blocks=1, num_head_channels=8,
        norm_num_groups=4, conditioning_channels=8, local_channels=8,
    )  # fmt: skip
    return ForecastNetwork(**arguments | changes)


@pytest.mark.parametrize("alone", [False, True], ids=["_last.pt", "weights alone"])
@pytest.mark.parametrize("with_control", [False, True])
def test_a_stage_takes_all_that_an_earlier_one_has_trained(with_control, alone, tmp_path):
    earlier, network = tiny(with_control=with_control), tiny()
    for parameter in earlier.parameters():
        parameter.data.normal_()
    saved = earlier.state_dict() if alone else {"average": moving_average(earlier).state_dict()}
    save_atomically(saved, tmp_path / "earlier.pt")
    average, optimizer = moving_average(network), torch.optim.SGD(network.parameters(), lr=1.0)
    checkpoints = Checkpoints(tmp_path, "stage", network, average, optimizer, warmup_cosine(optimizer, 1, 1, 1))
    checkpoints.take_weights(tmp_path / "earlier.pt")
    for taken in (network.state_dict(), average.module.state_dict()):
        assert all(torch.equal(value, taken[name]) for name, value in earlier.state_dict().items())
        if not with_control:
            assert torch.equal(taken["controlnet.conv_in.conv.weight"], earlier.unet.conv_in.conv.weight)


@pytest.mark.parametrize("micro_batch_size", [1, 3, 4])
def test_gradients_accumulated_over_passes_are_those_of_the_whole_batch(micro_batch_size):
    """The same loss, gradient and update, with no more samples in the network than asked for."""

    def step(size):
        torch.manual_seed(0)
        network = tiny()
        optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
        passes = []
        network.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
        schedule = warmup_cosine(optimizer, 1, 1, 1)
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

    (told, weights, passes), (told_whole, weights_whole, whole) = step(micro_batch_size), step(None)
    assert whole == [4] and sum(passes) == 4 and max(passes) == micro_batch_size
    assert told == pytest.approx(told_whole, rel=1e-5)
    assert same(weights, weights_whole, rtol=1e-4, atol=1e-6)


def test_a_micro_batch_of_none_is_refused():
    with pytest.raises(InputError, match="micro_batch_size=0"):
        TrainStep(None, None, Augmentation(), None, None, micro_batch_size=0)


def test_the_local_path_has_its_own_learning_rate_and_frozen_parts_none():
    network = tiny(with_control=False)
    rest, local = parameter_groups(network, 0.5)
    assert local["lr"] == 0.5 and "lr" not in rest
    assert {id(p) for p in local["params"]} == {id(p) for p in network.local.parameters()}
    assert {id(p) for p in rest["params"]} == {id(p) for p in network.unet.parameters()}
    [only] = parameter_groups(network.requires_grad_(False).unet.requires_grad_(True), 0.5)
    assert len(only["params"]) == len(rest["params"])


def test_learning_rate_goes_up_linearly_and_down_a_cosine():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    schedule, rates = warmup_cosine(optimizer, 10, num_epochs=11, epoch_length=10), []
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
        (None, "no weights there"),
        (b"not a zip file", "not a file of weights"),
        ({"weight": torch.zeros(5, 5), "bias": torch.zeros(5)}, "another architecture"),
        ({"other": torch.zeros(1)}, "another architecture"),
        ([1, 2], "not a file of weights"),
    ],
)
def test_wrong_weights_are_told_in_one_line(tmp_path, content, problem):
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
    with pytest.raises(Exception):
        save_atomically({"n": lambda: None}, path)  # cannot be pickled
    assert torch.load(path) == {"n": 1}


def finish(process):
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output[-3000:]
    return output


def saved(folder, name):
    return torch.load(folder / name, weights_only=True)


def same(a, b, **tolerance):
    """Nested equality of checkpoints, exact unless a tolerance is given."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key], **tolerance) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y, **tolerance) for x, y in zip(a, b))
    if isinstance(a, torch.Tensor):
        return torch.allclose(a, b, **tolerance) if tolerance else torch.equal(a, b)
    return a == b or (a != a and b != b)


@pytest.fixture(scope="module")
def unbroken(trial, tmp_path_factory):
    """Folder of a training run that nobody disturbed."""

    folder = tmp_path_factory.mktemp("unbroken")
    finish(start_bundle("training", "configs/train.json", **TINY, **TRAINING, dataset_dir=trial, output_dir=folder))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_killed_training_ends_bit_identical(stage, unbroken, trial, tmp_path):

    settings = TINY | TRAINING | {"dataset_dir": trial, "output_dir": tmp_path, "cache_dir": unbroken / "cache"}
    process = start_bundle("training", "configs/train.json", **settings)
    deadline = time.monotonic() + 300
    while not (tmp_path / f"{stage}_last.pt").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0][-3000:]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    whole = saved(unbroken, f"{stage}_last.pt")
    assert saved(tmp_path, f"{stage}_last.pt")["epoch"] < whole["epoch"]
    finish(start_bundle("training", "configs/train.json", **settings))
    for name in ("stage1_last.pt", "stage1_best.pt", "stage2_last.pt", "stage2_best.pt"):
        assert same(saved(tmp_path, name), saved(unbroken, name)), name


@pytest.mark.slow
def test_a_frozen_unet_is_that_of_stage_1_to_the_end(unbroken, trial, tmp_path):
    paper = json.loads((ROOT / "configs" / "paper.json").read_text())
    overlay = tmp_path / "frozen.json"
    overlay.write_text(json.dumps({"steered": paper["steered"]}))
    shutil.copy(unbroken / "stage1_last.pt", tmp_path)
    settings = TINY | TRAINING | {"dataset_dir": trial, "output_dir": tmp_path, "cache_dir": unbroken / "cache"}
    finish(start_bundle("finetuning", f"['configs/train.json','{overlay}']", **settings))
    stage1 = saved(tmp_path, "stage1_last.pt")["average"]
    unet = {name: value for name, value in stage1.items() if name.startswith("module.unet.")}
    stage2 = saved(tmp_path, "stage2_last.pt")
    assert unet and all(torch.equal(value, stage2["average"][name]) for name, value in unet.items())
    assert all(torch.equal(value, stage2["network"][name.removeprefix("module.")]) for name, value in unet.items())
    control = [name for name in stage2["network"] if name.startswith("controlnet.controlnet_mid")]
    assert any(stage2["network"][name].abs().max() > 0 for name in control)


@pytest.mark.slow
def test_two_processes_of_two_passes_a_step_train_the_weights_of_one(unbroken, trial, tmp_path):
    settings = TINY | TRAINING | {"dataset_dir": trial, "output_dir": tmp_path, "cache_dir": unbroken / "cache"}
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m")
    config = "['configs/train.json','configs/multi_gpu_train.json']"
    finish(start_bundle("training", config, launcher=launcher, **settings, micro_batch_size=1))
    for name in ("stage1_last.pt", "stage2_last.pt"):
        ours, theirs = saved(tmp_path, name), saved(unbroken, name)
        assert ours["iteration"] == theirs["iteration"]
        assert same(ours["network"], theirs["network"], rtol=1e-3, atol=2e-5)
        assert same(ours["average"], theirs["average"], rtol=1e-3, atol=2e-5)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_in_one_line(unbroken, trial, tmp_path):
    settings = TINY | TRAINING | {"dataset_dir": trial, "output_dir": tmp_path, "cache_dir": unbroken / "cache"}
    process = start_bundle("pretraining", "configs/train.json", **settings, learning_rate=1e30, num_warmup=1)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert re.search(r"^error: the loss is (nan|inf) at iteration \d; run again with a lower learning rate", output, re.M)
    assert "Traceback" not in output and not (tmp_path / "stage1_last.pt").exists()


@pytest.mark.slow
def test_going_on_with_another_architecture_is_told_in_one_line(unbroken, trial, tmp_path):
    shutil.copy(unbroken / "stage1_last.pt", tmp_path)
    settings = TINY | TRAINING | {"dataset_dir": trial, "output_dir": tmp_path, "cache_dir": unbroken / "cache"}
    process = start_bundle("training", "configs/train.json", **settings | {"network_def#channels": [16, 48]})
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert f"error: {tmp_path / 'stage1_last.pt'}: weights of another architecture" in output
    assert "Traceback" not in output
