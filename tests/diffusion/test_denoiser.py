from functools import partial

import pytest
import torch
from torch import nn

from bundle.arms import NULL_ARM
from bundle.diffusion.guidance import GuidedDenoiser
from bundle.diffusion.predictions import BinaryPrediction, X0Prediction
from bundle.diffusion.slabs import Condition, SlabDenoiser, VolumeCorrection, scale_rate, unweight_foreground


@pytest.fixture
def condition():
    return Condition(
        images=torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(0)), arm=torch.tensor([1, 5])
    )


class Spy:
    """A denoiser whose x0 is a known function of its input, and which counts its calls."""

    def __init__(self):
        self.calls = 0

    def given(self, condition, reuse_within):
        arm = torch.where(condition.arm == NULL_ARM, 0.0, 10.0)
        images = condition.images.abs().flatten(1).sum(1).sign()

        def denoise(z_t, logsnr):
            self.calls += 1
            return (1 + arm + images)[:, None, None, None].expand_as(z_t)

        return denoise


def test_null_drops_what_is_asked_and_nothing_else(condition):
    assert (condition.null().images == 0).all() and (condition.null().arm == NULL_ARM).all()
    assert torch.equal(condition.null(images=False).images, condition.images)
    assert torch.equal(condition.null(arm=False).arm, condition.arm)


@pytest.mark.parametrize("scale, value, calls", [(1, 12, 1), (0, 1, 1), (2, 23, 2)])
def test_joint_guidance(condition, scale, value, calls):
    spy, z = Spy(), torch.zeros(2, 3, 4, 4)
    x0 = GuidedDenoiser(spy, scale).given(condition)(z, torch.zeros(2))
    assert (x0 == value).all() and spy.calls == calls


@pytest.mark.parametrize(
    "images, arm, value, calls",
    [(1, 1, 12, 1), (3, 1, 14, 3), (1, 3, 32, 2), (2, 3, 33, 3), (1, 0, 2, 1), (0, 0, 1, 1)],
)
def test_separate_guidance(condition, images, arm, value, calls):
    """Of 1, the images add 1 and the arm 10."""
    spy, z = Spy(), torch.zeros(2, 3, 4, 4)
    x0 = GuidedDenoiser(spy, images, arm).given(condition)(z, torch.zeros(2))
    assert (x0 == value).all() and spy.calls == calls


def test_guidance_acts_in_its_interval_alone_and_costs_one_call_outside(condition):
    spy, z = Spy(), torch.zeros(2, 3, 4, 4)
    denoise = GuidedDenoiser(spy, 3, guidance_interval=(-1, 2)).given(condition)
    values = [denoise(z, torch.full((2,), logsnr)).unique().item() for logsnr in (-1.5, -1, 0, 2, 2.5)]
    assert values == [12, 34, 34, 34, 12] and spy.calls == 1 + 2 + 2 + 2 + 1


def test_levels_on_the_cpu_suit_samples_on_any_device(condition):
    """Tensors on "meta" meet no others, as those of a GPU."""

    class Network(nn.Module):
        def forward(self, x):
            return x[:, :4]

    away = Condition(condition.images.to("meta"), condition.arm.to("meta"))
    denoiser, z_t = (
        SlabDenoiser(Network(), X0Prediction(), foreground_weight=10),
        torch.zeros(2, 4, 4, 4, device="meta"),
    )
    for denoise in (partial(denoiser, condition=away), denoiser.given(away), GuidedDenoiser(denoiser, 2).given(away)):
        assert denoise(z_t, torch.zeros(1)).shape == z_t.shape


