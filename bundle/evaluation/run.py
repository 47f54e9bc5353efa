"""The run ids `evaluating` and `comparing`: score, tabulate, draw and write a report."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bundle.data.bids import checked_arm
from bundle.data.datalist import load_split, with_outcome
from bundle.errors import Guard, InputError, check_count, warn
from bundle.evaluation import charts, slices
from bundle.evaluation.cases import Evaluation
from bundle.evaluation.cuts import choose_cuts
from bundle.evaluation.effects import complete_patients, effects_table, expected_counts, forecast_arms, true_counts
from bundle.evaluation.metrics import TABLES
from bundle.evaluation.platt import Recalibration
from bundle.evaluation.provenance import Provenance, describe_weights, is_simulated
from bundle.evaluation.reliability import measured_calibration
from bundle.evaluation.report import Report
from bundle.evaluation.scoring import Scores
from bundle.evaluation.tables import all_tables
from bundle.files import written_whole
from bundle.forecasters.base import Forecaster, Role, ensembles, plain
from bundle.outputs.writers import json_bytes
from bundle.runtime import sharing

FEW_PATIENTS = 30  # fewer get a warning
RECALIBRATED = ", recalibrated"  # ends the name of a forecaster whose P(active) has been corrected


def select(
    names: Sequence[str] | str, registry: Mapping[str, Forecaster], dataset_dir: str | Path
) -> dict[str, Forecaster]:
    """The forecasters of these names, with the floors and, on a simulated trial, the ceilings of the scale.

    Raises:
        InputError: a name that is not in the registry.
    """
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in registry:
            raise InputError(f"no forecaster {name!r}", f"choose from {', '.join(registry)}")
    simulated = is_simulated(dataset_dir)

    def wanted(name: str, role: Role) -> bool:
        if role is Role.CEILING:
            return simulated
        return name in names or role is Role.FLOOR

    return {
        _called(name, forecaster): forecaster for name, forecaster in registry.items() if wanted(name, forecaster.role)
    }


def _called(name: str, forecaster: Forecaster) -> str:
    """Its name in tables: that of the best possible ensemble says how large it is, e.g. "oracle, 20 members"."""
    size = forecaster.num_members
    return name if forecaster.role is not Role.CEILING or size is None else f"oracle, {size} members"


def evaluate(
    evaluation: Evaluation,
    calibration_split: str,
    comparison: Evaluation,
    compared_patients: int | None,
    figure_members: int,
    provenance: Provenance,
    case: str | None = None,
) -> None:
    """Score, tabulate, draw and write; ends the program with exit code 1 if a patient was left out.

    Args:
        evaluation: on the split that the report is about; the report goes to its `output_dir`.
        calibration_split: on which the model's P(active) is corrected and the cuts of region probabilities are chosen;
            "none" for no correction and cuts of 1/2.
        comparison: of treatments, by forecasters from w000 alone.
        compared_patients: number of its items used, None for all; none of them if the trial is not a simulated one.
        figure_members: size of the ensemble shown in the figures of one patient.
        provenance: the settings of the run.
        case: that patient; by default the one whose number of new lesions is nearest to 5.

    Raises:
        InputError: an argument is out of range.
    """
    if compared_patients is not None:
        check_count("compared_patients", compared_patients, 0)
    check_count("figure_members", figure_members)
    check_case(case, evaluation.items)
    model = model_of(evaluation.forecasters)
    calibration = None
    if calibration_split != "none":
        items = with_outcome(load_split(evaluation.dataset_dir, calibration_split, visits=evaluation.read.visits))
        forecasters = {name: f for name, f in evaluation.forecasters.items() if f.role is not Role.OUTCOME}
        calibration = replace(evaluation, items=items, forecasters=forecasters)
    comparison = _first(comparison, compared_patients)
    with sharing() as (rank, world):
        evaluation.score(rank, world)
        if calibration is not None:
            calibration.score(rank, world)
        forecast_arms(comparison, rank, world)
    if rank == 0:
        scores = evaluation.scores()
        effects, notes = _effects(comparison)
        if calibration is None:
            notes.append("Regions are forecast from a probability of 1/2 on, as there is no calibration split.")
        else:
            known = calibration.scores()
            scores |= {name: replace(scores[name], cuts=choose_cuts(s)) for name, s in known.items()}
            if model is not None and 0 < known[model].active.sum() < len(known[model].cases):
                scores[f"{model}{RECALIBRATED}"] = Recalibration(known[model])(scores[model])
            elif model is not None:
                warn(f"not recalibrated: the patients of {calibration_split!r} are all active or all inactive")
        tables = all_tables(scores) | effects
        figures = _charts(scores, tables)
        if model is not None:
            item = _shown(evaluation, scores[model], case)
            figures |= _patient_figures(evaluation, item, model, figure_members)
            figures |= _six_arms(comparison, item)
            _write_calibration(evaluation, model, scores[model], provenance)
        notes = _warnings(provenance.split, len(next(iter(scores.values())).cases)) + notes
        notes += _left_out(evaluation.guard)
        report = Report(tables, figures, _facts(evaluation, scores), _described(provenance, evaluation), notes)
        print(f"report: {report.write(evaluation.output_dir)}")
    _exit_code(evaluation.guard)


def compare_arms(
    comparison: Evaluation, compared_patients: int | None, provenance: Provenance, case: str | None = None
) -> None:
    """Forecast from w000 alone under all six arms, measure the effects on a simulated trial, and write a report.

    Args:
        comparison: of forecasters from w000 alone.
        compared_patients: number of its items measured, None for all; none of them if the trial is not a simulated one.
        provenance: the settings of the run.
        case: the patient of the figure, by default the first.

    Raises:
        InputError: an argument is out of range, or there is no model among the forecasters.
    """
    if compared_patients is not None:
        check_count("compared_patients", compared_patients, 0)
    check_case(case, comparison.items)
    if _model_of_effects(comparison.forecasters) is None:
        raise InputError("no weights of the model of w000 alone", "train it, or give their path with --weights_w000")
    compared = _first(comparison, compared_patients)
    with sharing() as (rank, world):
        forecast_arms(compared, rank, world)
    if rank == 0:
        item = next((item for item in comparison.items if item["case"] == case), comparison.items[0])
        figures = _six_arms(comparison, item)
        facts = f"{len(compared.items)} patients of {Path(comparison.dataset_dir).name}, forecast from w000 alone."
        tables, notes = _effects(compared)
        notes = _warnings(provenance.split, len(compared.items)) + notes + _left_out(comparison.guard)
        report = Report(tables, figures, facts, _described(provenance, comparison), notes)
        print(f"report: {report.write(comparison.output_dir)}")
    _exit_code(comparison.guard)


def model_of(forecasters: Mapping[str, Forecaster]) -> str | None:
    """Name of the first model that draws members: it is recalibrated and shown in the figures of one patient."""
    return next((name for name, f in ensembles(forecasters).items() if f.role is Role.MODEL), None)


def _model_of_effects(forecasters: Mapping[str, Forecaster]) -> str | None:
    """Name of the first model, whether it draws members or not."""
    return next((name for name, f in forecasters.items() if f.role is Role.MODEL), None)


def check_case(case: str | None, items: Sequence[Mapping[str, Any]]) -> None:
    """
    Raises:
        InputError: the patient is not among the items, or there are none.
    """
    if not items:
        raise InputError(
            "no patient of this split has a known outcome", "choose another --split, or add NET2 masks of w096"
        )
    if case is not None and case not in (item["case"] for item in items):
        raise InputError("no such patient in this split", "correct --case or --split", case=str(case))


def _write_calibration(evaluation: Evaluation, model: str, scores: Scores, provenance: Provenance) -> None:
    """calibration.json of a model whose weights are known."""
    weights = describe_weights(provenance.weights)
    if weights is None:
        return
    forecaster = ensembles(evaluation.forecasters)[model]
    measured = measured_calibration(
        scores,
        data_set=Path(evaluation.dataset_dir).name,
        simulated=is_simulated(evaluation.dataset_dir),
        split=provenance.split,
        weights_sha256=weights["sha256"],
        sampling=forecaster.inferer.settings.as_dict() | {"count_model": plain(forecaster.counts)},
    )
    path = Path(evaluation.output_dir) / "calibration.json"
    with written_whole(path) as stream:
        stream.write(json_bytes(measured))
    print(f"calibration: {path}")


def _exit_code(guard: Guard) -> None:
    if guard.failures:
        sys.exit("patients were left out, each is listed above")


def _left_out(guard: Guard) -> list[str]:
    """Notes of the report on patients that could not be read, in training and evaluated splits alike."""
    return list(dict.fromkeys(f"Left out: {failure}" for failure in guard.failures))


def _warnings(split: str, patients: int) -> list[str]:
    """Notes of the report on what makes its numbers doubtful."""
    notes = []
    if patients < FEW_PATIENTS:
        notes.append(f"Only {patients} patients: differences between forecasters are mostly chance.")
    if split in ("all", "training"):
        notes.append(f"The split {split!r} holds patients that model and baselines were fitted to.")
    return notes


def _described(provenance: Provenance, evaluation: Evaluation) -> dict[str, Any]:
    """Provenance in plain JSON types; patients that cannot be read are left out."""
    versions = [evaluation.guard.call(evaluation.read.version, item, None) for item in evaluation.items]
    known = [version for version in versions if version is not None]
    return provenance.describe(evaluation.dataset_dir, known, evaluation.forecasters)


def _first(comparison: Evaluation, patients: int | None) -> Evaluation:
    simulated = is_simulated(comparison.dataset_dir)
    return replace(comparison, items=comparison.items[: patients if simulated else 0])


def _effects(comparison: Evaluation) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """The table of effects and notes on it."""
    if not comparison.items:
        return {}, []
    expected, (true, means) = expected_counts(comparison), true_counts(comparison)
    complete = complete_patients(expected, true)
    notes = []
    if not complete.all():
        notes = [
            f"Effects: {(~complete).sum()} of {len(complete)} patients are left out; a forecast or truth is missing."
        ]
        warn(notes[0])
    if not complete.any():
        return {}, notes
    given = np.array([checked_arm(item["arm"], "correct the datalist", case=item["case"]) for item in comparison.items])
    roles = {name: forecaster.role for name, forecaster in comparison.forecasters.items()}
    expected = {name: x[complete] for name, x in expected.items()}
    table = effects_table(expected, true[complete], means[complete], given[complete], roles)
    return {"counterfactual": table}, notes


def _charts(scores: Mapping[str, Scores], tables: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    colours = charts.colours_of({name: s.role for name, s in scores.items()})
    drawn = {
        "roc_pr": charts.roc_and_pr(scores),
        "counts": charts.count_scatter(scores),
        "reliability": charts.reliability(scores),
        "froc": charts.froc_curves(scores),
        "pit": charts.pit_histograms(scores),
        "decisions": charts.decision_curves(scores),
    }
    if any(tables[name].gap_closed.notna().any() for name in TABLES):
        drawn["gap_closed"] = charts.gap_closed({name: tables[name] for name in TABLES}, colours)
    if len(tables["members"]):
        drawn["convergence"] = charts.convergence(tables["members"], colours)
    return drawn


def _patient_figures(
    evaluation: Evaluation, item: Mapping[str, Any], model: str, figure_members: int
) -> dict[str, Figure]:
    """Members and heatmaps of one patient."""
    observed = evaluation.read(item)
    flair, brain = observed.patient.volume("flair_w048"), observed.patient.brain
    larger = {f"{model} of {figure_members}": ensembles(evaluation.forecasters)[model].with_members(figure_members)}
    ensemble = replace(evaluation, items=[item], forecasters=larger)  # stored as all scores are
    ensemble.score()
    (packed,) = (of_patient["members"][0] for of_patient in ensemble.scores().values())
    members = np.unpackbits(packed, axis=1, count=brain.size).reshape(-1, *brain.shape) > 0
    heatmaps = {
        f"fraction of {figure_members} members": members.mean(axis=0),
        f"heatmap of {model}": evaluation.forecasters[model](observed.patient)[0].heatmap,
    }
    return {
        "members": slices.members_and_outcome(flair, brain, members, observed.outcome),
        "heatmap": slices.heatmaps_and_outcome(flair, brain, heatmaps, observed.outcome),
    }


def _six_arms(comparison: Evaluation, item: Mapping[str, Any]) -> dict[str, Figure]:
    """A patient under each treatment by the model of w000 alone; nothing if there is none."""
    model = _model_of_effects(comparison.forecasters)
    if model is None:
        return {}
    patient = comparison.read(item).patient
    forecasts = comparison.under_each_arm(model, item)
    return {"arms": slices.six_arms(patient.volume("flair_w000"), patient.brain, forecasts)}


def _shown(evaluation: Evaluation, scores: Scores, case: str | None) -> Mapping[str, Any]:
    nearest = scores.cases[int(np.abs(scores["true_count"] - 5).argmin())]
    if case is not None and case not in scores.cases:
        warn(f"{case}: could not be scored; the figures show {nearest}")
    of_case = {item["case"]: item for item in evaluation.items}
    return of_case[case if case in scores.cases else nearest]


def _facts(evaluation: Evaluation, scores: Mapping[str, Scores]) -> str:
    first = next(iter(scores.values()))
    names = "; ".join(map(charts.display_name, scores))
    return (
        f"{len(first.cases)} of {len(evaluation.items)} patients of {Path(evaluation.dataset_dir).name}, "
        f"{int(first.active.sum())} of them active, {int(first['true_count'].sum())} new or enlarging lesions. "
        f"Forecasters: {names}."
    )
