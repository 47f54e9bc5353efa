"""How many true lesions survive the slab's grid, the threshold of its masks and the opening kernel (docs/grid.md)."""

from itertools import product

import fire
import numpy as np
from nibabel.affines import apply_affine
from tqdm import tqdm

from bundle.data.bids import find_case, list_cases
from bundle.data.grid import SlabGrid, slab_centre, to_slab
from bundle.data.volumes import Volume, read_mask
from bundle.errors import report_in_one_line
from bundle.lesions import LesionRule, Placed, voxel_volume_mm3

GRIDS = (
    SlabGrid(spacing_mm=(1, 1, 3), shape=(160, 192, 15)),
    SlabGrid(spacing_mm=(2, 2, 3), shape=(80, 96, 15)),
    SlabGrid(spacing_mm=(3, 3, 3), shape=(54, 64, 15)),
)
COVERAGES = {"any": 1e-3, "1/4": 1 / 4, "1/3": 1 / 3, "1/2": 1 / 2}
KERNELS = (1, 2, 3, 5)
SETTINGS = tuple(product(GRIDS, COVERAGES, KERNELS))


def survival_table(dataset_dir: str, patients: int | None = None) -> str:
    """Markdown table of what is left of true lesions, one row per grid, coverage and kernel.

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
    """(settings, 5): true lesions, survivors, lesions counted on the slab, true volume, volume on the slab (ml)."""
    labels = LesionRule().label(mask.data, mask.affine)
    true_count, true_ml = labels.max(), np.count_nonzero(labels) * voxel_volume_mm3(mask.affine) / 1000
    voxels = np.argwhere(labels)
    owners, places = labels[tuple(voxels.T)], apply_affine(mask.affine, voxels)
    rows = []
    for grid in GRIDS:
        affine = grid.affine(slab_centre(brain.data > 0, brain.affine, grid))
        covered = to_slab(mask.data, mask.affine, affine, grid)
        for least, kernel in product(COVERAGES.values(), KERNELS):
            counted = LesionRule(kernel=(kernel, kernel, 1), threshold=least).label(covered + 1e-4, affine)
            survivors = np.unique(owners[Placed(counted, affine).at(places) > 0]).size
            slab_ml = np.count_nonzero(counted) * voxel_volume_mm3(affine) / 1000
            rows.append((true_count, survivors, counted.max(), true_ml, slab_ml))
    return np.array(rows)


def summarise(measured: np.ndarray) -> str:
    """The table of measurements (masks, settings, 5)."""
    active = measured[measured[:, 0, 0] > 0]
    lines = [
        f"{len(measured)} masks, {len(active)} with a lesion, {int(active[:, 0, 0].sum())} lesions.",
        "",
        "| grid, mm | coverage | kernel, px | lesions surviving | counts, ratio | counts, correlation | counts equal "
        "| still active | volume, ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for index, (grid, coverage, kernel) in enumerate(SETTINGS):
        true, survivors, counted, true_ml, slab_ml = active[:, index].T
        spacing = " x ".join(f"{step:g}" for step in grid.spacing_mm)
        correlation = np.corrcoef(measured[:, index, 0], measured[:, index, 2])[0, 1] if counted.any() else 0
        lines.append(
            f"| {spacing} | {coverage} | {kernel} x {kernel} | {survivors.sum() / true.sum():.3f} "
            f"| {counted.sum() / true.sum():.3f} | {correlation:.3f} | {(counted == true).mean():.3f} "
            f"| {(counted > 0).mean():.3f} | {slab_ml.sum() / true_ml.sum():.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    report_in_one_line()
    fire.Fire(survival_table)
