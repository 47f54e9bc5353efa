"""How well do forecasts tell who will be active? AUC beside the population baseline and the best possible forecast.

    python -m scripts.score_activity --dataset_dir DIR --forecasts DIR [--split test]

Reads P(active) from the reports that `inference` wrote, the outcomes from the data set, and, on a simulated trial, the
Bayes-optimal P(active). AUC of all patients, and the mean of the AUCs within arms (weighted by active x inactive
pairs), which knowing the arm does not help; 95 % intervals by bootstrap over patients.
"""

import json
from pathlib import Path

import fire
import numpy as np
from sklearn.metrics import roc_auc_score

from bundle.arms import ARMS, arm_index
from bundle.baselines import PopulationBaseline
from bundle.data.datalist import load_split, with_outcome
from bundle.errors import InputError, report_in_one_line
from bundle.simulation.oracle import Oracle, read_counts


def main(dataset_dir: str, forecasts: str, split: str = "test", num_bootstraps: int = 2000, seed: int = 0) -> None:
    """Print the table and write it to `<forecasts>/activity.json`."""
    items = with_outcome(load_split(dataset_dir, split))
    baseline = PopulationBaseline(load_split(dataset_dir, "training"))
    oracle = Oracle()
    arms = np.array([arm_index(item["arm"]) for item in items])
    active = np.array([item["active"] for item in items])
    scores = {
        "model": np.array([p_active(Path(forecasts), item["case"]) for item in items]),
        "population": np.array([baseline(arm) for arm in arms]),
        "oracle": np.array([oracle(read_counts(dataset_dir, i["case"]), arm).p_active for i, arm in zip(items, arms)]),
    }
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(items), size=(num_bootstraps, len(items)))
    rows = {}
    for measure in (auc, auc_within_arms, brier):
        replicates = {}
        for name, score in scores.items():
            replicates[name] = [measure(score[d], active[d], arms[d]) for d in draws]
            rows[f"{measure.__name__}, {name}"] = (measure(score, active, arms), *interval(replicates[name]))
        difference = np.subtract(replicates["model"], replicates["population"])
        point = rows[f"{measure.__name__}, model"][0] - rows[f"{measure.__name__}, population"][0]
        rows[f"{measure.__name__}, model - population"] = (point, *interval(difference))
    for arm, name in enumerate(ARMS):
        at = arms == arm
        for forecaster, score in scores.items():
            rows[f"auc in {name} (n={at.sum()}, active {active[at].sum()}), {forecaster}"] = (auc(score[at], active[at]),)
    print(f"{len(items)} patients, {active.sum()} active")
    for name, values in rows.items():
        print(f"{name:60s}" + " ".join(f"{value:7.3f}" for value in values))
    report = {"patients": len(items), "active": int(active.sum()), "split": split, "rows": rows}
    (Path(forecasts) / "activity.json").write_text(json.dumps(report, indent=1))


def p_active(forecasts: Path, case: str) -> float:
    """P(active) in a case's report; ties of small ensembles are broken by the mean count."""
    file = forecasts / case / f"{case}_desc-net2_forecast.json"
    try:
        report = json.loads(file.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise InputError("no forecast", "run inference on this split first", case=case, file=file) from error
    return report["p_active"] + 1e-6 * report["count"]["mean"]


def auc(score, active, arms=None) -> float:
    """Area under the ROC curve; NaN where all are alike."""
    return float(roc_auc_score(active, score)) if 0 < active.sum() < len(active) else np.nan


def auc_within_arms(score, active, arms) -> float:
    """Share of active-inactive pairs of the same arm in the right order."""
    of_arm = [(active[arms == arm], score[arms == arm]) for arm in np.unique(arms)]
    pairs = np.array([a.sum() * (~a).sum() for a, _ in of_arm])
    values = [auc(s, a) for a, s in of_arm]
    return float(np.nansum(pairs * values) / pairs.sum())


def brier(score, active, arms) -> float:
    """Mean squared error of P(active)."""
    return float(np.mean((score - active) ** 2))


def interval(replicates) -> tuple[float, float]:
    """95 % percentile interval of bootstrap replicates."""
    return tuple(float(x) for x in np.nanpercentile(replicates, [2.5, 97.5]))


if __name__ == "__main__":
    report_in_one_line()
    fire.Fire(main)
