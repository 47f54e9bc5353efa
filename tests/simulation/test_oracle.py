from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import gamma, kstest, nbinom, norm

from bundle.arms import ARMS, NULL_ARM
from bundle.simulation.anatomy import SHAPE
from bundle.simulation.covariates import AGES, CovariateModel, Covariates
from bundle.simulation.disease import patient_anatomy, patient_history
from bundle.simulation.drawing import QUIET, SMOULDERING, Surroundings
from bundle.simulation.events import assigned_arm
from bundle.simulation.observation import Observation, observe
from bundle.simulation.oracle import COUNTS, FRAILTY, MAX_COUNT, Oracle, poisson_mixture
from bundle.simulation.protocol import MONTHS, PATIENTS_PER_ARM, PRESETS, WEEKS_PER_MONTH, Protocol
from bundle.simulation.territories import NUM_TERRITORIES

pytestmark = pytest.mark.slow

PROTOCOL, CLINIC = Protocol(), PRESETS["clinic"]
K = PROTOCOL.frailty_shape
YEAR = (MONTHS, MONTHS)


def closed_form(num_gd: int, num_net2: int, arm: int, months=YEAR) -> np.ndarray:
    """Counts at w096 from gadolinium and NET2: gamma and Poisson are conjugate, each factor is negative binomial."""
    q = PROTOCOL.partial_responders[arm]
    rate_48, rate_96 = PROTOCOL.rates[arm] * np.array(months) / MONTHS
    shape, rate = K + num_gd, K + PROTOCOL.gd_mean  # posterior of the frailty at w000
    seen_partial = q * nbinom.pmf(num_net2, shape, rate / (rate + rate_48))
    seen_full = (1 - q) * (num_net2 == 0)
    partial = seen_partial / (seen_partial + seen_full)
    shape, rate = shape + num_net2, rate + rate_48
    pmf = partial * nbinom.pmf(COUNTS[:-1], shape, rate / (rate + rate_96))
    pmf[0] += 1 - partial
    return pmf


@pytest.mark.parametrize("arm", range(len(ARMS)))
@pytest.mark.parametrize(("num_gd", "num_net2"), [(0, 0), (1, 0), (0, 1), (3, 12), (9, 60)])
def test_with_counts_alone_the_forecast_is_the_closed_form(num_gd, num_net2, arm):
    forecast = Oracle()(Observation(num_gd=num_gd, num_net2=num_net2, months=YEAR), arm)
    exact = closed_form(num_gd, num_net2, arm)
    np.testing.assert_allclose(forecast.count_pmf[:MAX_COUNT], exact, atol=1e-10)
    assert forecast.p_active == pytest.approx(1 - exact[0], abs=1e-10)
    assert forecast.expected_count == pytest.approx(exact @ COUNTS[:-1], rel=1e-8)
    assert forecast.expected_log_count == pytest.approx(exact @ np.log1p(COUNTS[:-1]), rel=1e-8)


def test_rates_follow_the_months():
    forecast = Oracle()(Observation(num_gd=2, num_net2=3, months=(7.0, 19.0)), 0)
    np.testing.assert_allclose(forecast.count_pmf[:MAX_COUNT], closed_form(2, 3, 0, (7.0, 19.0)), atol=1e-10)


def test_unknown_months_are_summed_over():
    """Weighed by how likely each length shows the count, the enhancing lesions and the growth of the ventricles."""
    protocol = replace(PROTOCOL, interval_months=(6.0, 24.0))
    seen = Observation(num_gd=1, num_net2=6, num_enhancing=2, growth_mm=0.3)
    parts, evidence = [], []
    for months in protocol.interval_months:
        rate = PROTOCOL.rates[0, 0] * months / MONTHS
        shape, scale = protocol.growth_shape * months / 12, protocol.growth_mm_per_year / protocol.growth_shape
        recent = protocol.gd_weeks / (months * WEEKS_PER_MONTH)
        evidence.append(
            nbinom.pmf(6, K + 1, (K + 1) / (K + 1 + rate))
            * recent**2
            * (1 - recent) ** 4
            * gamma.pdf(0.3, shape, scale=scale)
        )
        parts.append(np.mean([closed_form(1, 6, 0, (months, horizon)) for horizon in protocol.interval_months], axis=0))
    exact = np.average(parts, axis=0, weights=evidence)
    np.testing.assert_allclose(Oracle(protocol)(seen, 0).count_pmf[:MAX_COUNT], exact, atol=1e-10)


