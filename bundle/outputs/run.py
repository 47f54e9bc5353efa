"""Forecasting a list of patients: one that cannot be read gets one line and is left out, the rest go on."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from torch.utils.data import IterableDataset
from tqdm import tqdm

from bundle.arms import CLASSES
from bundle.data.bids import dataset_warnings, list_cases, session_labels
from bundle.data.datalist import SPLITS, load_split
from bundle.errors import Guard, InputError, warn
from bundle.outputs.comparison import under_each_arm

ALL_ARMS = "all"


def forecast_items(
    dataset_dir: str | Path,
    case: str | None = None,
    arm: str | None = None,
    datalist: str | Path | None = None,
    split: str | None = None,
    visits: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """The patients to forecast.

    Args:
        dataset_dir: a BIDS data set.
        case: one participant of it, or the path of a participant's folder; all participants if not given.
        arm: treatment to forecast under, instead of that in the datalist or in participants.tsv; "all" forecasts and
            compares the six arms.
        datalist: a file of `scripts.make_datalist`, which is forecast instead of all participants.
        split: forecast only this one of the datalist, by default of `<dataset_dir>/datalist.json`.
        visits: session label of each visit that is not named so, e.g. {"w000": "ses-01", "w048": "ses-02"}.

    Returns:
        Items for `ReadableCases`: "image", the patient's folder, "dataset_dir", outside which nothing is read, "arm"
        and "visits" if they are given, "all_arms" if the arms are compared.

    Raises:
        InputError: there is no such data set, split or arm, or participants.tsv cannot be read.
    """
    root = Path(str(dataset_dir))  # the command line reads a folder named 123 as a number
    given: dict[str, Any] = {}
    if arm == ALL_ARMS:
        given["all_arms"] = True
    elif arm is not None:
        if str(arm).strip().lower() not in CLASSES:
            fix = f"use one of {', '.join(CLASSES)}, or {ALL_ARMS!r} to compare them"
            raise InputError(f"unknown treatment arm {arm!r}", fix)
        given["arm"] = arm
    if visits is not None:
        session_labels(visits)  # raises once, not for each patient
        given["visits"] = dict(visits)
    if case is not None:
        name = str(case)
        is_label = Path(name).name == name and not _exists(Path(name))
        return [{"image": name} | ({"dataset_dir": str(root)} if is_label else {}) | given]
    inside = {"dataset_dir": str(root)}
    if datalist is not None or split is not None:
        listed = [item for name in (SPLITS if split is None else [split]) for item in load_split(root, name, datalist)]
        return [{"image": item["image"], "arm": item.get("arm")} | inside | given for item in listed]
    cases = list_cases(root)
    for text in dataset_warnings(root, arm is not None):  # reads participants.tsv: one that is no table raises once
        warn(text)
    return [{"image": str(root / name)} | inside | given for name in cases]


class ReadableCases(IterableDataset):
    """The items that `transform` can read, as it reads them; under each arm in turn where an item says "all_arms".

    Warnings about what was read are printed on stderr.

    Args:
        items: see `forecast_items`.
        transform: pre-processing.
        guard: counts those it cannot read.
        progress: show what is being read.
    """

    def __init__(
        self, items: list[dict[str, Any]], transform: Callable[[Any], Any], guard: Guard, progress: bool = False
    ) -> None:
        self.items, self.transform, self.guard, self.progress = items, transform, guard, progress

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for item in self.items:
            with phase(f"{Path(item['image']).name}: reading", self.progress):
                read = self.guard.call(self.transform, item, None)
            if read is None:
                continue
            for text in read.get("warnings", ()):
                warn(f"{read['case']}: {text}")
            yield from under_each_arm(read) if item.get("all_arms") else [read]


class Guarded:
    """Post-processing that leaves its data as it is where they cannot be used, and prints the files it wrote.

    Args:
        transform: post-processing of one case.
        guard: counts those it cannot use.
        progress: show what is being written.
    """

    def __init__(self, transform: Callable[[Any], Any], guard: Guard, progress: bool = False) -> None:
        self.transform, self.guard, self.progress = transform, guard, progress

    def __call__(self, data: Any) -> Any:
        with phase(f"{data['case']}, {CLASSES[int(data['arm'])]}: writing", self.progress):
            output = self.guard.call(self.transform, data, data)
        _print_files(output)
        return output


def run_preview(dataset: ReadableCases, transform: Callable[[Any], Any], guard: Guard) -> None:
    """Write the one-call heatmap of every readable case; exit code as that of `run_inference`."""
    done = set()
    for data in dataset:
        output = guard.call(transform, data, data)
        _print_files(output)
        done |= _cases([output])
    _conclude(done, dataset, guard)


def run_inference(evaluator: Engine, dataset: ReadableCases, guard: Guard) -> None:
    """Forecast every readable case; ends the program with exit code 1 if there were others, each reported in a line."""
    done = set()
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: done.update(_cases(engine.state.output)))
    evaluator.run()
    _conclude(done, dataset, guard)


@contextmanager
def phase(text: str, show: bool) -> Iterator[None]:
    """A line on stderr while something is done, gone when it is."""
    with tqdm(total=0, desc=text, bar_format="{desc}", leave=False, disable=not show):
        yield


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long
        return False


def _print_files(output: dict[str, Any]) -> None:
    for path in output.get("files", ()):
        print(path, flush=True)


def _cases(outputs: Iterable[dict[str, Any]]) -> set[str]:
    """The cases of which files were written: each has a folder of its own."""
    return {output["files"][0].parent.name for output in outputs if "files" in output}


def _conclude(done: set[str], dataset: ReadableCases, guard: Guard) -> None:
    total = len(dataset.items)
    line = f"forecast {len(done)} of {total} case{'s' * (total != 1)}"
    if guard.failures:
        sys.exit(f"{line}; {total - len(done)} not forecast")
    print(line)
