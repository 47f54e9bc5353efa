"""What if: forecasts under all six arms against a simulated trial's potential outcomes.

The forecasts come from pre-treatment scans alone: what w048 shows has already been changed by the treatment given. A
simulated trial states each patient's lesions under every arm, so that the effect of one arm against another is known.

References:
    Hill 2011, Bayesian nonparametric modeling for causal inference (PEHE). Favero et al. 2025, figure 3.
"""

import copy
import itertools
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from bundle.arms import ARMS
from bundle.errors import InputError
from bundle.evaluation.bootstrap import bootstrap_weights
from bundle.evaluation.cases import Evaluation
from bundle.evaluation.tables import ALL, COLUMNS, Group, rows_of
from bundle.forecasters.base import Forecaster, Role
from bundle.forecasters.counts import CountModel
from bundle.forecasters.ensemble import Diffusion, EnsembleInferer, OneCall
from bundle.lesions import LesionRule
from bundle.metrics import Values, weighted_mean
from bundle.networks.weights import load_weights
from bundle.simulation.observation import read_truth

BY_EFFICACY = ("avonex", "interferon_beta_1a", "dimethyl_fumarate", "ocrelizumab")  # low, mild, moderate, high
LIMITED, OTHERWISE, FRACTION = "ocrelizumab", "interferon_beta_1a", 0.25  # who gets the better drug if few can
TRUTH = "truth"


def with_model(
    forecasters: Mapping[str, Forecaster],
    weights: str | Path | None,
    network: nn.Module,
    inferer: EnsembleInferer,
    rule: LesionRule,
    counts: CountModel | None = None,
) -> dict[str, Forecaster]:
    """Forecasters from w000 alone and, where there are weights of it, the model as "diffusion".

    The weights are loaded into a copy of `network`, which keeps its own. With a count model no members are drawn.
    """
    if weights is None or not Path(weights).is_file():
        return dict(forecasters)
    network = load_weights(copy.deepcopy(network), weights)
    model = Diffusion(network, inferer, rule) if counts is None else OneCall(network, inferer, counts)
    return {**forecasters, "diffusion": model}


def forecast_arms(evaluation: Evaluation, rank: int = 0, world: int = 1) -> None:
    """Forecast the patients of this process under each arm by every forecaster; the forecasts are stored."""
    for item in evaluation.items[rank::world]:
        for name in evaluation.forecasters:
            if evaluation.guard.call(partial(evaluation.under_each_arm, name), item, None) is None:
                break  # the same patient would fail again


def expected_counts(evaluation: Evaluation) -> dict[str, Values]:
    """(N, 6) by forecaster: expected NET2 count of each patient under each arm; NaN where a forecast failed.

    `forecast_arms` has reported these.
    """
    expected = {name: np.full((len(evaluation.items), len(ARMS)), np.nan) for name in evaluation.forecasters}
    for index, item in enumerate(evaluation.items):
        try:
            for name, counts in expected.items():
                counts[index] = [forecast.expected_count for forecast in evaluation.under_each_arm(name, item)]
        except InputError:
            continue
    return expected


def true_counts(evaluation: Evaluation) -> tuple[Values, Values]:
    """NET2 lesions at w096 that each simulated patient would have under each arm, (N, 6), and their mean given the
    patient's true frailty and response, (N, 6); NaN without a truth.
    """
    counts, means = (np.full((len(evaluation.items), len(ARMS)), np.nan) for _ in range(2))
    for index, item in enumerate(evaluation.items):
        truth = evaluation.guard.call(partial(read_truth, evaluation.dataset_dir), item["case"], None)
        if truth is not None:
            counts[index] = [len(truth["arms"][arm]["net2_w096"]) for arm in ARMS]
            means[index] = [truth["arms"][arm]["expected_net2_w096"] for arm in ARMS]
    return counts, means


def complete_patients(expected: Mapping[str, Values], true: Values) -> np.ndarray:
    """(N,) bool: patients whose truth and all forecasts under all arms are known. Only they enter the effects.

    Of a patient with NaN the best arm is not known; argmin of NaN would choose the first arm, placebo.
    """
    return np.all([np.isfinite(counts).all(axis=1) for counts in (*expected.values(), true)], axis=0)


