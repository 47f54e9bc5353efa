"""Training resumes from its checkpoints exactly, with the settings that may change, and never from what is damaged."""

import copy
import errno
import math
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from monai.engines import SupervisedTrainer
from monai.inferers import SimpleInferer

from bundle.errors import InputError
from bundle.networks.weights import save_atomically
from bundle.training.checkpoints import Checkpoints
from bundle.training.stage import stage_trainer
from bundle.training.step import moving_average


def train(stage, until=None, start_from=None):
    """Trains a stage, the first `until` epochs of it."""
    handlers = [Checkpoints(stage, start_from=start_from)]
    trainer = stage_trainer(stage, until or stage.num_epochs, SimpleInferer(), handlers)
    assert isinstance(trainer, SupervisedTrainer)
    trainer.run()
    return stage


def last(folder):
    return torch.load(folder / "stage_last.pt", weights_only=True)


def equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture(scope="module")
def begun(stage_in, tmp_path_factory):
    """Folder of a training stopped after its first epoch."""
    folder = tmp_path_factory.mktemp("begun")
    train(stage_in(folder), until=1)
    return folder


@pytest.fixture
def resumable(begun, tmp_path):
    """The same in `tmp_path`."""
    return shutil.copytree(begun, tmp_path, dirs_exist_ok=True)


