import numpy as np
import pytest

from bundle.arms import ARMS
from bundle.simulation.events import assigned_arm, draw_history, net2_volume_mm3, t2_volume_mm3
from bundle.simulation.protocol import MEAN_NET2, MONTHS, PATIENTS_PER_ARM, PRESETS, WEEKS_PER_MONTH, Protocol

PROTOCOL = Protocol()
ACTIVE_PERCENT = np.array(
    [[63.7, 58.1], [64.7, 57.1], [54.7, 51.9], [24.9, 33.7], [19.6, 26.1], [3.2, 1.5]]
)  # Favero et al.
N = 3000


@pytest.fixture(scope="module")
def histories():
    rng = np.random.default_rng(0)
    return [draw_history(PROTOCOL, rng) for _ in range(N)]


@pytest.fixture(scope="module")
def counts(histories):
    return np.array(
        [[[h.count(a, i) for i in range(2)] for a in range(len(ARMS))] for h in histories]
    )  # (N, arm, interval)


def exact_active(months: float = MONTHS) -> np.ndarray:
    """P(at least one lesion): a gamma mixture of Poisson counts is negative binomial."""
    k, q = PROTOCOL.frailty_shape, np.array(PROTOCOL.partial_responders)[:, None]
    return q * (1 - (1 + PROTOCOL.rates * months / MONTHS / k) ** -k)


def test_every_mean_of_the_table_is_exact_in_expectation():
    np.testing.assert_allclose(np.array(PROTOCOL.partial_responders)[:, None] * PROTOCOL.rates, MEAN_NET2, rtol=1e-14)
    assert np.mean(PROTOCOL.interval_months) == MONTHS


def test_the_share_of_active_patients_is_within_three_points_of_the_table():
    mean = np.mean([exact_active(m) for m in PROTOCOL.interval_months], axis=0)
    np.testing.assert_allclose(100 * mean, ACTIVE_PERCENT, atol=3)


def test_simulated_means_and_activity_match_the_table(counts):
    error = (counts.mean(0) - MEAN_NET2) / (counts.std(0) / np.sqrt(N))
    assert abs(error).max() < 4
    active = exact_active()
    assert (abs((counts > 0).mean(0) - active) / np.sqrt(active * (1 - active) / N)).max() < 4


def test_counts_scale_with_the_months_between_visits():
    protocol, rng = PRESETS["clinic"], np.random.default_rng(1)
    drawn = [draw_history(protocol, rng) for _ in range(N)]
    months = np.array([h.months for h in drawn])
    assert months.min() == 6 and months.max() == 24
    per_month = np.array([[h.count(0, i) for i in range(2)] for h in drawn]) / months
    error = (per_month.mean(0) - MEAN_NET2[0] / MONTHS) / (per_month.std(0) / np.sqrt(N))
    assert abs(error).max() < 4


def test_frailty_has_mean_one_and_variance_one_over_k(histories):
    frailty = np.array([h.frailty for h in histories])
    k = PROTOCOL.frailty_shape
    assert abs(frailty.mean() - 1) < 4 * np.sqrt(1 / k / N)
    fourth = (3 + 6 / k) / k**2  # central moment of the gamma distribution
    assert abs(frailty.var() - 1 / k) < 4 * np.sqrt((fourth - 1 / k**2) / N)


def test_findings_at_w000_follow_the_frailty(histories):
    frailty = np.array([h.frailty for h in histories])
    for name, mean in (("gd", PROTOCOL.gd_mean), ("smouldering", PROTOCOL.smouldering_mean)):
        number = np.array([len(getattr(h, name)) for h in histories])
        assert abs((number - mean * frailty).mean()) < 4 * np.sqrt(mean / N), name
    num_t2 = np.array([len(h.quiet) for h in histories])
    mean = PROTOCOL.t2_mean_given(frailty, np.array([h.covariates.disease_duration for h in histories]))
    standardised = (num_t2 - mean) / np.sqrt(mean + mean**2 / PROTOCOL.t2_size)
    assert abs(standardised.mean()) < 4 / np.sqrt(N)
    assert standardised.var() == pytest.approx(1, abs=0.2)
    diffuse = np.array([h.diffuse for h in histories])
    noise = (diffuse - PROTOCOL.diffuse_level) / PROTOCOL.diffuse_slope - PROTOCOL.soft_log(frailty)
    assert noise.std() == pytest.approx(PROTOCOL.diffuse_noise, rel=0.05)
    assert abs(noise.mean()) < 4 * PROTOCOL.diffuse_noise / np.sqrt(N)


def test_published_sizes_of_effects(histories):
    """Over half have a smouldering lesion; the rate falls by a quarter to two fifths in ten years of age; women have a
    little more.
    """
    frailty, age = (np.array(v) for v in zip(*((h.frailty, h.covariates.age) for h in histories)))
    assert np.mean([len(h.smouldering) > 0 for h in histories]) == pytest.approx(0.56, abs=0.08)
    young, old = frailty[(age >= 25) & (age < 35)], frailty[(age >= 35) & (age < 45)]
    assert 0.5 < old.mean() / young.mean() < 0.85
    female = np.array([h.covariates.sex == "F" for h in histories])
    assert female.mean() == pytest.approx(0.7, abs=0.04)