@pytest.mark.parametrize("arm", range(len(ARMS)))
def test_a_patient_never_seen_gets_the_arms_prior(arm):
    """The frailty of a partial responder is then Gamma(k, 1/k); the mean is that of the paper's table."""
    forecast = Oracle()(Observation(months=YEAR), arm)
    q, rate = PROTOCOL.partial_responders[arm], PROTOCOL.rates[arm, 1]
    assert forecast.partial_response == pytest.approx(q, abs=1e-10)
    assert forecast.expected_count == pytest.approx(q * rate, rel=1e-8)
    assert forecast.p_active == pytest.approx(q * (1 - (1 + rate / K) ** -K), abs=1e-10)
    assert forecast.count_pmf.sum() == pytest.approx(1, abs=1e-12)


def test_with_every_sign_it_agrees_with_brute_force():
    """Four million patients of the prior, weighted by how likely they show what was seen."""
    arm, covariates = 3, Covariates(age=29, sex="F", disease_duration=3, relapses=2)
    seen = Observation(
        num_gd=1,
        num_t2=120,
        num_smouldering=2,
        num_active=1,
        num_net2=1,
        diffuse=0.15,
        covariates=covariates,
        months=YEAR,
    )
    rng, n = np.random.default_rng(0), 4_000_000
    frailty, partial = rng.gamma(K, 1 / K, n), rng.random(n) < PROTOCOL.partial_responders[arm]
    rate = PROTOCOL.rates[arm]
    weight = frailty * np.exp(-PROTOCOL.gd_mean * frailty)  # one gadolinium lesion
    weight *= frailty**2 * np.exp(-PROTOCOL.smouldering_mean * frailty)
    stays = np.where(partial, PROTOCOL.stays_active, PROTOCOL.stays_active_treated)
    weight *= stays * (1 - stays) * np.where(partial, frailty * np.exp(-rate[0] * frailty), 0)
    mean = PROTOCOL.t2_mean_given(frailty, 3)
    weight *= (mean / (mean + PROTOCOL.t2_size)) ** 120 * (1 + mean / PROTOCOL.t2_size) ** -PROTOCOL.t2_size
    signal = PROTOCOL.diffuse_level + PROTOCOL.diffuse_slope * PROTOCOL.soft_log(frailty)
    weight *= norm.pdf(0.15, signal, PROTOCOL.diffuse_slope * PROTOCOL.diffuse_noise)
    grid = np.exp(np.linspace(-25, 4, 6000))
    model = CovariateModel(PROTOCOL, grid)
    by_frailty = model.age[:, AGES == 29][:, 0] * model.female * model.relapses[:, 2]
    weight *= np.interp(np.log(frailty), np.log(grid), by_frailty)
    weight /= weight.sum()
    forecast = Oracle()(seen, arm)
    active = partial * (1 - np.exp(-rate[1] * frailty))
    for exact, value in ((forecast.p_active, active), (forecast.expected_count, partial * rate[1] * frailty)):
        estimate = weight @ value
        error = np.sqrt(((weight * (value - estimate)) ** 2).sum())
        assert abs(exact - estimate) < 4 * error < 0.02 * estimate


def test_a_smouldering_lesion_that_has_died_down_tells_of_the_response():
    """Nothing else seen, Bayes' rule is a line."""
    arm, q = 4, PROTOCOL.partial_responders[4]
    stays, treated = PROTOCOL.stays_active, PROTOCOL.stays_active_treated
    for active in range(4):
        stated = Oracle()(Observation(num_smouldering=3, num_active=active, months=YEAR), arm).partial_response
        partial, full = (s**active * (1 - s) ** (3 - active) for s in (stays, treated))
        assert stated == pytest.approx(q * partial / (q * partial + (1 - q) * full), abs=1e-10)


