"""The report of an evaluation: tables as CSV and JSON, figures as PNG and SVG, and one page that opens offline."""

import base64
import json
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

from bundle.evaluation.charts import display_name
from bundle.evaluation.sections import CAPTIONS, GROUPS, SUMMARY, Section
from bundle.evaluation.tables import ALL, FROM_BEST, FROM_CEILING, FROM_ENSEMBLE, MIN_POSITIVES
from bundle.files import written_whole
from bundle.forecasters.base import Role

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
        provenance: what it was made with, see `bundle.evaluation.provenance`.
        notes: sentences on what is missing, shown at the top.
    """

    tables: Mapping[str, pd.DataFrame]
    figures: Mapping[str, Figure]
    facts: str
    provenance: Mapping[str, Any]
    notes: Sequence[str] = ()

    def write(self, output_dir: str | Path) -> Path:
        """Write tables (CSV, JSON), figures (PNG, SVG), provenance.json and report.html; returns the page's path."""
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
                figure.set_layout_engine("none")  # laid out for PNG, which is slow: SVG takes the same layout
        _write(root / "provenance.json", json.dumps(self.provenance, indent=1).encode())
        _write(root / "report.html", self.html(pictures).encode())
        return root / "report.html"

    def html(self, pictures: Mapping[str, bytes]) -> str:
        """The page, with the PNG of each figure inside."""
        groups = {}
        for question, sections in GROUPS.items():
            shown = [section for section in (self._section(s, pictures) for s in sections) if section is not None]
            if shown:
                groups[question] = shown

        def figure(name: str) -> Markup:
            if name not in pictures:
                return Markup("")
            data = base64.b64encode(pictures[name]).decode()
            caption = CAPTIONS[name]
            image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
            return Markup(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")

        dataset = self.provenance.get("dataset", {})
        environment = Environment(loader=PackageLoader("bundle.evaluation"), autoescape=True)
        return environment.get_template("report.html").render(
            title="Evaluation of NET2 forecasts",
            simulated=dataset.get("simulated", False),
            facts=self.facts,
            notes=self.notes,
            groups=groups,
            summary=summary(self.tables),
            leading=("gap_closed",),
            figure=figure,
            provenance=json.dumps(self.provenance, indent=1),
            made_with=_made_with(self.provenance),
            min_positives=MIN_POSITIVES,
            compared=tuple(COMPARED.values()),
        )

    def _section(self, section: Section, pictures: Mapping[str, bytes]) -> dict[str, Any] | None:
        """What the template shows of a section; None if there is neither figure nor table."""
        figures = [name for name in section.figures if name in pictures]
        hidden = section.table not in self.tables or section.table == "members"  # drawn, not listed
        tables = [] if hidden else list(_pivots(self.tables[section.table]))
        return {"section": section, "figures": figures, "tables": tables} if figures or tables else None


def summary(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The first table of the page: a row for each metric of `SUMMARY`, all patients, the first model of each table.

    Columns: question, metric, floor, best baseline, model, their paired difference, best ensemble, best possible.
    """
    rows = []
    for question, table, metric in SUMMARY:
        if table not in tables:
            continue
        found = tables[table]
        found = found[(found.metric == metric) & (found.arm == ALL)]
        model = _first(found, Role.MODEL.value)
        if model is None and not len(found):
            continue
        name = "" if model is None else model.forecaster
        compared = {
            role: next(
                (r for r in found.itertuples() if r.role == role and r.forecaster.startswith(f"{name} - ")), None
            )
            for role in (FROM_BEST, FROM_ENSEMBLE)
        }
        others = {role: None if row is None else _named(found, row, name) for role, row in compared.items()}
        best = others[FROM_BEST]
        rows.append(
            {
                "question": question,
                "metric": metric,
                "population (floor)": _short(_first(found, Role.FLOOR.value)),
                "best baseline": _short(best, "" if best is None else display_name(best.forecaster)),
                "model": _short(model, display_name(name), interval=True),
                "model - best baseline": _short(compared[FROM_BEST], interval=True),
                "best ensemble": _short(others[FROM_ENSEMBLE]),
                "best possible": _short(_first(found, Role.CEILING.value)),
            }
        )
    return pd.DataFrame(rows)


def _first(rows: pd.DataFrame, role: str) -> Any:
    return next((row for row in rows.itertuples() if row.role == role), None)


def _named(rows: pd.DataFrame, difference: Any, model: str) -> Any:
    """The row of the forecaster that a model is compared with."""
    other = difference.forecaster.removeprefix(f"{model} - ")
    return next(row for row in rows.itertuples() if row.forecaster == other)


def _short(row: Any, small: str = "", interval: bool = False) -> str:
    if row is None or not np.isfinite(row.value):
        return "–"
    parts = [small] if small else []
    if interval:
        parts.append(_interval(row))
    return Markup(f"{row.value:.3g}") + (Markup("<small>") + "; ".join(parts) + Markup("</small>") if parts else "")


def _made_with(provenance: Mapping[str, Any]) -> str:
    """The most important of it as one line."""
    dataset, weights = provenance.get("dataset", {}), provenance.get("weights")
    of_simulation = [f"{key} {dataset[key]}" for key in ("version", "preset", "seed") if key in dataset]
    parts = [
        f"data set {dataset.get('name', '')}" + (f" ({', '.join(of_simulation)})" if of_simulation else ""),
        f"split {provenance.get('split')}",
        f"weights {weights['sha256'][:12]}" if weights else "no weights",
        f"{provenance.get('num_members')} members, seed {provenance.get('seed')}",
        str(provenance.get("software")),
        str(provenance.get("date")),
    ]
    return "; ".join(parts) + "."


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
    gap = Markup(f" <b>{_percent(row.gap_closed)}</b>") if shown else ""
    notes = [f"{before}{_interval(row)}"]
    if shown and row.role == Role.MODEL.value:
        notes.append(f"gap closed {_percent(row.gap_low)} to {_percent(row.gap_high)}")
        if np.isfinite(row.gap_from_best) and abs(row.gap_from_best) < 10:
            span = f"{_percent(row.gap_from_best_low)} to {_percent(row.gap_from_best_high)}"
            notes.append(f"from the best baseline {_percent(row.gap_from_best)} ({span})")
    return Markup(f"{row.value:.3g}") + gap + Markup("".join(f"<small>{note}</small>" for note in notes))


def _percent(fraction: float) -> str:
    return f"{round(fraction, 2) + 0.0:.0%}"  # never -0


def _interval(row: Any) -> str:
    """Its interval, or how few positives there are, and how many draws the interval leaves out."""
    if row.positives < MIN_POSITIVES:
        return f"n = {row.positives}"
    left_out = f", {row.undefined} draws undefined" if row.undefined else ""
    return f"{row.ci_low:.3g} to {row.ci_high:.3g}{left_out}" if np.isfinite(row.ci_low) else "no interval"
