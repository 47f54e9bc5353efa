"""What a folder of scans holds: patients, their studies by date, and which scan is which."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from bundle.data.bids import VISITS
from bundle.data.preparation.dicom import Segment, Series, find_segments, find_series
from bundle.data.preparation.study_list import Row, find_row
from bundle.data.tables import DAYS_A_MONTH, LABEL, read_treatments, session_times
from bundle.errors import InputError

KINDS = ("flair", "t2", "gd", "net2", "brain")

_NIFTI = (".nii.gz", ".nii")
_NO_IMAGES = (".json", ".tsv", ".csv", ".txt", ".md", ".html", ".png", ".pdf", ".bval", ".bvec", ".tfm")
_SUBJECT = re.compile(r"sub-[A-Za-z0-9]+")
_SESSION = re.compile(r"ses-([A-Za-z0-9]+)")
_DATE = re.compile(r"(?<!\d)((?:19|20)\d\d)[-_.]?(0[1-9]|1[0-2])[-_.]?(0[1-9]|[12]\d|3[01])(?!\d)")
_VISIT = re.compile(
    r"(?<![A-Za-z])(study|visit|session|scan|time|tp|month|week|year|v|m|w|y)[-_ ]?(\d+)", re.IGNORECASE
)
_MASKS = (  # what its name must hold, the first that fits
    ("brain", re.compile(r"brain.?_?mask|desc-brain|mask.?_?brain")),
    ("gd", re.compile(r"gd.?lesion|gado|enhanc|label-gd")),
    ("net2", re.compile(r"net2|new.?lesion|new.?t2")),
    ("t2", re.compile(r"t2.?lesion|lesion.?mask|label-lesion|lesion")),
)
_LEAST_SLICES = 8
_MONTHS_A_VISIT = 48 * 7 / DAYS_A_MONTH
_SHOWN = 8  # names in a remark


@dataclass(frozen=True)
class Scan:
    """One volume of a source: a NIfTI file, the files of a DICOM series, or a segment of a DICOM Segmentation."""

    files: tuple[Path, ...]
    dicom: bool = False
    segment: int | None = None


@dataclass(frozen=True)
class Study:
    """The scans of one patient on one day.

    Attributes:
        order: what studies without a date are sorted by.
        months: time in months since any fixed day of the patient, None if unknown.
        visit: of `bundle.data.bids.VISITS`, None if it is to be found by date.
        scans: by kind, of `KINDS`.
    """

    order: tuple
    months: float | None
    visit: str | None
    scans: Mapping[str, Scan]


@dataclass(frozen=True)
class Subject:
    """One patient of a source.

    Attributes:
        key: as the source names them; identifies, so it is not written.
        label: "sub-X" if the source has one in BIDS, None otherwise.
        arm: treatment as it was given, "" if it was not.
        studies: in order.
        remarks: what was guessed, for the console.
        problem: why the patient cannot be prepared.
    """

    key: str
    label: str | None
    arm: str
    studies: tuple[Study, ...]
    remarks: tuple[str, ...] = ()
    problem: InputError | None = None


@dataclass
class _Found:
    """One scan and what is known of it, before it is sorted into a study."""

    patient: str
    order: tuple
    months: float | None
    visit: str | None
    kind: str
    scan: Scan
    rank: tuple = ()
    name: str = ""


def find_subjects(source: Path, rows: Sequence[Row] = ()) -> list[Subject]:
    """The patients below a folder, sorted.

    DICOM files are known by their headers, wherever they lie: patient, date and series. Of NIfTI files a path component
    sub-X, else the first folder, is the patient; ses-X, a date, a numbered visit or else the folder is the study; the
    name or the description in the JSON file beside it says what it is.

    Args:
        source: the folder.
        rows: of the user's table; they overrule what is found.

    Raises:
        InputError: no such folder, or no scan in it.
    """
    if not source.is_dir():
        raise InputError("no such folder", "give the folder that holds the scans", file=source)
    try:
        files = sorted(path for path in source.rglob("*") if path.is_file() and not _hidden(path, source))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", "check its rights", file=source) from error
    nifti = [path for path in files if path.name.endswith(_NIFTI)]
    others = [path for path in files if not path.name.endswith((*_NIFTI, *_NO_IMAGES))]
    found = [*_nifti_scans(nifti, source, rows), *_dicom_scans(find_series(others), source, rows)]
    found += _dicom_masks(find_segments(others), source, rows)
    if not any(scan.kind for scan in found):
        problem = f"none of its {len(files)} files is a FLAIR or a mask" if files else "is empty"
        raise InputError(problem, "name the scans in a table (--table)", file=source)
    arms = read_treatments(source) | {row.patient: row.treatment_arm for row in rows if row.treatment_arm}
    labels = {row.patient: row.participant_id for row in rows if row.participant_id}
    keys = sorted({scan.patient for scan in found})
    return [_subject(key, [s for s in found if s.patient == key], arms.get(key, ""), labels.get(key)) for key in keys]


def assign_visits(studies: Sequence[Study], case: str) -> tuple[dict[str, Study], list[str]]:
    """The study of each visit, and remarks on what was left out.

    Visits that the table or the session names are taken. Else the first study with a FLAIR is w000, and of the later
    ones the nearest to 11 months (48 weeks) is w048, the nearest to 22 months after that is w096. Without dates they
    follow each other.

    Raises:
        InputError: no two studies with a FLAIR, or two of one visit.
    """
    usable = [study for study in studies if "flair" in study.scans]
    if len(usable) < 2:
        none = "no study" if not usable else "only one study"
        fix = "add the other; if a FLAIR was not recognised, name it in a table (--table)"
        raise InputError(f"{none} with a FLAIR", fix, case=case)
    visits: dict[str, Study] = {}
    for study in usable:
        if study.visit in visits:
            raise InputError(f"two studies of {study.visit}", "name the visits in a table (--table)", case=case)
        if study.visit:
            visits[study.visit] = study
    free = [study for study in usable if study.visit is None]
    dated = all(study.months is not None for study in usable)
    for number, visit in enumerate(VISITS):
        if visit in visits or not free:
            continue
        if number == 0 or not dated:
            chosen = free[0]
        else:
            start = visits["w000"].months
            later = [s for s in free if number == 1 or s.months > visits["w048"].months]
            wanted = start + number * _MONTHS_A_VISIT
            if not later or number == 2 and min(abs(s.months - wanted) for s in later) > _MONTHS_A_VISIT / 2:
                continue
            chosen = min(later, key=lambda s: abs(s.months - wanted))
        visits[visit] = chosen
        free.remove(chosen)
    if not {"w000", "w048"} <= set(visits):
        raise InputError("no study for w000 or w048", "name the visits in a table (--table)", case=case)
    left_out = len(usable) - len(visits)
    remarks = [f"{left_out} of {len(usable)} studies not used"] if left_out else []
    return {visit: visits[visit] for visit in VISITS if visit in visits}, remarks


def _subject(key: str, found: list[_Found], arm: str, label: str | None) -> Subject:
    remarks, studies = [], []
    label = label or (key if LABEL.fullmatch(key) else None)
    named = [scan for scan in found if scan.kind]
    if not any(scan.kind == "flair" for scan in found):
        seen = [scan.name for scan in found]
        remarks.append(f"no FLAIR among {', '.join(seen[:_SHOWN])}" + (" ..." if len(seen) > _SHOWN else ""))
    for order in sorted({scan.order for scan in named}):
        members = [scan for scan in named if scan.order == order]
        scans: dict[str, Scan] = {}
        for kind in KINDS:
            candidates = sorted((s for s in members if s.kind == kind), key=lambda s: s.rank)
            if len(candidates) > 1 and candidates[0].rank == candidates[1].rank:
                names = ", ".join(scan.name for scan in candidates)  # may name the patient: for the console only
                problem = InputError(
                    f"several scans of one study may be its {kind}", "name the right one in a table (--table)"
                )
                return Subject(key, label, arm, (), (names,), problem)
            if candidates:
                scans[kind] = candidates[0].scan
                if len(candidates) > 1:
                    others = ", ".join(scan.name for scan in candidates[1:])
                    remarks.append(f"{candidates[0].name} taken as {kind}, not {others}")
        months = next((scan.months for scan in members if scan.months is not None), None)
        visit = next((scan.visit for scan in members if scan.visit), None)
        studies.append(Study(order, months, visit, scans))
    if all(study.months is not None for study in studies):
        studies.sort(key=lambda study: study.months)
    return Subject(key, label, arm, tuple(studies), tuple(remarks))


def _dicom_scans(series: Iterable[Series], source: Path, rows: Sequence[Row]) -> list[_Found]:
    found = []
    for one in series:
        row = find_row(rows, one.files[0].relative_to(source))
        kind = row.kind or ("flair" if one.flair and one.slices >= _LEAST_SLICES else "")
        kind = kind if kind == "flair" else ""  # a mask is no MR image
        day = row.day or one.day
        order = ("day", day.isoformat()) if day else ("folder", *_natural(one.files[0].parent.as_posix()))
        rank = (not row.kind, one.derived, one.contrast, -one.slices, one.number)
        name = f"series {one.number} ({one.description})" if one.description else f"series {one.number}"
        months = day.toordinal() / DAYS_A_MONTH if day else None
        scan = Scan(one.files, dicom=True)
        found.append(_Found(row.patient or one.patient, order, months, row.visit, kind, scan, rank, name))
    return found


def _dicom_masks(segments: Iterable[Segment], source: Path, rows: Sequence[Row]) -> list[_Found]:
    found = []
    for one in segments:
        row = find_row(rows, one.file.relative_to(source))
        kind = row.kind or _kind(f"mask {one.label}", "")
        day = row.day or one.day
        order = ("day", day.isoformat()) if day else ("folder", *_natural(one.file.parent.as_posix()))
        months = day.toordinal() / DAYS_A_MONTH if day else None
        scan = Scan((one.file,), dicom=True, segment=one.segment)
        name = f"segment {one.segment} ({one.label})"
        found.append(_Found(row.patient or one.patient, order, months, row.visit, kind, scan, (not row.kind,), name))
    return found


def _nifti_scans(files: Sequence[Path], source: Path, rows: Sequence[Row]) -> list[_Found]:
    found, times = [], {}
    for path in files:
        inside = path.relative_to(source)
        row, text = find_row(rows, inside), inside.as_posix()
        sidecar = _sidecar(path)
        kind = row.kind or _kind(path.name, str(sidecar.get("SeriesDescription", "")))
        if kind not in KINDS:
            kind = ""
        subject, session = _SUBJECT.search(text), _SESSION.search(text)
        patient = row.patient or (subject[0] if subject else inside.parts[0] if len(inside.parts) > 1 else source.name)
        visit, months = row.visit, None
        day = row.day or _day(str(sidecar.get("AcquisitionDateTime", ""))) or (None if session else _day(text))
        if session:
            order = ("ses", *_natural(session[1]))
            visit = visit or (session[1] if session[1] in VISITS else None)
            if subject and not day:
                if subject[0] not in times:
                    times[subject[0]] = session_times(source, subject[0])
                months = times[subject[0]].get(session[0])
        elif day:
            order = ("day", day.isoformat())
        elif numbered := _VISIT.search("/".join(inside.parts[1:] if len(inside.parts) > 1 else inside.parts)):
            order = ("visit", int(numbered[2]))
            visit = visit or (numbered[0] if numbered[0] in VISITS else None)
        elif len(inside.parts) > 2:
            order = ("folder", *_natural(inside.parts[1]))
        else:
            order = ("file", *_natural(path.name))
        if row.day and not session:
            order = ("day", row.day.isoformat())
        months = day.toordinal() / DAYS_A_MONTH if day else months
        rank = (not row.kind, "desc-preproc" in text, "derivatives" in text)
        found.append(_Found(patient, order, months, visit, kind, Scan((path,)), rank, path.name))
    return found


def _kind(name: str, description: str) -> str:
    """What a NIfTI file is, by its name or series description; "" if it is nothing that is used."""
    lower = name.lower()
    if re.search(r"mask|label|lesion|seg\b", lower):
        return next((kind for kind, pattern in _MASKS if pattern.search(lower)), "")
    flair = re.compile(r"flair|dark.?fl|tirm", re.IGNORECASE)
    return "flair" if flair.search(name) or flair.search(description) else ""


def _sidecar(path: Path) -> dict:
    """The JSON file of a NIfTI file, {} if there is none that can be read."""
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    try:
        content = json.loads((path.parent / f"{stem}.json").read_text())
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}


def _day(text: str) -> date | None:
    found = _DATE.search(text)
    try:
        return date(*map(int, found.groups())) if found else None
    except ValueError:
        return None


def _natural(text: str) -> tuple:
    """A key that sorts ses-2 before ses-10."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.findall(r"\d+|\D+", text))


def _hidden(path: Path, source: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(source).parts)
