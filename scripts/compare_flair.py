"""How real FLAIR scans look beside simulated ones.

Results: docs/explanation/simulated-trial.md.

    python -m scripts.compare_flair --dataset_dir REAL [--preset trial|clinic] [--patients N] [--seed S]

Prints one Markdown table: least, median and greatest of each feature of `bundle.data.appearance`, real and simulated,
and where each real scan lies among the simulated ones.
"""

from collections.abc import Mapping

import numpy as np
from tqdm import tqdm

from bundle.data.appearance import Appearance, scan_appearance
from bundle.data.bids import VISITS, find_case, list_cases
from bundle.data.brain import estimate_brain
from bundle.data.volumes import check_same_grid, read_mask, read_volume
from bundle.errors import InputError
from bundle.lesions import Volume
from bundle.simulation.anatomy import AFFINE
from bundle.simulation.patient import simulate_patient
from bundle.simulation.protocol import PRESETS
from scripts.command import run

NAMES = {
    "percentile_5": "5th percentile",
    "percentile_25": "25th percentile",
    "percentile_75": "75th percentile",
    "percentile_95": "95th percentile",
    "noise": "noise",
    "sharpness": "sharpness",
    "bias": "bias field",
    "lesion_contrast": "contrast of T2 lesions",
}


def compare_flair(
    dataset_dir: str,
    preset: str | None = None,
    patients: int = 20,
    seed: int = 0,
    visits: Mapping[str, str] | None = None,
) -> str:
    """Markdown table of the features of real and simulated FLAIR scans.

    Args:
        dataset_dir: BIDS data set of real patients. Brain masks are estimated and contrasts of lesions left out where
            masks are missing.
        preset: of the simulated patients, "trial" or "clinic"; both if not given.
        patients: how many are simulated, each at three visits.
        seed: of the simulated trial.
        visits: session labels of the real visits that are not named ses-w000, ses-w048, ses-w096.
    """
    if preset is not None and preset not in PRESETS:
        raise InputError(f"--preset {preset!r} is none of {', '.join(PRESETS)}", "give one of them")
    for name, value, least in (("patients", patients, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"--{name} {value!r} is not a whole number of {least} or more", f"give e.g. --{name} 20")
    real = real_scans(dataset_dir, visits)
    simulated = {name: simulated_scans(name, patients, seed) for name in ([preset] if preset else PRESETS)}
    return comparison_table(real, simulated)


def real_scans(dataset_dir: str, visits: Mapping[str, str] | None = None) -> dict[str, Appearance]:
    """Features of each FLAIR of a data set, by participant and visit.

    Raises:
        InputError: a scan cannot be read, or there is none.
    """
    found = {}
    for name in tqdm(list_cases(dataset_dir), desc="real patients"):
        case = find_case(name, dataset_dir, visits=visits)
        for visit in VISITS:
            if f"flair_{visit}" not in case.volumes:
                continue
            flair = read_volume(case.volumes[f"flair_{visit}"], case.id)
            if visit in case.brain:
                brain = read_mask(case.brain[visit], case.id)
            else:
                brain = Volume(estimate_brain(flair.values, flair.affine), flair.affine)
            lesions = read_mask(path, case.id) if (path := case.volumes.get(f"t2_{visit}")) else None
            for mask in (brain, lesions):
                if mask is not None:
                    check_same_grid(mask, flair, case.id)
            found[f"{case.id}, {visit}"] = scan_appearance(flair, brain, lesions, case.id)
    if not found:
        raise InputError("no FLAIR of a visit", "name the sessions with --visits", file=dataset_dir)
    return found


def simulated_scans(preset: str, patients: int, seed: int) -> list[Appearance]:
    """Features of each FLAIR of the first patients of a simulated trial."""
    found = []
    for index in tqdm(range(patients), desc=preset):
        patient = simulate_patient(seed, index, PRESETS[preset])
        for visit in VISITS:
            flair, brain = Volume(patient.flair[visit].astype(np.float32), AFFINE), Volume(patient.brain[visit], AFFINE)
            mask = patient.masks.get((visit, "T2lesion"))
            lesions = None if mask is None else Volume(mask, AFFINE)
            found.append(scan_appearance(flair, brain, lesions, f"patient {index} of {preset}"))
    return found


def comparison_table(real: Mapping[str, Appearance], simulated: Mapping[str, list[Appearance]]) -> str:
    """Markdown table: a column for each feature; a row for each set of scans, then one for each real scan.

    Args:
        real: by name of the scan.
        simulated: by preset.
    """
    lines = [
        f"| scans | {' | '.join(NAMES[name] for name in Appearance._fields)} |",
        "|---" * (1 + len(Appearance._fields)) + "|",
    ]
    for group, scans in {"real": list(real.values()), **simulated}.items():
        cells = [_extent(name, column) for name, column in zip(Appearance._fields, np.array(scans).T)]
        lines.append(f"| {group}, {len(scans)} | {' | '.join(cells)} |")
    for scan, features in real.items():
        cells = []
        for i, (name, value) in enumerate(zip(Appearance._fields, features)):
            below = [fraction_below(np.array(scans)[:, i], value) for scans in simulated.values()]
            cells.append("" if np.isnan(value) else f"{_written(name, value)} ({', '.join(f'{f:.0%}' for f in below)})")
        lines.append(f"| {scan} | {' | '.join(cells)} |")
    legend = (
        "Least, median, greatest; of each real scan the value and, in brackets, how many of the simulated scans lie "
        f"below it ({', '.join(simulated)})."
    )
    return "\n".join([*lines, "", legend])


def fraction_below(simulated: np.ndarray, value: float) -> float:
    """Fraction of the scans (N,) whose value is smaller; NaN if none has one. Scans without the feature (NaN) do not
    count.
    """
    known = simulated[~np.isnan(simulated)]
    return float(np.mean(known < value)) if known.size else np.nan


def _extent(name: str, values: np.ndarray) -> str:
    known = values[~np.isnan(values)]
    if not known.size:
        return ""
    shown = ", ".join(_written(name, f(known)) for f in (np.min, np.median, np.max))
    return shown if len(known) == len(values) else f"{shown} (of {len(known)})"


def _written(name: str, value: float) -> str:
    return f"{value:.3f}" if name == "noise" else f"{value:.2f}"


if __name__ == "__main__":
    run(compare_flair)
