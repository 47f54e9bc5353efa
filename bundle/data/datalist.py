"""The split of a data set into training, validation and test (a MONAI datalist), and the balanced subset of stage 2."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bundle.arms import CLASSES, NULL_ARM
from bundle.data.bids import Case, find_case, list_cases
from bundle.data.slab_file import is_active
from bundle.data.tables import checked_arm, read_participants
from bundle.data.volumes import read_mask
from bundle.errors import InputError, warn
from bundle.files import written_whole

SPLITS = ("training", "validation", "test")


def make_datalist(
    dataset_dir: str | Path,
    seed: int = 0,
    *,
    validation: float = 0.1,
    test: float = 0.1,
    visits: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Training, validation and test patients, each arm and activity in the same proportion, each patient in one split.

    Patients without FLAIR at w000 and w048 are left out (listed under "left_out"). From three patients on no split is
    empty, unless its fraction is 0.

    Args:
        dataset_dir: a BIDS data set.
        seed: other numbers give other splits.
        validation, test: fractions of the patients, together less than 1.
        visits: session label by visit, see `bundle.data.bids.find_case`.

    Returns:
        "training", "validation", "test": items {"image": the patient's folder in the data set, "case", "arm": name,
        "active": whether NET2 at w096 has a voxel, null if that is not known}.

    Raises:
        InputError: no data set, or fractions or a seed that are out of range.
    """
    fractions = (validation, test)
    if any(isinstance(x, bool) or not isinstance(x, (int, float)) or not 0 <= x < 1 for x in fractions):
        raise InputError(f"fractions {fractions} are not in [0, 1)", "correct --validation or --test")
    if sum(fractions) >= 1:
        raise InputError(f"fractions {fractions} leave no patients for training", "correct --validation or --test")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed={seed} is not a whole number of at least 0", "correct --seed")
    root = Path(str(dataset_dir))
    arms = read_participants(root)
    cases = [find_case(name, root, CLASSES[arms.get(name, NULL_ARM)], visits) for name in list_cases(root)]
    complete = [case.slab is not None or {"flair_w000", "flair_w048"} <= set(case.volumes) for case in cases]
    usable = [case for case, is_complete in zip(cases, complete) if is_complete]
    left_out = [case.id for case, is_complete in zip(cases, complete) if not is_complete]
    active = [_active(case) for case in tqdm(usable, desc="reading outcomes", unit="patient")]
    datalist: dict[str, Any] = {"name": root.name, "seed": seed, "left_out": left_out} | {split: [] for split in SPLITS}
    strata = [(case.arm, (None, False, True).index(outcome)) for case, outcome in zip(usable, active)]
    for case, outcome, split in zip(usable, active, _splits(strata, seed, fractions)):
        datalist[split].append({"image": case.id, "case": case.id, "arm": CLASSES[case.arm], "active": outcome})
    return datalist


