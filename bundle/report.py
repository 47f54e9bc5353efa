"""The report of an evaluation: tables as CSV and JSON, figures as PNG and SVG, and one page that opens offline."""

import base64
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment
from markupsafe import Markup
from matplotlib.figure import Figure

from bundle import __version__, charts
from bundle.arms import arm_index
from bundle.charts import spoken
from bundle.counterfactual import effects_table, expected_counts, true_counts
from bundle.data.datalist import load_split, with_outcome
from bundle.errors import InputError
from bundle.evaluation import Evaluation, Scores, is_simulated, sharing
from bundle.files import written_whole
from bundle.tables import TABLES, Recalibration, all_tables

HEADINGS = {
    "regions": (
        "Where: regions with a new lesion",
        "A region is forecast where its probability is at least one half. Each lesion belongs to the region that holds most of "
        "its voxels, of the SynthSeg labels or of the data set's own.",
    ),
    "activity": (
        "Whether: activity",
        "A patient is active who has at least one new or enlarging lesion at w096. AUC over all patients owes much to the "
        "treatment alone; within arms it does not.",
    ),
    "log_count": (
        "How many: log count",
        "Natural logarithm of 1 + count: the count can be 0, whose logarithm is not defined. Each forecaster gives its mean of that "
        "logarithm, where it has a distribution, which is the number with the least expected squared error.",
    ),
    "detection": (
        "Which voxels and lesions",
        "Lesions of the consensus (voxels that at least half of the ensemble marks) against those of the truth, both of at least "
        "3 mm3. A lesion is found if the other map's lesions cover more than 10 % of it, and those that make up 65 % of the overlap "
        "lie outside with at most 70 % of their voxels (MSSEG). Voxel scores are over the brain within the slab; the model's are those of "
        "its one-call heatmap.",
    ),
    "calibration": (
        "Can the probabilities be believed",
        "Calibration errors are means of |said - came| over bins, ten of P(active), 21 of the heatmap; small samples alone make them "
        "larger than 0. \"Recalibrated\" is P(active) after a logistic regression on its log-odds, fitted on the validation split.",
    ),
    "counts": (
        "How sure: distribution of the count",
        "CRPS is the mean area between forecast and true distribution function, in lesions: of one certain number it is the absolute error. "
        "Intervals hold the middle 80 and 95 % of the forecast distribution, ends included; counts are whole, so that even the best "
        "forecast covers more.",
    ),
    "counterfactual": (
        "What if: effects of treatments",
        "Forecast from pre-treatment scans alone, under each treatment, against the lesions that the simulated patient would have had. "
        "PEHE is the root mean squared error of a patient's own difference between two arms. Policy values are mean true counts: of "
        "choosing for each patient the arm with the least expected count, and, \"few\", of giving ocrelizumab to the quarter that would gain "
        "most by the forecast and interferon beta-1a to the others. Fewer is better.",
    ),
    "members": (
        "How many members are enough",
        "The first members of each ensemble alone, all patients; their voxel Brier score is that of the share of members. The line is where a figure has settled: from there on it stays within a "
        "tenth of its interval's width of its last value.",
    ),
}
CAPTIONS = {
    "gap_closed": "The way from the population (0) to the best possible forecast (1), all patients.",
    "roc_pr": "Receiver operating characteristic and precision-recall of P(active).",
    "counts": "Forecast and true number of new lesions, patient by patient.",
    "reliability": "Said and came: P(active) with 95 % intervals, and the heatmap.",
    "members": "Three members of the ensemble beside what came.",
    "heatmap": "Heatmaps; the line is the outline of what came. Members drawn without end would agree on the lower one.",
    "arms": "One patient under each treatment, with the same noise.",
    "convergence": "Figures of merit over the size of the ensemble.",
}

