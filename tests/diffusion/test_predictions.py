from functools import partial

import pytest
import torch

from bundle.diffusion.predictions import (
    BinaryPrediction,
    ContrastwisePrediction,
    EpsPrediction,
    PreconditionedPrediction,
    VPrediction,
    X0Prediction,
)
from bundle.diffusion.schedules import alpha_sigma


def target(prediction, x0, eps, alpha, sigma):
    """The output that gives x0: `to_x0` of the linear predictions is a line in the output."""
    z_t, one = alpha * x0 + sigma * eps, torch.ones_like(x0)
    intercept = prediction.to_x0(0 * one, z_t, alpha, sigma)
    return (x0 - intercept) / (prediction.to_x0(one, z_t, alpha, sigma) - intercept)


@pytest.fixture
def sample():
    g = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 9, 4, dtype=torch.float64, generator=g)
    alpha, sigma = alpha_sigma(torch.linspace(-6, 6, 9, dtype=torch.float64)[:, None])
    return x0, eps, alpha, sigma, alpha * x0 + sigma * eps


@pytest.mark.parametrize(
    "prediction, formula",
    [
        (X0Prediction(), lambda x0, eps, alpha, sigma: x0),
        (EpsPrediction(), lambda x0, eps, alpha, sigma: eps),
        (VPrediction(), lambda x0, eps, alpha, sigma: alpha * eps - sigma * x0),
    ],
)
def test_the_output_that_gives_x0_is_what_the_prediction_is_named_after(prediction, formula, sample):
    x0, eps, alpha, sigma, z_t = sample
    output = formula(x0, eps, alpha, sigma)
    torch.testing.assert_close(prediction.to_x0(output, z_t, alpha, sigma), x0)
    torch.testing.assert_close(prediction.error(output, x0, z_t, alpha, sigma), torch.zeros_like(x0))


def test_one_weighting_on_x0_is_the_papers_on_v_and_eps(sample):
    """min(SNR, 5) on x0 equals min(SNR, 5) / (SNR + 1) on v and min(SNR, 5) / SNR on eps."""
    x0, eps, alpha, sigma, z_t = sample
    snr = (alpha / sigma) ** 2
    for prediction, factor in [(VPrediction(), 1 / (snr + 1)), (EpsPrediction(), 1 / snr)]:
        output = target(prediction, x0, eps, alpha, sigma) + 0.3
        torch.testing.assert_close(
            prediction.error(output, x0, z_t, alpha, sigma), factor * 0.3**2 * torch.ones_like(x0)
        )


@pytest.mark.parametrize("prior", [0.001, 0.2, 0.5, 0.97])
def test_binary_prediction_is_bayes_rule_for_a_voxel(prior, sample):
    """With the prior's half log-odds as output, x0 is the posterior mean of a -1/1 voxel in Gaussian noise."""
    _, _, alpha, sigma, z_t = sample
    likelihood = [torch.exp(-((z_t - alpha * x) ** 2) / (2 * sigma**2)) for x in (1, -1)]
    posterior = prior * likelihood[0] / (prior * likelihood[0] + (1 - prior) * likelihood[1])
    half_log_odds = torch.full_like(z_t, prior).logit() / 2
    torch.testing.assert_close(BinaryPrediction().to_x0(half_log_odds, z_t, alpha, sigma), 2 * posterior - 1)


def test_binary_error_is_the_log_loss_of_its_x0(sample):
    x0, _, alpha, sigma, z_t = sample
    x0, output, prediction = x0.sign(), torch.zeros_like(x0), BinaryPrediction()
    p = (prediction.to_x0(output, z_t, alpha, sigma) + 1) / 2
    expected = torch.nn.functional.binary_cross_entropy(p, (x0 + 1) / 2, reduction="none")
    decided = (p - 0.5).abs() < 0.49999  # beyond it log(1 - p) has lost its digits, the error has not
    torch.testing.assert_close(prediction.error(output, x0, z_t, alpha, sigma)[decided], expected[decided])


def test_binary_error_of_a_mean_outcome_is_the_mean_error_of_the_outcomes(sample):
    _, output, alpha, sigma, z_t = sample
    error = partial(BinaryPrediction().error, output, z_t=z_t, alpha=alpha, sigma=sigma)
    lesion, none, mean = (error(x0=torch.full_like(output, value)) for value in (1.0, -1.0, -0.5))
    torch.testing.assert_close(mean, 0.25 * lesion + 0.75 * none)


def test_contrasts_are_predicted_each_in_its_way():
    g = torch.Generator().manual_seed(1)
    output, z_t, x0 = torch.randn(3, 2, 6, 4, 4, generator=g)
    alpha, sigma = (a[:, None, None, None] for a in alpha_sigma(torch.tensor([-1.0, 2.0])))
    both = ContrastwisePrediction((VPrediction(), BinaryPrediction()))
    for method, arguments in [("to_x0", (output, z_t)), ("error", (output, x0, z_t))]:
        joint = getattr(both, method)(*arguments, alpha, sigma)
        for half, prediction in [(slice(0, 3), VPrediction()), (slice(3, 6), BinaryPrediction())]:
            alone = getattr(prediction, method)(*(a[:, half] for a in arguments), alpha, sigma)
            torch.testing.assert_close(joint[:, half], alone)


def test_preconditioning_is_v_at_unit_spread_and_the_best_linear_guess_at_output_zero(sample):
    x0, eps, alpha, sigma, z_t = sample
    v = alpha * eps - sigma * x0
    torch.testing.assert_close(target(PreconditionedPrediction(1.0), x0, eps, alpha, sigma), -v)
    std = 0.25
    gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)  # Wiener filter
    torch.testing.assert_close(PreconditionedPrediction(std).to_x0(0 * z_t, z_t, alpha, sigma), gain * z_t)
    error = (1 - gain * alpha) ** 2 * std**2 + gain**2 * sigma**2
    unit = PreconditionedPrediction(std).to_x0(1 + 0 * z_t, 0 * z_t, alpha, sigma)
    torch.testing.assert_close(unit**2, error.expand_as(unit))
