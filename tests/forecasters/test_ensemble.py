import json
from contextlib import nullcontext

import nibabel as nib
import pytest
import torch
from conftest import inference_config
from monai.data import MetaTensor
from torch import nn

from bundle.data.bids import find_case
from bundle.data.transforms import LoadCased
from bundle.diffusion.predictions import BinaryPrediction, ContrastwisePrediction, X0Prediction
from bundle.diffusion.samplers import AncestralSampler, DPMSolverPP2M
from bundle.diffusion.schedules import Cosine, LogSNRUniformGrid
from bundle.diffusion.slabs import Condition, SlabDenoiser, VolumeCorrection, one_call_heatmap
from bundle.errors import InputError
from bundle.forecasters.ensemble import EnsembleInferer
from bundle.networks.slab_unet import ForecastNetwork
from bundle.runtime import has_fast_bf16
from bundle.seeding import Streams

S = 3


class Prior(nn.Module):
    """Answers with a fixed prior for NET2, half log-odds by voxel, and for each arm a shift; no image is read."""

    def __init__(self, probability=0.3):
        super().__init__()
        self.half_log_odds, self.calls = torch.logit(torch.tensor(probability)) / 2, 0

    def forward(self, x):
        self.calls += 1
        flair = torch.zeros_like(x[:, :S])
        return torch.cat([flair, torch.full_like(flair, self.half_log_odds) + 0 * x[:, -1:]], dim=1)


ANCESTRAL = AncestralSampler()


def inferer(sampler=ANCESTRAL, **changes):
    arguments = dict(num_members=4, num_steps=30, reuse_within=0.0, foreground_weight=1.0, amp=False, progress=False)
    prediction = ContrastwisePrediction((X0Prediction(), BinaryPrediction()))
    return EnsembleInferer(Cosine(10, -10), LogSNRUniformGrid(), sampler, prediction, **arguments | changes)


def image(batch=1, arm=2.0, cases=None):
    x = torch.randn(batch, 8, 6, 6, S, generator=torch.Generator().manual_seed(0))
    x[:, 7] = arm
    return MetaTensor(x, meta={"case": cases} if cases else {})


def test_the_condition_is_read_off_the_image_tensor():
    x = image(2, arm=5.0)
    condition = Condition.of(x)
    assert condition.arm.tolist() == [5, 5]
    assert torch.equal(condition.images[:, 3 * S + 1], x[:, 3, ..., 1])  # w048 FLAIR, second slice


@pytest.mark.parametrize("probability", [0.05, 0.3])
def test_members_have_the_frequency_of_the_exact_denoiser(probability):
    """Voxels independent with a known prior: the ensemble must show that frequency."""
    members = inferer(num_members=40, num_steps=60, member_batch=40)(image(), Prior(probability))
    assert members.shape == (1, 40, 6, 6, S) and members.min() >= 0 and members.max() <= 1
    marked = (members > 0.5).float()
    n = marked.numel()
    assert abs(marked.mean() - probability) < 4 * (probability * (1 - probability) / n) ** 0.5 + 0.02 * probability
    assert ((members < 0.01) | (members > 0.99)).float().mean() > 0.99  # finished samples are decided


def test_the_one_call_heatmap_is_the_prior():
    network = Prior(0.3)
    denoise = SlabDenoiser(network, inferer().settings.prediction, foreground_weight=1.0).given(Condition.of(image(2)))
    heatmap = one_call_heatmap(denoise, (2, 2 * S, 6, 6), Cosine(20, -20))
    torch.testing.assert_close(heatmap, torch.full((2, 6, 6, S), 0.3), rtol=0, atol=1e-3)
    assert network.calls == 1


def test_the_heatmap_takes_one_call_and_depends_on_the_patient_alone():
    network = Prior(0.3)
    draws = inferer().with_settings(schedule=Cosine(20, -20))
    heatmap = draws.heatmap(image(2, cases=["a", "b"]), network)
    torch.testing.assert_close(heatmap, torch.full((2, 6, 6, S), 0.3), rtol=0, atol=1e-3)
    assert network.calls == 1
    assert torch.equal(draws.with_settings(seed=5).heatmap(image(2, cases=["c", "d"]), network), heatmap)
    draws.with_settings(guidance_scale=2.0, arm_guidance_scale=2.0).heatmap(image(), network)
    assert network.calls == 4  # guided as members are