DIFFERENCE = " - best baseline"  # ends the names of rows that tell one
MOST_COLUMNS = 8  # that a page is wide enough for

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title><style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2em auto; padding: 0 1em; color: #1b1b1b }
h1 { margin-bottom: 0 } h2 { margin-top: 2.2em; border-bottom: 1px solid #ddd } h3 { margin-bottom: .3em }
table { border-collapse: collapse; font-size: 12.5px; margin: .4em 0 1.2em } td, th { padding: 2px 9px; text-align: right }
th:first-child, td:first-child { text-align: left } tr:nth-child(even) td { background: #f6f6f6 }
td small { color: #777; display: block } td b { color: #0b6e4f; font-weight: 600 } tr.difference td { color: #555; font-style: italic }
img { max-width: 100% } figure { margin: 1em 0 } figcaption, .note { color: #555; font-size: 13px } .notice { color: #a00000 }
.table { overflow-x: auto } nav a { margin-right: 1.4em; white-space: nowrap } a { color: #1f5fa8; text-decoration: none }
</style></head><body>
<h1>{{ title }}</h1>
<p class="notice">Research use only. Not a medical device.</p>
<p>{{ facts }}</p>
<p class="note">Value and 95 % interval of a bootstrap over patients within arms (the same draws for all). In green the share of the
gap from the Monte Carlo population (of voxel scores: the frequency map) to the best possible forecast that is closed, where there is a gap beyond chance; shares beyond 1000 % are left
out. In italics the difference, in pairs, from the best of the baselines at that figure in that arm.</p>
<nav>{% for section in sections %}<a href="#{{ section.name }}">{{ section.heading }}</a> {% endfor %}</nav>
{% for name in leading %}{{ figure(name) }}{% endfor %}
{% for section in sections %}
<h2 id="{{ section.name }}">{{ section.heading }}</h2><p class="note">{{ section.note }}</p>
{% for name in section.figures %}{{ figure(name) }}{% endfor %}
{% for metric, cells in section.tables %}
<h3>{{ metric }}</h3>
<div class="table"><table><tr><th></th>{% for column in cells.columns %}<th>{{ column }}</th>{% endfor %}</tr>
{% for name, row in cells.iterrows() %}<tr{% if name.endswith(difference) %} class="difference"{% endif %}><td>{{ name }}</td>
{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</table></div>
{% endfor %}{% endfor %}
<p class="note">{{ provenance }}</p>
</body></html>
"""


@dataclass(frozen=True)
class Report:
    """Everything that an evaluation found.

    Attributes:
        tables: long tables by name.
        figures: by name.
        facts: a sentence on what was evaluated.
    """

    tables: Mapping[str, pd.DataFrame]
    figures: Mapping[str, Figure]
    facts: str

    def write(self, output_dir: str | Path) -> Path:
        """Writes tables/*.csv, tables/*.json, figures/*.png, figures/*.svg and report.html; returns the last one's path."""
        root = Path(output_dir)
        pictures = {}
        for name, table in self.tables.items():
            _write(root / "tables" / f"{name}.csv", table.to_csv(index=False).encode())
            _write(root / "tables" / f"{name}.json", table.to_json(orient="records", indent=1).encode())
        for name, figure in self.figures.items():
            for kind in ("png", "svg"):
                stream = BytesIO()
                # Without a date and with fixed ids the same scores give the same bytes.
                figure.savefig(stream, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else None)
                _write(root / "figures" / f"{name}.{kind}", stream.getvalue())
                pictures.setdefault(name, stream.getvalue())
        _write(root / "report.html", self.html(pictures).encode())
        return root / "report.html"

    def html(self, pictures: Mapping[str, bytes]) -> str:
        """The page, with the PNG of each figure inside."""
        sections = []
        of_section = {
            "activity": ("roc_pr",), "log_count": ("counts",), "calibration": ("reliability",), "members": ("convergence",),
            "detection": ("members", "heatmap"), "counterfactual": ("arms",),
        }  # fmt: skip
        for name, (heading, note) in HEADINGS.items():
            shown = [figure for figure in of_section.get(name, ()) if figure in pictures]
            tables = [] if name not in self.tables or name == "members" else list(_pivots(self.tables[name]))
            if shown or tables:
                sections.append({"name": name, "heading": heading, "note": note, "figures": shown, "tables": tables})

        def figure(name: str) -> Markup:
            if name not in pictures:
                return Markup("")
            data = base64.b64encode(pictures[name]).decode()
            caption = CAPTIONS[name]
            return Markup(f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>')

        return Environment(autoescape=True).from_string(TEMPLATE).render(
            title="Evaluation of NET2 forecasts", facts=self.facts, sections=sections, leading=("gap_closed",), figure=figure,
            provenance=f"ms-net2-forecast {__version__}", difference=DIFFERENCE,
        )  # fmt: skip


def _write(file: Path, content: bytes) -> None:
    with written_whole(file) as stream:
        stream.write(content)


def _pivots(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each metric of a long table with its cells, a row a forecaster and a column an arm; the other way round if they are many."""
    for metric, rows in table.groupby("metric", sort=False):
        cells: dict[str, dict[str, str]] = {}
        for row in rows.itertuples():
            column = f"{spoken(row.arm)} (n={row.n})"
            name, minus, baseline = row.forecaster.partition(" - ")
            name = spoken(name) + (DIFFERENCE if minus else "")
            cells.setdefault(column, {})[name] = _cell(row, f"to {spoken(baseline)}: " if minus else "")
        pivot = pd.DataFrame(cells).fillna("–")
        pivot = pivot.loc[sorted(pivot.index, key=lambda name: name.endswith(DIFFERENCE))]
        yield metric, pivot.T if len(cells) > MOST_COLUMNS else pivot


def _cell(row: Any, before: str = "") -> str:
    if not np.isfinite(row.value):
        return "–"
    # Beside a ceiling close to the floor a perfect or a very bad forecast has a share that says nothing.
    told = np.isfinite(row.gap_closed) and abs(row.gap_closed) < 10
    gap = Markup(f" <b>{round(row.gap_closed, 2) + 0.0:.0%}</b>") if told else ""  # never -0
    return Markup(f"{row.value:.3g}") + gap + Markup(f"<small>{before}{row.ci_low:.3g} to {row.ci_high:.3g}</small>")


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
        figures = _figures(evaluation, scores, tables, figure_members, case, model)
        print(f"report: {Report(tables, figures, _facts(evaluation, scores)).write(evaluation.output_dir)}")
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
        figure = charts.six_arms(patient.volume("flair_w000"), patient.brain, comparison.under_each_arm(model, item))
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
    figures = {
        "gap_closed": charts.gap_closed({name: tables[name] for name in TABLES}),
        "roc_pr": charts.roc_and_pr(scores),
        "counts": charts.count_scatter(scores),
        "reliability": charts.reliability(scores),
    }
    if model not in scores:
        return figures
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
    return figures | {
        "members": charts.members_beside_outcome(flair, brain, members, seen.outcome),
        "heatmap": charts.heatmaps_and_outcome(flair, brain, heatmaps, seen.outcome),
        "arms": charts.six_arms(flair, brain, of_arms),
        "convergence": charts.convergence(tables["members"]),
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
