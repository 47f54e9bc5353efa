"""The lesion counts of a trial's patients: the table that population baselines and regressions are fitted on."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from bundle.data.bids import CONDITION, Case, find_case, fingerprint
from bundle.data.grid import SlabGrid
from bundle.data.tables import COVARIATES, read_covariates, visit_months
from bundle.data.transforms import LoadCased
from bundle.data.volumes import read_volume
from bundle.errors import Guard, InputError
from bundle.files import check_writable, read_arrays, write_arrays
from bundle.forecasters.base import Findings, Patient, findings_of, key_of
from bundle.lesions import LesionRule
from bundle.runtime import end_with_parent
from bundle.seeding import digest_of

MASKS = tuple(name for name in CONDITION if not name.startswith("flair"))
MONTHS = INTERVAL, HORIZON = ("months_w048", "months_w096")  # from w000 to w048, and from there to w096
TABLED = (*COVARIATES, *MONTHS)  # of a patient, from the tables
COHORT_VERSION = 4  # raise it when the same scans give other records


@dataclass(frozen=True)
class Record:
    """Lesion counts of one patient.

    Attributes:
        case, arm: participant label, class index of the treatment.
        lesions: by name of `MASKS`, the number of lesions in that volume; None if it is unknown.
        outcome: findings at w096.
        covariates: by name of `TABLED`; None where it is unknown.
    """

    case: str
    arm: int
    lesions: Mapping[str, int | None]
    outcome: Findings
    covariates: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class ObservedCase:
    """A patient with the outcome.

    Attributes:
        patient: what a forecaster may look at.
        record: the counts.
        outcome: (H, W, S) bool, NET2 at w096.
    """

    patient: Patient
    record: Record
    outcome: np.ndarray


@dataclass(frozen=True)
class CaseReader:
    """Reads a patient of a datalist onto the slab, with outcome, and counts the lesions.

    Args:
        grid: the slab.
        rule: what counts as a lesion.
        drop_visits, visits: visits to treat as missing, and session labels, see `bundle.data.transforms.LoadCased`.
    """

    grid: SlabGrid
    rule: LesionRule
    drop_visits: tuple[str, ...] = ()
    visits: Mapping[str, str] | None = None

    def __call__(self, item: Mapping[str, Any]) -> ObservedCase:
        """
        Raises:
            InputError: whatever is wrong with the scans.
        """
        load = LoadCased(grid=self.grid, with_outcome=True, drop_visits=self.drop_visits, visits=self.visits)
        data = load({"image": item["image"], "arm": item.get("arm")})
        case = find_case(item["image"], arm=item.get("arm"), visits=self.visits)
        image, affine = data["image"].as_tensor(), data["image"].affine.numpy()
        dseg = None
        if case.dseg is not None:
            dseg = read_volume(case.dseg, case.id)
        brain, covariates = data["brain"].numpy()[0], read_tabled(case)
        patient = Patient(case.id, case.arm, image, brain, affine, dseg, str(case.dataset_dir), covariates)
        outcome = data["target"].numpy()[1] > 0
        lesions = count_masks(image.numpy(), affine, self.rule)
        record = Record(case.id, case.arm, lesions, findings_of(outcome, affine, self.rule, dseg), covariates)
        return ObservedCase(patient, record, outcome)

    def version(self, item: Mapping[str, Any]) -> str:
        """Identifies the files that are read for a patient, the arm and the covariates; changes with any of them.

        Raises:
            InputError: there is no such patient, or the arm is not known.
        """
        case = find_case(item["image"], arm=item.get("arm"), visits=self.visits)
        return digest_of(case.id, fingerprint(case), case.arm, read_tabled(case))


def read_tabled(case: Case) -> dict[str, float | None]:
    """`TABLED` of a patient, from participants.tsv and sessions.tsv.

    Raises:
        InputError: one of the tables cannot be read.
    """
    at = visit_months(case.dataset_dir, case.id, case.sessions)
    first, second, third = (math.nan if months is None else months for months in at.values())
    lengths = [length if length > 0 else None for length in (round(second - first, 2), round(third - second, 2))]
    return read_covariates(case.dataset_dir, case.id) | dict(zip(MONTHS, lengths))


def count_masks(image: np.ndarray, affine: np.ndarray, rule: LesionRule) -> dict[str, int | None]:
    """Lesions of each of `MASKS` in an image (8, H, W, S); None where a mask is unknown."""
    volumes = {name: image[index] for index, name in enumerate(CONDITION) if name in MASKS}
    return {name: rule.count(volume > 0, affine) if volume.any() else None for name, volume in volumes.items()}


@dataclass(frozen=True)
class Cohort:
    """Patients whose outcome is known.

    Attributes:
        records: of each patient.
        frequency: (H, W, S) float32, fraction of the patients whose outcome covers a voxel.
        key: identifies the patients, their scans and the reader.
    """

    records: tuple[Record, ...]
    frequency: np.ndarray
    key: str = ""

    @cached_property
    def arms(self) -> np.ndarray:
        """(N,) class index of each patient."""
        return np.array([record.arm for record in self.records])

    @cached_property
    def counts(self) -> np.ndarray:
        """(N,) number of lesions at w096 of each patient."""
        return np.array([record.outcome.count for record in self.records])

    def of_arm(self, arm: int) -> list[Record]:
        """The patients of an arm; all patients where the arm is unknown or has none."""
        return [record for record in self.records if record.arm == arm] or list(self.records)


@dataclass(frozen=True)
class Counted:
    """What `read_cohort` stores of a patient.

    Attributes:
        version: of the files read, see `CaseReader.version`.
        record: the counts.
        voxels: (n,) flat indices of the outcome's voxels on the slab.
    """

    version: str
    record: Record
    voxels: np.ndarray


def read_cohort(
    items: Sequence[Mapping[str, Any]],
    read: CaseReader,
    file: str | Path,
    workers: int | None = None,
    guard: Guard | None = None,
) -> Cohort:
    """Count the lesions of a datalist's patients, in parallel with a progress bar.

    The counts are stored in `file`; the next call reads only patients that are new or whose scans have changed. A
    patient that cannot be read is reported by the guard in one line and left out.

    Args:
        items: of `bundle.data.datalist.load_split`, outcome known.
        read: the reader.
        file: .npz; ignored if it was made with another reader or is damaged.
        workers: processes; all cores if not given, 0 reads in this process.
        guard: collects the patients left out.

    Raises:
        InputError: no patient can be read, or the folder of `file` cannot be written.
    """
    if not items:
        raise InputError("no patient with a known outcome", "give a data set with NET2 masks of w096")
    file, guard = Path(file), guard or Guard()
    check_writable(file.parent)
    reader_key = key_of("cohort", version=COHORT_VERSION, read=read)
    stored = _stored(file, reader_key)
    versions = {item["case"]: guard.call(read.version, item, None) for item in items}
    items = [item for item in items if versions[item["case"]] is not None]
    counted = {name: stored[name] for name in stored if versions.get(name) == stored[name].version}
    missing = [item for item in items if item["case"] not in counted]
    for item, found in zip(missing, list(_count_all(missing, read, workers))):
        if found is None:  # read again in this process, where the guard reports the error itself
            guard.call(partial(_count, read), item, None)
        else:
            counted[item["case"]] = Counted(versions[item["case"]], *found)
    patients = [counted[item["case"]] for item in items if item["case"] in counted]
    if not patients:
        raise InputError("no patient of the training split could be read", "see the lines above")
    if missing:
        _store(file, reader_key, patients)
    voxels = np.concatenate([patient.voxels for patient in patients])
    frequency = np.bincount(voxels, minlength=np.prod(read.grid.shape)).reshape(read.grid.shape) / len(patients)
    key = digest_of(reader_key, [(patient.record.case, patient.version) for patient in patients])
    return Cohort(tuple(patient.record for patient in patients), frequency.astype(np.float32), key)


def _count_all(
    items: Sequence[Mapping[str, Any]], read: CaseReader, workers: int | None
) -> Iterator[tuple[Record, np.ndarray] | None]:
    """Record and outcome voxels of each patient, None for those that cannot be read."""
    count = partial(_count_or_none, read)
    workers = min(os.cpu_count() or 1 if workers is None else workers, len(items))
    bar = partial(tqdm, total=len(items), desc="counting lesions", unit="patient", disable=not items)
    if workers == 0:
        yield from bar(map(count, items))
        return
    try:
        with ProcessPoolExecutor(workers, initializer=end_with_parent) as pool:
            yield from bar(pool.map(count, items))
    except BrokenProcessPool as error:
        raise InputError("a process that counts lesions was killed", "free memory and run again") from error


def _count_or_none(read: CaseReader, item: Mapping[str, Any]) -> tuple[Record, np.ndarray] | None:
    torch.set_num_threads(1)
    try:
        return _count(read, item)
    except InputError:
        return None


def _count(read: CaseReader, item: Mapping[str, Any]) -> tuple[Record, np.ndarray]:
    observed = read(item)
    return observed.record, np.flatnonzero(observed.outcome)


def _store(file: Path, reader_key: str, patients: Sequence[Counted]) -> None:
    arrays = {
        "records": np.array(json.dumps([asdict(patient.record) for patient in patients])),
        "versions": np.array([patient.version for patient in patients]),
        "voxels": np.concatenate([patient.voxels for patient in patients]),
        "sizes": np.array([len(patient.voxels) for patient in patients]),
    }
    write_arrays(file, reader_key, arrays)


def _stored(file: Path, reader_key: str) -> dict[str, Counted]:
    """By case; empty if there is no such file, or it is damaged or made with another reader."""
    arrays = read_arrays(file, reader_key)
    if arrays is None:
        return {}
    voxels = np.split(arrays["voxels"], np.cumsum(arrays["sizes"])[:-1])
    records = [Record(**(x | {"outcome": Findings(**x["outcome"])})) for x in json.loads(str(arrays["records"]))]
    return {r.case: Counted(str(v), r, x) for r, v, x in zip(records, arrays["versions"], voxels)}