def test_a_horizon_of_11_months_changes_nothing():
    correction = VolumeCorrection(-2.0, (0.2, 0.4))
    for changes in ({}, {"volume_correction": correction}, {"foreground_weight": 10.0}):
        before, told = (inferer(num_steps=6, **changes, **given) for given in ({}, {"horizon_months": 11}))
        for draw in (lambda of: of(image(), Prior()), lambda of: of.heatmap(image(), Prior())):
            assert torch.equal(draw(before), draw(told))


@pytest.mark.parametrize("months", [3, 5.5, 22, 36])
def test_odds_of_the_heatmap_are_in_proportion_to_the_months(months):
    near, far = (inferer(horizon_months=m).with_settings(schedule=Cosine(20, -20)) for m in (11, months))
    one, other = (draws.heatmap(image(), Prior(0.05)) for draws in (near, far))
    torch.testing.assert_close(other / (1 - other), months / 11 * one / (1 - one))


def test_members_of_more_months_have_more_from_the_same_noise():
    """What is marked in a shorter horizon is marked in a longer one."""
    draws = inferer(DPMSolverPP2M(), num_members=20, num_steps=40, member_batch=20)
    short, usual, long = (draws.with_settings(horizon_months=m)(image(), Prior(0.05)) > 0.5 for m in (5.5, 11, 22))
    assert (short <= usual).all() and (usual <= long).all()
    assert 0 < short.sum() < 0.8 * usual.sum() < 0.64 * long.sum()


@pytest.mark.parametrize("months", [2.9, 37, -11, float("nan"), None, True, "11"])
def test_a_horizon_that_cannot_be_forecast_is_refused(months):
    with pytest.raises(InputError, match=f"horizon_months={months} is not a number between 3 and 36; correct --hor"):
        inferer(horizon_months=months)


@pytest.mark.parametrize("sampler", [AncestralSampler(), DPMSolverPP2M()])
def test_a_member_does_not_depend_on_the_batch(sampler):
    one, three, all_at_once = (
        inferer(sampler, member_batch=batch)(image(cases=["sub-1"]), Prior()) for batch in (1, 3, 4)
    )
    torch.testing.assert_close(one, three)
    torch.testing.assert_close(one, all_at_once)


def test_seeds_come_from_case_member_and_seed_but_not_from_the_arm_or_place():
    alone = inferer()(image(cases=["sub-1"]), Prior())
    pair = inferer()(image(2, cases=["sub-0", "sub-1"]), Prior())
    torch.testing.assert_close(pair[1], alone[0])
    torch.testing.assert_close(inferer()(image(arm=5.0, cases=["sub-1"]), Prior()), alone)
    assert not torch.equal(pair[0], pair[1])
    assert not torch.equal(inferer(seed=1)(image(cases=["sub-1"]), Prior()), alone)
    assert not torch.equal(alone[0, 0], alone[0, 1])


@pytest.mark.parametrize("guidance_scale, calls", [(1.0, 1), (2.0, 2)])
def test_calls_are_steps_times_batches(guidance_scale, calls):
    network = Prior()
    inferer(num_members=5, num_steps=7, member_batch=2, guidance_scale=guidance_scale)(image(), network)
    assert network.calls == calls * 7 * 3


def test_guidance_in_an_interval_doubles_the_calls_there_alone():
    network = Prior()
    draws = inferer(num_members=2, num_steps=7, guidance_scale=2.0, guidance_interval=(-2.0, 3.0))
    levels = draws.settings.grid(draws.settings.schedule, 7)[:-1]
    inside = ((levels >= -2) & (levels <= 3)).sum().item()
    draws(image(), network)
    assert 0 < inside < 7 and network.calls == 7 + inside


@pytest.mark.parametrize("guidance_scale, calls", [(1.0, 1), (2.0, 2)])
def test_the_backbone_is_reused_within_each_batch_and_call_of_guidance(guidance_scale, calls):
    class WithLocalPath(Prior):
        encode, local_calls = staticmethod(lambda images, arm: {}), 0

        def backbone(self, z_t, logsnr, arm, encoded):
            return self(z_t)

        def add_local(self, backbone, z_t, logsnr, encoded):
            self.local_calls += 1
            return backbone

    network = WithLocalPath()
    draws = inferer(num_members=5, num_steps=20, member_batch=2, guidance_scale=guidance_scale, reuse_within=2.5)
    draws(image(), network)  # steps of 1 from -10 to 10: the backbone at every third
    assert network.calls == calls * 7 * 3 and network.local_calls == calls * 20 * 3


