"""What would be under another treatment: forecasts under all six arms, measured against a simulated trial's truth.

The forecasts come from pre-treatment scans alone: what w048 shows has already been changed by the treatment given. A
simulated trial tells each patient's lesions under every arm, so the effect of one arm against another is known.

References:
    Hill 2011, Bayesian nonparametric modeling for causal inference (PEHE). Favero et al. 2025, figure 3.
"""

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from bundle import metrics
from bundle.arms import ARMS
from bundle.evaluation.scoring import Evaluation, Values
from bundle.evaluation.tables import COLUMNS, bootstrap_weights, gap_closed
from bundle.forecasters.base import Forecast, Forecaster
from bundle.forecasters.ensemble import Diffusion, EnsembleInferer
from bundle.lesions import LesionRule
from bundle.networks.weights import load_weights
from bundle.simulation.oracle import read_truth

BY_EFFICACY = ("avonex", "interferon_beta_1a", "dimethyl_fumarate", "ocrelizumab")  # low, mild, moderate, high
SCALED = ("PEHE", "policy value", "policy value, few")  # have a better and a worse
SPARSE, ELSE, SHARE = "ocrelizumab", "interferon_beta_1a", 0.25  # who gets the better drug, if few can


def with_model(
    forecasters: Mapping[str, Forecaster],
    weights: str | Path | None,
    network: nn.Module,
    inferer: EnsembleInferer,
    rule: LesionRule,
) -> dict[str, Forecaster]:
    """Forecasters from w000 alone and, where there are weights of it, the model as "diffusion".

    Its weights are loaded into a copy of `network`, which keeps its own.
    """
    if weights is None or not Path(weights).is_file():
        return dict(forecasters)
    return {**forecasters, "diffusion": Diffusion(load_weights(copy.deepcopy(network), weights), inferer, rule)}


def expected_counts(evaluation: Evaluation, rank: int = 0, world: int = 1) -> dict[str, Values]:
    """(N, 6) by forecaster: expected NET2 count of each patient under each arm; NaN for other processes' patients."""
    expected = {name: np.full((len(evaluation.items), len(ARMS)), np.nan) for name in evaluation.forecasters}
    for place, item in list(enumerate(evaluation.items))[rank::world]:
        for name in evaluation.forecasters:
            forecasts: Sequence[Forecast] | None = evaluation.guard.call(
                lambda item: evaluation.under_each_arm(name, item), item, None
            )
            if forecasts is not None:
                expected[name][place] = [forecast.expected_count for forecast in forecasts]
    return expected


def true_counts(evaluation: Evaluation) -> Values:
    """(N, 6) NET2 lesions at w096 that each simulated patient would have under each arm."""
    dataset_dir = evaluation.dataset_dir
    truths = [read_truth(dataset_dir, item["case"])["arms"] for item in evaluation.items]
    return np.array([[len(truth[arm]["net2_w096"]) for arm in ARMS] for truth in truths], float)


def effects_table(expected: Mapping[str, Values], true: Values, given: Values, draws: int = 1000) -> pd.DataFrame:
    """Errors of forecast effects, in the columns of `bundle.evaluation.tables.COLUMNS`; "arm" names the pair of arms compared.

    - "ATE": mean over patients of count under the first arm minus count under the second; of "truth" too.
    - "ATE error": forecast minus true.
    - "PEHE": root mean squared error of a patient's own difference. Even the oracle's is not 0: who will have
      how many lesions is chance.
    - "policy value": mean true count if each patient got the arm with the least expected count.
    - "policy value, few": if only a quarter can have ocrelizumab, those who would gain most by the forecast, the others
      interferon beta-1a.
    - "monotone in efficacy": share of patients whose expected count falls from low to high efficacy.

    Args:
        expected: by forecaster, (N, 6).
        true: (N, 6).
        given: (N,), class index of the arm each patient was given; the bootstrap keeps their numbers.
    """
    weights = bootstrap_weights(given, draws)
    measured: dict[tuple[str, str], dict[str, Values]] = {}

    def add(metric: str, arms: str, name: str, values: Values, of_mean: Callable[[Values], Values] = np.asarray) -> None:
        measured.setdefault((metric, arms), {})[name] = of_mean(metrics.weighted_mean(values, weights))

    for first, second in itertools.combinations(range(len(ARMS)), 2):
        pair = f"{ARMS[first]} - {ARMS[second]}"
        effect = true[:, first] - true[:, second]
        add("ATE", pair, "truth", effect)
        for name, counts in expected.items():
            forecast = counts[:, first] - counts[:, second]
            add("ATE", pair, name, forecast)
            add("ATE error", pair, name, forecast - effect)
            add("PEHE", pair, name, np.square(forecast - effect), np.sqrt)
    for name, counts in (expected | {"truth": true}).items():
        best = np.take_along_axis(true, counts.argmin(axis=1)[:, None], axis=1)[:, 0]
        add("policy value", "all", name, best)
        add("policy value, few", "all", name, targeted(counts, true))
    ordered = [ARMS.index(arm) for arm in BY_EFFICACY]
    for name, counts in expected.items():
        add("monotone in efficacy", "all", name, (np.diff(counts[:, ordered], axis=1) <= 0).all(axis=1).astype(float))
    rows = []
    for (metric, arms), by_name in measured.items():
        closed = gap_closed(by_name, higher_is_better=False) if metric in SCALED else dict.fromkeys(by_name, np.nan)
        for name, values in by_name.items():
            low, high = np.nanpercentile(values[1:], [2.5, 97.5])
            rows.append((metric, arms, name, values[0], low, high, len(true), closed[name]))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def targeted(counts: Values, true: Values) -> Values:
    """(N,) true counts if the `SHARE` of patients with the greatest forecast gain get `SPARSE`, the others `ELSE`.

    Patients of equal gain share the places: each gets the mean of both outcomes in that proportion.
    """
    few, others = ARMS.index(SPARSE), ARMS.index(ELSE)
    gain = counts[:, others] - counts[:, few]
    places = SHARE * len(gain)
    above = np.array([(gain > g).sum() for g in gain])
    equal = np.array([(gain == g).sum() for g in gain])
    chance = np.clip((places - above) / equal, 0, 1)
    return chance * true[:, few] + (1 - chance) * true[:, others]
