"""The report of an evaluation: tables as CSV and JSON, figures as PNG and SVG, and one page that opens offline."""

import base64
from collections.abc import Iterator, Mapping, Sequence
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
from bundle.evaluation.charts import display_name
from bundle.evaluation.tables import FROM_BEST, FROM_CEILING, FROM_ENSEMBLE
from bundle.files import written_whole

HEADINGS = {  # of each table: heading and explanation
    "regions": (
        "Where: regions with a new lesion",
        "Each lesion belongs to the region that holds most of its voxels, by SynthSeg's labels or the data set's own; "
        '"any voxel": to every region that holds one of its voxels, which is the paper\'s definition. Balanced '
        "accuracy, and F1 with precision and recall, are at the cut of each forecaster at which they were best on the "
        "calibration split.",
    ),
    "activity": (
        "Who: active patients",
        "A patient is active who has at least one new or enlarging lesion at w096. AUC over all patients owes much to "
        "the "
        "treatment alone; AUC within arms does not.",
    ),
    "log_count": (
        "How many: log count",
        "Natural logarithm of 1 + count: the count can be 0, whose logarithm is not defined. Each forecaster states "
        "its mean of "
        "that logarithm, which minimises the expected squared error.",
    ),
    "where": (
        "Where: location of the lesions of active patients",
        "Every heatmap is scaled to the same volume, so that who is active and how much is forecast have no effect. "
        "Log score: mean of log(density / uniform density within the brain) at the lesions, in nats; 0 for a uniform "
        "map. Top of the brain: the part of its volume with the highest values. Sites: local maxima of the smoothed "
        "heatmap, at least 20 mm apart.",
    ),
    "detection": (
        "Who and where: lesions and voxels",
        "Lesions of the consensus (voxels that at least half of the ensemble marks) against those of the outcome, "
        "both of at "
        "least 3 mm3. A lesion is found if the other map's lesions cover more than 10 % of it, and those that make up "
        "65 % of "
        "the overlap lie outside with at most 70 % of their voxels (MSSEG). Voxel scores are over the brain within "
        "the slab; "
        "those of the model are of its one-call heatmap.",
    ),
    "calibration": (
        "How sure: calibration",
        "Expected calibration error: mean of |observed - forecast| over bins, ten of P(active), 21 of the heatmap; it "
        "is larger than 0 in small samples even of a calibrated forecast. Slope and intercept are of the logistic "
        "regression of activity on the log-odds of P(active), the intercept with slope 1: 1 and 0 are perfect, a slope below 1 is "
        'too extreme, an intercept above 0 too low. "Recalibrated" is P(active) after a logistic '
        "regression on its log-odds, fitted on the validation split.",
    ),
    "counts": (
        "How sure: distribution of the count",
        "CRPS is the integrated squared difference between forecast and observed distribution function, in lesions; "
        "of a single number it is the absolute error. The fair CRPS of an ensemble estimates that of an infinite one. "
        "Intervals hold the central 80 and 95 % of the forecast distribution, ends included. Counts are integers and "
        "ensembles finite, so even the best forecast does not cover 80 and 95 %: the target of an ensemble is the "
        "coverage of the oracle's ensemble of the same size.",
    ),
    "decisions": (
        "How sure: decisions",
        "Net benefit of treating the patients whose P(active) reaches a threshold: true positives, minus false ones "
        "times threshold / (1 - threshold), per patient. A forecast is of use where it is above treating all, treating "
        "none and the best baseline.",
    ),
    "counterfactual": (
        "What if: effects of treatments",
        "Forecast from pre-treatment scans alone, under each treatment, against the lesions that the simulated "
        "patient would "
        "have had. ATE: mean difference in count between two arms. PEHE: root mean squared error of a patient's own "
        "difference. Policy value: mean true count if each patient gets the arm with the lowest expected count; "
        "limited: if "
        "ocrelizumab goes to the quarter with the greatest forecast gain and interferon beta-1a to the others. Lower "
        "is better.",
    ),
    "members": (
        "How many members are enough",
        "The first members of each ensemble alone, all patients; the voxel Brier score is that of the fraction of "
        "members. "
        "Dotted line: the metric has converged, that is, from there on it stays within a tenth of its interval's "
        "width of its "
        "last value.",
    ),
}
CAPTIONS = {
    "gap_closed": "Fraction of the gap between the population, stated as probabilities (0), and the best possible "
    "forecast (1) that is closed, with 95 % intervals over patients.",
    "roc_pr": "Receiver operating characteristic and precision-recall curve of P(active).",
    "counts": "Forecast and observed number of new lesions, one point a patient.",
    "reliability": "Observed against forecast frequency: P(active) with 95 % intervals over patients, and voxels of "
    "the heatmap.",
    "pit": "Where the observed count lies in the forecast distribution (randomised probability integral transform): "
    "flat within the grey band if calibrated, U-shaped if too narrow.",
    "decisions": "Net benefit over the threshold of P(active) from which on a patient is treated.",
    "members": "Three members of the ensemble beside the outcome.",
    "heatmap": "Heatmaps with the outline of the outcome. The one-call heatmap estimates the mean of infinitely many "
    "members "
    "without drawing any; it does not depend on random numbers.",
    "arms": "One patient under each treatment, with the same noise.",
    "convergence": "Metrics over the size of the ensemble.",
}
FIGURES = {  # by table
    "activity": ("roc_pr",),
    "log_count": ("counts",),
    "calibration": ("reliability",),
    "counts": ("pit",),
    "decisions": ("decisions",),
    "members": ("convergence",),
    "detection": ("members", "heatmap"),
    "counterfactual": ("arms",),
}
COMPARED = {  # end the names of differences
    FROM_BEST: " - best baseline",
    FROM_CEILING: " - best possible",
    FROM_ENSEMBLE: " - best ensemble",
}
MAX_COLUMNS = 8  # that fit on the page


