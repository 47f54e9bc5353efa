"""A BIDS data set of patients: where each scan lies (names in docs/README.md, "Bring your own data")."""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle.arms import arm_index
from bundle.errors import InputError

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
_LABEL = re.compile(r"sub-[A-Za-z0-9]+")


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
    """

    id: str
    dataset_dir: Path
    arm: int
    volumes: Mapping[str, Path]
    brain: Mapping[str, Path]
    dseg: Path | None

    def place(self, name: str) -> Path:
        """Where the volume of that name belongs, whether it is there or not."""
        stem = _stem(self.dataset_dir, self.id, name)
        return stem.with_name(stem.name + _SUFFIXES[0])


def find_case(image: str | Path, dataset_dir: str | Path | None = None, arm: Any = None) -> Case:
    """The patient that `image` belongs to.

    Args:
        image: the patient's folder (`.../sub-X`, also inside derivatives), any file below it, or, together with
            `dataset_dir`, a participant label ("sub-X" or "X").
        dataset_dir: root of the data set; the folder that holds sub-X (and derivatives) if not given.
        arm: what `bundle.arms.arm_index` takes; `None` or an empty list asks participants.tsv.

    Raises:
        InputError: no such patient, or an arm that is none of the seven.
    """
    folder = _patient_folder(Path(image), None if dataset_dir is None else Path(dataset_dir))
    case, root = folder.name, folder.parent
    if arm is None or arm == []:  # one wrong row of the table leaves the other patients usable
        arm = checked_arm(read_treatments(root).get(case), "or n/a", case=case, file=_participants(root))
    else:
        arm = checked_arm(arm, "correct the arm of this request", case=case)
    volumes = {name: path for name in CONDITION + OUTCOME if (path := _existing(_stem(root, case, name)))}
    brain = {visit: path for visit in VISITS if (path := _existing(_stem(root, case, f"brain_{visit}")))}
    dsegs = [path for visit in ("w048", "w000") if (path := _existing(_stem(root, case, f"dseg_{visit}")))]
    return Case(case, root, arm, volumes, brain, dsegs[0] if dsegs else None)


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
        InputError: the data set has none.
    """
    root = Path(dataset_dir)
    cases = sorted(path.name for path in root.glob("sub-*") if path.is_dir() and _LABEL.fullmatch(path.name))
    if not cases:
        raise InputError("no sub-* folder", "give the root of a BIDS data set", file=root)
    return cases


def checked_arm(arm: Any, mend: str, *, case: str = "", file: str | Path = "") -> int:
    """Class index of whatever `bundle.arms.arm_index` takes.

    Raises:
        InputError: an unknown arm.
    """
    try:
        return arm_index(arm)
    except ValueError as error:
        raise InputError(str(error), mend, case=case, file=file) from error


def read_participants(dataset_dir: str | Path) -> dict[str, int]:
    """Class index of the arm by participant, from participants.tsv; empty if there is no such file.

    Raises:
        InputError: as `read_treatments`, or an unknown arm.
    """
    treatments, path = read_treatments(dataset_dir), _participants(Path(dataset_dir))
    return {case: checked_arm(arm, "or n/a", case=case, file=path) for case, arm in treatments.items()}


def read_treatments(dataset_dir: str | Path) -> dict[str, str]:
    """The column treatment_arm of participants.tsv as it is written, by participant; empty if there is no such file.

    Raises:
        InputError: a column is missing, or a label is not sub-<letters and digits> or is there twice.
    """
    path = _participants(Path(dataset_dir))
    if not path.is_file():
        return {}
    arms: dict[str, str] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, delimiter="\t")
            for column in ("participant_id", "treatment_arm"):
                if column not in (rows.fieldnames or ()):
                    raise InputError(
                        f"no column {column}", "name it so in the first line; columns are tab-separated", file=path
                    )
            for row in rows:
                case = (row["participant_id"] or "").strip()
                if not _LABEL.fullmatch(case):
                    raise InputError(f"participant_id {case!r}", "write sub-<letters and digits>", file=path)
                if case in arms:
                    raise InputError("listed twice", "keep one of the lines", case=case, file=path)
                arms[case] = row["treatment_arm"]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError("not a table of text", "save it as tab-separated UTF-8", file=path) from error
    return arms


def _participants(root: Path) -> Path:
    return root / "participants.tsv"


def _patient_folder(image: Path, dataset_dir: Path | None) -> Path:
    """The folder <root>/sub-X of the patient."""
    if dataset_dir is not None and not image.exists():
        for name in (image.name, f"sub-{image.name}"):
            if _LABEL.fullmatch(name) and (dataset_dir / name).is_dir():
                return dataset_dir / name
        raise InputError(f"no patient {image.name!r}", "name a folder sub-* of the data set", file=dataset_dir)
    if not image.exists():
        raise InputError("not found", "give a patient's folder or a file in it", file=image)
    image = image.absolute()
    for folder in (image, *image.parents):
        if _LABEL.fullmatch(folder.name) and folder.is_dir():
            # <root>/derivatives/<pipeline>/sub-X
            root = folder.parents[2] if folder.parents[1].name == "derivatives" else folder.parent
            return (root if dataset_dir is None else dataset_dir) / folder.name
    raise InputError("not inside a folder sub-*", "arrange the scans in BIDS", file=image)


def _stem(root: Path, case: str, name: str) -> Path:
    """The file of a volume, without .nii.gz."""
    kind, visit = name.split("_")
    pipeline, suffix = _FILES[kind]
    return root / pipeline / case / f"ses-{visit}" / "anat" / f"{case}_ses-{visit}_{suffix}"


def _existing(stem: Path) -> Path | None:
    return next((path for suffix in _SUFFIXES if (path := stem.with_name(stem.name + suffix)).is_file()), None)
