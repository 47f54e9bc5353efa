"""How many true lesions survive the slab's grid, the marking of masks on it, and the opening kernel."""

from itertools import product

import numpy as np
from nibabel.affines import apply_affine
from tqdm import tqdm

from bundle.data.bids import find_case, list_cases
from bundle.data.grid import SlabGrid, slab_centre, to_slab
from bundle.data.masks import mask_to_slab
from bundle.data.volumes import read_mask
from bundle.lesions import LesionRule, Volume, voxel_volume_mm3
from scripts.command import run

FINE = SlabGrid(spacing_mm=(1, 1, 3), shape=(160, 192, 15))  # the masks' own grid: every marking is the same there
COARSE = (SlabGrid(), SlabGrid(spacing_mm=(3, 3, 3), shape=(54, 64, 15)))
COVERED = {"any": 1e-3, "1/4 covered": 1 / 4, "1/3 covered": 1 / 3, "1/2 covered": 1 / 2}
OWN_VOLUME = "own volume"
KERNELS = (1, 2, 3, 5)
SETTINGS = [(FINE, OWN_VOLUME), *product(COARSE, (*COVERED, OWN_VOLUME))]


def survival_table(dataset_dir: str, patients: int | None = None) -> str:
    """Markdown table of what is left of true lesions, one row per grid, marking and kernel.

    True lesions are the 26-neighbour components of the NET2 masks as written. One survives where a lesion counted on
    the slab overlaps it. Counts, activity and volume compare a mask on the slab with the same mask as written.

    Args:
        dataset_dir: BIDS data set with NET2 and brain masks.
        patients: takes the first so many.
    """
    measured = [
        measure_mask(read_mask(path, case.id), brain)
        for name in tqdm(list_cases(dataset_dir)[:patients], desc="patients")
        for case in [find_case(name, dataset_dir)]
        for brain in [read_mask(case.brain["w048"], case.id)]
        for path in [case.volumes[key] for key in ("net2_w048", "net2_w096") if key in case.volumes]
    ]
    return summarise(np.array(measured))


def measure_mask(mask: Volume, brain: Volume) -> np.ndarray:
    """(settings, kernels, 5): true lesions, survivors, lesions counted on the slab, true volume, volume there (ml)."""
    lesions = LesionRule().label(mask.values, mask.affine)
    if not lesions.any():
        return np.zeros((len(SETTINGS), len(KERNELS), 5))
    true_ml = np.count_nonzero(lesions) * voxel_volume_mm3(mask.affine) / 1000
    voxels = np.argwhere(lesions)
    owners, places = lesions[tuple(voxels.T)], apply_affine(mask.affine, voxels)
    rows = []
    for grid, marking in SETTINGS:
        affine = grid.affine(slab_centre(brain.values, brain.affine, grid))
        if marking == OWN_VOLUME:
            marked = mask_to_slab(mask.values, mask.affine, affine, grid)
        else:
            marked = to_slab(mask.values, mask.affine, affine, grid) >= COVERED[marking] - 1e-4
        for kernel in KERNELS:
            counted = LesionRule(kernel=(kernel, kernel, 1)).label(marked, affine)
            survivors = np.unique(owners[Volume(counted, affine).at(places) > 0]).size
            slab_ml = np.count_nonzero(counted) * voxel_volume_mm3(affine) / 1000
            rows.append((lesions.max(), survivors, counted.max(), true_ml, slab_ml))
    return np.reshape(rows, (len(SETTINGS), len(KERNELS), 5))


def summarise(measured: np.ndarray) -> str:
    """The table of measurements (masks, settings, kernels, 5)."""
    active = measured[measured[:, 0, 0, 0] > 0]
    lines = [
        f"{len(measured)} masks, {len(active)} with a lesion, {int(active[:, 0, 0, 0].sum())} lesions.",
        "",
        "| grid, mm | marked | kernel, px | lesions surviving | counts, ratio | counts, correlation | counts equal "
        "| still active | volume, ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (row, (grid, marking)), (column, kernel) in product(enumerate(SETTINGS), enumerate(KERNELS)):
        true, survivors, counted, true_ml, slab_ml = active[:, row, column].T
        spacing = " x ".join(f"{step:g}" for step in grid.spacing_mm)
        correlation = np.corrcoef(measured[:, row, column, (0, 2)].T)[0, 1] if counted.any() else np.nan
        lines.append(
            f"| {spacing} | {marking} | {kernel} x {kernel} | {survivors.sum() / true.sum():.3f} "
            f"| {counted.sum() / true.sum():.3f} | {correlation:.3f} | {(counted == true).mean():.3f} "
            f"| {(counted > 0).mean():.3f} | {slab_ml.sum() / true_ml.sum():.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run(survival_table)