def load_split(
    dataset_dir: str | Path,
    split: str,
    datalist: str | Path | None = None,
    visits: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Items of one split, "image" as absolute path, with their "dataset_dir".

    Args:
        dataset_dir: a BIDS data set.
        split: "training", "validation", "test", or "all" of them.
        datalist: a file of `scripts.make_datalist`; `<dataset_dir>/datalist.json` if not given, which is made, with
            seed 0, if absent. Training needs those of the items whose outcome is known: `with_outcome`.
        visits: session label by visit, should the datalist have to be made.

    Raises:
        InputError: the file is not a datalist, has no such split, or names a patient outside the data set.
    """
    root = Path(os.path.abspath(str(dataset_dir)))  # ".." goes, links stay
    path = root / "datalist.json" if datalist is None else Path(str(datalist))
    if datalist is None and not path.is_file():
        write_datalist(make_datalist(root, visits=visits), path)
    try:
        content = json.loads(path.read_text())
        names = SPLITS if split == "all" else [split]
        listed = {name: list(content[name]) for name in names}
        known = {str(item) for item in content.get("left_out") or ()}
        for name in SPLITS:
            known |= {str(item.get("case")) for item in content.get(name) or () if isinstance(item, dict)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"no datalist with {split!r} in it", "make it with scripts.make_datalist", file=path
        ) from error
    items = [_checked_item(item, root, path) for name in names for item in listed[name]]
    if datalist is None and (new := set(list_cases(root)) - known):
        warn(f"{path}: {len(new)} patients were added later; scripts.make_datalist renews it")
    return items


def _checked_item(item: Any, root: Path, path: Path) -> dict[str, Any]:
    """An item of a datalist, its image as an absolute path inside the data set."""
    fix = "make it with scripts.make_datalist"
    if not isinstance(item, dict) or not all(isinstance(item.get(name), str) for name in ("image", "case")):
        raise InputError(f"the item {item!r:.100} has no image or no case", fix, file=path)
    case = item["case"]
    if item.get("active") not in (True, False, None):
        raise InputError(f"active is {item['active']!r:.50}", "write true, false or null", case=case, file=path)
    checked_arm(item.get("arm"), "correct the datalist", case=case, file=path)
    image = Path(os.path.abspath(root / item["image"]))
    if root not in image.parents:
        raise InputError(f"{item['image']!r:.100} lies outside the data set", fix, case=case, file=path)
    return item | {"image": str(image), "dataset_dir": str(root)}


def write_datalist(datalist: dict[str, Any], path: Path) -> None:
    """Writes JSON; the file appears complete or not at all."""
    try:
        with written_whole(path) as stream:
            stream.write(json.dumps(datalist, indent=1).encode())
    except OSError as error:
        raise InputError("cannot be written", "choose another file: scripts.make_datalist --out", file=path) from error


def with_outcome(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items whose two-year activity is known."""
    return [item for item in items if item["active"] is not None]


def labelled_items(pairs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Items to train on, of images and labels as a labelling program hands them over.

    Args:
        pairs: "image", a scan in the patient's folder of a BIDS data set, and "label", the patient's NET2 mask of w096
            on the grid of the latest FLAIR before it, which is used instead of the one in the data set.

    Raises:
        InputError: an image lies in no data set, or a label cannot be read.
    """
    items = []
    for pair in pairs:
        case = find_case(pair["image"], outcome=pair["label"])
        if case.is_single_scan:
            raise InputError("not inside a folder sub-*", "arrange the scans in BIDS", file=pair["image"])
        item = {"image": str(case.dataset_dir / case.id), "dataset_dir": str(case.dataset_dir), "case": case.id}
        active = bool(read_mask(case.volumes["net2_w096"], case.id).values.any())
        items.append(item | {"arm": CLASSES[case.arm], "active": active, "outcome": str(pair["label"])})
    return items


def balanced_subset(items: Sequence[dict[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """As many active as inactive patients (Favero et al. 2025, section 2): all of the rarer kind, a draw of the other.

    The draw is over all arms together, as in the paper. Each item gets a "weight" that compensates for it: (all of the
    drawn kind) / (drawn) for the drawn kind, 1 for the other, scaled to mean 1. A loss so weighted has the expectation
    of the unbalanced one, so that probabilities stay calibrated; the paper does not weight.

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


def _splits(strata: Sequence[tuple[int, ...]], seed: int, fractions: tuple[float, float]) -> list[str]:
    """The split of each patient: ordered by stratum, shuffled within, evenly spaced patients are held out."""
    total = len(strata)
    order = np.random.default_rng(seed).permutation(total)
    order = sorted(order, key=lambda index: strata[index])
    splits = ["training"] * total
    free = order
    for split, fraction, offset in zip(SPLITS[1:], fractions, (0.25, 0.75)):
        held_out = max(round(fraction * total), 1) if total >= 3 and fraction else 0
        chosen = [free[int((k + offset) * len(free) / held_out)] for k in range(held_out)]
        for index in chosen:
            splits[index] = split
        free = [index for index in free if splits[index] == "training"]
    return splits


def _active(case: Case) -> bool | None:
    if case.slab is not None:
        return is_active(case.slab)
    path = case.volumes.get("net2_w096")
    return bool(read_mask(path, case.id).values.any()) if path and "flair_w096" in case.volumes else None
