"""A BIDS data set of patients: where each scan lies (names in docs/reference/bids.md)."""

import gzip
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import zip_longest
from pathlib import Path
from typing import Any

from bundle.arms import NULL_ARM, requested_arm
from bundle.data.tables import LABEL, arm_of, checked_arm, participants_path, read_rows_of_participants, same_label
from bundle.errors import InputError
from bundle.files import sha256_of

VISITS = ("w000", "w048", "w096")
CONDITION = ("flair_w000", "t2_w000", "gd_w000", "flair_w048", "t2_w048", "gd_w048", "net2_w048")
OUTCOME = ("flair_w096", "net2_w096")

_FILES = {  # folder and ending of each kind of volume
    "flair": ("", "FLAIR"),
    "t2": ("derivatives/lesions", "label-T2lesion_mask"),
    "gd": ("derivatives/lesions", "label-Gdlesion_mask"),
    "net2": ("derivatives/lesions", "label-NET2_mask"),
    "brain": ("derivatives/brain", "desc-brain_mask"),
    "dseg": ("derivatives/synthseg", "dseg"),
}
_SUFFIXES = (".nii.gz", ".nii")
_OPTIONAL_ENTITY = re.compile(r"(acq|ce|rec|run)-[A-Za-z0-9]+")
_LIKE_IMAGE = (".nii.gz", ".nii", ".mgz", ".mgh", ".nrrd", ".mha", ".mhd", ".hdr")
_LIKE_VOLUME = {
    "": "flair|_mask",
    "derivatives/lesions": "mask|lesion|label",
    "derivatives/brain": "mask|brain",
}
_SESSION = re.compile(r"ses-[A-Za-z0-9]+")
_LIKE_PATIENT = re.compile(r"sub[-_ .].*|sub\d.*", re.IGNORECASE)
_CHUNK = 1 << 20
_NAMED = 5  # names in a warning; the rest is counted


@dataclass(frozen=True)
class Case:
    """The scans of one patient that exist on disk.

    Attributes:
        id: participant label, e.g. "sub-0001".
        dataset_dir: root of the BIDS data set.
        arm: class index of the treatment, 6 if unknown.
        volumes: path by name, the names of `CONDITION` and `OUTCOME`.
        brain: brain mask by visit.
        dseg: FreeSurfer-labelled segmentation of the latest visit before the outcome that has one.
        sessions: session label by visit, e.g. "ses-w000".
        warnings: what is doubtful about the patient's entry in the data set.
        slab: in a compact data set (`bundle.data.slab_file`), the file that stands for all volumes.
        is_single_scan: one FLAIR that belongs to no data set, taken as that of w000.
    """

    id: str
    dataset_dir: Path
    arm: int
    volumes: Mapping[str, Path]
    brain: Mapping[str, Path]
    dseg: Path | None
    sessions: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    slab: Path | None = None
    is_single_scan: bool = False

    def expected_path(self, name: str) -> Path:
        """Where the volume of that name belongs, whether it exists or not."""
        kind, visit = name.split("_")
        session, (pipeline, ending) = self.sessions[visit], _FILES[kind]
        return _folder(self.dataset_dir, pipeline, self.id, session) / f"{self.id}_{session}_{ending}{_SUFFIXES[0]}"

    def existing_sessions(self) -> list[str]:
        """Labels of the patient's sessions on disk, sorted."""
        return sorted(path.name for path in _listed(self.dataset_dir / self.id) if _SESSION.fullmatch(path.name))


