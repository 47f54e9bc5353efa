"""python -m scripts.compare_inputs DATASET OTHER ...: what a forecast gains from inputs, patient by patient.

The data sets hold the same patients with other inputs, e.g. with masks of readers, with masks of the segmenter, and
without masks. Each patient is forecast by one network call.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from tqdm import tqdm

from bundle.data.datalist import load_split, with_outcome
from bundle.errors import Guard, InputError
from bundle.evaluation.bootstrap import interval
from bundle.evaluation.locations import density_of, log_density_ratio
from bundle.forecasters.cohort import CaseReader, ObservedCase
from bundle.forecasters.ensemble import OneCall
from bundle.metrics import crps, roc_auc
from bundle.runtime import keep_freed_memory
from scripts.command import read_configs, run

DRAWS = 2000


def compare_inputs(
    *dataset_dirs: str,
    split: str = "test",
    weights: str = "models/model.pt",
    config_file: str | tuple[str, ...] = "configs/inference.json",
) -> str:
    """Table of the data sets' scores, and of the differences from the first one's.

    Args:
        dataset_dirs: BIDS data sets with outcomes. Patients that cannot be forecast in each are left out of all.
        split: of the first one's datalist.
        weights: of the network; a count model must lie beside them.
        config_file: of inference, with overlays that change the network.

    Returns:
        Text. "where": mean over lesion voxels of log(density / uniform), in nats, maps scaled to one volume. "AUC",
        "Brier" of activity, "CRPS" of the number of lesions. In brackets the difference from the first data set, with
        a 95 % interval by bootstrap over patients.
    """
    if not dataset_dirs:
        raise InputError("no data set", "give one or more folders")
    config = read_configs(config_file)
    config.update({"weights": weights, "bundle_root": ".", "progress": False})
    forecast = OneCall(*(config.get_parsed_content(name) for name in ("network", "inferer", "count_model")))
    read = CaseReader(config.get_parsed_content("grid"), config.get_parsed_content("lesion_rule"))
    names = [item["case"] for item in with_outcome(load_split(dataset_dirs[0], split))]
    guard, scores = Guard(), {}
    for folder in dataset_dirs:
        items = {item["case"]: item for item in load_split(folder, "all")}
        rows = {}
        for name in tqdm(names, str(folder), unit="patient"):
            if name not in items:
                raise InputError("not in every data set", "give data sets of the same patients", case=name, file=folder)
            row = guard.call(lambda item: _scores(forecast, read(item)), items[name], None)
            if row is not None:
                rows[name] = row
        scores[str(folder)] = pd.DataFrame(rows).T
    shared = [name for name in names if all(name in table.index for table in scores.values())]
    return _table({folder: table.loc[shared].astype(float) for folder, table in scores.items()})


def _scores(forecast: Callable, observed: ObservedCase) -> dict[str, float]:
    """What the metrics of one patient are made of."""
    patient, outcome = observed.patient, observed.outcome
    (made,) = forecast(patient)
    gain = log_density_ratio(density_of(np.where(patient.brain, made.heatmap, 0), patient.brain), patient.brain)
    inside = outcome & patient.brain
    count = observed.record.outcome.count
    return {
        "gain": float(gain[inside].sum()),
        "voxels": float(inside.sum()),
        "p": made.p_active,
        "active": float(count > 0),
        "crps": crps(made.counts, made.probabilities, count),
    }


def _table(scores: dict[str, pd.DataFrame]) -> str:
    (first, reference), *_ = scores.items()
    count = len(reference)
    draws = np.vstack([np.arange(count), np.random.default_rng(0).integers(0, count, (DRAWS, count))])
    metrics = {folder: _metrics(table, draws) for folder, table in scores.items()}
    rows = {}
    for folder, found in metrics.items():
        row = {}
        for name, values in found.items():
            row[name] = f"{values[0]:.3f}"
            if folder != first:
                change = values - metrics[first][name]
                low, high = interval(change)
                row[name] += f" ({change[0]:+.3f}, {low:+.3f} to {high:+.3f})"
        rows[folder] = row
    return f"{pd.DataFrame(rows).T.to_string()}\n{count} patients, {int(reference.active.sum())} active"


def _metrics(table: pd.DataFrame, draws: np.ndarray) -> dict[str, np.ndarray]:
    """(1 + draws,) of each metric; the first is that of the sample itself."""
    gain, voxels, p, active, score = (table[name].to_numpy() for name in ("gain", "voxels", "p", "active", "crps"))
    total = voxels[draws].sum(1)
    weights = np.stack([np.bincount(draw, minlength=len(p)) for draw in draws]).astype(float)
    return {
        "where": np.divide(gain[draws].sum(1), total, out=np.full(len(draws), np.nan), where=total > 0),
        "AUC": roc_auc(p, weights * active, weights * (1 - active)),
        "Brier": np.square(p - active)[draws].mean(1),
        "CRPS": score[draws].mean(1),
    }


if __name__ == "__main__":
    keep_freed_memory()
    run(compare_inputs)
