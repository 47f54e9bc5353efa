import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from bundle.brightness import compress_bright
from bundle.networks.prior import (
    PriorAlone,
    PriorNetwork,
    _brightness,
    _rim,
    blur,
    brain_coordinates,
    brain_of,
    lesion_peaks,
    linear_flair,
    neighbourhood_max,
    sample_map,
    to_map,
)
from bundle.networks.slab_unet import ForecastNetwork

S, H, W = 6, 24, 32


def volumes_of(brain):
    """Seven volumes (1, 7, S, H, W) of a brain without lesions."""
    flair = torch.where(brain, 0.1, -1.0)
    masks = torch.full_like(flair, -1.0)
    return torch.cat([flair, masks, masks, flair, masks, masks, masks], dim=1)


def box(lows, highs, shape=(S, H, W)):
    brain = torch.zeros(1, 1, *shape, dtype=torch.bool)
    brain[(0, 0, *(slice(a, b) for a, b in zip(lows, highs)))] = True
    return brain


def prior(**changes):
    torch.manual_seed(0)
    return PriorNetwork(channels=(8, 8), context_channels=8, voxel_channels=4, **changes)


def randomised(network):
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


def test_untrained_it_is_the_populations_map():
    """Whatever the images and the arm: half its log-odds in the brain, next to nothing outside."""
    network, brain = prior(), box((0, 4, 6), (6, 20, 26))
    network.start_from_population(torch.full((24, 48, 56), 0.01))
    volumes = volumes_of(brain)
    volumes[0, 4, 3, 10, 12] = 1
    half = network(volumes, torch.tensor([2]))
    assert half.shape == (1, S, H, W)
    inner = box((2, 9, 11), (4, 15, 21))[0]  # smoothing lets nothing in from beyond the map
    torch.testing.assert_close(half[inner], torch.full_like(half[inner], np.log(0.01 / 0.99) / 2), atol=1e-3, rtol=0)
    assert (half[~brain[0]] < half[brain[0]].min() - 5).all()


def test_a_patient_of_each_side_is_alike():
    """The population's map and what is read of the images do not prefer a side."""
    network = prior()
    network.start_from_population(torch.rand(24, 48, 56) * 0.02)
    volumes = volumes_of(box((0, 4, 6), (6, 20, 26)))
    volumes[0, 4, 3, 6:8, 12] = 1
    arm = torch.tensor([0])
    torch.testing.assert_close(network(volumes.flip(3), arm).flip(2), network(volumes, arm), atol=1e-5, rtol=0)


@pytest.mark.parametrize("lows, highs", [((0, 6, 8), (6, 22, 28)), ((0, 2, 2), (6, 22, 27))])
def test_the_map_follows_the_brain(lows, highs):
    """Another place, another size: the same point of the brain has the same value."""
    values = torch.zeros(1, 1, 24, 48, 56)
    values[:] = torch.linspace(0, 1, 56)
    one, other = (
        sample_map(values, brain_coordinates(b.float()))[b] for b in (box((0, 4, 6), (6, 20, 26)), box(lows, highs))
    )
    for q in (0.1, 0.5, 0.9):
        assert abs(one.quantile(q) - other.quantile(q)) < 0.02


def test_a_map_of_voxels_is_undone_by_sampling():
    brain = box((0, 4, 6), (6, 20, 26)).float()
    values = blur(torch.randn(1, 1, S, H, W), (1, 2.5, 2.5))
    back = sample_map(to_map(values, brain), brain_coordinates(brain))
    error = ((back - values) * brain)[:, :, 1:-1].std() / (values * brain).std()
    assert error < 0.1


def test_without_any_flair_the_whole_slab_counts_as_brain():
    volumes = torch.zeros(1, 7, S, H, W)
    assert brain_of(volumes).all() and prior()(volumes, torch.tensor([6])).isfinite().all()


def test_smoothing_and_maximum_are_those_of_the_libraries():
    x = torch.rand(2, 3, S, H, W)
    expected = gaussian_filter(x.numpy(), (0, 0, 0.7, 1.5, 2), mode="constant", truncate=6)
    assert np.abs(blur(x, (0.7, 1.5, 2)).numpy() - expected)[:, :, 2:-2].max() < 0.02
    torch.testing.assert_close(neighbourhood_max(x), F.max_pool3d(x, 3, stride=1, padding=1))


