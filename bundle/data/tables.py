"""The tables of a BIDS data set: treatments in participants.tsv, dates of the visits in sub-X_sessions.tsv."""

import csv
import re
from collections.abc import Mapping
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import Any

from bundle.arms import arm_index
from bundle.errors import InputError

LABEL = re.compile(r"sub-[A-Za-z0-9]+")
COVARIATES = ("age", "sex", "disease_duration", "edss", "relapses")
DAYS_A_MONTH = 365.25 / 12
TRIAL_MONTHS = 11.0  # 48 weeks, between the visits of the trials whose rates the weights have learnt


def checked_arm(arm: Any, fix: str, *, case: str = "", file: str | Path | None = None) -> int:
    """Class index of whatever `bundle.arms.arm_index` takes.

    Raises:
        InputError: an unknown arm.
    """
    try:
        return arm_index(arm)
    except ValueError as error:
        raise InputError(str(error), fix, case=case, file=file) from error


def read_participants(dataset_dir: str | Path) -> dict[str, int]:
    """Class index of the arm by participant, from participants.tsv; empty if there is no such file.

    Raises:
        InputError: as `read_treatments`, or an unknown arm.
    """
    treatments, path = read_treatments(dataset_dir), participants_path(dataset_dir)
    return {case: checked_arm(arm, "or n/a", case=case, file=path) for case, arm in treatments.items()}


def read_treatments(dataset_dir: str | Path) -> dict[str, str]:
    """The column treatment_arm of participants.tsv as it is written, by participant; empty if there is no such file.

    Raises:
        InputError: no table that can be read, a column is missing, or a label is not sub-<letters and digits> or
            occurs twice.
    """
    path = participants_path(dataset_dir)
    arms: dict[str, str] = {}
    for case, arm in read_rows_of_participants(dataset_dir):
        if not LABEL.fullmatch(case):
            raise InputError(f"participant_id {case!r}", "write sub-<letters and digits>", file=path)
        if case in arms:
            raise InputError("listed twice", "keep one of the lines", case=case, file=path)
        arms[case] = arm
    return arms


def read_rows_of_participants(dataset_dir: str | Path) -> list[tuple[str, str]]:
    """participant_id and treatment_arm of each line of participants.tsv as written; [] if there is no such file.

    Raises:
        InputError: no table that can be read, a column is missing, or no line has a label sub-<letters and digits>.
    """
    path = participants_path(dataset_dir)
    table = _read_table(path, ("participant_id", "treatment_arm"))
    rows = [(row["participant_id"].strip(), row["treatment_arm"]) for row in table]
    if rows and not any(LABEL.fullmatch(label) for label, _ in rows):
        raise InputError(f"participant_id {rows[0][0]!r}", "write sub-<letters and digits>", file=path)
    return rows


def participants_path(dataset_dir: str | Path) -> Path:
    """Where the table of participants belongs."""
    return Path(str(dataset_dir)) / "participants.tsv"


def arm_of(dataset_dir: Path, case: str) -> int | None:
    """Class index of a patient's treatment in participants.tsv; None if there is a table that does not list them.

    Lines of other patients may be wrong: they do not matter here.

    Raises:
        InputError: as `read_rows_of_participants`, an unknown arm, the patient is listed twice, or the table spells the
            label in another way.
    """
    rows, path = read_rows_of_participants(dataset_dir), participants_path(dataset_dir)
    arms = [arm for label, arm in rows if label == case]
    if len(arms) > 1:
        raise InputError("listed twice", "keep one of the lines", case=case, file=path)
    if arms or not rows:
        return checked_arm(arms[0] if arms else None, "or n/a", case=case, file=path)
    for label, _ in rows:
        if same_label(label, case) and not (dataset_dir / label).is_dir():
            raise InputError(f"lists {label}, not {case}", "write the label as the folder's", case=case, file=path)
    return None


def visit_months(dataset_dir: Path, case: str, sessions: Mapping[str, str]) -> dict[str, float | None]:
    """Months of each visit since the first, from the patient's sessions.tsv; None where they are not known.

    The table has a column session_id and either months or acq_time (ISO 8601).

    Args:
        sessions: session label by visit, the first visit first.
    """
    known = session_times(dataset_dir, case)
    times = {visit: known.get(session) for visit, session in sessions.items()}
    first = next(iter(times.values()), None)
    since = {visit: None if time is None or first is None else round(time - first, 2) for visit, time in times.items()}
    return since


def read_covariates(dataset_dir: str | Path, case: str) -> dict[str, float | None]:
    """The columns `COVARIATES` of participants.tsv for a patient; None where they are missing or not a number.

    Sex is 1 for F and 0 for M.

    Raises:
        InputError: no table that can be read.
    """
    rows = _read_table(participants_path(dataset_dir), ("participant_id",))
    row = next((row for row in rows if row["participant_id"].strip() == case), {})
    return {name: _covariate(row.get(name, "")) for name in COVARIATES}


def _covariate(text: str) -> float | None:
    text = text.strip()
    if text in ("F", "M"):
        return float(text == "F")
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) else None


def session_times(dataset_dir: Path, case: str) -> dict[str, float | None]:
    """Time of each session of a patient's sessions.tsv, in months since any fixed day; None where it is not known."""
    path = dataset_dir / case / f"{case}_sessions.tsv"
    return {row["session_id"].strip(): _months(row) for row in _read_table(path, ("session_id",))}


def _months(row: Mapping[str, str]) -> float | None:
    """The time of a session, in months since any fixed day."""
    try:
        if "months" in row:
            months = float(row["months"])
            return months if abs(months) < 1e4 else None
        when = datetime.fromisoformat(row["acq_time"].strip().removesuffix("Z"))
        return (when.toordinal() + when.hour / 24) / DAYS_A_MONTH
    except (KeyError, ValueError):
        return None


def _read_table(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Rows of a tab-separated table; [] if the file does not exist.

    Quotes are characters like any other, as BIDS has it: read as quotes, one that stays open swallows the next rows.
    """
    if path.is_dir():
        raise InputError("is a folder", "put a tab-separated table in its place", file=path)
    try:
        if not path.exists():
            return []
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError("not a table of text", "save it as tab-separated UTF-8", file=path) from error
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {getattr(error, 'strerror', error)}", "check it", file=path) from error
    header, *rows = lines or [[]]
    for column in columns:
        if header.count(column) != 1:
            problem = f"no column {column}" if column not in header else f"two columns {column}"
            raise InputError(problem, "name it so in the first line; columns are tab-separated", file=path)
    for number, row in enumerate(rows, start=2):
        if row and len(row) != len(header):
            problem = f"line {number} has {len(row)} columns, the first line {len(header)}"
            raise InputError(problem, "separate its columns by one tab each", file=path)
    return [dict(zip(header, row)) for row in rows if row]


def same_label(one: str, other: str) -> bool:
    """Whether two labels differ in leading zeros, upper and lower case or the prefix sub- at most."""
    return _without_zeros(one) == _without_zeros(other)


def _without_zeros(label: str) -> str:
    return re.sub(r"(?<!\d)0+(?=\d)", "", label.lower().removeprefix("sub-"))
