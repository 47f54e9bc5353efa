"""Patients on the slab, kept on disk, so that training decodes each NIfTI file once."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import Dataset
from torch.utils.data import DataLoader
from tqdm import tqdm

from bundle.arms import arm_index
from bundle.data.bids import CONDITION, OUTCOME, Case, find_case
from bundle.data.grid import SlabGrid
from bundle.data.transforms import CompactCased, LoadCased, expand_case
from bundle.errors import InputError
from bundle.files import written_whole

_VERSION = 1  # raise it when LoadCased or CompactCased come to give other numbers


class CachedCases(Dataset):
    """Items of a datalist as tensors; what does not depend on chance or on the item's labels comes from `cache_dir`.

    MONAI's PersistentDataset has the same aim, but moves its files over from the system's temporary folder: killed in
    between it leaves half a file, which the next run cannot load. Here a file appears whole or not at all, and its name
    depends on the scans (name, size, time), the grid and the visits: whatever changes is read again.

    Args:
        items: dictionaries of `bundle.data.datalist.load_split` or `balanced_subset`.
        load: the reader, with outcome.
        cache_dir: made if absent; may be shared by data sets, splits and processes.

    Each item is a dictionary: image (8, H, W, S) and target (2, H, W, S) float32 as `LoadCased` defines them, arm
    (class index), active (bool), weight (float, 1 if the item has none), case (label).
    """

    def __init__(self, items: Sequence[Mapping[str, Any]], load: LoadCased, cache_dir: str | Path) -> None:
        super().__init__(list(items))
        self.load = load
        self.compact = CompactCased(load.keys)
        self.cache_dir = Path(cache_dir)
        try:
            self.cache_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError("cannot be written", "choose another cache folder", file=cache_dir) from error

    def _transform(self, index: int) -> dict[str, Any]:
        item = self.data[index]
        arm = arm_index(item.get("arm"))
        case = find_case(item["image"], arm=arm)
        file = self.cache_dir / f"{case.id}_{self._key(case)}.pt"
        if not file.is_file():
            compact = self.compact(self.load({"image": item["image"], "arm": arm}))
            with written_whole(file) as stream:
                torch.save(compact, stream)
        labels = {"arm": arm, "active": bool(item["active"]), "weight": float(item.get("weight", 1)), "case": case.id}
        return expand_case(torch.load(file, weights_only=True), arm) | labels

    def _key(self, case: Case) -> str:
        paths = [case.volumes.get(name) for name in CONDITION + OUTCOME]
        paths += [case.brain[visit] for visit in sorted(case.brain)]
        files = [path and (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
        recipe = (_VERSION, self.load.grid, self.load.drop_visits, files)
        return hashlib.sha256(repr(recipe).encode()).hexdigest()[:20]


def cached_dataset(
    items: Sequence[Mapping[str, Any]],
    grid: SlabGrid,
    cache_dir: str | Path,
    *,
    drop_visits: Sequence[str] = (),
) -> CachedCases:
    """The training data set on a grid; see `CachedCases`."""
    load = LoadCased(grid=grid, with_outcome=True, drop_visits=drop_visits)
    return CachedCases(items, load, cache_dir)


def fill_cache(dataset: CachedCases, workers: int | None = None) -> None:
    """Reads every patient once, in parallel, with a progress bar; those already cached cost milliseconds.

    Args:
        workers: processes; all cores if not given, 0 reads in this process.

    Raises:
        InputError: some patients cannot be read; all others are cached by then.
    """
    workers = os.cpu_count() or 1 if workers is None else workers
    loader = DataLoader(_Readings(dataset), batch_size=None, num_workers=workers)
    told = [error for error in tqdm(loader, desc="reading scans", unit="patient") if error]
    if told:
        problem = f"{len(told)} of {len(dataset)} patients cannot be read, the first: {told[0]}"
        raise InputError(problem, "repair them or take them out of the datalist")


class _Readings(Dataset):
    """Caches a patient and gives what was wrong, "" if nothing: text crosses processes, an InputError does not."""

    def _transform(self, index: int) -> str:
        try:
            self.data[index]
        except InputError as error:
            return str(error)
        return ""