def test_the_network_gets_one_tensor_in_the_contract_s_order(condition):
    seen = []

    class Network(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x[:, :4]

    z, logsnr = torch.randn(2, 4, 4, 4), torch.tensor([-3.0, 0.5])
    SlabDenoiser(Network(), X0Prediction(), 1).output(z, logsnr, condition)
    z_in, images, noise_plane, arm_plane = seen[0].split([4, 5, 1, 1], dim=1)
    assert torch.equal(z_in, z) and torch.equal(images, condition.images)
    assert torch.equal(noise_plane[:, 0, 2, 3], logsnr) and noise_plane.flatten(1).std(1).max() == 0
    assert torch.equal(arm_plane[:, 0, 1, 1], condition.arm.float()) and arm_plane.flatten(1).std(1).max() == 0


def test_a_patient_s_images_are_encoded_once_and_nothing_else_changes(condition):
    """Of three samples of one patient, at two levels: the same x0 as from three copies of the patient in one tensor."""

    class Network(nn.Module):
        encoded = 0

        def encode(self, images, arm):
            self.encoded += 1
            return images.sum(1, keepdim=True)

        def backbone(self, z_t, logsnr, arm, encoded):
            return (z_t * logsnr.reshape(-1, 1, 1, 1) + arm.reshape(-1, 1, 1, 1) + encoded) / 20

        def add_local(self, backbone, z_t, logsnr, encoded):
            return backbone + encoded * z_t / 100

        def forward(self, x):
            z_t, images, planes = x.split([4, 5, 2], dim=1)
            logsnr, arm = planes[:, :, 0, 0].unbind(1)
            encoded = images.sum(1, keepdim=True)
            return self.add_local(self.backbone(z_t, logsnr, arm, encoded), z_t, logsnr, encoded)

    network, z = Network(), torch.randn(3, 4, 4, 4)
    denoiser = SlabDenoiser(network, X0Prediction(), 1)
    one = Condition(condition.images[:1], condition.arm[:1])
    three = Condition(one.images.expand(3, -1, -1, -1), one.arm.expand(3))
    denoise = denoiser.given(one)
    for logsnr in (torch.tensor([-1.0, 0.0, 2.0]), torch.full((3,), 0.5)):
        assert torch.equal(denoise(z, logsnr), denoiser(z, logsnr, three))
    assert network.encoded == 1


def test_within_a_rise_of_log_snr_the_backbone_is_reused_and_the_local_path_is_not(condition):
    class Network(nn.Module):
        """The backbone counts its calls; the local path adds log-SNR / 100."""

        computed = 0

        def encode(self, images, arm):
            return {}

        def backbone(self, z_t, logsnr, arm, encoded):
            self.computed += 1
            return torch.full_like(z_t, self.computed / 10)

        def add_local(self, backbone, z_t, logsnr, encoded):
            return backbone + logsnr / 100

    z, walk = torch.zeros(2, 4, 4, 4), (-16.0, -4.0, -3.5, -3.0, -2.5)

    def walks(reuse_within, *levels):
        denoise = SlabDenoiser(Network(), X0Prediction(), foreground_weight=1).given(condition, reuse_within)
        found = [denoise(z, torch.tensor([level]))[0, 0, 0, 0].item() for level in levels]
        return [round(10 * (x0 - level / 100)) for x0, level in zip(found, levels)]

    assert walks(0.0, *walk) == [1, 2, 3, 4, 5]
    assert walks(0.6, *walk) == [1, 2, 2, 3, 3]
    assert walks(1.1, *walk, *walk) == [1, 2, 2, 2, 3, 4, 5, 5, 5, 6]  # the next batch starts with a call of its own
    assert walks(9.0, -4.0, -4.0) == [1, 2]  # so does one of a single step


def test_x0_stays_in_range_and_only_the_mask_is_unweighted(condition):
    class Network(nn.Module):
        def forward(self, x):
            return torch.full_like(x[:, :4], 0.6).index_fill(1, torch.tensor([0]), 7.0)

    z = torch.zeros(2, 4, 4, 4)
    x0 = SlabDenoiser(Network(), X0Prediction(), foreground_weight=10)(z, torch.zeros(2), condition)
    assert (x0[:, 0] == 1).all() and (x0[:, 1] == 0.6).all()
    torch.testing.assert_close(x0[:, 2:], torch.full_like(x0[:, 2:], 2 * 0.8 / (0.8 + 10 * 0.2) - 1))


def test_another_rate_multiplies_the_odds_where_all_voxels_are_alike_and_flair_stays(condition):
    class Network(nn.Module):
        def forward(self, x):
            return torch.full_like(x[:, :4], 0.6)

    z, logsnr = torch.zeros(2, 4, 4, 4), torch.tensor([-1.0, 3.0])
    plain, tripled, both = (
        SlabDenoiser(Network(), X0Prediction(), weight, rate=rate)(z, logsnr, condition)
        for weight, rate in ((1, 1.0), (1, 3.0), (3, 3.0))
    )
    assert torch.equal(tripled[:, :2], plain[:, :2])
    torch.testing.assert_close(tripled[:, 2:], torch.full_like(z[:, 2:], 2 * 0.8 * 3 / (0.8 * 3 + 0.2) - 1))
    torch.testing.assert_close(both, plain)


@pytest.mark.parametrize("rate", [0.3, 2.0])
@pytest.mark.parametrize("p_lesion", [0.01, 0.4, 1.0])
def test_a_lesion_s_odds_follow_the_rate_and_its_shape_stays(rate, p_lesion):
    shape = torch.zeros(1, 5, 12, 12, dtype=torch.float64)
    shape[0, 2, 4:7, 5:7] = torch.tensor([[0.2, 0.7], [1.0, 1.0], [0.9, 0.1]])  # P(voxel | lesion)
    odds = rate * p_lesion / (1 - p_lesion) if p_lesion < 1 else torch.inf
    expected = 1.0 if p_lesion == 1 else odds / (1 + odds)
    torch.testing.assert_close((scale_rate(2 * p_lesion * shape - 1, rate) + 1) / 2, expected * shape)


def test_volume_correction_is_linear_between_levels_and_0_outside():
    correction = VolumeCorrection(-2.0, (0.2, 0.4))
    levels = torch.tensor([-20.0, -3.0, -2.5, -2.0, -1.25, -1.0, -0.5, 0.0, 4.0])
    torch.testing.assert_close(correction(levels), torch.tensor([0, 0, 0.1, 0.2, 0.35, 0.4, 0.2, 0, 0]))


def test_volume_correction_is_added_to_the_log_odds_of_the_mask_by_level(condition):
    class Network(nn.Module):
        def forward(self, x):
            return torch.full_like(x[:, :4], 0.6)

    z, logsnr = torch.zeros(2, 4, 4, 4), torch.tensor([-1.0, 3.0])
    denoiser = SlabDenoiser(Network(), X0Prediction(), 1.0, volume_correction=VolumeCorrection(-1.0, (0.5,)))
    x0 = denoiser(z, logsnr, condition)
    assert (x0[:, :2] == 0.6).all()
    half = torch.atanh(torch.tensor(0.6)) + torch.tensor([0.25, 0])
    torch.testing.assert_close(x0[:, 2:], half.tanh()[:, None, None, None].expand(2, 2, 4, 4))


@pytest.mark.parametrize("prior", [0.01, 0.3])
@pytest.mark.parametrize("weight", [1.0, 10.0])
def test_unweighting_restores_the_posterior_mean(prior, weight):
    """The best x0 under a weight w on lesions is the w-weighted mean; its correction is the plain posterior mean."""
    z_t = torch.linspace(-3, 3, 50, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    half_log_odds = torch.tensor(prior, dtype=torch.float64).logit() / 2
    posterior = (BinaryPrediction().to_x0(half_log_odds, z_t, one, one) + 1) / 2
    weighted_mean = (weight * posterior - (1 - posterior)) / (weight * posterior + (1 - posterior))
    torch.testing.assert_close(unweight_foreground(weighted_mean, weight), 2 * posterior - 1)
