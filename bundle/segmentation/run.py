"""Segmentation of a data set: masks for the visits that have none; one line for a patient that cannot be read."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bundle import __version__
from bundle.data.bids import VISITS, Case, find_case
from bundle.data.estimated import estimation, write_estimated
from bundle.errors import Guard, InputError
from bundle.files import nifti_bytes, sha256_of
from bundle.segmentation.segmenter import LESIONS, Segmenter


def run_segmentation(
    items: Sequence[Mapping[str, Any]],
    segmenter: Segmenter,
    weights: str | Path,
    guard: Guard,
    lesions: Sequence[str] = ("t2",),
    progress: bool = True,
) -> None:
    """Writes the masks that are missing of every patient; ends with exit code 1 if one could not be read.

    Masks that are there stay, but for those that other weights of the segmenter made.

    Args:
        items: of `bundle.outputs.run.forecast_items`.
        segmenter: with the weights.
        weights: their file, for the sidecars.
        guard: counts patients that cannot be read.
        lesions: kinds to mark, of `LESIONS`.
        progress: show a bar.
    """
    if isinstance(lesions, str) or not lesions or not set(lesions) <= set(LESIONS):
        raise InputError(f"lesions={lesions!r} is not a list of {', '.join(LESIONS)}", "correct --lesions")
    done = 0
    for item in tqdm(items, "segmenting", unit="patient", disable=not progress):
        written = guard.call(lambda item: segment_patient(item, segmenter, weights, lesions), item, None)
        done += written is not None
        for path in written or ():
            tqdm.write(str(path))
    line = f"segmented {done} of {len(items)} patient{'s' * (len(items) != 1)}"
    if guard.failures:
        sys.exit(f"{line}; {len(items) - done} not segmented")
    print(line)


def segment_patient(
    item: Mapping[str, Any], segmenter: Segmenter, weights: str | Path, lesions: Sequence[str] = LESIONS
) -> list[Path]:
    """Writes the masks that are missing of one patient, each with a sidecar that says that it is estimated.

    Returns:
        The masks' paths.

    Raises:
        InputError: a scan cannot be used, or a mask cannot be written.
    """
    case = find_case(item["image"], item.get("dataset_dir"), "unknown", item.get("visits"))
    checksum = sha256_of(Path(weights))
    written = []
    for visit, earlier, kinds in wanted_masks(case, checksum, lesions):
        masks = segmenter.masks(case, visit, earlier)
        for kind in kinds:
            flair = case.volumes[f"flair_{visit}"]
            about = {
                "Description": f"{kind} lesions of {visit}, marked by a network from FLAIR alone",
                "GeneratedBy": [{"Name": "ms-net2-forecast segmentation", "Version": __version__}],
                "Sources": [case.volumes[f"flair_{v}"].name for v in (earlier, visit) if v],
                "Threshold": getattr(segmenter.thresholds, kind),
                "WeightsSHA256": checksum,
            }
            path = case.expected_path(f"{kind}_{visit}")
            try:
                written += write_estimated(path, nifti_bytes(masks[kind].astype(np.uint8), like=flair), about)[1:]
            except OSError as error:
                raise InputError(f"cannot be written ({error})", "make room", case=case.id, file=path) from error
    return written


def wanted_masks(
    case: Case, weights_sha256: str, lesions: Sequence[str] = LESIONS
) -> list[tuple[str, str | None, list[str]]]:
    """(visit, earlier visit, kinds of lesions) of the masks of w000 and w048 to be made.

    Gadolinium lesions cannot be seen in FLAIR; nothing is marked at w096, which is the outcome.
    """

    def missing(name: str) -> bool:
        if name not in case.volumes:
            return True
        about = estimation(case.volumes[name])
        return about is not None and about.get("WeightsSHA256") not in (None, weights_sha256)

    wanted = []
    present = [visit for visit in VISITS[:2] if f"flair_{visit}" in case.volumes]
    if not present:
        raise InputError("no FLAIR", "add one", case=case.id, file=case.expected_path("flair_w000"))
    for earlier, visit in zip([None, *present], present):
        kinds = [kind for kind in LESIONS[: 1 if earlier is None else 2] if kind in lesions]
        if kinds := [kind for kind in kinds if missing(f"{kind}_{visit}")]:
            wanted.append((visit, earlier if "net2" in kinds else None, kinds))
    return wanted