def find_case(
    image: str | Path,
    dataset_dir: str | Path | None = None,
    arm: Any = None,
    visits: Mapping[str, str] | None = None,
    outcome: str | Path | None = None,
) -> Case:
    """The patient that `image` belongs to.

    A file may carry the BIDS entities acq-, ce-, rec- and run- where exactly one file fits. A NIfTI file that lies in
    no folder sub-X is a patient of its own, known by this one FLAIR of w000 and named by its content.

    Args:
        image: the patient's folder (`.../sub-X`, also inside derivatives), any file below it, or, together with
            `dataset_dir`, a participant label ("sub-X" or "X").
        dataset_dir: root of the data set, outside which nothing is read. If not given, the folder that holds sub-X;
            of a folder inside derivatives that holds no FLAIR, the data set that it was derived from.
        arm: what `bundle.arms.requested_arm` takes; where it asks for none, the one in participants.tsv.
        visits: session label of each visit that is not named so, e.g. {"w000": "ses-01", "w048": "ses-02"}.
        outcome: mask that is read as NET2 of w096 instead of the data set's, drawn on the latest FLAIR before it.

    Raises:
        InputError: no such patient, an arm that is none of the seven, or several files fit one volume.
    """
    sessions, arm = session_labels(visits), requested_arm(arm)
    if dataset_dir is None and (scan := _single_scan(Path(str(image)))) is not None:
        return _case_of_single_scan(scan, arm, sessions)
    with _readable(image):
        folder = _patient_folder(Path(str(image)), None if dataset_dir is None else Path(str(dataset_dir)))
    case, root = folder.name, folder.parent
    warnings: tuple[str, ...] = ()
    if arm is None:  # one wrong row of the table leaves the other patients usable
        arm = arm_of(root, case)
        if arm is None:
            arm, warnings = NULL_ARM, ("not listed in participants.tsv: the treatment is taken as unknown",)
    else:
        arm = checked_arm(arm, "correct the arm of this request", case=case)

    def found(kind: str, visit: str) -> Path | None:
        return _only(_matching(root, case, sessions[visit], kind), case)

    with _readable(folder, case):
        volumes = {name: path for name in CONDITION + OUTCOME if (path := found(*name.split("_")))}
        brain = {visit: path for visit in VISITS if (path := found("brain", visit))}
        dsegs = [path for visit in ("w048", "w000") if (path := found("dseg", visit))]
        slab = folder / f"{case}_slab.npz"
        compact = not volumes and slab.is_file()
    if outcome is not None:
        volumes["net2_w096"] = Path(outcome)
    dseg = dsegs[0] if dsegs else None
    return Case(case, root, arm, volumes, brain, dseg, sessions, warnings, slab if compact else None)


def session_labels(visits: Mapping[str, str] | None = None) -> dict[str, str]:
    """Session label by visit: "ses-<visit>" but for those that are mapped.

    Raises:
        InputError: not a mapping of visits to different session labels.
    """
    fix = "give --visits as \"{'w000':'ses-01','w048':'ses-02'}\""
    if visits is not None and not isinstance(visits, Mapping):
        raise InputError(f"visits {visits!r} is not a mapping", fix)
    sessions = {visit: f"ses-{visit}" for visit in VISITS}
    for visit, label in (visits or {}).items():
        if visit not in VISITS:
            raise InputError(f"visits names {visit!r}, which is none of {', '.join(VISITS)}", fix)
        sessions[visit] = f"ses-{str(label).removeprefix('ses-')}"
        if not _SESSION.fullmatch(sessions[visit]):
            raise InputError(f"visits names the session {label!r}", fix)
    if len(set(sessions.values())) < len(VISITS):
        raise InputError("visits maps two visits to one session", fix)
    return sessions


def fingerprint(case: Case) -> list[tuple[str, int, int]]:
    """(name, bytes, modification time in ns) of each file of a patient; changes when one is replaced.

    A simulated patient's truth is one of them.
    """
    files = [case.volumes[name] for name in sorted(case.volumes)] + [case.brain[visit] for visit in sorted(case.brain)]
    files += [case.dseg] if case.dseg else []
    files += sorted((case.dataset_dir / "derivatives" / "truth" / case.id).glob("*.json"))
    return [(path.name, (state := path.stat()).st_size, state.st_mtime_ns) for path in files]


def list_cases(dataset_dir: str | Path) -> list[str]:
    """Participant labels that have a folder, sorted.

    Raises:
        InputError: the data set has none, or cannot be read.
    """
    root = Path(str(dataset_dir))
    folders = _patient_like_folders(root)
    cases = [name for name in folders if LABEL.fullmatch(name)]
    if not cases:
        problem = f"no sub-* folder (skipped: {_names(folders)})" if folders else "no sub-* folder"
        raise InputError(problem, "give the root of a BIDS data set", file=root)
    return cases


