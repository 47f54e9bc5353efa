"""The run ids `evaluating` and `comparing`: score, tabulate, draw and write a report."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bundle.arms import arm_index
from bundle.data.datalist import load_split, with_outcome
from bundle.errors import InputError
from bundle.evaluation import figures
from bundle.evaluation.effects import effects_table, expected_counts, true_counts
from bundle.evaluation.figures import spoken
from bundle.evaluation.report import Report
from bundle.evaluation.scoring import CEILING, FLOOR, FLOOR_OF_PLACES, Evaluation, Scores
from bundle.evaluation.tables import TABLES, Recalibration, all_tables
from bundle.forecasters.base import Forecaster
from bundle.runtime import sharing


def select(names: Sequence[str] | str, registry: Mapping[str, Forecaster], dataset_dir: str | Path) -> dict[str, Forecaster]:
    """The forecasters of these names, with the floor and, on a simulated trial, the ceiling that measure the others.

    Raises:
        InputError: a name that is none of the registry's.
    """
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in registry:
            raise InputError(f"no forecaster {name!r}", f"choose of {', '.join(registry)}")
    measured_by = {FLOOR, FLOOR_OF_PLACES}
    wanted = {*names, *measured_by, CEILING} if is_simulated(dataset_dir) else {*names, *measured_by} - {CEILING}
    return {name: forecaster for name, forecaster in registry.items() if name in wanted}


def is_simulated(dataset_dir: str | Path) -> bool:
    """Whether the truth that no scan shows comes with a data set."""
    return (Path(dataset_dir) / "derivatives" / "truth").is_dir()


def evaluate(
    evaluation: Evaluation,
    calibration_split: str,
    comparison: Evaluation,
    compared_patients: int,
    figure_members: int,
    case: str | None = None,
    model: str = "diffusion",
) -> None:
    """Score, tabulate, draw and write; ends the program with exit code 1 if a patient could not be read.

    Args:
        evaluation: on the split that the report is about; the report goes to its `output_dir`.
        calibration_split: on which the model's P(active) is corrected; "none" leaves that out.
        comparison: of treatments, by forecasters from w000 alone.
        compared_patients: so many of its items are used; none if the trial is not a simulated one.
        figure_members: size of the ensemble that the figures of one patient show.
        case: that patient; if not given the one whose number of new lesions is nearest to 5.
        model: the forecaster whose members are shown.
    """
    calibration = None
    if calibration_split != "none" and model in evaluation.forecasters:
        items = with_outcome(load_split(evaluation.dataset_dir, calibration_split))
        calibration = replace(evaluation, items=items, forecasters={model: evaluation.forecasters[model]})
    comparison = _first(comparison, compared_patients)
    with sharing() as (rank, world):
        evaluation.score(rank, world)
        if calibration is not None:
            calibration.score(rank, world)
        expected_counts(comparison, rank, world)
    if rank == 0:
        scores = evaluation.scores()
        if calibration is not None:
            known = calibration.scores()[model]
            if 0 < known.active.sum() < len(known.cases):
                scores[f"{model}, recalibrated"] = Recalibration(known)(scores[model])
            else:
                print(f"not recalibrated: the patients of {calibration_split!r} are all alike")
        tables = all_tables(scores)
        tables |= _effects(comparison)
        drawn = _figures(evaluation, scores, tables, figure_members, case, model)
        print(f"report: {Report(tables, drawn, _facts(evaluation, scores)).write(evaluation.output_dir)}")
    if evaluation.guard.failures:
        sys.exit("patients were left out, each is told above")


def compare_arms(comparison: Evaluation, compared_patients: int, case: str | None = None, model: str = "diffusion") -> None:
    """Forecast patients from w000 alone under all six arms, measure the effects on a simulated trial, and write a report.

    Args:
        comparison: of forecasters from w000 alone.
        compared_patients: so many of its items are measured; none if the trial is not a simulated one.
        case: the patient of the figure, by default the first.

    Raises:
        InputError: the model is not among the forecasters.
    """
    if model not in comparison.forecasters:
        raise InputError("no weights of the model of w000 alone", "train it, or give their path with --weights_w000")
    compared = _first(comparison, compared_patients)
    with sharing() as (rank, world):
        expected_counts(compared, rank, world)
    if rank == 0:
        item = next((item for item in comparison.items if item["case"] == case), comparison.items[0])
        patient = comparison.read(item).patient
        figure = figures.six_arms(patient.volume("flair_w000"), patient.brain, comparison.under_each_arm(model, item))
        facts = f"{len(compared.items)} patients of {Path(comparison.dataset_dir).name}, forecast from w000 alone."
        print(f"report: {Report(_effects(compared), {'arms': figure}, facts).write(comparison.output_dir)}")
    if comparison.guard.failures:
        sys.exit("patients were left out, each is told above")


def _first(comparison: Evaluation, patients: int) -> Evaluation:
    simulated = is_simulated(comparison.dataset_dir)
    return replace(comparison, items=comparison.items[: patients if simulated else 0])


def _effects(comparison: Evaluation) -> dict[str, pd.DataFrame]:
    if not comparison.items:
        return {}
    given = np.array([arm_index(item["arm"]) for item in comparison.items])
    return {"counterfactual": effects_table(expected_counts(comparison), true_counts(comparison), given)}


def _figures(
    evaluation: Evaluation,
    scores: Mapping[str, Scores],
    tables: Mapping[str, pd.DataFrame],
    figure_members: int,
    case: str | None,
    model: str,
) -> dict[str, Figure]:
    drawn = {
        "gap_closed": figures.gap_closed({name: tables[name] for name in TABLES}),
        "roc_pr": figures.roc_and_pr(scores),
        "counts": figures.count_scatter(scores),
        "reliability": figures.reliability(scores),
    }
    if model not in scores:
        return drawn
    item = _shown(evaluation, scores[model], case)
    seen = evaluation.read(item)
    flair, brain = seen.patient.volume("flair_w048"), seen.patient.brain
    shown = {f"{model} of {figure_members}": evaluation.forecasters[model].with_members(figure_members)}
    ensemble = replace(evaluation, items=[item], forecasters=shown)  # kept as all scores are
    ensemble.score()
    (packed,) = (of_patient["members"][0] for of_patient in ensemble.scores().values())
    members = np.unpackbits(packed, axis=1, count=brain.size).reshape(-1, *brain.shape) > 0
    of_arms = evaluation.under_each_arm(model, item)
    heatmaps = {f"share of {figure_members} members": members.mean(axis=0)}
    heatmaps |= {"expected, in one call": f.heatmap for arm, f in enumerate(of_arms) if arm == seen.patient.arm}
    return drawn | {
        "members": figures.members_beside_outcome(flair, brain, members, seen.outcome),
        "heatmap": figures.heatmaps_and_outcome(flair, brain, heatmaps, seen.outcome),
        "arms": figures.six_arms(flair, brain, of_arms),
        "convergence": figures.convergence(tables["members"]),
    }


def _shown(evaluation: Evaluation, scores: Scores, case: str | None) -> Mapping[str, Any]:
    nearest = scores.cases[int(np.abs(scores["true_count"] - 5).argmin())]
    of_case = {item["case"]: item for item in evaluation.items}
    return of_case[case if case in scores.cases else nearest]


def _facts(evaluation: Evaluation, scores: Mapping[str, Scores]) -> str:
    first = next(iter(scores.values()))
    return (
        f"{len(first.cases)} patients of {Path(evaluation.dataset_dir).name}, {int(first.active.sum())} of them active, "
        f"{int(first['true_count'].sum())} new or enlarging lesions. Forecasters: {'; '.join(map(spoken, scores))}."
    )
