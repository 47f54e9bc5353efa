"""Patients on the slab, cached on disk, so that training decodes each NIfTI file once."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from monai.data import Dataset
from torch import Tensor

from bundle.arms import CLASSES
from bundle.data.bids import Case, find_case, fingerprint
from bundle.data.grid import SlabGrid
from bundle.data.slab_file import load_slab
from bundle.data.tables import checked_arm
from bundle.data.transforms import CompactCased, LoadCased, expand_case
from bundle.errors import InputError
from bundle.files import written_whole
from bundle.runtime import check_device
from bundle.seeding import digest_of

_VERSION = 2  # increase it when a change makes LoadCased or CompactCased return other numbers


class CachedCases(Dataset):
    """Items of a datalist as tensors; what does not depend on chance or on the item's labels comes from `cache_dir`.

    MONAI's PersistentDataset has the same purpose, but moves its files from the system's temporary folder: killed in
    between it leaves half a file, which the next run cannot load. Here a file appears complete or not at all, and its
    name depends on the scans (name, size, time), the grid, the visits and their sessions: after any change the scans
    are read again, as they are where a file is damaged. Patients of a compact data set (`bundle.data.slab_file`) are on
    the slab already and are not cached again.

    Args:
        items: dictionaries of `bundle.data.datalist.load_split` or `balanced_subset`.
        load: the reader, with outcome.
        cache_dir: made if absent; may be shared by data sets, splits and processes.
        expected_outcome: see `bundle.data.transforms.expand_case`.
        keep_on: device whose memory keeps every patient once read, 1.4 MB each on the lite model's grid; None keeps
            nothing. Items are then on that device too.

    Each item is a dictionary: image (8, H, W, S) and target (2, H, W, S) float32 as `LoadCased` defines them, arm
    (class index), active (bool), weight (float, 1 if the item has none), case (label).
    """

    def __init__(
        self,
        items: Sequence[Mapping[str, Any]],
        load: LoadCased,
        cache_dir: str | Path,
        expected_outcome: bool = False,
        keep_on: torch.device | str | None = None,
    ) -> None:
        super().__init__(list(items))
        if keep_on is not None:
            check_device(keep_on, "--keep_on")
        self.expected_outcome, self.keep_on = expected_outcome, keep_on
        self._kept: dict[int, tuple[dict[str, Tensor], dict[str, Any]]] = {}
        self.load = load
        self.compact = CompactCased(load.keys)
        self.cache_dir = Path(cache_dir)
        try:
            self.cache_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                "cannot be written", "choose another --output_dir or --cache_dir", file=cache_dir
            ) from error

    def keep_all(self, num_threads: int = 1) -> None:
        """Reads all patients into the memory of `keep_on`.

        Raises:
            InputError: they do not fit, or one of them cannot be read.
        """
        with ThreadPoolExecutor(max(1, num_threads)) as pool:
            try:
                for _ in pool.map(self._read, range(len(self))):
                    pass
            except (torch.OutOfMemoryError, MemoryError) as error:
                problem = f"{len(self)} patients do not fit in the memory of {self.keep_on}"
                raise InputError(problem, "leave --keep_on out") from error

    def _transform(self, index: int) -> dict[str, Any]:
        compact, labels = self._read(index)
        return expand_case(compact, labels["arm"], self.expected_outcome) | labels

    def _read(self, index: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """A patient's compact volumes and labels."""
        if index in self._kept:
            return self._kept[index]
        item = self.data[index]
        arm = checked_arm(item.get("arm"), "correct the datalist", case=str(item.get("case", "")))
        item = item | {"arm": CLASSES[arm]}
        case = find_case(item["image"], item.get("dataset_dir"), item["arm"], self.load.visits, item.get("outcome"))
        if case.slab is None:
            compact = self._load(case, item)
        else:
            compact = load_slab(case.slab, self.load.grid, self.load.drop_visits)
        labels = {"arm": arm, "active": bool(item["active"]), "weight": float(item.get("weight", 1)), "case": case.id}
        if self.keep_on is not None:
            compact = {name: volumes.to(self.keep_on) for name, volumes in compact.items()}
            self._kept[index] = compact, labels
        return compact, labels

    def _load(self, case: Case, item: Mapping[str, Any]) -> dict[str, Tensor]:
        """From the cache; from the scans, and into the cache, where it is not there."""
        file = self.cache_dir / f"{case.id}_{self._key(case)}.pt"
        compact = self._cached(file)
        if compact is None:
            compact = self.compact(self.load(item))
            try:
                with written_whole(file) as stream:
                    torch.save(compact, stream)
            except (OSError, RuntimeError) as error:  # torch turns a full disk into a RuntimeError
                raise InputError(f"cannot be written: {error}", "make room for the cache", file=file) from error
        return compact

    def _cached(self, file: Path) -> dict[str, Tensor] | None:
        """The content of a cache file; None if there is no such file or it is damaged."""
        if not file.is_file():
            return None
        try:
            compact = torch.load(file, weights_only=True)
            flairs, masks = (len(compact[name]) for name in ("flair", "masks"))
            shapes = {tuple(compact[name].shape[1:]) for name in ("flair", "masks")}
        except Exception:  # torch.load raises almost anything on a file that is not its own
            return None
        return compact if (flairs, masks) in ((2, 5), (3, 6)) and shapes == {self.load.grid.shape} else None

    def _key(self, case: Case) -> str:
        load = self.load
        recipe = (_VERSION, load.grid, load.with_outcome, sorted(load.drop_visits), sorted(case.sessions.items()))
        return digest_of(*recipe, fingerprint(case))


def cached_dataset(
    data: Sequence[Mapping[str, Any]],
    grid: SlabGrid,
    cache_dir: str | Path,
    *,
    drop_visits: Sequence[str] = (),
    visits: Mapping[str, str] | None = None,
    expected_outcome: bool = False,
    keep_on: torch.device | str | None = None,
) -> CachedCases:
    """The training data set on a grid; see `CachedCases`."""
    load = LoadCased(grid=grid, with_outcome=True, drop_visits=drop_visits, visits=visits)
    return CachedCases(data, load, cache_dir, expected_outcome, keep_on)