def dataset_warnings(dataset_dir: str | Path, arm_given: bool = False) -> list[str]:
    """What a data set holds that will not be used as its owner may expect, one line each.

    Args:
        dataset_dir: its root.
        arm_given: whether the treatment is that of the request, so that participants.tsv does not matter.

    Raises:
        InputError: it, or its participants.tsv, cannot be read.
    """
    root = Path(str(dataset_dir))
    folders, labels = _patient_like_folders(root), [label for label, _ in read_rows_of_participants(root)]
    skipped = [name for name in folders if not LABEL.fullmatch(name)]
    cases = [name for name in folders if LABEL.fullmatch(name)]
    unlisted = []
    if labels and not arm_given:  # a label that is spelt in another way is refused with the case
        unlisted = [name for name in cases if not any(same_label(name, label) for label in labels)]
    wrong = [repr(label) for label in labels if not LABEL.fullmatch(label)]
    warnings = []
    if not participants_path(root).exists() and not arm_given:
        warnings.append(f"{root}: no participants.tsv: all treatments are taken as unknown")
    if wrong:
        problem = f"{participants_path(root)}: ignored participant_id {_names(wrong)}"
        warnings.append(f"{problem}; write sub-<letters and digits>")
    with _readable(root):
        warnings += _misplaced(root, cases)
    if skipped:
        warnings.append(f"{root}: skipped {_names(skipped)}; patients' folders are named sub-<letters and digits>")
    if unlisted:
        warnings.append(f"{root}: not in participants.tsv: {_names(unlisted)}; their treatment is taken as unknown")
    return warnings


def _misplaced(root: Path, cases: list[str]) -> list[str]:
    """Folders below derivatives whose names are near those that are read, one line each."""
    pipelines, warnings = {Path(of).name for of, _ in _FILES.values() if of}, []
    for folder in _listed(root / "derivatives"):
        if folder.name not in pipelines and folder.is_dir():
            if near := get_close_matches(folder.name.lower(), pipelines, n=1, cutoff=0.75):
                warnings.append(f"{folder}: ignored; it is read from derivatives/{near[0]}")
        elif folder.name in pipelines:
            strangers = [name for name in _patient_like_folders(folder) if name not in cases]
            if strangers:
                warnings.append(f"{folder}: ignored {_names(strangers)}; no patient has that name")
    return warnings


def ignored_files(case: Case) -> list[str]:
    """Files of a patient that look like scans or masks of a visit but are not named as such, as at most one line.

    Returns:
        [] or [text].
    """
    root, ignored = case.dataset_dir, []
    with _readable(root / case.id, case.id):
        elsewhere = set(case.existing_sessions()) - set(case.sessions.values())
        for pipeline, like in _LIKE_VOLUME.items():
            folder = root / pipeline / case.id
            kinds = [kind for kind, (of, _) in _FILES.items() if of == pipeline]
            sessions = [path.name for path in _listed(folder)]
            sessions = [name for name in sessions if name in elsewhere or name in case.sessions.values()]
            named = {path for kind in kinds for session in sessions for path in _matching(root, case.id, session, kind)}
            images = (path for path in folder.rglob("*") if path.name.lower().endswith(_LIKE_IMAGE))
            for path in sorted(set(images) - named):
                inside = path.relative_to(folder)
                if inside.parts[0] not in elsewhere and re.search(like, path.name.lower()):
                    ignored.append(str(Path(pipeline, case.id) / inside))
    if not ignored:
        return []
    endings = ", ".join(ending for kind, (_, ending) in _FILES.items() if kind != "dseg")
    return [f"ignored {_names(ignored)}: names are {case.id}_<session>_ and one of {endings}, in <session>/anat"]


def _single_scan(image: Path) -> Path | None:
    """The file, as an absolute path, if it is a NIfTI file outside any folder sub-X."""
    with _readable(image):
        if _stem(image.name) is None or not image.is_file():
            return None
        path = Path(os.path.abspath(image))
    return None if any(LABEL.fullmatch(folder.name) for folder in path.parents) else path


def _case_of_single_scan(scan: Path, arm: Any, sessions: Mapping[str, str]) -> Case:
    with _readable(scan):
        case = f"scan{sha256_of(scan)[:8]}"  # the same scan gets the same members; its name may be a patient's
    unknown = ["second visit", "masks"] + ([] if arm is not None else ["treatment"])
    warning = f"a single FLAIR, taken as that of w000; unknown: {', '.join(unknown)}"
    index = checked_arm(arm, "correct the arm of this request", case=case)
    volumes = {"flair_w000": scan}
    return Case(case, scan.parent, index, volumes, {}, None, sessions, (warning,), is_single_scan=True)


def left_behind(case: Case) -> list[str]:
    """What may be known of a patient whose folder was copied without its data set, as at most one line.

    Returns:
        [] or [text].
    """
    if case.is_single_scan or case.slab is not None or (case.dataset_dir / "derivatives").is_dir():
        return []
    unknown = "masks"
    if case.arm == NULL_ARM and not participants_path(case.dataset_dir).exists():
        unknown += " and treatment"
    return [f"the patient's folder is not in a data set with derivatives: {unknown} unknown"]


