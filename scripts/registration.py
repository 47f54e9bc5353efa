"""How well the registration of `scripts.prepare` recovers known motion, and whether it refuses what it cannot register.

Results: docs/experiments/2026-11-registration.md.

    python -m scripts.registration --dataset_dir DIR [--patients N] [--broken N] [--seed S]

The second visit of each patient of a BIDS data set is moved by up to 15 degrees and 20 mm and sampled anew in slices of
4 mm. Then it is broken in several ways. Prints the distances from the true motion, and what became of broken pairs.
"""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from nibabel.affines import apply_affine
from scipy import ndimage
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from bundle.data.bids import find_case, list_cases
from bundle.data.brain import estimate_brain
from bundle.data.preparation.agreement import register_checked
from bundle.data.preparation.correction import correct_bias
from bundle.data.volumes import read_flair
from bundle.errors import InputError
from bundle.lesions import Volume
from scripts.command import run

MOST_DEGREES, MOST_MM = 15.0, 20.0
SPACING_MM = (0.9, 0.9, 4.0)


def registration_table(dataset_dir: str, patients: int | None = None, seed: int = 0, broken: int = 5) -> str:
    """Markdown tables of errors and of broken pairs.

    Args:
        dataset_dir: BIDS data set with FLAIR at w000 and w048 that lie in one world.
        patients: takes the first so many.
        seed: of the motions.
        broken: of so many patients broken pairs are tried as well.
    """
    cases = [find_case(name, dataset_dir) for name in list_cases(dataset_dir)[:patients]]
    rng = np.random.default_rng(seed)
    pairs = [[read_flair(case.volumes[f"flair_{visit}"], case.id) for visit in ("w000", "w048")] for case in cases]
    outcomes = defaultdict(list)
    for number, (first, second) in enumerate(tqdm(pairs, "patients")):
        motion = drawn_motion(first, rng)
        moved = acquired(second, motion)
        scans = [("as it is", moved)]
        if number < broken:
            scans += broken_scans(moved, acquired(pairs[(number + 1) % len(pairs)][1], motion), rng)
        for name, scan in scans:
            error, correlation, problem = outcome(first, scan, motion)
            outcomes[name].append((error, correlation, problem))
            tqdm.write(f"{number}: {name}: {problem or f'{error:.2f} mm, correlation {correlation:.2f}'}")
    errors = np.nan_to_num([error for error, _, _ in outcomes["as it is"]], nan=np.inf)
    figures = [correlation for _, correlation, _ in outcomes["as it is"]]
    means = np.sort(rng.choice(errors, (2000, len(errors))).mean(axis=1))
    lines = [
        f"{len(errors)} pairs: mean distance {errors.mean():.2f} mm (95 % interval {means[50]:.2f} to "
        f"{means[-50]:.2f}), median {np.median(errors):.2f}, greatest {errors.max():.2f}; "
        f"{np.mean(errors <= 0.5):.0%} within .5 mm; correlation {min(figures):.2f} to {max(figures):.2f}.",
        "",
        "| second visit | n | refused |",
        "|---|---|---|",
    ]
    for name, results in outcomes.items():
        lines.append(f"| {name} | {len(results)} | {sum(bool(problem) for _, _, problem in results)} |")
    return "\n".join(lines)


def drawn_motion(scan: Volume, rng: np.random.Generator) -> np.ndarray:
    """A rigid motion (4, 4) about the middle of the scan: any axis and direction, angle and distance uniform."""
    axis, direction = (v / np.linalg.norm(v) for v in rng.normal(size=(2, 3)))
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_rotvec(np.radians(rng.uniform(0, MOST_DEGREES)) * axis).as_matrix()
    middle = apply_affine(scan.affine, (np.array(scan.values.shape) - 1) / 2)
    motion[:3, 3] = middle - motion[:3, :3] @ middle + rng.uniform(0, MOST_MM) * direction
    return motion


def acquired(scan: Volume, motion: np.ndarray) -> Volume:
    """The scan of the moved head, in axial slices of 4 mm that cover all of it."""
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in scan.values.shape]), axis=-1).reshape(-1, 3)
    corners = apply_affine(motion @ scan.affine, corners)
    affine = np.diag([*SPACING_MM, 1.0])
    affine[:3, 3] = corners.min(axis=0)
    shape = np.ceil((corners.max(axis=0) - corners.min(axis=0)) / SPACING_MM).astype(int) + 1
    mapping = np.linalg.inv(motion @ scan.affine) @ affine
    seen, values = (
        ndimage.affine_transform(x, mapping[:3, :3], mapping[:3, 3], tuple(shape), order=1)
        for x in ((scan.values > 0).astype(np.float32), scan.values)
    )
    # Where the slab was cut no voxel is a mixture with what lies outside, as in a scan of a slab.
    return Volume(np.where(seen > 0.999, values, 0).astype(np.float32), affine)


def outcome(first: Volume, later: Volume, motion: np.ndarray) -> tuple[float, float, str]:
    """Mean distance from the true motion in the brain, correlation after registration, why it is refused or ""."""
    brains = [estimate_brain(scan.values, scan.affine) for scan in (first, later)]
    if not brains[1].any():
        return np.nan, np.nan, "no brain found"
    first, later = (correct_bias(scan, brain) for scan, brain in zip((first, later), brains))
    try:
        found, after = register_checked((first, later), brains, case="", visits=("w000", "w048"))
    except InputError as problem:
        return np.nan, np.nan, problem.problem
    points = apply_affine(first.affine, np.argwhere(brains[0]))
    away = apply_affine(np.linalg.inv(found.matrix), points) - apply_affine(motion, points)
    return float(np.linalg.norm(away, axis=1).mean()), after.correlation, ""


def broken_scans(scan: Volume, other: Volume, rng: np.random.Generator) -> Iterator[tuple[str, Volume]]:
    """Name and volume of what no registration can align rightly."""
    yield "another patient", other
    yield "mirrored left to right", scan._replace(values=scan.values[::-1].copy())
    yield "upside down", scan._replace(values=scan.values[:, :, ::-1].copy())
    yield "slices in the wrong order", scan._replace(values=scan.values[:, :, rng.permutation(scan.values.shape[2])])
    yield "voxels 20 % too large", scan._replace(affine=scan.affine @ np.diag([1.2, 1.2, 1.2, 1]))
    yield (
        "left half missing",
        scan._replace(values=scan.values * (np.arange(scan.values.shape[0]) > scan.values.shape[0] / 2)[:, None, None]),
    )
    inverted = np.where(scan.values > 0, scan.values.max() - scan.values, 0)
    yield "inverted", scan._replace(values=inverted)
    noise = np.where(scan.values > 0, rng.gamma(4, 50, scan.values.shape), 0)
    yield "noise", scan._replace(values=noise.astype(np.float32))


if __name__ == "__main__":
    run(registration_table)
