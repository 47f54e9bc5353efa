"""Forecasting a list of patients: one that cannot be read is told in one line and left out, the rest go on."""

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine
from torch.utils.data import IterableDataset

from bundle.data.bids import dataset_warnings, list_cases, session_labels
from bundle.data.datalist import SPLITS, load_split
from bundle.data.tables import checked_arm
from bundle.errors import Guard, warn


def forecast_items(
    dataset_dir: str | Path,
    case: str | None = None,
    arm: str | int | None = None,
    datalist: str | Path | None = None,
    split: str | None = None,
    visits: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """The patients to forecast.

    Args:
        dataset_dir: a BIDS data set.
        case: one participant of it, or the path of a participant's folder; all participants if not given.
        arm: treatment to forecast under, instead of that in the datalist or in participants.tsv.
        datalist: a file of `scripts.make_datalist`, which is forecast instead of all participants.
        split: forecast only this one of the datalist, by default of `<dataset_dir>/datalist.json`.
        visits: session label of each visit that is not named so, e.g. {"w000": "ses-01", "w048": "ses-02"}.

    Returns:
        Items for `bundle.data.transforms.LoadCased`: "image", the patient's folder, "dataset_dir", outside which
        nothing is read, and "arm" and "visits" if they are given.

    Raises:
        InputError: there is no such data set, split or arm, or participants.tsv cannot be read.
    """
    root = Path(str(dataset_dir))
    given: dict[str, Any] = {} if arm is None else {"arm": checked_arm(arm, "correct --arm")}
    if visits is not None:
        session_labels(visits)  # raises once, not for each patient
        given["visits"] = dict(visits)
    if case is not None:
        place = Path(str(case))
        is_label = place.name == str(case) and not place.exists()
        return [{"image": str(case)} | ({"dataset_dir": str(root)} if is_label else {}) | given]
    inside = {"dataset_dir": str(root)}
    if datalist is not None or split is not None:
        listed = [item for name in (SPLITS if split is None else [split]) for item in load_split(root, name, datalist)]
        return [{"image": item["image"], "arm": item.get("arm")} | inside | given for item in listed]
    cases = list_cases(root)
    for text in dataset_warnings(root):  # reads participants.tsv: one that is no table raises once
        warn(text)
    return [{"image": str(root / name)} | inside | given for name in cases]


class ReadableCases(IterableDataset):
    """The items that `transform` can read, as it reads them.

    Args:
        items: see `forecast_items`.
        transform: pre-processing.
        guard: is told of those it cannot read.
    """

    def __init__(self, items: list[dict[str, Any]], transform: Callable[[Any], Any], guard: Guard) -> None:
        self.items, self.transform, self.guard = items, transform, guard

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for item in self.items:
            read = self.guard.call(self.transform, item, None)
            if read is not None:
                yield read


class Guarded:
    """A transform that leaves its data as it is where they cannot be used."""

    def __init__(self, transform: Callable[[Any], Any], guard: Guard) -> None:
        self.transform, self.guard = transform, guard

    def __call__(self, data: Any) -> Any:
        return self.guard.call(self.transform, data, data)


def run_preview(dataset: ReadableCases, transform: Callable[[Any], Any], guard: Guard) -> None:
    """Write the one-call heatmap of every readable case; exit code as that of `run_inference`."""
    for data in dataset:
        guard.call(transform, data, None)
    _tell_failures(guard)


def run_inference(evaluator: Engine, guard: Guard) -> None:
    """Forecast every readable case; ends the program with exit code 1 if there were others, each told in its line."""
    evaluator.run()
    _tell_failures(guard)


def _tell_failures(guard: Guard) -> None:
    if guard.failures:
        sys.exit(f"{len(guard.failures)} case(s) not forecast")
