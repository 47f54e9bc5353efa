from dataclasses import replace

import numpy as np
import pytest

from bundle.simulation.covariates import AGES, DURATIONS, EDSS, CovariateModel, Covariates, durations_of, hide
from bundle.simulation.protocol import Protocol

FRAILTY = np.array([0.01, 0.5, 3.0])
MODEL = CovariateModel(Protocol(), FRAILTY)
SEEN = Covariates(age=30, sex="F", disease_duration=4, edss=2.0, relapses=1)


def likelihood(seen: Covariates) -> np.ndarray:
    return MODEL.likelihood(seen, np.ones((len(FRAILTY), len(durations_of(seen)))))


def test_nothing_known_says_nothing():
    np.testing.assert_allclose(likelihood(Covariates()), 1, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "values"),
    [("age", AGES), ("sex", ["F", "M"]), ("disease_duration", DURATIONS), ("edss", EDSS), ("relapses", range(9))],
)
def test_what_is_unknown_is_summed_over(name, values):
    """The likelihood without a covariate is the sum of those with each of its values."""
    known = sum(likelihood(replace(SEEN, **{name: value})) for value in values)
    np.testing.assert_allclose(likelihood(replace(SEEN, **{name: None})), known, rtol=1e-10)


def test_findings_that_depend_on_an_unknown_duration_are_weighed_by_it():
    given_duration = np.random.default_rng(0).random((len(FRAILTY), len(DURATIONS)))
    total = sum(
        MODEL.likelihood(replace(SEEN, disease_duration=d), given_duration[:, [i]]) for i, d in enumerate(DURATIONS)
    )
    np.testing.assert_allclose(
        MODEL.likelihood(replace(SEEN, disease_duration=None), given_duration), total, rtol=1e-10
    )


def test_the_young_and_those_with_relapses_are_frail():
    for frail, robust in (
        (replace(SEEN, age=22), replace(SEEN, age=55)),
        (replace(SEEN, relapses=3), replace(SEEN, relapses=0)),
    ):
        ratio = likelihood(replace(frail, disease_duration=None, edss=None)) / likelihood(
            replace(robust, disease_duration=None, edss=None)
        )
        assert ratio[0] < ratio[1] < ratio[2]


def test_draws_have_the_written_law():
    model, rng = CovariateModel(Protocol(), np.array([2.0])), np.random.default_rng(0)
    drawn = [model.draw(rng) for _ in range(2000)]
    age = np.array([c.age for c in drawn])
    mean = model.age[0] @ AGES
    assert abs(age.mean() - mean) < 4 * age.std() / np.sqrt(len(age))
    assert np.mean([c.sex == "F" for c in drawn]) == pytest.approx(model.female[0], abs=0.04)
    assert all(c.disease_duration <= c.age - 17 for c in drawn)


def test_hiding_leaves_what_is_not_hidden():
    rng = np.random.default_rng(0)
    assert hide(SEEN, 0.0, rng) == SEEN
    assert hide(SEEN, 1.0, rng) == Covariates()