def test_a_resumed_training_ends_bit_identical(stage_in, begun, tmp_path, capsys):
    train(stage_in(tmp_path / "whole"))
    shutil.copytree(begun, tmp_path / "parts")
    capsys.readouterr()
    train(stage_in(tmp_path / "parts"))
    assert equal(last(tmp_path / "whole"), last(tmp_path / "parts"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "stage: resumed after epoch 1 of 3" and lines[1].startswith("stage: epoch 2 of 3")


def test_a_finished_training_does_nothing_and_can_be_extended(make_stage, tmp_path, capsys):
    train(make_stage())
    before = (tmp_path / "stage_last.pt").read_bytes()
    train(make_stage())
    assert "stage: resumed after epoch 3 of 3 (nothing left to do)" in capsys.readouterr().out
    assert (tmp_path / "stage_last.pt").read_bytes() == before
    train(make_stage(num_epochs=4))
    assert "stage: resumed after epoch 3 of 4, changed: num_epochs 3 -> 4" in capsys.readouterr().out
    assert last(tmp_path)["epoch"] == 4


def test_a_new_learning_rate_takes_effect_and_is_printed(make_stage, resumable, capsys):
    stage = make_stage(learning_rate=1e-5, local_learning_rate=1e-6, weight_decay=0.0)
    rates = [group["lr"] for group in make_stage(learning_rate=1e-5, local_learning_rate=1e-6).optimizer.param_groups]
    assert rates == [1e-5, 1e-6]
    train(stage, until=1)  # nothing but resuming
    factor = stage.lr_schedule.lr_lambdas[0](2)
    assert [group["lr"] for group in stage.optimizer.param_groups] == [1e-5 * factor, 1e-6 * factor]
    assert {group["weight_decay"] for group in stage.optimizer.param_groups} == {0.0}
    out = capsys.readouterr().out
    assert "changed: learning_rate 0.0005 -> 1e-05, local_learning_rate 0.004 -> 1e-06, weight_decay 0.01 -> 0.0" in out
    train(stage, until=2)
    assert stage.lr_schedule.base_lrs == [1e-5, 1e-6]


@pytest.mark.parametrize(
    "changes, difference",
    [
        ({"seed": 1}, "seed 0 -> 1"),
        ({"batch_size": 3}, "batch_size 2 -> 3"),
        ({"epoch_length": 3}, "epoch_length 2 -> 3"),
        ({"patients": 4}, "patients 5"),
    ],
)
def test_settings_that_belong_to_the_training_must_not_change(make_stage, resumable, changes, difference):
    before = (resumable / "stage_last.pt").read_bytes()
    with pytest.raises(
        InputError, match=f"stage_last.pt: the training there has other settings: .*{difference}.*; set"
    ):
        train(make_stage(**changes))
    assert (resumable / "stage_last.pt").read_bytes() == before


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (exec, (f"open({self.path!r}, 'w')",))


DAMAGE = {
    "empty": lambda content, path: b"",
    "truncated": lambda content, path: content[: len(content) // 2],
    "text": lambda content, path: b"hello",
}
CHANGES = {
    "code": lambda state, path: state | {"network": Evil(str(path / "ran"))},
    "list": lambda state, path: [state],
    "nothing": lambda state, path: {},
    "no settings": lambda state, path: {name: value for name, value in state.items() if name != "settings"},
    "negative epoch": lambda state, path: state | {"epoch": -1, "iteration": -2},
    "text as epoch": lambda state, path: state | {"epoch": "one"},
    "iteration of another epoch": lambda state, path: state | {"iteration": 7},
    "tensor as score": lambda state, path: state | {"best_score": torch.zeros(2)},
    "no optimizer": lambda state, path: {name: value for name, value in state.items() if name != "optimizer"},
    "optimizer as text": lambda state, path: state | {"optimizer": "adam"},
    "optimizer of others": lambda state, path: state | {"optimizer": {"state": {}, "param_groups": []}},
    "schedule as list": lambda state, path: state | {"lr_schedule": [1]},
    "network of others": lambda state, path: state | {"network": {"weight": torch.zeros(1)}},
}


@pytest.mark.parametrize("kind", [*DAMAGE, *CHANGES])
def test_a_checkpoint_that_cannot_be_used_is_refused_in_one_line(kind, make_stage, resumable, tmp_path):
    path = tmp_path / "stage_last.pt"
    if kind in DAMAGE:
        path.write_bytes(DAMAGE[kind](path.read_bytes(), tmp_path))
    else:
        torch.save(CHANGES[kind](last(tmp_path), tmp_path), path)
    with pytest.raises(InputError, match="stage_last.pt: ") as caught:
        train(make_stage())
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("alone", [False, True], ids=["_last.pt", "weights alone"])
@pytest.mark.parametrize("with_control", [False, True])
def test_a_stage_takes_all_that_an_earlier_one_has_trained(with_control, alone, make_stage, tmp_path):
    stage = make_stage()
    earlier = stage.network if with_control else stage.network.without_control()
    earlier = copy.deepcopy(earlier)
    for parameter in earlier.parameters():
        parameter.data.normal_()
    saved = earlier.state_dict() if alone else {"average": moving_average(earlier).state_dict()}
    save_atomically(saved, tmp_path / "earlier.pt")
    Checkpoints(stage).take_weights(tmp_path / "earlier.pt")
    for taken in (stage.network.state_dict(), stage.average.module.state_dict()):
        assert all(torch.equal(value, taken[name]) for name, value in earlier.state_dict().items())
        if not with_control:
            assert torch.equal(taken["controlnet.conv_in.conv.weight"], earlier.unet.conv_in.conv.weight)


def test_a_stage_takes_the_weights_of_several_files(make_stage, tmp_path):
    stage = make_stage()
    local = {name: torch.ones_like(v) for name, v in stage.network.state_dict().items() if name.startswith("local.")}
    save_atomically({name: torch.zeros_like(v) for name, v in stage.network.state_dict().items()}, tmp_path / "all.pt")
    save_atomically(local, tmp_path / "local.pt")
    Checkpoints(stage).take_weights(tmp_path / "all.pt", tmp_path / "local.pt")
    taken = stage.network.state_dict()
    assert len(local) > 5 and all((value == (name in local)).all() for name, value in taken.items())


@pytest.mark.parametrize(
    "content",
    [None, b"", b"text", {"a": torch.zeros(1)}, {"unet.time_embed.0.bias": torch.full((32,), torch.nan)}],
    ids=["none", "empty", "text", "of others", "NaN"],
)
def test_start_from_what_holds_no_usable_weights_is_refused(content, make_stage, tmp_path):
    path = tmp_path / "other.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(InputError, match="other.pt: "):
        train(make_stage(), start_from=path)
    assert not (tmp_path / "stage_last.pt").exists()


def test_best_weights_are_those_of_the_best_validated_epoch(make_stage, tmp_path, capsys):
    """Epochs that are not validated are no candidates; a score of NaN is not better than any."""
    stage = make_stage()
    evaluator = SimpleNamespace(state=SimpleNamespace(epoch=0, metrics={}, key_metric_name="score"))
    checkpoints = Checkpoints(stage, evaluator)
    trainer = stage_trainer(stage, 9, SimpleInferer(), [])
    for epoch, score in enumerate([None, -2.0, math.nan, -1.0, None, -1.5], start=1):
        if score is not None:
            evaluator.state.epoch, evaluator.state.metrics = epoch, {"score": score}
        trainer.state.epoch = epoch
        checkpoints.save(trainer)
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith("(best so far)") for line in lines] == [True, True, False, True, False, False]
    assert last(tmp_path)["best_score"] == -1.0
    assert lines[3] == "stage: epoch 4 of 9, score -1 (best so far)" and lines[4] == "stage: epoch 5 of 9"


def test_weights_that_are_not_finite_are_never_saved(make_stage, resumable, tmp_path):
    stage = make_stage()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with torch.no_grad():
        next(stage.average.module.parameters()).fill_(torch.inf)
    trainer = stage_trainer(stage, 2, SimpleInferer(), [])
    trainer.state.epoch, trainer.state.iteration = 2, 4
    with pytest.raises(InputError, match="the weights are no longer finite at iteration 4; .* lower --learning_rate"):
        Checkpoints(stage).save(trainer)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(make_stage, resumable, tmp_path, monkeypatch):
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        train(make_stage())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
