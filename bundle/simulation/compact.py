"""A simulated patient on the model's grid, without the way over NIfTI files."""

import numpy as np
import torch

from bundle.data.bids import CONDITION, OUTCOME
from bundle.data.grid import SlabGrid, slab_centre, to_slab
from bundle.data.masks import mask_to_slab
from bundle.data.transforms import normalised
from bundle.simulation.anatomy import AFFINE
from bundle.simulation.patient import SimulatedPatient

_LABELS = {"t2": "T2lesion", "gd": "Gdlesion", "net2": "NET2"}


def compact_patient(
    patient: SimulatedPatient, name: str, grid: SlabGrid, expected: np.ndarray | None = None
) -> dict[str, torch.Tensor]:
    """What `CompactCased` keeps of the patient's files once `LoadCased` has read them, value by value.

    Args:
        patient: simulated.
        name: participant label, for what is printed if the scan is unusable.
        grid: of the model.
        expected: `SHAPE`, P(NET2 at w096) of every voxel, to be kept too.

    Returns:
        flair: (3, H, W, S) float16, w000, w048 and w096; masks: (6, H, W, S) int8 in {-1, 0, 1}, in the order of
        `CONDITION` and `OUTCOME`, 0 for a mask that is missing; expected: (H, W, S) float16, if it was given, 0 outside
        the brain.
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
    compact = {"flair": flair, "masks": torch.from_numpy(np.stack(masks).astype(np.int8))}
    if expected is not None:
        on_slab = np.where(inside, to_slab(expected, AFFINE, affine, grid), 0).clip(0, 1)
        compact["expected"] = torch.from_numpy(on_slab.astype(np.float32)).half()
    return compact
