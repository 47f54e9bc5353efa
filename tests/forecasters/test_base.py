from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

from bundle.diffusion.samplers import AncestralSampler, DPMSolverPP2M
from bundle.errors import InputError
from bundle.forecasters.base import SCORED_REGIONS, Forecast, Patient, Role, ensembles, findings_of, key_of
from bundle.forecasters.counts import CountModel
from bundle.forecasters.ensemble import Diffusion, OneCall, ensemble_forecast
from bundle.lesions import LesionRule, Volume

SHAPE, AFFINE = (8, 9, 5), np.diag([2.0, 2.0, 3.0, 1.0])
WHITE, CORTEX, WHITE_ANY, CORTEX_ANY = SCORED_REGIONS
COUNTS = CountModel((1.0, 1.0, 0.0, 0.0, -0.5), (0.5, 0.0, 0.0, 0.0, 0.0))


def mask_of(*voxels):
    mask = np.zeros(SHAPE, bool)
    for voxel in voxels:
        mask[voxel] = True
    return mask


def half_white_half_cortex():
    labels = np.full(SHAPE, 2, np.int16)
    labels[4:] = 42
    return Volume(labels, AFFINE)


def test_expectations_of_a_distribution():
    forecast = Forecast(0.5, np.array([0, 3]), np.array([0.5, 0.5]))
    assert forecast.expected_count == 1.5 and forecast.expected_log_count == pytest.approx(np.log(4) / 2)


def test_a_lesion_belongs_to_the_region_that_holds_most_of_it():
    mask = mask_of((2, 2, 2), (3, 2, 2), (4, 2, 2), (7, 7, 1))
    found = findings_of(mask, AFFINE, LesionRule(), half_white_half_cortex())
    assert found.count == 2 and found.volume_ml == pytest.approx(4 * 12 / 1000)
    assert found.presence == dict.fromkeys(SCORED_REGIONS, True)
    found = findings_of(mask_of((2, 2, 2), (3, 2, 2), (4, 2, 2)), AFFINE, LesionRule(), half_white_half_cortex())
    assert found.presence == {WHITE: True, CORTEX: False, WHITE_ANY: True, CORTEX_ANY: True}


def test_without_a_segmentation_no_region_is_reported():
    assert findings_of(mask_of((1, 1, 1)), AFFINE, LesionRule()).presence == {}


def test_an_ensemble_is_counted_member_by_member():
    members = np.stack([mask_of(), mask_of((1, 1, 1)), mask_of((1, 1, 1), (6, 6, 3)), mask_of((1, 1, 1))]).astype(float)
    forecast = ensemble_forecast(members, AFFINE, LesionRule(), half_white_half_cortex())
    assert forecast.p_active == 0.75 and forecast.heatmap[1, 1, 1] == 0.75 and forecast.heatmap[6, 6, 3] == 0.25
    assert dict(zip(forecast.counts, forecast.probabilities)) == {0: 0.25, 1: 0.5, 2: 0.25}
    assert forecast.presence == {WHITE: 0.75, CORTEX: 0.25, WHITE_ANY: 0.75, CORTEX_ANY: 0.25}
    assert forecast.member_counts.tolist() == [0, 1, 2, 1]


@dataclass(frozen=True)
class Settings:
    num_members: int
    horizon_months: float = 11.0


class OfArm:
    """An inferer whose members mark one voxel for each class index."""

    def __init__(self, num_members=2, horizon_months=11.0):
        self.settings = Settings(num_members, horizon_months)

    def with_settings(self, **changes):
        changed = asdict(self.settings) | changes
        return self if changed == asdict(self.settings) else type(self)(**changed)

    def __call__(self, image, network):
        members = torch.zeros(1, self.settings.num_members, *image.shape[2:])
        members[0, :, : int(image[0, -1, 0, 0, 0]) * 2 : 2, 0, 0] = 1
        self.case = image.meta["case"]
        return members

    def heatmap(self, image, network):
        chance = 0.01 * float(image[0, -1, 0, 0, 0]) * self.settings.horizon_months / 11
        return torch.full((1, *image.shape[2:]), chance)


def test_the_model_forecasts_the_arm_within_the_brain_and_does_not_change_the_patient():
    brain = np.ones(SHAPE, bool)
    brain[0] = False
    patient = Patient("sub-7", 3, torch.zeros(8, *SHAPE), brain, AFFINE)
    inferer = OfArm()
    (forecast,) = Diffusion(torch.nn.Linear(2, 2), inferer, LesionRule())(patient)
    assert forecast.member_counts.tolist() == [2, 2] and inferer.case == "sub-7"  # three, one of them outside the brain
    np.testing.assert_allclose(forecast.heatmap, 0.03 * brain, rtol=1e-6)
    assert not patient.image.any()


def test_with_a_count_model_the_count_follows_from_the_heatmap_and_the_members_stay():
    patient = Patient("sub-7", 3, torch.ones(8, *SHAPE), np.ones(SHAPE, bool), AFFINE)
    network = torch.nn.Linear(2, 2)
    members, with_model = (Diffusion(network, OfArm(), LesionRule(), counts=c) for c in (None, COUNTS))
    (drawn,), (forecast,), (alone,) = members(patient), with_model(patient), OneCall(network, OfArm(), COUNTS)(patient)
    volume_ml = 0.03 * np.prod(SHAPE) * 12 / 1000
    assert forecast.expected_count == pytest.approx(np.e * volume_ml, rel=1e-5)
    assert forecast.p_active == pytest.approx(
        1 - forecast.probabilities[0]
    ) and forecast.probabilities.sum() == pytest.approx(1)
    assert drawn.of_members and not forecast.of_members and drawn.p_active == 1
    np.testing.assert_array_equal(forecast.members, drawn.members)
    np.testing.assert_array_equal(alone.heatmap, forecast.heatmap)
    np.testing.assert_array_equal(alone.probabilities, forecast.probabilities)
    assert alone.members is None and alone.presence == {}
    assert with_model.with_members(3).counts == COUNTS and members.key != with_model.key