def test_each_lesion_has_one_peak_even_where_lesions_flow_together():
    masks = torch.zeros(1, 3, 15, 40, 40)
    for centre in ((3, 5, 5), (3, 5, 30), (10, 20, 20)):
        s, h, w = centre
        masks[0, 0, s, h, w] = 1  # of one voxel
        masks[0, 1, s - 1 : s + 2, h - 2 : h + 4, w - 2 : w + 2] = 1  # flat: of equal values one is taken
    for w in (8, 14, 20):  # a chain of three, which touch
        masks[0, 2, 6:9, 10:14, w - 3 : w + 3] = 1
        masks[0, 2, 6:9, 8:16, w - 1 : w + 1] = 1
    for diagonal in (1, -1):  # along which neighbours have the same value
        oblique = torch.zeros(1, 3, 15, 40, 40)
        for step in range(10):
            oblique[0, 0, 7, 10 + step, 20 + diagonal * step] = 1
            oblique[0, 1, 2 + step, 20, 20 + diagonal * step] = 1
            oblique[0, 2, 2 + step, 20 + diagonal * step, 10 + step] = 1
        assert lesion_peaks(oblique).sum((2, 3, 4)).tolist() == [[1, 1, 1]]
    peaks = lesion_peaks(masks)
    assert peaks.sum((2, 3, 4)).tolist() == [[3, 3, 3]]
    assert (peaks <= masks).all()
    assert not lesion_peaks(torch.zeros(1, 1, 15, 40, 40)).any()


def test_flair_is_linear_and_masks_stay_as_they_are():
    linear = torch.tensor([-1, 0, 0.5, 1, 1.8, 2.9])
    volumes = torch.zeros(1, 7, 6)
    volumes[:, [0, 3]] = torch.from_numpy(compress_bright(linear.numpy()))
    volumes[:, [1, 2, 4, 5, 6]] = torch.tensor([-1.0, 0, 1, 1, 0, -1])
    found = linear_flair(volumes[..., None, None])[..., 0, 0]
    torch.testing.assert_close(found[0, [0, 3]], linear.expand(2, -1), atol=1e-4, rtol=1e-4)
    assert torch.equal(found[0, [1, 2, 4, 5, 6]], volumes[0, [1, 2, 4, 5, 6]])


def test_trained_it_reads_every_volume_and_the_arm():
    network, brain = randomised(prior()), box((0, 4, 6), (6, 20, 26))
    volumes, arm = volumes_of(brain), torch.tensor([1])
    half = network(volumes, arm)
    for volume in range(7):
        other = volumes.clone()
        other[0, volume, 3, 10, 12] = 0.9
        assert (network(other, arm) - half).abs().max() > 1e-4, volume
    assert (network(volumes, torch.tensor([2])) - half).abs().max() > 1e-4


def test_lesions_brighter_than_all_other_tissue_are_told_apart():
    """The input is compressed there; a network that saw no more than it would not tell them."""
    network, brain = randomised(prior()), box((0, 4, 6), (6, 20, 26))
    halves = []
    for linear in (1.0, 1.8):
        volumes = volumes_of(brain)
        volumes[0, [1, 4], 3, 10:12, 12:14] = 1
        volumes[0, [0, 3], 3, 10:12, 12:14] = float(compress_bright(np.array(linear)))
        halves.append(network(volumes, torch.tensor([1])))
    assert (halves[1] - halves[0]).abs().max() > 1e-3


def test_brightness_does_not_depend_on_gain_or_load_and_is_0_where_flair_is_unknown():
    brain = box((0, 4, 6), (6, 20, 26)).float()
    tissue = torch.where(brain > 0, 0.2 * torch.randn(1, 1, S, H, W), -1.0)
    tissue[0, 0, 3, 10:12, 12:14] = 2.0
    loaded = tissue.clone()
    loaded[0, 0, 3, 14:16, 12:14] = 2.0
    values = []
    for flair in (tissue, 0.1 + 0.5 * tissue, loaded):
        volumes = torch.cat([flair, torch.zeros(1, 6, S, H, W)], dim=1)
        one, other = _brightness(volumes, brain)[0]
        assert not other.any()
        values.append(one[3, 11, 13].item())
    assert values[0] == pytest.approx(values[1], rel=1e-4) and values[0] == pytest.approx(values[2], rel=0.05)


