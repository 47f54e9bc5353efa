"""All patients in a table and on a page."""

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader

from bundle import __version__

COLUMNS = (
    "participant_id",
    "status",
    "visits",
    "months",
    "shift_mm",
    "rotation_degrees",
    "correlation_before",
    "correlation",
    "brain",
    "missing",
    "warnings",
    "problem",
)
_UNKNOWN = "n/a"


def table_tsv(records: Mapping[str, Mapping[str, Any]]) -> bytes:
    """patients.tsv: a line a patient; several visits or warnings of one are separated by "; "."""
    lines = ["\t".join(COLUMNS), *("\t".join(row.values()) for row in _rows(records))]
    return ("\n".join(lines) + "\n").encode()


def overview_html(records: Mapping[str, Mapping[str, Any]]) -> bytes:
    """patients.html: the same table, with links to the patients' quality pages."""
    environment = Environment(loader=PackageLoader("bundle.data.preparation"), autoescape=True)
    page = environment.get_template("patients.html").render(columns=COLUMNS, rows=_rows(records), version=__version__)
    return page.encode()


def _rows(records: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    return [_row(label, record) for label, record in records.items()]


def _row(label: str, record: Mapping[str, Any]) -> dict[str, str]:
    pairs = record.get("registration", {}).values()
    months, brain = record.get("months", {}), record.get("brain", {})

    def of_pairs(name: str) -> str:
        return _joined(pair[name] for pair in pairs)

    return {
        "participant_id": label,
        "status": record.get("status", _UNKNOWN),
        "visits": _joined(record.get("sources", {})),
        "months": _joined(months.values()),
        "shift_mm": of_pairs("shift_mm"),
        "rotation_degrees": of_pairs("rotation_degrees"),
        "correlation_before": of_pairs("correlation_before"),
        "correlation": of_pairs("correlation"),
        "brain": _joined(brain.values()),
        "missing": _joined(record.get("missing", ())),
        "warnings": _joined(record.get("warnings", ())),
        "problem": record.get("problem") or _UNKNOWN,
    }


def _joined(values: Any) -> str:
    texts = [_UNKNOWN if value is None else str(value) for value in values]
    return "; ".join(texts).replace("\t", " ").replace("\n", " ") or _UNKNOWN