def _patient_folder(image: Path, dataset_dir: Path | None) -> Path:
    """The folder <root>/sub-X of the patient."""
    if dataset_dir is not None and image.name == str(image):
        for name in (image.name, f"sub-{image.name}"):
            if LABEL.fullmatch(name) and (dataset_dir / name).is_dir():
                return dataset_dir / name
    if not image.exists():
        if dataset_dir is None:
            raise InputError("not found", "give a patient's folder or a file in it", file=image)
        raise InputError(f"no patient {image.name!r}", "name a folder sub-* of the data set", file=dataset_dir)
    image = Path(os.path.abspath(image))
    folder = next((path for path in (image, *image.parents) if LABEL.fullmatch(path.name) and path.is_dir()), None)
    if folder is None:
        raise InputError("not inside a folder sub-*", "arrange the scans in BIDS", file=image)
    holds_flair = any(_matching(folder.parent, folder.name, path.name, "flair") for path in _listed(folder))
    if dataset_dir is not None:
        root = Path(os.path.abspath(dataset_dir))
        if folder.parent != root and (holds_flair or root not in folder.parents):
            raise InputError(f"not a patient of {dataset_dir}", "give its own dataset_dir", file=folder)
        return dataset_dir / folder.name
    derived = "derivatives" in folder.parts[-3:-2]  # <root>/derivatives/<pipeline>/sub-X
    return (folder.parents[2] if derived and not holds_flair else folder.parent) / folder.name


def _folder(root: Path, pipeline: str, case: str, session: str) -> Path:
    return root / pipeline / case / session / "anat"


def _matching(root: Path, case: str, session: str, kind: str) -> list[Path]:
    """Files that fit a volume, sorted."""
    pipeline, ending = _FILES[kind]
    *required, suffix = ending.split("_")
    found = []
    for path in _listed(_folder(root, pipeline, case, session)):
        stem = _stem(path.name)
        if stem is None or not stem.startswith(f"{case}_{session}_"):
            continue
        *entities, last = stem.split("_")[2:]
        optional = [_OPTIONAL_ENTITY.fullmatch(entity) for entity in entities if entity not in required]
        accepted = all(optional) and len({entity[1] for entity in optional}) == len(optional)
        if last == suffix and set(required) <= set(entities) and accepted and path.is_file():
            found.append(path)
    return found


def _only(paths: list[Path], case: str) -> Path | None:
    """The one file that fits a volume; the compressed one where both are there and hold the same bytes."""
    if len({_stem(path.name) for path in paths}) > 1:
        problem = f"several files fit: {', '.join(path.name for path in paths)}"
        raise InputError(problem, "keep one of them", case=case, file=paths[0].parent)
    if len(paths) == 2 and not _same_content(*paths):
        problem = f"differs from {paths[1].name}"
        raise InputError(problem, "keep the right one of them", case=case, file=paths[0])
    return next((path for path in paths if path.suffix == ".gz"), paths[0] if paths else None)


def _same_content(*paths: Path) -> bool:
    plain, packed = sorted(paths, key=lambda path: path.suffix == ".gz")
    try:
        with plain.open("rb") as one, gzip.open(packed) as other:
            chunks = (iter(lambda file=file: file.read(_CHUNK), b"") for file in (one, other))
            return all(a == b for a, b in zip_longest(*chunks))
    except (OSError, EOFError, zlib.error):
        return False


def _stem(name: str) -> str | None:
    """A file's name without .nii.gz or .nii; None if it has neither."""
    return next((name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)), None)


def _listed(folder: Path) -> list[Path]:
    """What a folder holds, sorted; nothing if it does not exist.

    Raises:
        InputError: it cannot be read.
    """
    with _readable(folder):
        return sorted(folder.iterdir()) if folder.is_dir() else []


@contextmanager
def _readable(path: str | Path, case: str = "") -> Iterator[None]:
    """Turns what the operating system says of a path, e.g. of its rights or length, into one line."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError) as error:
        problem = f"cannot be read: {getattr(error, 'strerror', None) or error}"
        raise InputError(problem, "check its name and rights", case=case, file=_shortened(path)) from error


def _shortened(path: str | Path) -> str:
    text = str(path)
    return text if len(text) <= 200 else f"{text[:100]}...{text[-60:]}"


def _patient_like_folders(root: Path) -> list[str]:
    with _readable(root):
        return [path.name for path in _listed(root) if _LIKE_PATIENT.fullmatch(path.name) and path.is_dir()]


def _names(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
