"""What every page carries: the notice, warnings and remarks, and how the forecast was made."""

import textwrap
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle

from bundle.data.tables import TRIAL_MONTHS

NOTICE = "Research use only. Not a medical device. Weights trained on simulated data."
AMBER = "#ffbf00"
NOTES_SHOWN = 4
NOTE_WIDTH = 170  # characters of a note in one line of the page
LINE = 0.25  # inches
VOLUMES = {"flair": "FLAIR", "t2": "T2 lesions", "gd": "Gd lesions", "net2": "new T2 lesions"}


def png_bytes(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG."""
    page = BytesIO()
    FigureCanvasAgg(figure).print_png(page)
    return page.getvalue()


def write_footer(footer: SubFigure, forecast: Mapping[str, Any]) -> None:
    """The notice, and how the forecast was made."""
    footer.text(0.012, 0.5, NOTICE, va="center", fontsize=12, color="#a00000", weight="bold")
    footer.text(0.988, 0.5, provenance(forecast), va="center", ha="right", fontsize=9, color="#555555")


def wrap_notes(notes: Sequence[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Notes and whether each is a warning, broken into at most `NOTES_SHOWN` lines."""
    lines = [(line, amber) for text, amber in notes for line in textwrap.wrap(text, NOTE_WIDTH)]
    if len(lines) > NOTES_SHOWN:
        hidden = any(amber for _, amber in lines[NOTES_SHOWN - 1 :])
        lines[NOTES_SHOWN - 1 :] = [("More warnings and remarks are in the JSON file.", hidden)]
    return lines


def write_notes(header: SubFigure, notes: Sequence[tuple[str, bool]], *, first: float, height: float) -> None:
    """Lines of `wrap_notes` from `first` inches below the top of a header of `height` inches, warnings in amber."""
    for row, (text, amber) in enumerate(notes):
        top = first + LINE * row
        if amber:
            band = Rectangle((0, 1 - (top + LINE) / height), 1, LINE / height, color=AMBER)
            header.add_artist(band).set_transform(header.transSubfigure)
        style = {"fontsize": 10.5, "color": "black" if amber else "#8a5a00"}
        header.text(0.012, 1 - (top + LINE / 2) / height, text, va="center", **style)


def provenance(forecast: Mapping[str, Any]) -> str:
    """How a forecast was made, in one line."""
    weights, sampling = (forecast["weights_sha256"] or "unnamed")[:12], forecast["sampling"]
    return (
        f"weights {weights}, seed {sampling['seed']}, {sampling['num_steps']} steps, "
        f"guidance {sampling['guidance_scale']:g}, bundle {forecast['versions']['bundle']}"
    )


def horizon(forecast: Mapping[str, Any]) -> str:
    """The time in which the lesions that are forecast come, e.g. "in the 11 months after the second scan"."""
    months = forecast["sampling"].get("horizon_months", TRIAL_MONTHS)  # forecasts of before had no such setting
    start = "the second scan" if "w048" in forecast["inputs"]["session"] else "week 48"
    return f"in the {months:g} months after {start}"


def input_lines(inputs: Mapping[str, Any]) -> list[str]:
    """What was read, a line a visit, then what else the forecast rests on."""
    lines = []
    for visit, session in inputs["session"].items():
        months = inputs["months"].get(visit)
        about = [visit] + ([session] if session != f"ses-{visit}" else [])
        about += ["date unknown"] if months is None else [f"month {months:g}"]
        lines.append(f"{', '.join(about)}: {_volumes_of(visit, inputs['used']) or 'nothing'}")
        if estimated := _volumes_of(visit, inputs["estimated"]):
            lines.append(f"    marked by a program: {estimated}")
        if missing := _volumes_of(visit, inputs["missing"]):
            lines.append(f"    missing at {visit}: {missing}")
    alignment = inputs["alignment"]
    lines.append("Brain mask: " + ("estimated from the FLAIR" if inputs["brain"] == "estimated" else "given"))
    lines.append("Correlation of the two FLAIR: " + ("unknown" if alignment is None else f"{alignment:.2f}"))
    return lines


def _volumes_of(visit: str, names: Sequence[str]) -> str:
    kinds = (name.split("_")[0] for name in names if name.endswith(f"_{visit}"))
    return ", ".join(VOLUMES.get(kind, kind) for kind in kinds)
