import numpy as np
import pytest
from scipy.stats import nbinom

from bundle.arms import ARMS, NULL_ARM
from bundle.errors import InputError
from bundle.simulation.anatomy import SHAPE
from bundle.simulation.drawing import grow, placement
from bundle.simulation.events import PATIENTS_PER_ARM, Protocol, assigned_arm, net2_volume_mm3
from bundle.simulation.oracle import (
    MAX_COUNT,
    Observation,
    Oracle,
    lesion_footprint,
    mean_lesion_shape,
    read_counts,
    read_observation,
)
from bundle.simulation.patient import patient_anatomy, patient_history
from bundle.simulation.trial import simulate_trial

PROTOCOL = Protocol()
K = PROTOCOL.frailty_shape
COUNTS = np.arange(MAX_COUNT)


def closed_form(num_gd: int, num_net2: int, arm: int) -> np.ndarray:
    """Counts at w096 without the T2 count: gamma and Poisson are conjugate, so every factor is negative binomial."""
    q, (rate_48, rate_96) = PROTOCOL.partial_responders[arm], PROTOCOL.rates[arm]
    shape, rate = K + num_gd, K + PROTOCOL.gd_mean  # posterior of the frailty at w000
    seen_partial = q * nbinom.pmf(num_net2, shape, rate / (rate + rate_48))
    seen_full = (1 - q) * (num_net2 == 0)
    partial = seen_partial / (seen_partial + seen_full)
    shape, rate = shape + num_net2, rate + rate_48
    pmf = partial * nbinom.pmf(COUNTS, shape, rate / (rate + rate_96))
    pmf[0] += 1 - partial
    return pmf


@pytest.mark.parametrize("arm", range(len(ARMS)))
@pytest.mark.parametrize(("num_gd", "num_net2"), [(0, 0), (1, 0), (0, 1), (3, 12), (9, 60)])
def test_without_the_t2_count_the_forecast_is_the_closed_form(num_gd, num_net2, arm):
    forecast = Oracle()(Observation(num_gd=num_gd, num_net2=num_net2), arm)
    exact = closed_form(num_gd, num_net2, arm)
    np.testing.assert_allclose(forecast.count_pmf[:MAX_COUNT], exact, atol=1e-10)
    assert forecast.p_active == pytest.approx(1 - exact[0], abs=1e-10)
    assert forecast.expected_count == pytest.approx(exact @ COUNTS, rel=1e-8)
    assert forecast.expected_log_count == pytest.approx(exact @ np.log1p(COUNTS), rel=1e-8)


@pytest.mark.parametrize("arm", range(len(ARMS)))
def test_a_patient_never_seen_gets_the_arms_prior(arm):
    """The frailty of a partial responder is then Gamma(k, 1/k); the mean is that of the paper's table."""
    forecast, q, rate = Oracle()(Observation(), arm), PROTOCOL.partial_responders[arm], PROTOCOL.rates[arm, 1]
    assert forecast.partial_response == pytest.approx(q, abs=1e-10)
    assert forecast.expected_count == pytest.approx(q * rate, rel=1e-8)
    assert forecast.p_active == pytest.approx(q * (1 - (1 + rate / K) ** -K), abs=1e-10)
    assert forecast.count_pmf.sum() == pytest.approx(1, abs=1e-12)


def test_with_the_t2_count_it_agrees_with_brute_force():
    """Four million patients of the prior, weighted by how likely they show what was seen."""
    seen, arm = Observation(num_gd=1, num_t2=180, num_net2=2), 3
    rng = np.random.default_rng(0)
    frailty = rng.gamma(K, 1 / K, 4_000_000)
    mean = PROTOCOL.t2_mean_given(frailty)
    weight = np.exp(-(PROTOCOL.gd_mean + PROTOCOL.rates[arm, 0]) * frailty) * frailty**3  # one Gd, two NET2
    weight *= (mean / (mean + PROTOCOL.t2_size)) ** 180 * (1 + mean / PROTOCOL.t2_size) ** -PROTOCOL.t2_size
    weight /= weight.sum()
    active = 1 - np.exp(-PROTOCOL.rates[arm, 1] * frailty)
    forecast = Oracle()(seen, arm)
    for exact, value in ((forecast.p_active, active), (forecast.expected_count, PROTOCOL.rates[arm, 1] * frailty)):
        estimate = weight @ value
        error = np.sqrt(((weight * (value - estimate)) ** 2).sum())
        assert abs(exact - estimate) < 4 * error < 0.01 * estimate
    assert forecast.expected_count > Oracle()(Observation(num_gd=1, num_t2=10, num_net2=2), arm).expected_count


def test_an_unknown_arm_is_the_mixture_weighed_by_shares_and_by_what_was_seen():
    seen = Observation(num_gd=1, num_net2=3)
    shape, rate = K + 1, K + PROTOCOL.gd_mean
    evidence = [
        share * q * nbinom.pmf(3, shape, rate / (rate + r))
        for share, q, r in zip(PATIENTS_PER_ARM, PROTOCOL.partial_responders, PROTOCOL.rates[:, 0])
    ]
    mixture = np.average([Oracle()(seen, arm).count_pmf for arm in range(len(ARMS))], axis=0, weights=evidence)
    np.testing.assert_allclose(Oracle()(seen, NULL_ARM).count_pmf, mixture, atol=1e-10)


