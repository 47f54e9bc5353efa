"""python -m scripts.score_segmentation DATASET: how well lesions are found, by their size, beside a plain threshold.

With --fit it chooses the thresholds instead, those of the best F1 over lesions, and writes them beside the weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from bundle.data.bids import Case, find_case
from bundle.data.datalist import load_split
from bundle.data.volumes import read_mask
from bundle.errors import InputError
from bundle.lesions import LesionRule
from bundle.networks.weights import write_fitted
from bundle.segmentation.baseline import BrightVoxels
from bundle.segmentation.scoring import SIZES_MM3, MaskScore, mask_score, total
from bundle.segmentation.segmenter import KIND, LESIONS, Thresholds
from scripts.command import read_configs, run

_TESTED = np.round(np.arange(0.1, 0.95, 0.05), 2)
_QUESTIONS = (("t2", "w000", None), ("t2", "w048", "w000"), ("net2", "w048", "w000"))  # lesions, visit, earlier visit
Masks = Mapping[str, np.ndarray]


def score_segmentation(
    dataset_dir: str,
    split: str = "test",
    patients: int | None = None,
    weights: str = "models/segmenter.pt",
    config_file: str = "configs/segment.json",
    fit: bool = False,
) -> str:
    """Table of T2 lesions of w000 and w048 and of new ones at w048; or, with `fit`, the thresholds that were chosen.

    Args:
        dataset_dir: BIDS data set with lesion masks, e.g. `scripts.simulate_trial --preset scanners`.
        split: of its datalist; fit on "validation".
        patients: the first so many; all if not given.
        weights: of the segmenter.
        config_file: of segmentation.
        fit: choose thresholds and write them to <weights>_thresholds.json.

    Returns:
        Text. "Dice" of all voxels together, "F1", "sensitivity" and "precision" of lesions (a lesion is found if one of
        its voxels is marked), the sensitivity of each class of size in mm3.
    """
    config = read_configs(config_file)
    config["weights"], config["bundle_root"] = str(weights), "."
    segmenter = config.get_parsed_content("segmenter")
    cases = [
        find_case(item["image"], item["dataset_dir"], "unknown") for item in load_split(dataset_dir, split)[:patients]
    ]
    if fit:
        thresholds = Thresholds(*(_best_threshold(segmenter, cases, kind) for kind in LESIONS))
        file = write_fitted(weights, KIND, thresholds, {"patients": len(cases), "split": split})
        return f"{thresholds}: {file}"
    found = {"segmenter": segmenter.masks, "bright voxels": BrightVoxels().masks}
    rows = {}
    for kind, visit, earlier in _QUESTIONS:
        for name, masks in found.items():
            scores = _scores(masks, cases, kind, visit, earlier, name)
            if scores:
                rows[f"{kind} {visit}", name] = _row(scores)
    return pd.DataFrame(rows).T.to_string(float_format=lambda value: f"{value:.3f}")


def _scores(
    masks: Callable[..., Masks], cases: Sequence[Case], kind: str, visit: str, earlier: str | None, name: str
) -> list[MaskScore]:
    scores = []
    for case in tqdm(cases, f"{name}: {kind} {visit}", unit="patient", leave=False):
        if {f"flair_{visit}", f"{kind}_{visit}", f"flair_{earlier or visit}"} <= set(case.volumes):
            true = read_mask(case.volumes[f"{kind}_{visit}"], case.id)
            scores.append(mask_score(masks(case, visit, earlier)[kind], true.values, true.affine))
    return scores


def _row(scores: Sequence[MaskScore]) -> dict[str, Any]:
    score = total(scores)
    dice = np.array([one.dice for one in scores])
    row = {
        "patients": len(scores),
        "lesions": int(score.lesions.sum()),
        "Dice": score.dice,
        "median Dice": np.nanmedian(dice) if np.isfinite(dice).any() else np.nan,
        "F1": score.f1,
        "sensitivity": score.found.sum() / max(score.lesions.sum(), 1),
        "precision": score.precision,
    }
    for low, high, value in zip(SIZES_MM3, SIZES_MM3[1:], score.sensitivity):
        row[f"{low:g}-{high:g} mm3" if np.isfinite(high) else f"> {low:g} mm3"] = value
    return row


def _best_threshold(segmenter: Any, cases: Sequence[Case], kind: str) -> float:
    """The threshold of the greatest F1 over lesions, of all questions about this kind of lesion."""
    scores: dict[float, list[MaskScore]] = {threshold: [] for threshold in _TESTED}
    for case in tqdm(cases, f"probabilities: {kind}", unit="patient"):
        for asked, visit, earlier in _QUESTIONS:
            if asked != kind or not {f"flair_{visit}", f"{kind}_{visit}"} <= set(case.volumes):
                continue
            true = read_mask(case.volumes[f"{kind}_{visit}"], case.id)
            probability = segmenter.probability(case, visit, earlier)[kind]
            rule = LesionRule(min_volume_mm3=segmenter.min_volume_mm3)
            for threshold, of in scores.items():
                marked = replace(rule, threshold=threshold).label(probability.values, probability.affine) > 0
                of.append(mask_score(marked, true.values, true.affine))
    if not any(scores.values()):
        raise InputError(f"no mask of {kind} lesions", "give a data set with lesion masks")
    return float(max(scores, key=lambda threshold: total(scores[threshold]).f1))


if __name__ == "__main__":
    run(score_segmentation)