@dataclass(frozen=True)
class Report:
    """The results of an evaluation.

    Attributes:
        tables: long tables by name.
        figures: by name.
        facts: a sentence on what was evaluated.
        notes: sentences on what is missing, shown at the top.
    """

    tables: Mapping[str, pd.DataFrame]
    figures: Mapping[str, Figure]
    facts: str
    notes: Sequence[str] = ()

    def write(self, output_dir: str | Path) -> Path:
        """Write tables/*.csv, tables/*.json, figures/*.png, figures/*.svg and report.html; returns the page's path."""
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
        for name, (heading, note) in HEADINGS.items():
            shown = [figure for figure in FIGURES.get(name, ()) if figure in pictures]
            tables = [] if name not in self.tables or name == "members" else list(_pivots(self.tables[name]))
            if shown or tables:
                sections.append({"name": name, "heading": heading, "note": note, "figures": shown, "tables": tables})

        def figure(name: str) -> Markup:
            if name not in pictures:
                return Markup("")
            data = base64.b64encode(pictures[name]).decode()
            caption = CAPTIONS[name]
            image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
            return Markup(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")

        environment = Environment(loader=PackageLoader("bundle.evaluation"), autoescape=True)
        return environment.get_template("report.html").render(
            title="Evaluation of NET2 forecasts",
            facts=self.facts,
            notes=self.notes,
            sections=sections,
            leading=("gap_closed",),
            figure=figure,
            provenance=f"ms-net2-forecast {__version__}",
            compared=tuple(COMPARED.values()),
        )


def _write(file: Path, content: bytes) -> None:
    with written_whole(file) as stream:
        stream.write(content)


def _pivots(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Cells of each metric, a row for each forecaster and a column for each arm; transposed if there are many arms."""
    endings = tuple(COMPARED.values())
    for metric, rows in table.groupby("metric", sort=False):
        cells: dict[str, dict[str, str]] = {}
        for row in rows.itertuples():
            column = f"{display_name(row.arm)} (n={row.n})"
            name, _, other = row.forecaster.partition(" - ")
            label = display_name(name) + COMPARED.get(row.role, "")
            before = f"vs {display_name(other)}: " if row.role in COMPARED else ""
            cells.setdefault(column, {})[label] = _cell(row, before)
        pivot = pd.DataFrame(cells).fillna("–")
        pivot = pivot.loc[sorted(pivot.index, key=lambda name: name.endswith(endings))]
        yield metric, pivot.T if len(cells) > MAX_COLUMNS else pivot


def _cell(row: Any, before: str = "") -> str:
    if not np.isfinite(row.value):
        return "–"
    # Where the gap is narrow, the fraction closed by a perfect or very bad forecast is meaningless.
    shown = np.isfinite(row.gap_closed) and abs(row.gap_closed) < 10
    gap = Markup(f" <b>{round(row.gap_closed, 2) + 0.0:.0%}</b>") if shown else ""  # never -0
    return Markup(f"{row.value:.3g}") + gap + Markup(f"<small>{before}{row.ci_low:.3g} to {row.ci_high:.3g}</small>")
