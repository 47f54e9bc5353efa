"""A simulated patient on the model's grid, without the way over NIfTI files."""

import io
from pathlib import Path

import numpy as np
import torch

from bundle.data.bids import CONDITION, OUTCOME
from bundle.data.grid import SlabGrid, slab_centre, to_slab
from bundle.data.masks import mask_to_slab
from bundle.data.transforms import normalised
from bundle.simulation.anatomy import AFFINE
from bundle.simulation.patient import Patient

_GRID = SlabGrid()
_LABELS = {"t2": "T2lesion", "gd": "Gdlesion", "net2": "NET2"}


def compact_patient(patient: Patient, name: str, grid: SlabGrid = _GRID) -> dict[str, torch.Tensor]:
    """What `CompactCased` keeps of the patient's files once `LoadCased` has read them, value by value.

    Args:
        patient: simulated.
        name: participant label, for what is printed if the scan is unusable.
        grid: of the model.

    Returns:
        flair: (3, H, W, S) float16, w000, w048 and w096; masks: (6, H, W, S) int8 in {-1, 0, 1}, in the order of
        `CONDITION` and `OUTCOME`, 0 for a mask that is missing.
    """
    brain = patient.brain["w048"]
    affine = grid.affine(slab_centre(brain, AFFINE, grid))
    inside = to_slab(brain.astype(np.float32), AFFINE, affine, grid) >= 0.5
    flairs, masks = {}, []
    for volume in CONDITION + OUTCOME:
        kind, visit = volume.split("_")
        if kind == "flair":
            scan = patient.flair[visit].astype(np.float32)
            flairs[volume] = to_slab(scan - scan.min(), AFFINE, affine, grid)
        else:
            mask = patient.masks.get((visit, _LABELS[kind]))
            masks.append(
                np.zeros(grid.shape) if mask is None else np.where(mask_to_slab(mask, AFFINE, affine, grid), 1, -1)
            )
    scaled = normalised(flairs, inside, name, dict.fromkeys(flairs, ""))
    flair = torch.from_numpy(np.stack(list(scaled.values())).astype(np.float32)).half()
    return {"flair": flair, "masks": torch.from_numpy(np.stack(masks).astype(np.int8))}


def slab_bytes(patient: Patient, name: str, grid: SlabGrid = _GRID) -> bytes:
    """The same as a compressed .npz of flair and masks; `load_slab` reads it."""
    content = io.BytesIO()
    np.savez_compressed(content, **{key: value.numpy() for key, value in compact_patient(patient, name, grid).items()})
    return content.getvalue()


def load_slab(file: str | Path) -> dict[str, torch.Tensor]:
    """What `compact_patient` returned, for `bundle.data.transforms.expand_case`."""
    with np.load(file) as content:
        return {key: torch.from_numpy(content[key]) for key in ("flair", "masks")}
