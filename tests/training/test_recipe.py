"""Settings are checked when they are given, and compared when training is resumed."""

import math

import pytest
from conftest import bundle_config

from bundle.diffusion.losses import DenoisingLoss, MinSNR
from bundle.diffusion.predictions import BinaryPrediction, ContrastwisePrediction, PreconditionedPrediction
from bundle.diffusion.schedules import Cosine, InterpolatedCosine, NoisiestLevel
from bundle.errors import InputError, input_error
from bundle.training.recipe import ADJUSTABLE, Recipe, compare_settings, flat_settings, prior_recipe
from bundle.training.stage import fix_seed

LOSS = DenoisingLoss(Cosine(), MinSNR(floor=1.0), 1.0, (1.0, 1.0))


@pytest.mark.parametrize(
    "name, value",
    [
        ("batch_size", 0),
        ("batch_size", 2.5),
        ("batch_size", "8"),
        ("batch_size", True),
        ("micro_batch_size", 0),
        ("epoch_length", 0),
        ("num_workers", -1),
        ("num_warmup", -1),
        ("seed", 1.5),
        ("seed", -1),
        ("learning_rate", 0),
        ("learning_rate", -1e-4),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("learning_rate", "fast"),
        ("local_learning_rate", 0),
        ("weight_decay", -1),
        ("amp", "yes"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(name, value):
    with pytest.raises(InputError, match=f"^{name}=.* is n.*; correct --{name}$"):
        Recipe(LOSS, BinaryPrediction(), **{name: value})


def test_epochs_and_seed_are_checked_where_they_are_used(make_stage):
    with pytest.raises(InputError, match="num_epochs=0 is not .*; correct --pretraining_epochs, --fine"):
        make_stage(num_epochs=0)
    with pytest.raises(InputError, match="seed=1.5 is not a whole number"):
        fix_seed(1.5)


@pytest.mark.parametrize("name", ["pretraining_epochs", "finetuning_epochs", "val_interval"])
@pytest.mark.parametrize("value", [0, -1, "a", 1.5])
def test_what_a_later_stage_needs_is_checked_before_training(name, value):
    config = bundle_config("train.json", **{name: value})
    (number,) = (
        n for n, step in enumerate(config["initialize"]) if isinstance(step, dict) and step.get("name") == name
    )
    with pytest.raises(Exception) as caught:
        config.get_parsed_content(f"initialize#{number}")
    expected = f"{name}={value!r} is not a whole number of at least 1; correct --{name}"
    assert str(input_error(caught.value)) == expected


def test_an_output_dir_that_is_a_file_is_refused(stage_in, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        stage_in(tmp_path / "file")


def settings(**changes):
    prediction = ContrastwisePrediction((PreconditionedPrediction(0.25), BinaryPrediction()))
    return dict(flat_settings("", Recipe(**{"loss": LOSS, "prediction": prediction} | changes)))


def test_settings_are_plain_values_by_name_at_any_depth():
    flat = settings()
    assert flat["loss.schedule"] == "Cosine" and flat["loss.contrast_weights"] == list(LOSS.contrast_weights)
    assert flat["prediction.contrasts.0.data_std"] == 0.25 and flat["prediction.contrasts.1"] == "BinaryPrediction"
    assert flat["augmentation.flip"] == 0.5 and flat["learning_rate"] == 5e-4
    assert all(isinstance(value, str | int | float | list | None) for value in flat.values())


def test_differences_are_named_and_sorted():
    loss = DenoisingLoss(InterpolatedCosine(64, 32, 64), MinSNR(floor=1.0), 1.0, (1.0, 1.0))
    changed = settings(loss=loss, learning_rate=1e-4, num_workers=2, seed=3)
    adjusted, refused = compare_settings(
        settings(loss=DenoisingLoss(Cosine(), MinSNR(floor=0.0), 1.0, (1.0, 1.0))), changed
    )
    assert adjusted == ["learning_rate 0.0005 -> 0.0001", "num_workers 0 -> 2"]
    assert {"loss.schedule Cosine -> InterpolatedCosine", "loss.weighting.floor 0.0 -> 1.0", "seed 0 -> 3"} <= {
        *refused
    }
    assert compare_settings(changed, changed) == ([], [])


def test_what_may_change_is_a_setting():
    names = set(Recipe.__dataclass_fields__) | {"num_epochs"}
    assert set(ADJUSTABLE) <= names
    assert not {"seed", "batch_size", "epoch_length", "loss", "augmentation", "prediction"} & set(ADJUSTABLE)


def test_the_prior_learns_the_mask_alone_at_the_noisiest_level_alone():
    loss = DenoisingLoss(Cosine(), MinSNR(floor=1.0), 1.0, [1, 300])
    recipe = Recipe(loss, ContrastwisePrediction(), batch_size=4, learning_rate=1e-4)
    changed = {
        name
        for name, value in flat_settings("", prior_recipe(recipe, 2e-3))
        if dict(flat_settings("", recipe)).get(name) != value
    }
    found = prior_recipe(recipe, 2e-3)
    assert found.loss.schedule == NoisiestLevel(Cosine()) and found.loss.contrast_weights == (0, 300)
    assert found.learning_rate == 2e-3 and found.batch_size == 4
    assert all(name.startswith(("loss.schedule", "loss.contrast_weights", "learning_rate")) for name in changed)
    assert recipe.loss == loss
    with pytest.raises(
        InputError, match="prior_learning_rate=0 is not a number above 0; correct --prior_learning_rate"
    ):
        prior_recipe(recipe, 0)
