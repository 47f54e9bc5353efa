"""How well the correlation of two visits' FLAIR separates aligned scans from others.

Results: docs/experiments/2026-11-alignment.md.

    python -m scripts.alignment --dataset_dir DIR [--patients N]

Every pair of visits of a BIDS data set is read as it is, and with the first visit shifted, rotated, flipped or replaced
by another patient's. Prints a Markdown table of correlations and of what `bundle.data.plausibility` makes of them.
"""

from collections import defaultdict
from dataclasses import replace

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from bundle.data.bids import find_case, list_cases
from bundle.data.brain import estimate_brain
from bundle.data.grid import SlabGrid, slab_centre, to_slab
from bundle.data.plausibility import Plausibility
from bundle.data.transforms import normalised
from bundle.data.volumes import read_flair, read_mask
from bundle.errors import InputError
from bundle.lesions import Volume
from scripts.command import run

GRID = SlabGrid()
LIMITS = Plausibility()
UNLIMITED = replace(LIMITS, alignment_doubtful_wrong=(-1.0, -1.0), overlap_doubtful_wrong=(0.0, 0.0))


def alignment_table(dataset_dir: str, patients: int | None = None) -> str:
    """Markdown table with a row for each way in which the first visit was changed.

    Args:
        dataset_dir: BIDS data set with FLAIR at w000 and w048.
        patients: takes the first so many.
    """
    cases = [find_case(name, dataset_dir) for name in list_cases(dataset_dir)[:patients]]
    measured = defaultdict(list)
    for case in tqdm(cases, desc="patients"):
        first, second = (read_flair(case.volumes[f"flair_{visit}"], case.id) for visit in ("w000", "w048"))
        if "w048" in case.brain:
            brain = read_mask(case.brain["w048"], case.id)
        else:
            brain = second._replace(values=estimate_brain(second.values, second.affine))
        for name, changed in changes(first):
            measured[name].append(outcome(changed, second, brain))
        others = [other for other in cases if other is not case]
        for other in others:
            measured["another patient"].append(
                outcome(read_flair(other.volumes["flair_w000"], other.id), second, brain)
            )
    lines = [
        f"{len(cases)} patients.",
        "",
        "| first visit | n | correlation, lowest | median | highest | refused | warning |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, results in measured.items():
        figures = np.array([correlation for correlation, _ in results])
        verdicts = [verdict for _, verdict in results]
        low, middle, high = (f(figures) for f in (np.nanmin, np.nanmedian, np.nanmax))
        refused, warned = verdicts.count("refused"), verdicts.count("warning")
        lines.append(f"| {name} | {len(results)} | {low:.2f} | {middle:.2f} | {high:.2f} | {refused} | {warned} |")
    return "\n".join(lines)


def changes(flair: Volume):
    """Name and volume of each change; shifts and rotations along and about all three axes share a name."""
    yield "as it is", flair
    for mm in (1, 2, 3, 5, 10):
        for axis, direction in enumerate(("left-right", "front-back", "up-down")):
            yield f"shifted {mm} mm {direction}", moved(flair, shift_mm=mm * np.eye(3)[axis])
    for degrees in (2, 5, 10):
        for angles in ((degrees, 0, 0), (0, degrees, 0), (0, 0, degrees)):
            yield f"rotated {degrees} degrees", moved(flair, angles_degrees=angles)
    axes = nib.io_orientation(flair.affine)[:, 0]
    for axis, name in enumerate(("left-right", "front-back", "upside down")):
        yield f"flipped {name}", flair._replace(values=np.flip(flair.values, int(np.flatnonzero(axes == axis)[0])))


def moved(flair: Volume, shift_mm=(0, 0, 0), angles_degrees=(0, 0, 0)) -> Volume:
    """The same voxels after a rotation about the middle of the scan and a shift."""
    middle = apply_affine(flair.affine, (np.array(flair.values.shape) - 1) / 2)
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_euler("xyz", angles_degrees, degrees=True).as_matrix()
    motion[:3, 3] = middle - motion[:3, :3] @ middle + shift_mm
    return flair._replace(affine=motion @ flair.affine)


def outcome(first: Volume, second: Volume, brain: Volume) -> tuple[float, str]:
    """Correlation, NaN if they do not overlap, and what becomes of the patient: refused, warning or "" (accepted)."""
    affine = GRID.affine(slab_centre(brain.values, brain.affine, GRID))
    inside = to_slab(brain.values, brain.affine, affine, GRID) >= 0.5
    raw = {f"flair_{n}": to_slab(flair.values, flair.affine, affine, GRID) for n, flair in enumerate((first, second))}
    covered = inside & np.all([flair > 0 for flair in raw.values()], axis=0)
    try:
        slabs = normalised(raw, inside, "", dict.fromkeys(raw, ""))
        arguments = (list(slabs.values()), covered, inside, "", ("w000", "w048"), "")
        correlation, _ = UNLIMITED.check_alignment(*arguments)
    except InputError:
        return np.nan, "refused"
    try:
        return correlation, "warning" if LIMITS.check_alignment(*arguments)[1] else ""
    except InputError:
        return correlation, "refused"


if __name__ == "__main__":
    run(alignment_table)