def effects_table(
    expected: Mapping[str, Values],
    true: Values,
    means: Values,
    given: Values,
    roles: Mapping[str, Role],
    draws: int = 1000,
) -> pd.DataFrame:
    """Errors of forecast effects, in the columns of `bundle.evaluation.tables.COLUMNS`; "arm" is the pair compared.

    - "ATE": mean over patients of count under the first arm minus count under the second; of "truth" too.
    - "ATE error": forecast minus true.
    - "PEHE": root mean squared error of a patient's own difference. Even the oracle's is not 0, as the lesions that a
      patient has are random.
    - "policy value": mean true count if each patient gets the arm with the lowest expected count.
    - "policy value, limited": the same if a quarter of the patients can have ocrelizumab, those with the greatest
      forecast gain, and the others get interferon beta-1a.
    - "monotone in efficacy": fraction of patients whose expected count falls from low to high efficacy.

    PEHE and policy values are given twice: against the counts that happen, and, "expected", against their means, which
    are free of chance.

    Args:
        expected: by forecaster, (N, 6), finite.
        true: (N, 6), counts; finite.
        means: (N, 6), of the counts given the patient's true frailty and response; finite.
        given: (N,), class index of the arm each patient was given; the bootstrap keeps their numbers.
        roles: by forecaster.

    Raises:
        ValueError: a count is NaN; see `complete_patients`.
    """
    if not complete_patients(expected, true).all():
        raise ValueError("effects need the counts of every patient under every arm")
    weights, roles = bootstrap_weights(given, draws), {**roles, TRUTH: Role.OUTCOME}
    against = {"": true, ", expected": means}  # ends the name of a metric
    rows: list[tuple] = []

    def add(metric: str, arms: str, by_name: Mapping[str, Values], higher_is_better: bool | None = None) -> None:
        group = Group(arms, len(true), len(true))
        rows.extend(rows_of(metric, group, by_name, roles, higher_is_better))

    def mean(values: Values) -> Values:
        return weighted_mean(values, weights)

    for first, second in itertools.combinations(range(len(ARMS)), 2):
        pair = f"{ARMS[first]} - {ARMS[second]}"
        effect = true[:, first] - true[:, second]
        forecast = {name: counts[:, first] - counts[:, second] for name, counts in expected.items()}
        add("ATE", pair, {TRUTH: mean(effect)} | {name: mean(x) for name, x in forecast.items()})
        add("ATE error", pair, {name: mean(x - effect) for name, x in forecast.items()})
        for ending, outcome in against.items():
            effect = outcome[:, first] - outcome[:, second]
            errors = {name: np.sqrt(mean(np.square(x - effect))) for name, x in forecast.items()}
            add(f"PEHE{ending}", pair, errors, False)
    for ending, outcome in against.items():
        policies = {**expected, TRUTH: outcome}
        best = {
            name: np.take_along_axis(outcome, counts.argmin(axis=1)[:, None], axis=1)[:, 0]
            for name, counts in policies.items()
        }
        add(f"policy value{ending}", ALL, {name: mean(x) for name, x in best.items()}, False)
        limited = {name: mean(targeted(counts, outcome)) for name, counts in policies.items()}
        add(f"policy value, limited{ending}", ALL, limited, False)
    ordered = [ARMS.index(arm) for arm in BY_EFFICACY]
    falls = {name: (np.diff(counts[:, ordered], axis=1) <= 0).all(axis=1) for name, counts in expected.items()}
    add("monotone in efficacy", ALL, {name: mean(x.astype(float)) for name, x in falls.items()})
    order = {metric: index for index, metric in enumerate(dict.fromkeys(row[0] for row in rows))}
    return pd.DataFrame(sorted(rows, key=lambda row: order[row[0]]), columns=list(COLUMNS))


def targeted(counts: Values, true: Values) -> Values:
    """(N,) true counts if the `FRACTION` with the greatest forecast gain get `LIMITED`, the others `OTHERWISE`.

    Patients of equal gain have equal chances of the last treatments: each gets the mean of both outcomes in that
    proportion.
    """
    limited, otherwise = ARMS.index(LIMITED), ARMS.index(OTHERWISE)
    gain = counts[:, otherwise] - counts[:, limited]
    available = FRACTION * len(gain)
    above = np.array([(gain > g).sum() for g in gain])
    equal = np.array([(gain == g).sum() for g in gain])
    chance = np.clip((available - above) / equal, 0, 1)
    return chance * true[:, limited] + (1 - chance) * true[:, otherwise]