def test_lesions_not_told_from_smouldering_ones_are_the_sum_of_both():
    seen = Observation(num_t2=4, months=YEAR)
    stated = [Observation(num_t2=4 - s, num_smouldering=s, months=YEAR) for s in range(5)]
    oracle, prior = Oracle(), K * np.log(FRAILTY) - K * FRAILTY
    evidence = [np.logaddexp.reduce(prior + oracle._log_baseline(o)) for o in stated]
    weights = np.exp(evidence - np.max(evidence))
    mixture = np.average([oracle(o, 0).count_pmf for o in stated], axis=0, weights=weights)
    np.testing.assert_allclose(oracle(seen, 0).count_pmf, mixture, atol=1e-10)


def test_an_unknown_arm_is_the_mixture_weighed_by_shares_and_by_what_was_seen():
    seen = Observation(num_gd=1, num_net2=3, months=YEAR)
    shape, rate = K + 1, K + PROTOCOL.gd_mean
    evidence = [
        fraction * q * nbinom.pmf(3, shape, rate / (rate + r))
        for fraction, q, r in zip(PATIENTS_PER_ARM, PROTOCOL.partial_responders, PROTOCOL.rates[:, 0])
    ]
    mixture = np.average([Oracle()(seen, arm).count_pmf for arm in range(len(ARMS))], axis=0, weights=evidence)
    np.testing.assert_allclose(Oracle()(seen, NULL_ARM).count_pmf, mixture, atol=1e-10)


def test_a_mixture_of_one_mean_is_poisson():
    weights = np.zeros(3)
    weights[1] = 0.25
    pmf = poisson_mixture(np.array([1e-5, 2.0, 900.0]), weights)
    assert pmf.sum() == pytest.approx(0.25)
    assert pmf[3] == pytest.approx(0.25 * np.exp(-2) * 8 / 6)


@pytest.mark.parametrize(("preset", "n"), [("trial", 800), pytest.param("clinic", 250, marks=pytest.mark.slow)])
def test_it_is_calibrated_over_a_trial(preset, n):
    """Among patients with like forecasts, as many are active as was said; so are the counts, and the PIT is uniform."""
    protocol = PRESETS[preset]
    oracle, histories = Oracle(protocol), [patient_history(11, i, protocol) for i in range(n)]
    arms = [assigned_arm(11, i) for i in range(n)]
    truth = np.array([h.count(a, 1) for h, a in zip(histories, arms)])
    forecasts = [oracle(observe(h, a, protocol), a if h.sees_arm else NULL_ARM) for h, a in zip(histories, arms)]
    p, pmf = np.array([f.p_active for f in forecasts]), np.array([f.count_pmf for f in forecasts])
    for group in np.array_split(np.argsort(p), 8):
        error = np.sqrt((p[group] * (1 - p[group])).sum())
        assert abs((truth[group] > 0).sum() - p[group].sum()) < 4 * error
    residual = truth - [f.expected_count for f in forecasts]
    assert abs(residual.mean()) < 4 * residual.std() / np.sqrt(n)
    at = np.arange(n)
    pit = np.cumsum(pmf, 1)[at, truth] - np.random.default_rng(0).random(n) * pmf[at, truth]
    assert kstest(pit, "uniform").pvalue > 0.001


def test_the_posterior_of_the_frailty_is_calibrated():
    """P(frailty below the truth | what is seen) is uniform over patients."""
    n, oracle = 400, Oracle()
    below = []
    for i in range(n):
        history, arm = patient_history(5, i), assigned_arm(5, i)
        weights = oracle.posterior_frailty(observe(history, arm, PROTOCOL), arm)
        below.append(weights[history.frailty >= FRAILTY].sum())
    assert kstest(below, "uniform").pvalue > 0.001


def test_places_are_the_conjugate_posterior():
    """Brute force: of a million spatial laws those that gave the lesions seen, weighted."""
    counts = np.zeros(NUM_TERRITORIES, int)
    counts[[0, 5, 9, 10]] = 2, 1, 3, 4
    rng = np.random.default_rng(0)
    laws = rng.dirichlet(PROTOCOL.dirichlet, 400_000)
    weight = np.prod(laws[:, counts > 0] ** counts[counts > 0], axis=1)
    estimate = weight @ laws / weight.sum()
    error = np.sqrt(((weight[:, None] * (laws - estimate)) ** 2).sum(0)) / weight.sum()
    stated = Oracle()(Observation(territories=counts, months=YEAR), 0).law
    assert (abs(stated - estimate) < 4.5 * error).all()
    assert stated.sum() == pytest.approx(1)