class Told(OfArm):
    """Notes the months of all its calls."""

    months: ClassVar[list[float]] = []

    def __call__(self, image, network):
        self.months.append(self.settings.horizon_months)
        return super().__call__(image, network)


@pytest.mark.parametrize(("known", "months"), [({"months_w096": 22.0}, 22), ({"months_w096": None}, 12), ({}, 12)])
def test_each_patient_is_forecast_until_the_next_visit_and_until_the_default_where_it_is_unknown(known, months):
    patient = Patient("sub-7", 3, torch.ones(8, *SHAPE), np.ones(SHAPE, bool), AFFINE, covariates=known)
    network, draws = torch.nn.Linear(2, 2), Told(horizon_months=12)
    expected = COUNTS.of_heatmap(patient.image.numpy(), np.full(SHAPE, np.float32(0.03 * months / 11)), AFFINE, months)
    for model in (Diffusion(network, draws, LesionRule(), counts=COUNTS), OneCall(network, draws, COUNTS)):
        (forecast,) = model(patient)
        np.testing.assert_allclose(forecast.heatmap, 0.03 * months / 11, rtol=1e-6)
        np.testing.assert_allclose(forecast.probabilities, expected, rtol=1e-4, atol=1e-9)
    assert Told.months.pop() == months and draws.settings.horizon_months == 12


@pytest.mark.parametrize("months", [2.5, 36.1])
def test_a_visit_beyond_what_can_be_forecast_is_an_error_of_that_patient(months):
    tables = {"months_w096": months}
    patient = Patient("sub-7", 3, torch.ones(8, *SHAPE), np.ones(SHAPE, bool), AFFINE, covariates=tables)
    with pytest.raises(InputError, match=f"sub-7: w096 is {months} months after w048; 3 to 36 can be forecast; corr"):
        Diffusion(torch.nn.Linear(2, 2), OfArm(), LesionRule())(patient)


def test_what_a_count_model_cannot_do_is_refused():
    patient = Patient("sub-7", 3, torch.zeros(8, *SHAPE), np.ones(SHAPE, bool), AFFINE)
    with pytest.raises(InputError, match="one_call needs a count model of the weights; fit it with"):
        OneCall(torch.nn.Linear(2, 2), OfArm(), None)(patient)
    with pytest.raises(ValueError, match="one-call heatmaps"):
        Diffusion(torch.nn.Linear(2, 2), OfArm(), LesionRule(), False, CountModel((0.0,) * 5, (0.0,) * 5))


class Broken(OfArm):
    """Its members, or its heatmap alone, are not finite."""

    def __call__(self, image, network):
        return super().__call__(image, network) * (np.nan if self.settings.num_members == 2 else 1)

    def heatmap(self, image, network):
        return super().heatmap(image, network) / 0


@pytest.mark.parametrize("num_members", [2, 3])
def test_output_that_is_not_finite_is_an_error_and_not_a_forecast_of_no_lesions(num_members):
    patient = Patient("sub-7", 3, torch.zeros(8, *SHAPE), np.ones(SHAPE, bool), AFFINE)
    with pytest.raises(InputError, match="sub-7: the network's output is not finite"):
        Diffusion(torch.nn.Linear(2, 2), Broken(num_members), LesionRule())(patient)


def test_other_weights_or_settings_have_another_key():
    network, other, more = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), OfArm(3)
    keys = {Diffusion(*parts, LesionRule()).key for parts in ((network, OfArm()), (other, OfArm()), (network, more))}
    keys.add(Diffusion(network, OfArm(), LesionRule(), one_call=False).key)
    assert len(keys) == 4 and Diffusion(network, OfArm(), LesionRule()).key in keys


def test_keys_hold_every_field_of_a_setting_and_refuse_objects():
    settings = [1, "a", None, (1, 2), {"x": 1.5}, LesionRule(), LesionRule(threshold=0.4)]
    settings += [AncestralSampler(), AncestralSampler(eta=0), DPMSolverPP2M()]
    assert len({key_of("name", setting=setting) for setting in settings}) == len(settings)
    assert key_of("name", setting=LesionRule(kernel=[1, 1, 1])) == key_of("name", setting=LesionRule())
    assert key_of("name", a=np.float64(2), b=1) == key_of("name", b=1, a=2.0) != key_of("other", a=2.0, b=1)
    with pytest.raises(TypeError, match="object cannot stand in a cache key"):
        key_of("name", setting=[object()])


def test_the_model_declares_its_role_and_that_it_has_members():
    model = Diffusion(torch.nn.Linear(2, 2), OfArm(), LesionRule())
    assert model.role is Role.MODEL and ensembles({"model": model}) == {"model": model}


def test_an_ensemble_of_another_size_is_the_same_model_with_other_settings():
    model = Diffusion(torch.nn.Linear(2, 2), OfArm(), LesionRule())
    larger = model.with_members(5)
    patient = Patient("sub-7", 3, torch.zeros(8, *SHAPE), np.ones(SHAPE, bool), AFFINE)
    assert len(larger(patient)[0].members) == 5 and len(model(patient)[0].members) == 2
    assert larger.key == Diffusion(model.network, OfArm(5), LesionRule()).key != model.key
