"""A simulated trial as a BIDS data set, written in parallel; killed at any time it goes on where it stopped."""

import gzip
import json
import multiprocessing
import os
import shutil
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from bundle.arms import ARMS
from bundle.data.bids import VISITS
from bundle.errors import InputError
from bundle.files import write_together
from bundle.simulation.anatomy import AFFINE
from bundle.simulation.events import assigned_arm
from bundle.simulation.patient import Patient, simulate_patient

DERIVATIVES = ("lesions", "brain", "synthseg", "truth")


def simulate_trial(out: str | Path, patients: int, *, seed: int = 0, workers: int | None = None) -> Path:
    """Writes a simulated trial: FLAIR, lesion masks, brain mask, segmentation, and the truth in a sidecar.

    Patient i depends on (seed, i) only: a smaller trial is the beginning of a larger one, and the same call gives the
    same bytes. Patients that are already there are not simulated again. `participants.tsv` is written last.

    Args:
        out: folder of the data set; made if missing.
        patients: how many, from `sub-0001` on.
        seed: of the trial.
        workers: processes; None takes all cores.

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
    out = Path(str(out))
    _open_dataset(out, seed)
    try:
        _write_missing(out, patients, seed, workers)
        rows = [f"{participant(i)}\t{ARMS[assigned_arm(seed, i)]}\n" for i in range(patients)]
        write_together(out, {"participants.tsv": "".join(["participant_id\ttreatment_arm\n", *rows]).encode()})
    except OSError as error:
        raise InputError(f"stopped ({error})", "make room and call again: it goes on from here", file=out) from error
    return out


def _write_missing(out: Path, patients: int, seed: int, workers: int) -> None:
    missing = [i for i in range(patients) if not (out / participant(i)).is_dir()]
    if missing:  # for a complete data set no worker need load the template
        done = patients - len(missing)
        with ProcessPoolExecutor(min(workers, len(missing)), initializer=_end_with_parent) as pool:
            jobs = [pool.submit(write_patient, out, seed, i) for i in missing]
            try:
                for job in tqdm(as_completed(jobs), "simulating", patients, initial=done, unit="patient"):
                    job.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    for leftover in out.glob(".sub-*.partial"):  # of a larger trial that was stopped
        shutil.rmtree(leftover)


def participant(index: int) -> str:
    """BIDS id of patient `index` (from 0): sub-0001 for the first."""
    return f"sub-{index + 1:04d}"


def write_patient(out: Path, seed: int, index: int) -> None:
    """Simulates one patient and moves it into the data set; the folder `sub-X` comes last and marks it done."""
    name = participant(index)
    partial_copy = out / f".{name}.partial"
    shutil.rmtree(partial_copy, ignore_errors=True)
    for file, content in patient_files(simulate_patient(seed, index), name).items():
        write_together((partial_copy / file).parent, {Path(file).name: content})
    for place in (*(Path("derivatives") / d / name for d in DERIVATIVES), Path(name)):
        shutil.rmtree(out / place, ignore_errors=True)  # left behind by a run that was killed just here
        os.replace(partial_copy / place, out / place)
    shutil.rmtree(partial_copy)


def _end_with_parent() -> None:
    """Lets a worker die with the command that was killed, rather than wait for work for ever."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def patient_files(patient: Patient, name: str) -> dict[str, bytes]:
    """Path in the data set -> content, for every file of one patient."""
    files = {}
    brain, labels = _nifti(patient.anatomy.brain), _nifti(patient.anatomy.labels)  # one brain, one grid, three visits
    for visit in VISITS:
        anat, stem = f"{name}/ses-{visit}/anat", f"{name}_ses-{visit}"
        files[f"{anat}/{stem}_FLAIR.nii.gz"] = _nifti(patient.flair[visit])
        files[f"derivatives/brain/{anat}/{stem}_desc-brain_mask.nii.gz"] = brain
        files[f"derivatives/synthseg/{anat}/{stem}_dseg.nii.gz"] = labels
    for (visit, label), mask in patient.masks.items():
        anat, stem = f"{name}/ses-{visit}/anat", f"{name}_ses-{visit}"
        files[f"derivatives/lesions/{anat}/{stem}_label-{label}_mask.nii.gz"] = _nifti(mask)
    files[f"derivatives/truth/{name}/{name}_truth.json"] = (json.dumps(patient.truth, indent=1) + "\n").encode()
    return files


def _open_dataset(out: Path, seed: int) -> None:
    description = out / "dataset_description.json"
    content = {
        "Name": "Simulated trial of new and enlarging T2 lesions in multiple sclerosis",
        "BIDSVersion": "1.10.0",
        "DatasetType": "raw",
        "GeneratedBy": [{"Name": "scripts.simulate_trial", "Version": "2", "Seed": seed}],
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        if description.exists():
            if json.loads(description.read_text()) != content:
                raise InputError("holds another data set or another seed", "give an empty folder", file=out)
        elif any(not path.name.startswith(".") for path in out.iterdir()):
            raise InputError("is not empty and no simulated trial", "give an empty folder", file=out)
        else:
            write_together(out, {description.name: json.dumps(content, indent=1).encode()})
        for derivative in DERIVATIVES:
            derived = content | {"Name": derivative, "DatasetType": "derivative"}
            write_together(out / "derivatives" / derivative, {description.name: json.dumps(derived, indent=1).encode()})
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(
            f"cannot be used as a data set ({error})", "give an empty folder that can be written", file=out
        ) from error


def _nifti(array: np.ndarray) -> bytes:
    array = array.astype(np.uint8) if array.dtype == bool else array
    image = nib.Nifti1Image(array, AFFINE)
    image.header.set_xyzt_units("mm")
    image.set_sform(AFFINE, code=1)
    image.set_qform(AFFINE, code=1)
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)
