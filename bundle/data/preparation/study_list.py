"""The user's own table of scans: what overrules the guesses on patient, date, visit, kind and treatment."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path, PurePosixPath

from bundle.arms import CLASSES
from bundle.data.bids import VISITS
from bundle.data.tables import LABEL, checked_arm
from bundle.errors import InputError

COLUMNS = ("path", "patient", "participant_id", "date", "visit", "kind", "treatment_arm")
KINDS = ("flair", "t2", "gd", "net2", "brain", "ignore")
_UNKNOWN = ("", "n/a")


@dataclass(frozen=True)
class Row:
    """One line of the table; what is empty is guessed.

    Attributes:
        path: file or folder, relative to the source; None if the line is about a patient.
        patient: as the source names them: PatientID, folder or sub-X.
        participant_id: the label to write, "sub-X".
        day: of the study.
        visit: w000, w048 or w096.
        kind: what the scan is.
        treatment_arm: name of the arm.
    """

    path: PurePosixPath | None = None
    patient: str = ""
    participant_id: str = ""
    day: date | None = None
    visit: str | None = None
    kind: str = ""
    treatment_arm: str = ""


def read_rows(path: Path, source: Path) -> list[Row]:
    """The lines of a table, tab- or comma-separated with a header of some of `COLUMNS`.

    Raises:
        InputError: unreadable, unknown columns or values, or a path that is not in the source.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        lines = list(csv.reader(text.splitlines(), delimiter="\t" if "\t" in text else ","))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError("cannot be read as a table", "give a tab- or comma-separated text", file=path) from error
    header, *body = [[cell.strip() for cell in line] for line in lines if any(cell.strip() for cell in line)] or [[]]
    unknown = set(header) - set(COLUMNS)
    if not header or unknown or len(set(header)) < len(header):
        problem = f"unknown columns {', '.join(sorted(unknown))}" if unknown else "no header, or a column twice"
        raise InputError(problem, f"columns are {', '.join(COLUMNS)}", file=path)
    return [_row(number, dict(zip(header, line)), path, source) for number, line in enumerate(body, start=2)]


def find_row(rows: Sequence[Row], inside: Path) -> Row:
    """What the table says of a file, relative to the source: the deepest line that names it or a folder above."""
    parts = inside.parts
    fitting = [row for row in rows if row.path and parts[: len(row.path.parts)] == row.path.parts]
    return max(fitting, key=lambda row: len(row.path.parts), default=Row())


def _row(number: int, cells: dict[str, str], path: Path, source: Path) -> Row:
    def refuse(problem: str, fix: str) -> InputError:
        return InputError(f"line {number}: {problem}", fix, file=path)

    values = {name: "" if cell in _UNKNOWN else cell for name, cell in cells.items()}
    place = PurePosixPath(values["path"]) if values.get("path") else None
    if place and (place.is_absolute() or ".." in place.parts or not (source / place).exists()):
        raise refuse("no such file or folder in the source", "give a path relative to it")
    if not place and not values.get("patient"):
        raise refuse("neither path nor patient", "fill one of them")
    kind, visit = values.get("kind", "").lower(), values.get("visit") or None
    if kind and kind not in KINDS:
        raise refuse(f"kind {kind!r}", f"give one of {', '.join(KINDS)}")
    if visit and visit not in VISITS:
        raise refuse(f"visit {visit!r}", f"give one of {', '.join(VISITS)}")
    label = values.get("participant_id", "")
    if label and not LABEL.fullmatch(label):
        raise refuse(f"participant_id {label!r}", "write sub-<letters and digits>")
    arm = values.get("treatment_arm", "")
    if arm:
        arm = CLASSES[checked_arm(arm, f"correct line {number}", file=path)]
    day = None
    if text := values.get("date", ""):
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", text):
            raise refuse(f"date {text!r}", "write it as 2024-01-31")
        try:
            day = date.fromisoformat(text)
        except ValueError as error:
            raise refuse(f"date {text!r}", "write it as 2024-01-31") from error
    return Row(place, values.get("patient", ""), label, day, visit, kind, arm)
