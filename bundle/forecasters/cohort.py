"""What a trial's patients had, counted: the table that population baselines and regressions are made from."""

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from bundle.data.bids import CONDITION, find_case
from bundle.data.grid import SlabGrid
from bundle.data.transforms import LoadCased
from bundle.data.volumes import read_volume
from bundle.errors import InputError
from bundle.files import check_writable, written_whole
from bundle.forecasters.base import Findings, Patient, findings_of
from bundle.lesions import LesionRule, Placed
from bundle.seeding import digest_of

MASKS = tuple(name for name in CONDITION if not name.startswith("flair"))


@dataclass(frozen=True)
class Record:
    """One patient, counted.

    Attributes:
        case, arm: participant label, class index of the treatment.
        lesions: by name of `MASKS`, the lesions of that volume; None where it is unknown.
        outcome: what was found at w096.
    """

    case: str
    arm: int
    lesions: Mapping[str, int | None]
    outcome: Findings


@dataclass(frozen=True)
class Seen:
    """A patient and what became of them.

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
        drop_visits: visits to treat as not there, see `bundle.data.transforms.LoadCased`.
    """

    grid: SlabGrid
    rule: LesionRule
    drop_visits: tuple[str, ...] = ()

    def __call__(self, item: Mapping[str, Any]) -> Seen:
        load = LoadCased(grid=self.grid, with_outcome=True, drop_visits=self.drop_visits)
        data = load({"image": item["image"], "arm": item.get("arm")})
        case = find_case(item["image"], arm=data["arm"])
        image, affine = data["image"].as_tensor(), data["image"].affine.numpy()
        dseg = None
        if case.dseg is not None:
            dseg = read_volume(case.dseg, case.id)
        patient = Patient(
            case.id, case.arm, image, data["brain"].numpy()[0], affine, dseg, dataset_dir=str(case.dataset_dir)
        )
        outcome = data["target"].numpy()[1] > 0
        lesions = count_masks(image.numpy(), affine, self.rule)
        return Seen(patient, Record(case.id, case.arm, lesions, findings_of(outcome, affine, self.rule, dseg)), outcome)


def count_masks(image: np.ndarray, affine: np.ndarray, rule: LesionRule) -> dict[str, int | None]:
    """Lesions of each of `MASKS` in an image (8, H, W, S); None where a mask is unknown."""
    volumes = {name: image[index] for index, name in enumerate(CONDITION) if name in MASKS}
    return {name: rule.count(volume > 0, affine) if volume.any() else None for name, volume in volumes.items()}


@dataclass(frozen=True)
class Cohort:
    """Patients whose outcome is known.

    Attributes:
        records: of each.
        frequency: (H, W, S) float32, share of the patients whose outcome covers a voxel.
        key: tells cohorts apart.
    """

    records: tuple[Record, ...]
    frequency: np.ndarray
    key: str = ""

    @cached_property
    def arms(self) -> np.ndarray:
        """(N,) class index of each."""
        return np.array([record.arm for record in self.records])

    @cached_property
    def counts(self) -> np.ndarray:
        """(N,) lesions at w096 of each."""
        return np.array([record.outcome.count for record in self.records])

    def of_arm(self, arm: int) -> list[Record]:
        """Those of an arm; all of them where it is unknown or has none."""
        return [record for record in self.records if record.arm == arm] or list(self.records)


def read_cohort(
    items: Sequence[Mapping[str, Any]], read: CaseReader, file: str | Path, workers: int | None = None
) -> Cohort:
    """Counts the patients of a datalist, in parallel with a progress bar; kept in `file`, which is read if it is there.

    Args:
        items: of `bundle.data.datalist.load_split`, outcome known.
        read: the reader.
        file: .npz; a file made of other items or with another reader is made anew.
        workers: processes; all cores if not given, 0 reads in this process.

    Raises:
        InputError: a patient cannot be read, there is none, or the folder of `file` cannot be written.
    """
    if not items:
        raise InputError("no patient with a known outcome", "give a data set with NET2 masks of w096")
    file = Path(file)
    check_writable(file.parent)
    key = digest_of(read, [(str(item["image"]), item.get("arm")) for item in items])
    if file.is_file():
        with np.load(file) as kept:
            if str(kept["key"]) == key:
                return Cohort(tuple(_record(told) for told in json.loads(str(kept["records"]))), kept["frequency"], key)
    workers = os.cpu_count() or 1 if workers is None else workers
    with ProcessPoolExecutor(workers) if workers else _InThisProcess() as pool:
        counted = pool.map(partial(_count, read), items)
        counted = list(tqdm(counted, total=len(items), desc="counting lesions", unit="patient"))
    records = tuple(record for record, _ in counted)
    voxels = np.concatenate([found for _, found in counted])
    frequency = np.bincount(voxels, minlength=np.prod(read.grid.shape)).reshape(read.grid.shape) / len(counted)
    with written_whole(file) as stream:
        told = json.dumps([asdict(record) for record in records])
        np.savez_compressed(stream, key=key, records=told, frequency=frequency.astype(np.float32))
    return Cohort(records, frequency.astype(np.float32), key)


class _InThisProcess:
    map = staticmethod(map)

    def __enter__(self) -> "_InThisProcess":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _count(read: CaseReader, item: Mapping[str, Any]) -> tuple[Record, np.ndarray]:
    torch.set_num_threads(1)
    seen = read(item)
    return seen.record, np.flatnonzero(seen.outcome)


def _record(told: Mapping[str, Any]) -> Record:
    return Record(**(told | {"outcome": Findings(**told["outcome"])}))