def test_it_is_calibrated_over_a_trial():
    """Among patients with like forecasts, as many are active as was said; so are the counts."""
    n = 3000
    oracle, histories = Oracle(), [patient_history(11, i) for i in range(n)]
    arms = [assigned_arm(11, i) for i in range(n)]
    seen = [Observation(h.num_gd, h.num_t2, h.count(a, 0)) for h, a in zip(histories, arms)]
    truth = np.array([h.count(a, 1) for h, a in zip(histories, arms)])
    forecasts = [oracle(s, a) for s, a in zip(seen, arms)]
    p = np.array([f.p_active for f in forecasts])
    for group in np.array_split(np.argsort(p), 10):
        error = np.sqrt((p[group] * (1 - p[group])).sum())
        assert abs((truth[group] > 0).sum() - p[group].sum()) < 4 * error
    residual = truth - [f.expected_count for f in forecasts]
    assert abs(residual.mean()) < 4 * residual.std() / np.sqrt(n)


def test_the_footprint_adds_up_to_the_mean_volume_and_covers_what_lesions_cover():
    anatomy, lesions = patient_anatomy(11, 0), np.zeros(SHAPE, bool)
    lesions[90:96, 120:140, 6:9] = True
    footprint = lesion_footprint(anatomy, lesions)
    assert footprint[lesions | ~anatomy.parenchyma].max() == 0
    quantiles = (np.arange(1000) + 0.5) / 1000
    mean_voxels = np.maximum(1, np.round(net2_volume_mm3(quantiles) / 3)).mean()
    assert mean_lesion_shape().sum() == pytest.approx(mean_voxels, rel=1e-5)
    assert footprint.sum() == pytest.approx(mean_voxels, rel=0.01)

    # Monte Carlo, grown as the simulator does: in eight sets of voxels of equal expected share, from the least to the
    # most likely.
    order = np.argsort(footprint, axis=None)
    group = np.empty(footprint.size, int)
    group[order] = np.minimum(8 * footprint.ravel()[order].cumsum(dtype=float) / footprint.sum(dtype=float), 7)
    group = group.reshape(SHAPE)
    rng, n = np.random.default_rng(0), 1000
    cumulative = placement(anatomy, lesions).ravel().cumsum(dtype=float)
    starts = np.unravel_index(np.searchsorted(cumulative, rng.random(n) * cumulative[-1], side="right"), SHAPE)
    volumes_mm3 = net2_volume_mm3(rng.permutation(quantiles))
    free = anatomy.parenchyma & ~lesions
    drawn = np.array(
        [np.bincount(group[grow(free, start, v, rng)], minlength=8) for start, v in zip(zip(*starts), volumes_mm3)]
    )
    error = (drawn.mean(0) - np.bincount(group.ravel(), footprint.ravel())) / (drawn.std(0) / np.sqrt(n))
    assert abs(error).max() < 4


def test_the_heatmap_is_the_chance_that_any_lesion_covers_a_voxel():
    """Closed form: lesions that cover a voxel are a thinned process, so its chance is that of a smaller rate."""
    anatomy = patient_anatomy(11, 0)
    observation = Observation(num_gd=2, num_net2=5, anatomy=anatomy, lesions=np.zeros(SHAPE, bool))
    forecast, arm = Oracle()(observation, 0), 0
    rate = K + PROTOCOL.gd_mean + PROTOCOL.rates[arm, 0]
    exact = 1 - (1 + PROTOCOL.rates[arm, 1] * forecast.footprint.astype(float) / rate) ** -(K + 7)
    np.testing.assert_allclose(forecast.heatmap, exact, atol=1e-6)
    assert forecast.heatmap.max() < 0.5
    assert Oracle()(Observation(num_gd=2, num_net2=5), 0).heatmap is None


def test_observations_are_read_from_a_data_set(tmp_path):
    simulate_trial(tmp_path / "trial", 1, seed=11, workers=1)
    history, arm = patient_history(11, 0), assigned_arm(11, 0)
    observation = read_observation(tmp_path / "trial", "sub-0001")
    assert (observation.num_gd, observation.num_t2, observation.num_net2) == (
        history.num_gd,
        history.num_t2,
        history.count(arm, 0),
    )
    assert read_counts(tmp_path / "trial", "sub-0001").num_net2 == history.count(arm, 0)
    np.testing.assert_array_equal(observation.anatomy.tissue, patient_anatomy(11, 0).tissue)
    assert 0 < observation.lesions.sum() < observation.anatomy.parenchyma.sum()
    with pytest.raises(InputError, match="sub-0002.*no readable truth"):
        read_counts(tmp_path / "trial", "sub-0002")
    (mask,) = (tmp_path / "trial").rglob("*w048_label-T2lesion_mask.nii.gz")
    mask.write_bytes(mask.read_bytes()[:100])
    with pytest.raises(InputError, match="sub-0001.*no readable T2 lesion mask"):
        read_observation(tmp_path / "trial", "sub-0001")


@pytest.mark.parametrize("bad", [{"num_gd": -1}, {"num_net2": -2}, {"lesions": np.zeros(SHAPE, bool)}])
def test_impossible_observations_are_refused(bad):
    with pytest.raises(ValueError, match="negative|both"):
        Observation(**bad)