def test_lesions_follow_the_patients_own_spatial_law(histories):
    """Old and new alike: the standardised excess of lesions in each territory has mean 0 and variance 1."""
    for kind in ("quiet", "new"):
        z = []
        for h in histories:
            there = h.quiet if kind == "quiet" else np.array([e.territory for e in h.events[0]], int)
            if len(there) >= 20:
                expected = len(there) * h.law
                usable = expected > 2
                found = np.bincount(there, minlength=len(h.law))
                z += ((found - expected) / np.sqrt(expected * (1 - h.law)))[usable].tolist()
        assert abs(np.mean(z)) < 4 / np.sqrt(len(z))
        assert np.var(z) == pytest.approx(1, abs=0.1)
    mean = np.mean([h.law for h in histories], axis=0)
    np.testing.assert_allclose(mean, PROTOCOL.dirichlet / PROTOCOL.concentration, atol=0.012)


def test_smouldering_lesions_die_down_in_full_responders(histories):
    stays = {True: [], False: []}
    for h in histories:
        stays[h.partly(3, PROTOCOL)] += h.active(3, PROTOCOL).tolist()
    assert np.mean(stays[True]) == pytest.approx(PROTOCOL.stays_active, abs=0.02)
    assert np.mean(stays[False]) == pytest.approx(PROTOCOL.stays_active_treated, abs=0.02)


def test_arms_share_one_process_of_events(histories):
    """The unit-rate arrival time of event j is the same in every arm that has an event j."""
    for history in histories[:300]:
        start, length = 0.0, 0.0
        for interval in range(2):
            start, length = start + length, history.months[interval] * WEEKS_PER_MONTH
            longest = max((history.weeks[a][interval] for a in range(len(ARMS))), key=len)
            assert len(history.events[interval]) == len(longest)
            for arm in range(len(ARMS)):
                weeks = history.weeks[arm][interval]
                assert ((weeks >= start) & (weeks < start + length)).all()
                if len(weeks) > 1:
                    ratio = (weeks - start) / (longest[: len(weeks)] - start)
                    np.testing.assert_allclose(ratio, ratio[0])


def test_expected_counts_given_frailty_and_response_are_those_of_the_draws(histories, counts):
    expected = np.array([[[h.expected(a, i, PROTOCOL) for i in range(2)] for a in range(6)] for h in histories])
    z = (counts - expected).sum(0) / np.sqrt(expected.sum(0))
    assert abs(z).max() < 4
    assert not counts[expected == 0].any()


def test_times_are_uniform_within_an_interval(histories):
    recent = sum(h.num_enhancing(0, PROTOCOL) for h in histories)
    total = sum(h.count(0, 0) for h in histories)
    assert abs(recent / total - 1 / 8) < 4 * np.sqrt(1 / 8 * 7 / 8 / total) + 0.002  # visits jitter by two weeks


def test_what_the_tables_tell():
    rng = np.random.default_rng(3)
    drawn = [draw_history(PRESETS["clinic"], rng) for _ in range(1500)]
    assert np.mean([h.sees_arm for h in drawn]) == pytest.approx(0.85, abs=0.04)
    assert np.mean([h.sees_months for h in drawn]) == pytest.approx(0.9, abs=0.04)
    assert np.mean([h.seen_covariates.age is None for h in drawn]) == pytest.approx(0.2, abs=0.04)
    assert all(h.seen_covariates.age in (None, h.covariates.age) for h in drawn)
    assert all(
        h.seen_covariates == h.covariates and h.sees_arm for h in (draw_history(PROTOCOL, rng) for _ in range(20))
    )


def test_arms_are_assigned_in_the_papers_proportions_in_random_order():
    block = [assigned_arm(3, i) for i in range(2131)]
    assert tuple(np.bincount(block)) == PATIENTS_PER_ARM
    assert block[:30] != [assigned_arm(3, 2131 + i) for i in range(30)]
    assert block[:30] != [assigned_arm(4, i) for i in range(30)]


def test_volumes_of_new_lesions_have_the_quartiles_and_the_tail_of_real_changes():
    lower, median, upper, most = net2_volume_mm3(np.array([0.25, 0.5, 0.75, 0.95]))
    assert net2_volume_mm3(0.0) == pytest.approx(9)
    assert net2_volume_mm3(1 - 1e-12) == pytest.approx(8000, rel=1e-6)
    assert (lower, median, upper, most) == pytest.approx((23, 45, 116, 659), rel=0.2)  # 20 real change masks


def test_old_lesions_are_larger_next_to_the_ventricles():
    assert t2_volume_mm3(0.0, 0.0, 1.0) == pytest.approx(6)
    assert t2_volume_mm3(0.5, 0.0, 1.0) > 4 * t2_volume_mm3(0.5, 0.0, 0.0)


def test_a_spatial_law_needs_a_weight_for_every_kind_of_territory():
    with pytest.raises(ValueError, match="territory_weights must be 7"):
        _ = Protocol(territory_weights=(0.5, 0.5)).dirichlet
