"""What is to be prepared of one patient, and where it goes."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bundle.data.preparation.sources import Study

PHASES = ("reading", "correcting", "registering", "checking", "drawing")
DERIVATIVES = ("brain", "lesions", "preparation")


@dataclass(frozen=True)
class Job:
    """What is to be prepared of one patient.

    Attributes:
        label: "sub-X".
        visits: study by visit, w000 first.
        months: since w000 by visit, None if unknown.
        sources: digest of each scan, by visit and kind.
        key: what the result depends on.
        out: root of the data set.
    """

    label: str
    visits: Mapping[str, Study]
    months: Mapping[str, float | None]
    sources: Mapping[str, Mapping[str, str]]
    key: str
    out: Path


def places_of(label: str) -> list[Path]:
    """The folders of a patient, relative to the data set; the first one marks the patient as done."""
    return [Path(label), *(Path("derivatives", name, label) for name in DERIVATIVES)]


def record_path(out: Path, label: str) -> Path:
    """Where the record of a patient lies."""
    return out / "derivatives" / "preparation" / label / f"{label}_preparation.json"


def remove_patient(out: Path, label: str) -> None:
    """Removes what is there of a patient, the folder that marks it as done first."""
    for place in places_of(label):
        shutil.rmtree(out / place, ignore_errors=True)