def test_around_a_lesion_as_bright_as_it_is_at_both_visits():
    volumes = volumes_of(box((0, 4, 6), (6, 20, 26)))
    volumes[0, 4, 3, 10:12, 12:14] = 1
    brightness = torch.zeros(1, 2, S, H, W)
    brightness[0, 0, 3, 10, 12], brightness[0, 1, 3, 10, 12] = 3.2, 5.0
    brightness[0, 1, 3, 14, 20] = 9.0  # no lesion
    steps = _rim(volumes, brightness)
    assert steps.shape == (1, 12, S, H, W) and not steps[0, :, 3, 10:12, 12:14].any()  # beside, not in it
    now, both = steps[0, 0::2, 3, 9, 11], steps[0, 1::2, 3, 9, 11]
    assert (now > 0.5).sum() == 6 and (both > 0.5).sum() == 3
    assert not steps[0, :, 3, 8].any() and not steps[0, :, 3, 14, 19:22].any()


def test_one_sample_has_the_values_it_has_among_others():
    """A CPU takes another way for one."""
    network, brain = randomised(prior()), box((0, 4, 6), (6, 20, 26))
    volumes = torch.cat([volumes_of(brain), volumes_of(box((0, 2, 2), (6, 22, 27)))])
    volumes[0, 4, 3, 10, 12] = 1
    arm = torch.tensor([1, 3])
    together = network(volumes, arm)
    for index in range(2):
        alone = network(volumes[index : index + 1], arm[index : index + 1])
        torch.testing.assert_close(alone, together[index : index + 1], atol=1e-4, rtol=0)


def forecast_network():
    torch.manual_seed(0)
    network = ForecastNetwork(
        num_slices=S,
        channels=(8, 16),
        attention_levels=(False, True),
        num_head_channels=8,
        norm_num_groups=8,
        conditioning_channels=8,
        local_channels=8,
        prior_channels=(8, 8),
    )
    return randomised(network).eval()


def one_tensor(logsnr, z_t):
    images = volumes_of(box((0, 4, 6), (6, 20, 26))).flatten(1, 2)
    planes = torch.tensor([logsnr, 1.0])[None, :, None, None].expand(1, 2, H, W)
    return torch.cat([z_t, images, planes], dim=1)


@torch.no_grad()
def test_at_the_noisiest_level_the_forecast_is_the_prior_and_below_it_what_z_tells_is_added():
    network, z_t = forecast_network(), torch.randn(1, 2 * S, H, W)
    alone = network.prior_alone().eval()(one_tensor(-15.0, z_t))[:, S:]
    network_output = network(one_tensor(-15.0, z_t))[:, S:]
    other = network(one_tensor(0.0, z_t))[:, S:]
    apart, apart_at_0 = ((x - alone).abs().max() for x in (network_output, other))
    assert apart < 0.01 * apart_at_0


@torch.no_grad()
def test_alone_it_has_the_names_of_the_whole_network():
    network = forecast_network()
    alone = network.prior_alone()
    assert isinstance(alone, PriorAlone) and all(p.requires_grad for p in alone.parameters())
    assert not any(p.requires_grad for p in network.prior.parameters())
    own = network.state_dict()
    assert all(torch.equal(own[name], value) for name, value in alone.state_dict().items())
    output = alone(one_tensor(2.0, torch.randn(1, 2 * S, H, W)))
    assert output.shape == (1, 2 * S, H, W) and not output[:, :S].any()


@pytest.mark.filterwarnings("ignore")
def test_a_trace_agrees_on_other_batches():
    network = forecast_network()
    x = torch.cat([one_tensor(-1.0, torch.randn(1, 2 * S, H, W)) for _ in range(3)])
    torch.testing.assert_close(torch.jit.script(network)(x), network(x), atol=1e-4, rtol=1e-4)
