import copy
from functools import partial

import numpy as np
import pytest
import torch
from conftest import tiny_network
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding

from bundle.brightness import compress_bright
from bundle.errors import InputError
from bundle.networks.local_path import LocalPath, logsnr_to_timestep
from bundle.networks.slab_unet import ForecastNetwork
from scripts.training_speed import PeakMemory

PAPER = dict(
    channels=(128, 256, 256, 512, 512, 1024),
    attention_levels=(False,) * 4 + (True,) * 2,
    num_res_blocks=3,
    num_head_channels=64,
    patch_size=1,
    conditioning_channels=128,
    local_channels=0,
    with_loads=False,
)
tiny = partial(tiny_network, patch_size=1, local_channels=0, with_loads=False)


def test_channels_that_make_no_network_are_refused():
    with pytest.raises(InputError, match="^no such network: .*; correct its settings, --network_def#...$"):
        tiny(channels=(8,))


def one_tensor(batch=2, side=16, logsnr=0.0, arm=3.0):
    x = torch.randn(batch, 6 + 21 + 2, side, side, generator=torch.Generator().manual_seed(1))
    x[:, -2], x[:, -1] = logsnr, arm
    return x


def denoise(network, z_t, logsnr, arm, encoded):
    return network.add_local(network.backbone(z_t, logsnr, arm, encoded), z_t, logsnr, encoded)


def randomise(network):
    """Zero convolutions make a fresh network blind; move every weight away from its start."""
    g = torch.Generator().manual_seed(2)
    for p in network.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=g)
    return network.eval()


def test_paper_scale_has_589_million_parameters():
    with torch.device("meta"):
        network = ForecastNetwork(**PAPER, prior_channels=())

    def count(module):
        return sum(p.numel() for p in module.parameters()) / 1e6

    control = count(network.controlnet) + count(network.image_embedding)
    assert abs(count(network.unet) - 418.4) < 0.1 and abs(control - 170.8) < 0.1
    assert abs(count(network) - 589) < 1


