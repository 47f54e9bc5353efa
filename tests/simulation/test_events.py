import numpy as np
import pytest

from bundle.arms import ARMS
from bundle.simulation.events import (
    MEAN_NET2,
    PATIENTS_PER_ARM,
    WEEKS,
    Protocol,
    assigned_arm,
    draw_history,
    net2_volume_mm3,
    t2_volume_mm3,
)

PROTOCOL = Protocol()
ACTIVE_PERCENT = np.array(
    [[63.7, 58.1], [64.7, 57.1], [54.7, 51.9], [24.9, 33.7], [19.6, 26.1], [3.2, 1.5]]
)  # Favero et al.
N = 6000


@pytest.fixture(scope="module")
def histories():
    rng = np.random.default_rng(0)
    return [draw_history(PROTOCOL, rng) for _ in range(N)]


@pytest.fixture(scope="module")
def counts(histories):
    return np.array(
        [[[h.count(a, i) for i in range(2)] for a in range(len(ARMS))] for h in histories]
    )  # (N, arm, interval)


def exact_active() -> np.ndarray:
    """P(at least one lesion): a gamma mixture of Poisson counts is negative binomial."""
    k, q = PROTOCOL.frailty_shape, np.array(PROTOCOL.partial_responders)[:, None]
    return q * (1 - (1 + PROTOCOL.rates / k) ** -k)


def test_every_mean_of_the_table_is_exact_in_expectation():
    np.testing.assert_allclose(np.array(PROTOCOL.partial_responders)[:, None] * PROTOCOL.rates, MEAN_NET2, rtol=1e-14)


def test_the_share_of_active_patients_is_within_three_points_of_the_table():
    np.testing.assert_allclose(100 * exact_active(), ACTIVE_PERCENT, atol=3)


def test_simulated_means_and_activity_match_the_table(counts):
    error = (counts.mean(0) - MEAN_NET2) / (counts.std(0) / np.sqrt(N))
    assert abs(error).max() < 4
    active = exact_active()
    assert (abs((counts > 0).mean(0) - active) / np.sqrt(active * (1 - active) / N)).max() < 4


def test_frailty_has_mean_one_and_variance_one_over_k(histories):
    frailty = np.array([h.frailty for h in histories])
    k = PROTOCOL.frailty_shape
    assert abs(frailty.mean() - 1) < 4 * np.sqrt(1 / k / N)
    fourth = (3 + 6 / k) / k**2  # central moment of the gamma distribution
    assert abs(frailty.var() - 1 / k) < 4 * np.sqrt((fourth - 1 / k**2) / N)


def test_baseline_counts_follow_the_frailty(histories):
    frailty, num_gd, num_t2 = (
        np.array([getattr(h, name) for h in histories], float) for name in ("frailty", "num_gd", "num_t2")
    )
    assert abs((num_gd - PROTOCOL.gd_mean * frailty).mean()) < 4 * np.sqrt(PROTOCOL.gd_mean / N)
    mean = PROTOCOL.t2_mean_given(frailty)
    spread = mean + mean**2 / PROTOCOL.t2_size
    standardised = (num_t2 - mean) / np.sqrt(spread)
    assert abs(standardised.mean()) < 4 / np.sqrt(N)
    assert standardised.var() == pytest.approx(1, abs=0.15)


def test_arms_share_one_process_of_events(histories):
    """The unit-rate arrival time of event j is the same in every arm that has an event j."""
    for history in histories[:300]:
        for interval in range(2):
            longest = max((history.weeks[a][interval] for a in range(len(ARMS))), key=len)
            for arm in range(len(ARMS)):
                weeks = history.weeks[arm][interval]
                assert ((weeks >= WEEKS * interval) & (weeks < WEEKS * (interval + 1))).all()
                if len(weeks) > 1:
                    ratio = (weeks - WEEKS * interval) / (longest[: len(weeks)] - WEEKS * interval)
                    np.testing.assert_allclose(ratio, ratio[0])


def test_full_responders_form_no_lesions(histories):
    for history in histories[:1000]:
        for arm, q in enumerate(PROTOCOL.partial_responders):
            if history.response >= q:
                assert history.count(arm, 0) == history.count(arm, 1) == 0


def test_times_are_uniform_within_an_interval(histories):
    weeks = np.concatenate([h.weeks[0][0] for h in histories])
    recent = (weeks > WEEKS - PROTOCOL.gd_weeks).mean()
    assert abs(recent - 1 / 8) < 4 * np.sqrt(1 / 8 * 7 / 8 / len(weeks))


def test_arms_are_assigned_in_the_papers_proportions_in_random_order():
    block = [assigned_arm(3, i) for i in range(2131)]
    assert tuple(np.bincount(block)) == PATIENTS_PER_ARM
    assert block[:30] != [assigned_arm(3, 2131 + i) for i in range(30)]
    assert block[:30] != [assigned_arm(4, i) for i in range(30)]


def test_volumes_of_new_lesions_have_the_quartiles_of_real_changes():
    lower, median, upper = net2_volume_mm3(np.array([0.25, 0.5, 0.75]))
    assert net2_volume_mm3(0.0) == pytest.approx(9)
    assert net2_volume_mm3(1 - 1e-12) == pytest.approx(3000, rel=1e-6)
    assert (lower, median, upper) == pytest.approx((23, 45, 116), rel=0.1)  # components of 20 real change masks


def test_old_lesions_are_larger_next_to_the_ventricles():
    assert t2_volume_mm3(0.0, 0.0, 1.0) == pytest.approx(6)
    assert t2_volume_mm3(0.5, 0.0, 1.0) > 4 * t2_volume_mm3(0.5, 0.0, 0.0)
