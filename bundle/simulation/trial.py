"""A simulated trial as a BIDS data set, written in parallel; killed at any time it goes on where it stopped."""

import gzip
import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from bundle.arms import ARMS
from bundle.data.bids import VISITS
from bundle.data.grid import SlabGrid
from bundle.data.slab_file import slab_bytes
from bundle.errors import InputError
from bundle.files import write_together
from bundle.runtime import end_with_parent
from bundle.simulation.anatomy import AFFINE
from bundle.simulation.compact import compact_patient
from bundle.simulation.covariates import COLUMNS
from bundle.simulation.disease import patient_history
from bundle.simulation.events import History, assigned_arm
from bundle.simulation.oracle import oracle_forecast
from bundle.simulation.patient import SimulatedPatient, simulate_patient
from bundle.simulation.protocol import PRESETS, Protocol

VERSION = "3"
MIXED = "mixed"
DERIVATIVES = ("lesions", "brain", "synthseg", "truth")


def simulate_trial(
    out: str | Path,
    patients: int,
    *,
    seed: int = 0,
    workers: int | None = None,
    preset: str = "trial",
    compact: bool = False,
    expected: bool = False,
) -> Path:
    """Writes a simulated trial: FLAIR, lesion masks, brain mask, segmentation, tables, and the truth in a sidecar.

    Patient i depends on (seed, i) only: a smaller trial is the beginning of a larger one, and the same call gives the
    same bytes. Patients that are already there are not simulated again. `participants.tsv` is written last.

    Args:
        out: folder of the data set; made if missing.
        patients: how many, from `sub-0001` on.
        seed: of the trial.
        workers: processes; None takes all cores.
        preset: of `bundle.simulation.protocol.PRESETS`; with `compact` also "mixed" (`protocol_of`), for training.
        compact: in place of all volumes one file a patient on the lite model's grid (`bundle.data.slab_file`).
        expected: with `compact`, store P(NET2 at w096) of every voxel too, as the oracle forecasts it.

    Returns:
        `out`.

    Raises:
        InputError: an argument is out of range, or `out` holds something else or cannot be written.
    """
    workers = os.cpu_count() if workers is None else workers
    for name, value, least in (("patients", patients, 1), ("seed", seed, 0), ("workers", workers, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(
                f"--{name} {value!r} is not a whole number of {least} or more", f"give e.g. --{name} {max(least, 10)}"
            )
    if preset not in PRESETS and preset != MIXED:
        raise InputError(f"--preset {preset!r} is none of {', '.join([*PRESETS, MIXED])}", "give one of them")
    if preset == MIXED and not compact:
        raise InputError(f"--preset {MIXED} without --compact", "it is made for training: give --compact too")
    for name, value in (("compact", compact), ("expected", expected)):
        if not isinstance(value, bool):
            raise InputError(f"--{name} {value!r} is neither True nor False", f"give --{name} alone, or leave it out")
    if expected and not compact:
        raise InputError("--expected without --compact", "give --compact too")
    out = Path(str(out))
    form = Form(preset, compact, expected)
    _open_dataset(out, seed, form)
    try:
        _write_missing(out, patients, seed, workers, form)
        rows = [
            _row(i, assigned_arm(seed, i), patient_history(seed, i, protocol_of(preset, i))) for i in range(patients)
        ]
        header = "\t".join(["participant_id", "treatment_arm", *COLUMNS]) + "\n"
        write_together(out, {"participants.tsv": "".join([header, *rows]).encode()})
    except OSError as error:
        raise InputError(
            f"stopped ({error})", "free disk space and run the command again; it will resume", file=out
        ) from error
    return out


def protocol_of(preset: str, index: int) -> Protocol:
    """The protocol of patient `index` (from 0): of "mixed", two patients of "trial", then one of "clinic"."""
    if preset == MIXED:
        preset = "clinic" if index % 3 == 2 else "trial"
    return PRESETS[preset]


def participant(index: int) -> str:
    """BIDS id of patient `index` (from 0): sub-0001 for the first."""
    return f"sub-{index + 1:04d}"


@dataclass(frozen=True)
class Form:
    """What a data set holds of each patient; see `simulate_trial`."""

    preset: str = "trial"
    compact: bool = False
    expected: bool = False


def write_patient(out: Path, seed: int, index: int, form: Form = Form()) -> None:
    """Simulates one patient and moves it into the data set; the folder `sub-X` comes last and marks it done."""
    name = participant(index)
    partial_copy = out / f".{name}.partial"
    shutil.rmtree(partial_copy, ignore_errors=True)
    partial_copy.mkdir()  # a disk that refuses does so before the work
    protocol = protocol_of(form.preset, index)
    patient = simulate_patient(seed, index, protocol)
    if form.compact:
        expected = oracle_forecast(patient, protocol).heatmap if form.expected else None
        files = compact_files(patient, name, expected)
    else:
        files = patient_files(patient, name)
    for file, content in files.items():
        write_together((partial_copy / file).parent, {Path(file).name: content})
    derivatives = [Path("derivatives") / d / name for d in DERIVATIVES]
    for place in (*(d for d in derivatives if (partial_copy / d).is_dir()), Path(name)):
        shutil.rmtree(out / place, ignore_errors=True)  # left behind by a run that was killed just here
        os.replace(partial_copy / place, out / place)
    shutil.rmtree(partial_copy)


def patient_files(patient: SimulatedPatient, name: str) -> dict[str, bytes]:
    """Path in the data set -> content, for every file of one patient."""
    files = _tables(patient, name)
    labels = _nifti(patient.anatomy.labels)  # of w000: one grid, three visits
    for visit in VISITS:
        anat, stem = f"{name}/ses-{visit}/anat", f"{name}_ses-{visit}"
        files[f"{anat}/{stem}_FLAIR.nii.gz"] = _nifti(patient.flair[visit])
        files[f"derivatives/brain/{anat}/{stem}_desc-brain_mask.nii.gz"] = _nifti(patient.brain[visit])
        files[f"derivatives/synthseg/{anat}/{stem}_dseg.nii.gz"] = labels
    for (visit, label), mask in patient.masks.items():
        anat, stem = f"{name}/ses-{visit}/anat", f"{name}_ses-{visit}"
        files[f"derivatives/lesions/{anat}/{stem}_label-{label}_mask.nii.gz"] = _nifti(mask)
    for visit, status in patient.status.items():
        files[f"derivatives/truth/{name}/{name}_ses-{visit}_desc-status_dseg.nii.gz"] = _nifti(status)
    return files


def compact_files(patient: SimulatedPatient, name: str, expected: np.ndarray | None = None) -> dict[str, bytes]:
    """Likewise, with one file on the lite model's grid in place of the volumes."""
    grid = SlabGrid()
    slab = slab_bytes(compact_patient(patient, name, grid, expected), grid)
    return _tables(patient, name) | {f"{name}/{name}_slab.npz": slab}


def _tables(patient: SimulatedPatient, name: str) -> dict[str, bytes]:
    truth = json.dumps(patient.truth, indent=1) + "\n"
    return {
        f"{name}/{name}_sessions.tsv": _sessions(patient.history).encode(),
        f"derivatives/truth/{name}/{name}_truth.json": truth.encode(),
    }


def _row(index: int, arm: int, history: History) -> str:
    """A line of participants.tsv."""
    cells = [ARMS[arm] if history.sees_arm else None, *asdict(history.seen_covariates).values()]
    return "\t".join([participant(index), *("n/a" if value is None else str(value) for value in cells)]) + "\n"


def _sessions(history: History) -> str:
    """sessions.tsv of a patient: months from w000 to each visit."""
    months: Sequence[float | None] = (
        [0.0, *np.cumsum(history.months).tolist()] if history.sees_months else [0.0, None, None]
    )
    rows = [f"ses-{visit}\t{'n/a' if m is None else m}\n" for visit, m in zip(VISITS, months)]
    return "".join(["session_id\tmonths\n", *rows])


def _write_missing(out: Path, patients: int, seed: int, workers: int, form: Form) -> None:
    missing = [i for i in range(patients) if not (out / participant(i)).is_dir()]
    if missing:  # for a complete data set no worker need load the template
        done = patients - len(missing)
        with ProcessPoolExecutor(min(workers, len(missing)), initializer=end_with_parent) as pool:
            jobs = [pool.submit(write_patient, out, seed, i, form) for i in missing]
            try:
                for job in tqdm(as_completed(jobs), "simulating", patients, initial=done, unit="patient"):
                    job.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    for leftover in out.glob(".sub-*.partial"):  # of a larger trial that was stopped
        shutil.rmtree(leftover)


def _open_dataset(out: Path, seed: int, form: Form) -> None:
    description = out / "dataset_description.json"
    generator = {
        "Name": "scripts.simulate_trial",
        "Version": VERSION,
        "Seed": seed,
        "Preset": form.preset,
        "Compact": form.compact,
        "Expected": form.expected,
    }
    content = {
        "Name": "Simulated trial of new and enlarging T2 lesions in multiple sclerosis",
        "BIDSVersion": "1.10.0",
        "DatasetType": "raw",
        "GeneratedBy": [generator],
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        if description.exists():
            _check_same(json.loads(description.read_text()), generator, out)
        elif any(not path.name.startswith(".") for path in out.iterdir()):
            raise InputError("is not empty and does not hold a simulated trial", "give an empty folder", file=out)
        else:
            write_together(out, {description.name: json.dumps(content, indent=1).encode()})
        for derivative in ("truth",) if form.compact else DERIVATIVES:
            derived = content | {"Name": derivative, "DatasetType": "derivative"}
            write_together(out / "derivatives" / derivative, {description.name: json.dumps(derived, indent=1).encode()})
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(
            f"cannot be used as a data set ({error})", "give an empty folder that can be written", file=out
        ) from error


def _check_same(found: object, generator: dict, out: Path) -> None:
    """A trial goes on only with what it began with.

    Raises:
        InputError: another data set, version, seed, preset or form.
    """
    try:
        before = found["GeneratedBy"][0]
        if before["Name"] != generator["Name"]:
            raise LookupError
    except (LookupError, TypeError) as error:
        raise InputError("holds another data set", "give an empty folder", file=out) from error
    differing = [f"{key} {before.get(key)!r}" for key, value in generator.items() if before.get(key) != value]
    if differing:
        problem = f"holds a simulated trial of {', '.join(differing).lower()}, which is not continued by another"
        raise InputError(problem, "give an empty folder, or the same arguments and version", file=out)


def _nifti(array: np.ndarray) -> bytes:
    array = array.astype(np.uint8) if array.dtype == bool else array
    image = nib.Nifti1Image(array, AFFINE)
    image.header.set_xyzt_units("mm")
    image.set_sform(AFFINE, code=1)
    image.set_qform(AFFINE, code=1)
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)
