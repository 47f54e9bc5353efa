"""The report of an evaluation: tables as CSV and JSON, figures as PNG and SVG, and one page that opens offline."""

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from matplotlib.figure import Figure

from bundle import __version__
from bundle.evaluation.figures import spoken
from bundle.files import written_whole

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

        return Environment(loader=PackageLoader("bundle.evaluation"), autoescape=True).get_template("report.html").render(
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
