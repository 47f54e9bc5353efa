"""Forecasting a list of patients: one that cannot be read is told in one line and left out, the rest go on."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ignite.engine import Engine
from torch.utils.data import IterableDataset

from bundle.data.bids import list_cases
from bundle.data.datalist import load_split
from bundle.errors import InputError


def forecast_items(
    dataset_dir: str | Path,
    case: str | None = None,
    arm: str | int | None = None,
    datalist: str | Path | None = None,
    split: str = "test",
) -> list[dict[str, Any]]:
    """The patients to forecast.

    Args:
        dataset_dir: a BIDS data set.
        case: one participant of it, or the path of a participant's folder; all participants if not given.
        arm: treatment to forecast under, instead of that in participants.tsv.
        datalist: a file of `scripts.make_datalist`; its `split` is forecast instead of all participants.

    Returns:
        Items for `bundle.data.transforms.LoadCased`: "image", the patient's folder, and "arm" if it was given.

    Raises:
        InputError: there is no such data set or participant.
    """
    root = Path(dataset_dir)
    if case is not None:
        folders = [Path(case) if Path(case).is_dir() else root / case]
    elif datalist is not None:
        folders = [Path(item["image"]) for item in load_split(root, split, datalist)]
    else:
        folders = [root / name for name in list_cases(root)]
    if not folders:
        raise InputError("no participant in it", "give a BIDS data set with --dataset_dir", file=root)
    return [{"image": str(folder)} | ({} if arm is None else {"arm": arm}) for folder in folders]


class Guard:
    """Tells `InputError`s in one line each, counts them, and keeps them from ending the run."""

    def __init__(self) -> None:
        self.failures: list[InputError] = []

    def call(self, transform: Callable[[Any], Any], data: Any, otherwise: Any) -> Any:
        """transform(data), or `otherwise` if the data cannot be used."""
        try:
            return transform(data)
        except InputError as error:
            self.failures.append(error)
            print(f"error: {error}", file=sys.stderr)
            return otherwise


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


def run_inference(evaluator: Engine, guard: Guard) -> None:
    """Forecast every readable case, then say how many were not.

    Raises:
        InputError: at least one case failed; the others' forecasts are written.
    """
    evaluator.run()
    if guard.failures:
        raise InputError(f"{len(guard.failures)} case(s) not forecast", "see the lines above; the others are written")
