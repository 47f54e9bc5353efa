import json

import numpy as np
import pytest
import torch

from bundle.data.bids import CONDITION
from bundle.errors import InputError
from bundle.forecasters.counts import KIND, CountModel, count_features, count_model, fit_counts
from bundle.lesions import MAX_COUNT
from bundle.networks.weights import fitted_file, write_fitted

MODEL = CountModel((0.8, 0.9, -0.3, 0.2, -0.6), (0.5, 0.4, -0.6, -0.5, 0.1))


def features_of(image, volume_ml):
    """Of a heatmap of that volume: 8 voxels of 1 mm3."""
    return count_features(image, np.full((2, 2, 2), volume_ml * 1000 / 8), np.eye(4))


def test_probabilities_have_the_mean_and_variance_of_a_negative_binomial():
    features = np.array([1.0, -0.7, 0.0, 0.0, 0.0])
    probabilities, counts = MODEL(features), np.arange(MAX_COUNT + 1)
    (mean,), (size,) = MODEL.mean_and_size(features[None])
    assert probabilities.shape == (MAX_COUNT + 1,) and probabilities.sum() == pytest.approx(1)
    assert probabilities @ counts == pytest.approx(np.exp(0.8 - 0.9 * 0.7)) == pytest.approx(mean)
    assert probabilities @ counts**2 - mean**2 == pytest.approx(mean + mean**2 / size)


@pytest.mark.parametrize("volume_ml", [0.0, 1e-9, 1e6])
def test_any_volume_has_a_distribution(volume_ml):
    probabilities = MODEL(features_of(np.ones((8, 2, 2, 2)), volume_ml))
    assert np.isfinite(probabilities).all() and probabilities.sum() == pytest.approx(1)


def test_a_larger_heatmap_means_more_lesions():
    chances = [1 - MODEL(features_of(np.ones((8, 2, 2, 2)), volume))[0] for volume in (0.01, 0.1, 1.0)]
    assert chances == sorted(chances) and chances[0] < 0.2 < 0.7 < chances[2]


@pytest.mark.parametrize("months", [3, 11, 22])
def test_the_mean_is_in_proportion_to_the_months_and_the_size_stays(months):
    """The heatmap's odds are those of 11 months times the ratio, as the denoiser makes them."""
    image, usual = np.ones((8, 2, 2, 2)), np.full((2, 2, 2), 0.3, np.float32)
    odds = months / 11 * usual / (1 - usual)
    (mean,), (size,) = MODEL.mean_and_size(count_features(image, usual, np.eye(4))[None])
    probabilities = MODEL.of_heatmap(image, odds / (1 + odds), np.eye(4), months)
    mean *= months / 11
    counts = np.arange(MAX_COUNT + 1)
    assert probabilities @ counts == pytest.approx(mean, rel=1e-4)
    assert probabilities @ counts**2 - mean**2 == pytest.approx(mean + mean**2 / size, rel=1e-4)


def test_11_months_are_what_the_model_was_fitted_for():
    image, heatmap = np.ones((8, 2, 2, 2)), np.random.default_rng(0).random((2, 2, 2), np.float32)
    fitted = MODEL(count_features(image, heatmap, np.eye(4)))
    for given in ((), (11,), (11.0,)):
        np.testing.assert_array_equal(MODEL.of_heatmap(image, heatmap, np.eye(4), *given), fitted)


def test_features_say_what_is_unknown():
    image = np.ones((8, 2, 2, 2))
    assert features_of(image, np.e).tolist() == pytest.approx([1, 1, 0, 0, 0])
    image[[index for index, name in enumerate(CONDITION) if name.endswith("w048")]] = 0
    assert features_of(image, 1.0).tolist() == pytest.approx([1, 0, 3 / 5, 1, 0])
    image[1:7] = 0
    assert features_of(image, 1.0).tolist() == pytest.approx([1, 0, 1, 1, 0])


def test_lesions_of_a_longer_interval_mean_a_lower_rate_where_they_are_known():
    image, heatmap = np.ones((8, 2, 2, 2)), np.full((2, 2, 2), 0.3)
    with_months = [count_features(image, heatmap, np.eye(4), months) for months in (None, 11, 22)]
    assert with_months[0].tolist() == with_months[1].tolist()
    assert with_months[2][-1] == pytest.approx(np.log(2))
    usual, longer = (MODEL.mean_and_size(features[None])[0] for features in with_months[1:])
    assert longer / usual == pytest.approx(2 ** MODEL.mean[-1])
    np.testing.assert_array_equal(MODEL.of_heatmap(image, heatmap, np.eye(4), 11, 22), MODEL(with_months[2]))
    image[CONDITION.index("net2_w048")] = 0
    assert count_features(image, heatmap, np.eye(4), 22)[-1] == 0


def test_the_fit_finds_the_model_that_made_the_counts():
    rng = np.random.default_rng(0)
    number = 20_000
    features = np.column_stack([np.ones(number), rng.normal(-1, 1, number), rng.random((number, 3)).round()])
    mean, size = MODEL.mean_and_size(features)
    longer = rng.uniform(0.5, 2, number)
    found = fit_counts(features, rng.negative_binomial(size, size / (size + mean * longer)), longer)
    np.testing.assert_allclose(found.mean, MODEL.mean, atol=0.06)
    np.testing.assert_allclose(found.size, MODEL.size, atol=0.2)


@pytest.mark.parametrize("counts", [np.zeros(5, int), np.ones(5, int)])
def test_patients_with_and_without_lesions_are_needed(counts):
    with pytest.raises(InputError, match="with and without lesions"):
        fit_counts(np.ones((5, 4)), counts)


def test_a_model_lies_beside_its_weights(tmp_path):
    weights = tmp_path / "model.pt"
    torch.save({}, weights)
    assert count_model(weights) is None
    assert write_fitted(weights, KIND, MODEL, {}) == tmp_path / "model_count_model.json"
    assert count_model(weights) == count_model(weights, 1, 1.0) == MODEL
    assert count_model(weights, 2) is count_model(weights, 1, 0.5) is None  # guidance changes the volume


@pytest.mark.parametrize(
    "changed",
    [[], {"mean": [1.0], "size": [1.0]}, {"mean": "1234", "size": [1] * 4}, {"mean": [1e9] * 4, "size": [1] * 4}],
)
def test_a_damaged_file_is_refused(changed, tmp_path):
    weights = tmp_path / "model.pt"
    torch.save({}, weights)
    write_fitted(weights, KIND, MODEL, {})
    file = fitted_file(weights, KIND)
    file.write_text(json.dumps(json.loads(file.read_text()) | {KIND: changed}))
    with pytest.raises(InputError, match="not a file of scripts.fit_counts, or damaged; fit it again"):
        count_model(weights)