def test_places_are_calibrated_over_a_trial():
    """New lesions fall into territories as often as was said; and the log score beats the population's law."""
    z, gain, oracle = [], [], Oracle()
    for i in range(1500):
        history = patient_history(13, i)
        new = [e.territory for e, _ in zip(history.events[1], history.weeks[0][1])]
        if new:
            stated = oracle._dirichlet(observe(history, 0, PROTOCOL))
            stated = stated / stated.sum()
            z.append(np.bincount(new, minlength=NUM_TERRITORIES) - len(new) * stated)
            gain += np.log(stated[new] / (PROTOCOL.dirichlet / PROTOCOL.concentration)[new]).tolist()
    z = np.array(z)
    assert (abs(z.sum(0)) < 4 * np.sqrt((z**2).sum(0))).all()
    assert np.mean(gain) > 0.3


def test_the_heatmap_is_the_chance_that_any_lesion_covers_a_voxel():
    """Closed form: lesions that cover a voxel are a thinned process, so its chance is that of a smaller rate."""
    anatomy, arm = patient_anatomy(11, 0), 0
    status = np.zeros(SHAPE, np.uint8)
    status[90:96, 120:140, 6:9], status[120:124, 120:124, 7] = QUIET, SMOULDERING
    status[~anatomy.parenchyma] = 0
    counts = Observation(num_gd=2, num_net2=5, months=YEAR)
    forecast = Oracle()(replace(counts, anatomy=anatomy, status=status), arm)
    rate = K + PROTOCOL.gd_mean + PROTOCOL.rates[arm, 0]
    exact = 1 - (1 + PROTOCOL.rates[arm, 1] * forecast.footprint.astype(float) / rate) ** -(K + 7)
    np.testing.assert_allclose(forecast.heatmap, exact, atol=2e-5)
    new, enlarged = Surroundings(anatomy, status, PROTOCOL.hazards).starts(forecast.law, PROTOCOL.enlarging)
    np.testing.assert_allclose(forecast.starts, new + enlarged)
    assert forecast.starts.sum() == pytest.approx(1)
    assert Oracle()(counts, 0).heatmap is None


@pytest.mark.parametrize(
    "bad",
    [{"num_gd": -1}, {"num_net2": -2}, {"status": np.zeros(SHAPE, np.uint8)}, {"num_smouldering": 1, "num_active": 2}],
)
def test_impossible_observations_are_refused(bad):
    with pytest.raises(ValueError, match="negative|both|greater"):
        Observation(**bad)


def test_outcomes_drawn_from_a_forecast_have_its_counts_and_places():
    anatomy, rng = patient_anatomy(3, 1), np.random.default_rng(0)
    status = np.zeros(SHAPE, np.uint8)
    status[tuple(np.argwhere(anatomy.susceptibility > 0)[1000])] = SMOULDERING
    counts = np.bincount([3] * 40, minlength=NUM_TERRITORIES)
    oracle = Oracle(replace(PROTOCOL, enlarging=0.0))
    forecast = oracle(Observation(num_gd=2, territories=counts, months=YEAR, anatomy=anatomy, status=status), 0)
    drawn = [oracle.draw(forecast, rng) for _ in range(200)]
    number = np.array([len(lesions) for lesions in drawn])
    spread = np.sqrt((forecast.count_pmf @ COUNTS**2 - forecast.expected_count**2) / 200)
    assert abs(number.mean() - forecast.expected_count) < 3 * spread
    p = forecast.p_active
    assert abs((number > 0).mean() - p) < 3 * np.sqrt(p * (1 - p) / 200)
    starts = [tuple(axis[0] for axis in lesion) for lesions in drawn for lesion in lesions]
    found = np.mean([anatomy.territory[start] == 4 for start in starts])
    assert abs(found - forecast.law[3]) < 0.1
    touched = Surroundings(anatomy, status, PROTOCOL.hazards).touched
    assert not any(touched[lesion].any() for lesions in drawn for lesion in lesions)


def test_without_images_no_outcome_can_be_drawn():
    with pytest.raises(ValueError, match="with images"):
        Oracle().draw(Oracle()(Observation(), 0), np.random.default_rng(0))