def test_paper_scale_has_six_levels_with_attention_at_16_and_8():
    with torch.device("meta"):
        network = ForecastNetwork(**PAPER)
    sides = [256 // 2**level for level in range(len(network.unet.down_blocks))]
    attends = [hasattr(block, "attentions") for block in network.unet.down_blocks]
    assert [side for side, attention in zip(sides, attends) if attention] == [16, 8] and len(sides) == 6


@pytest.mark.parametrize("frozen", [False, True])
def test_gradient_checkpointing_keeps_less_and_changes_nothing(frozen):
    """Of three residual blocks a level, as in the paper; the moving average's copy of the network is as good."""

    def gradients(**changes):
        network = randomise(
            tiny(channels=(8, 16, 16), attention_levels=(False, False, True), num_res_blocks=3, **changes)
        )
        network = copy.deepcopy(network)
        if frozen:
            network.unet.requires_grad_(False)
        with PeakMemory() as memory:
            output = network(one_tensor())
            kept = memory.now
        output.square().sum().backward()
        named = dict(network.named_parameters())
        return {name: p.grad for name, p in named.items() if p.grad is not None}, kept, output

    (plain, kept_plain, output_plain), (ours, kept, output) = gradients(), gradients(gradient_checkpointing=True)
    assert torch.equal(output, output_plain) and plain.keys() == ours.keys() and len(plain) > 50
    assert all(torch.equal(grad, ours[name]) for name, grad in plain.items())
    assert kept < kept_plain / 3, (kept, kept_plain)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_a_fresh_local_path_changes_nothing(patch_size):
    network, x = tiny(patch_size=patch_size, local_channels=8), one_tensor()
    torch.nn.init.normal_(network.unet.out[-1].conv.weight)
    with_local = network(x)
    network.local = None
    assert with_local.abs().max() > 0
    torch.testing.assert_close(network(x), with_local, rtol=0, atol=0)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_the_local_path_sees_neighbours_only_and_treats_all_slices_alike(patch_size):
    """Beside a UNet whose output is 0, a voxel changes its neighbours' outputs, and in the same way in every slice."""
    network = tiny(patch_size=patch_size, local_channels=8, num_slices=9, with_control=False)
    randomise(network.local)
    for parameter in network.unet.out[-1].parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.zeros(1, 2 * 9 + 7 * 9 + 2, 32, 32)
    quiet, moved = network(x), {}
    for place in (3, 5):  # slices far enough from the edge
        touched = x.clone()
        touched[0, 9 + place, 16, 16] = 1  # in the mask, the second contrast
        moved[place] = (network(touched) - quiet)[0].unflatten(0, (2, 9))  # (2, 9, 32, 32)
    torch.testing.assert_close(moved[3][:, 1:6], moved[5][:, 3:8])
    reached = moved[3].abs() > 1e-6
    assert reached[:, 1:6].flatten(2).any(2).all() and not reached[:, [0, 6, 7, 8]].any()
    rows = reached.any(0).any(0).any(1).nonzero()
    assert (rows.min(), rows.max()) == (14, 18)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_a_fresh_controlnet_changes_nothing(patch_size):
    network = tiny(patch_size=patch_size, local_channels=8)
    for layer in (network.unet.out[-1].conv, network.local.out):
        torch.nn.init.normal_(layer.weight)
    x = one_tensor()
    with_control = network(x)
    network.controlnet = None
    assert with_control.abs().max() > 0
    torch.testing.assert_close(network(x), with_control, rtol=0, atol=0)


def test_the_controlnet_starts_as_a_copy_of_the_encoder():
    network = tiny()
    unet, control = network.unet.state_dict(), network.controlnet.state_dict()
    shared = [name for name in control if name in unet]
    assert {name.split(".")[0] for name in shared} == {
        "conv_in",
        "time_embed",
        "class_embedding",
        "down_blocks",
        "middle_block",
    }
    assert all(torch.equal(unet[name], control[name]) for name in shared)


def test_everything_in_the_input_is_read():
    network, x = randomise(tiny(local_channels=8)), one_tensor()
    y = network(x)
    assert y.shape == (2, 6, 16, 16)
    for channel, value in [(0, 1.0), (6, 1.0), (26, 1.0), (27, 2.0), (28, 5.0)]:  # z_t, images, log-SNR, arm
        other = x.clone()
        other[0, channel] = value
        assert (network(other)[0] - y[0]).abs().max() > 1e-4 and torch.allclose(network(other)[1], y[1], atol=1e-5)


def test_samples_of_one_patient_share_what_the_images_say():
    network = randomise(tiny(local_channels=8, with_loads=True))
    x = one_tensor(batch=3)
    x[:, 6:27] = x[:1, 6:27]
    once = denoise(
        network, x[:, :6], x[:, -2, 0, 0], x[:, -1, 0, 0].long(), network.encode(x[:1, 6:27], x[:1, -1, 0, 0].long())
    )
    torch.testing.assert_close(once, network(x))


@pytest.mark.parametrize("logsnr", [-15.0, -4.0, -2.0, 0.0, 4.0, 15.0])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_samples_at_one_level_give_the_same_as_each_at_its_own(logsnr, scale):
    """Filters are modulated instead of voxels, also where log-likelihoods are far beyond the range of exp."""
    network = randomise(tiny(local_channels=8, with_loads=True))
    for weight in (network.local.out.weight, network.local.outcome.weight):
        weight.data *= scale
    x = one_tensor(batch=3, logsnr=logsnr)
    x[:, 6:] = x[:1, 6:]
    levels, arms, encoded = x[:, -2, 0, 0], x[:, -1, 0, 0].long(), network.encode(x[:1, 6:27], x[:1, -1, 0, 0].long())
    shared = denoise(network, x[:, :6], levels[:1], arms[:1], encoded)
    assert shared.isfinite().all() and (scale == 1 or shared.abs().max() > 42)
    torch.testing.assert_close(shared, denoise(network, x[:, :6], levels, arms, encoded), rtol=1e-3, atol=1e-3 * scale)
    torch.testing.assert_close(network(x[:1]), network(x)[:1], rtol=1e-3, atol=1e-3 * scale)


def test_likelihoods_of_hypotheses_are_added_up():
    """log(sum of likelihoods for) - log(sum against), however large they are, up to what a float32 can tell."""
    local = LocalPath(2, 7, channels=4, hypotheses=3)
    logs = torch.tensor(
        [[3.0, -2.0, 0.5, 1.0, 2.0], [300.0, 0.0, 0.0, 280.0, 1.0], [-300.0, -200.0, -250.0, 0.0, 10.0]]
    )
    exact = (logs[:, :3].logsumexp(1) - torch.cat([logs[:, 3:], torch.zeros(3, 1)], dim=1).logsumexp(1)) / 2
    found = local._half_log_odds(logs[..., None, None, None]).flatten()
    torch.testing.assert_close(found[:2], exact[:2])
    assert exact[2] < found[2] < -40  # beyond a ratio of e^85 it only has to be large


def test_controlnet_and_local_path_tell_bright_lesions_apart():
    network, images = randomise(tiny_network()), torch.zeros(2, 21, 16, 16)
    images[:, :3] = torch.from_numpy(compress_bright(np.array([1.2, 2.4], np.float32)))[:, None, None, None]
    encoded = network.encode(images, torch.tensor([3, 3]))
    for name in ("embedding", "local"):
        first, second = encoded[name]
        assert (first - second).abs().mean() > 0.1 * first.abs().mean(), name


def test_without_control_the_images_are_not_read():
    network, x = randomise(tiny(with_control=False, local_channels=8)), one_tensor()
    other = x.clone()
    other[:, 6:27] = 0
    assert torch.equal(network(other), network(x))


def test_neighbouring_levels_are_alike_to_the_network_and_distant_ones_are_not():
    """What is learnt of a level must hold for its neighbours, yet each level must be one of its own."""
    logsnr = torch.arange(-18, 18, 0.1)
    embedding = get_timestep_embedding(logsnr_to_timestep(logsnr), 64)
    distance, apart = torch.cdist(embedding, embedding), (logsnr[:, None] - logsnr).abs()
    assert distance[apart < 0.15].max() < 0.4 < 3 < distance[apart > 0.95].min()  # of 2 sqrt(32) at the most


def test_scripting_yields_a_trace_that_agrees_on_other_batches():
    network = randomise(tiny(patch_size=2, local_channels=8, with_loads=True))
    x = one_tensor(batch=3, side=16, logsnr=-2.5, arm=6.0)
    torch.testing.assert_close(torch.jit.script(network)(x), network(x))
