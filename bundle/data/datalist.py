"""The split of a data set into training, validation and test (a MONAI datalist), and the balanced subset of stage 2."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bundle.arms import CLASSES, NULL_ARM
from bundle.data.bids import Case, find_case, list_cases, read_participants
from bundle.data.volumes import read_mask
from bundle.errors import InputError
from bundle.files import written_whole

SPLITS = ("training", "validation", "test")
_SHARE = 0.1  # of the patients for validation, and as many for test


def make_datalist(dataset_dir: str | Path, seed: int = 0) -> dict[str, Any]:
    """80 / 10 / 10 % of the patients, each arm in the same proportion, each patient in one split.

    Patients without FLAIR at w000 and w048 are left out (listed under "left_out"). From three patients on no split is
    empty.

    Args:
        dataset_dir: a BIDS data set.
        seed: other numbers give other splits.

    Returns:
        "training", "validation", "test": items {"image": the patient's folder in the data set, "case", "arm": name,
        "active": whether NET2 at w096 has a voxel, null if that is not known}.
    """
    root = Path(dataset_dir)
    arms = read_participants(root)
    cases = [find_case(root / name, arm=arms.get(name, NULL_ARM)) for name in list_cases(root)]
    complete = [{"flair_w000", "flair_w048"} <= set(case.volumes) for case in cases]
    usable = [case for case, is_complete in zip(cases, complete) if is_complete]
    left_out = [case.id for case, is_complete in zip(cases, complete) if not is_complete]
    datalist: dict[str, Any] = {"name": root.name, "seed": seed, "left_out": left_out} | {split: [] for split in SPLITS}
    splits = _splits([case.arm for case in usable], seed)
    for case, split in zip(tqdm(usable, desc="reading outcomes", unit="patient"), splits):
        item = {"image": case.id, "case": case.id, "arm": CLASSES[case.arm], "active": _active(case)}
        datalist[split].append(item)
    return datalist


def load_split(dataset_dir: str | Path, split: str, datalist: str | Path | None = None) -> list[dict[str, Any]]:
    """Items of one split, "image" as absolute path.

    Args:
        dataset_dir: a BIDS data set.
        split: "training", "validation", "test", or "all" of them.
        datalist: a file of `scripts.make_datalist`; `<dataset_dir>/datalist.json` if not given, which is made, with
            seed 0, if absent. Training needs those of the items whose outcome is known: `with_outcome`.

    Raises:
        InputError: the file is not a datalist, or has no such split.
    """
    root = Path(dataset_dir).absolute()
    path = root / "datalist.json" if datalist is None else Path(datalist)
    if datalist is None and not path.is_file():
        write_datalist(make_datalist(root), path)
    try:
        content = json.loads(path.read_text())
        names = SPLITS if split == "all" else [split]
        items = [item | {"image": str(root / item["image"])} for name in names for item in content[name]]
        listed = {item["case"] for name in SPLITS for item in content.get(name, ())} | set(content.get("left_out", ()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"no datalist with {split!r} in it", "make it with scripts.make_datalist", file=path
        ) from error
    if datalist is None and (new := set(list_cases(root)) - listed):
        warnings.warn(f"{path}: {len(new)} patients came later; scripts.make_datalist makes it anew", stacklevel=2)
    return items


def write_datalist(datalist: dict[str, Any], path: Path) -> None:
    """Writes JSON; the file appears whole or not at all."""
    try:
        with written_whole(path) as stream:
            stream.write(json.dumps(datalist, indent=1).encode())
    except OSError as error:
        raise InputError("cannot be written", "choose another place: scripts.make_datalist --out", file=path) from error


def with_outcome(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items whose two-year activity is known."""
    return [item for item in items if item["active"] is not None]


def balanced_subset(items: Sequence[dict[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """As many active as inactive patients (Favero et al. 2025, section 2): all of the rarer kind, a draw of the other.

    The draw is over all arms together, as in the paper. Each item gets a "weight" that undoes it: the drawn kind weighs
    (all of it) / (drawn), the other 1, scaled to mean 1. A loss so weighted has the expectation of the unbalanced one,
    so that probabilities stay calibrated; the paper does not weight.

    Args:
        items: of one split, "active" known; those where it is null are left out.
        seed: of the draw.
    """
    items = with_outcome(items)
    kinds = [[item for item in items if bool(item["active"]) is active] for active in (True, False)]
    kept = min(len(kind) for kind in kinds)
    if kept == 0:
        return [item | {"weight": 1.0} for item in items]
    generator = np.random.default_rng(seed)
    subset = []
    for kind in kinds:
        drawn = sorted(generator.choice(len(kind), kept, replace=False))
        # the mean of the two weights, len(kind) / kept each, is len(items) / (2 kept)
        subset += [kind[index] | {"weight": 2 * len(kind) / len(items)} for index in drawn]
    return sorted(subset, key=lambda item: item["case"])


def _splits(arms: Sequence[int], seed: int) -> list[str]:
    """The split of each patient: in order of arm, shuffled within, each n-th for validation and each n-th for test."""
    total = len(arms)
    order = np.random.default_rng(seed).permutation(total)
    order = order[np.argsort(np.asarray(arms)[order], kind="stable")]
    held_out = max(round(_SHARE * total), 1) if total >= 3 else 0
    splits = ["training"] * total
    for k in range(held_out):
        splits[order[int((k + 0.25) * total / held_out)]] = "validation"
        splits[order[int((k + 0.75) * total / held_out)]] = "test"
    return splits


def _active(case: Case) -> bool | None:
    path = case.volumes.get("net2_w096")
    return bool(read_mask(path, case.id).data.any()) if path and "flair_w096" in case.volumes else None