@pytest.mark.parametrize("sampler", [AncestralSampler(), DPMSolverPP2M()])
def test_a_walk_asks_the_device_for_no_value(sampler, monkeypatch):
    """On a GPU each would be a round trip; tensors on "meta" have none to give."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # knows no "meta"
    small = dict(channels=(8, 16), attention_levels=(False, True), num_head_channels=8, norm_num_groups=4)
    network = ForecastNetwork(S, conditioning_channels=8, local_channels=4, with_loads=True, **small).to("meta")
    draws = inferer(sampler, num_steps=6, guidance_scale=1.5, guidance_interval=(-5, 5), reuse_within=4.0)
    volumes = torch.zeros(1, 8, 16, 16, S, device="meta")
    x0 = draws.sample(draws.denoise_given(network, volumes), (2 * S, 16, 16), Streams([1, 2]), torch.device("meta"))
    assert x0.is_meta and x0.shape == (2, 16, 16, S)


def test_the_batch_shrinks_when_memory_is_short():
    class Small(Prior):
        def forward(self, x):
            if len(x) > 2:
                raise torch.OutOfMemoryError("too much")
            return super().forward(x)

    network = Small()
    members = inferer(num_members=5, num_steps=2, member_batch=5)(image(cases=["a"]), network)
    assert members.shape[1] == 5 and network.calls == 2 * 3
    torch.testing.assert_close(members, inferer(num_members=5, num_steps=2)(image(cases=["a"]), Prior()))


def test_settings_name_all_that_members_depend_on_in_plain_types():
    plain = json.loads(json.dumps(inferer(AncestralSampler(eta=0.5), guidance_interval=[-1, 2]).settings.as_dict()))
    assert plain["sampler"] == {"type": "AncestralSampler", "eta": 0.5} and plain["guidance_interval"] == [-1, 2]
    assert plain["schedule"] == {"type": "Cosine", "logsnr_max": 10, "logsnr_min": -10}
    assert plain["prediction"]["contrasts"] == [{"type": "X0Prediction"}, {"type": "BinaryPrediction"}]
    assert plain["grid"] == {"type": "LogSNRUniformGrid", "logsnr_min": "-inf", "logsnr_max": "inf"}  # strict JSON
    assert plain["arm_guidance_scale"] == 1 and "member_batch" not in plain
    assert inferer().settings == inferer(member_batch=3).settings != inferer(seed=1).settings


@pytest.mark.parametrize("name", ["num_members", "num_steps", "member_batch"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0"):
        inferer(**{name: 0})


@pytest.mark.slow
@pytest.mark.skipif(not has_fast_bf16(torch.device("cpu")), reason="bf16, which is the default elsewhere, is slow here")
def test_bf16_changes_neither_members_nor_heatmap_of_the_shipped_weights(trial):
    """Beyond 4 % of their voxels, and 2 % of the expected volume; of the patient with most lesions new at w048."""
    config = inference_config(num_members=2, progress=False, device="cpu", amp=True)
    network, half = (config.get_parsed_content(name) for name in ("network", "inferer"))
    single = half.with_settings(amp=False)
    load = LoadCased(grid=config.get_parsed_content("grid"))
    cases = [find_case(folder) for folder in sorted(trial.glob("sub-*"))]
    active = max(cases, key=lambda case: nib.load(case.volumes["net2_w048"]).get_fdata().sum())
    image = load({"image": str(trial / active.id), "arm": "placebo"})["image"][None]
    heatmaps = [draws.heatmap(image, network) for draws in (half, single)]
    members = [draws(image, network) > 0.5 for draws in (half, single)]
    assert not torch.equal(*heatmaps) and members[1].sum() > 25
    assert (heatmaps[0] - heatmaps[1]).abs().sum() < 0.02 * heatmaps[1].sum()
    assert (members[0] != members[1]).sum() < 0.04 * members[1].sum()
