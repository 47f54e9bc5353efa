"""One patient: read, corrected, registered, checked, and written as BIDS."""

import gzip
import io
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from bundle.data.brain import estimate_brain
from bundle.data.grid import read_nearest
from bundle.data.plausibility import Plausibility
from bundle.data.preparation.agreement import Limits, register_checked
from bundle.data.preparation.correction import correct_bias
from bundle.data.preparation.dicom import read_segment, read_series
from bundle.data.preparation.job import Job, places_of, remove_patient
from bundle.data.preparation.page import Pair, quality_page
from bundle.data.preparation.provenance import sidecar
from bundle.data.preparation.registration import Agreement, Motion, agreement
from bundle.data.preparation.sources import Scan, Study
from bundle.data.transforms import LoadCased, plain_inputs
from bundle.data.volumes import read_flair, read_mask
from bundle.errors import InputError
from bundle.files import write_together
from bundle.lesions import Volume

_LABELS = {"t2": "label-T2lesion_mask", "gd": "label-Gdlesion_mask", "net2": "label-NET2_mask"}


@dataclass
class _Visit:
    """The scans of a visit on the grid of its FLAIR."""

    flair: Volume
    brain: np.ndarray  # a supplied mask, else the estimate
    masks: dict[str, np.ndarray]
    given: bool  # whether the brain mask was supplied


def prepare_patient(job: Job, tell: Callable[[str], None] = lambda phase: None) -> dict[str, Any]:
    """Prepares a patient and moves the result into the data set; the folder `sub-X` comes last and marks it done.

    No scan is resampled: registration changes the affine of a later visit's FLAIR and masks, as SPM does, so that its
    world is the first visit's. The only interpolation is that of the forecast itself, onto the slab.

    Args:
        job: the patient.
        tell: is called with each phase, of `bundle.data.preparation.job.PHASES`, as it begins.

    Returns:
        The record: what was measured, and warnings.

    Raises:
        InputError: a scan cannot be used or registered.
    """
    tell("reading")
    visits = {visit: _read(job, visit, study) for visit, study in job.visits.items()}
    tell("correcting")
    for scans in visits.values():
        scans.flair = correct_bias(scans.flair, scans.brain)
    tell("registering")
    first, *later = visits
    motions, before, after = {}, {}, {}
    for visit in later:
        fixed, moving = visits[first], visits[visit]
        before[visit] = agreement(fixed.flair, moving.flair, fixed.brain)
        motions[visit], after[visit] = register_checked(
            (fixed.flair, moving.flair), (fixed.brain, moving.brain), case=job.label, visits=(first, visit)
        )
        moved = moving.flair._replace(affine=motions[visit].matrix @ moving.flair.affine)
        visits[visit] = replace(moving, flair=moved)
    tell("checking")
    with tempfile.TemporaryDirectory(prefix=f".{job.label}.", suffix=".partial", dir=job.out) as name:
        staged = Path(name)
        _write_scans(staged, job, visits, motions)
        inputs, warnings = _checked(staged, job)
        doubts = [text for visit in later for text in Limits().warnings(after[visit], (first, visit))]
        warnings = [*doubts, *warnings]
        record = _record(job, visits, motions, before, after, inputs, warnings)
        tell("drawing")
        base = visits[first]
        pairs = [
            Pair(v, base.flair, visits[v].flair, base.brain, motions[v], before[v], after[v], visits[v].masks)
            for v in later
        ]
        folder = staged / "derivatives" / "preparation" / job.label
        write_together(
            folder, {**quality_page(job.label, pairs, record), f"{job.label}_preparation.json": _json(record)}
        )
        _move(staged, job)
    return record


def _read(job: Job, visit: str, study: Study) -> _Visit:
    limits = Plausibility()
    flair = _read_scan(study.scans["flair"], job.label)
    limits.check_extent(flair, job.label)
    given = "brain" in study.scans
    if given:
        brain = _on_grid(_read_mask(study.scans["brain"], job.label), flair)
    else:
        brain = estimate_brain(flair.values, flair.affine)
    if not brain.any():
        fix = "correct the brain mask" if given else "add a brain mask"
        raise InputError(f"no brain found at {visit}", fix, case=job.label, file=flair.path)
    limits.check_brain(Volume(brain, flair.affine, flair.path), job.label)
    masks = {kind: _on_grid(_read_mask(study.scans[kind], job.label), flair) for kind in _LABELS if kind in study.scans}
    return _Visit(flair, brain, masks, given)


def _read_scan(scan: Scan, case: str) -> Volume:
    return read_series(scan.files, case) if scan.dicom else read_flair(scan.files[0], case)


def _read_mask(scan: Scan, case: str) -> Volume:
    if scan.segment is not None:
        return read_segment(scan.files[0], scan.segment, case)
    return read_mask(scan.files[0], case)


def _on_grid(mask: Volume, flair: Volume) -> np.ndarray:
    """The mask on the grid of its visit's FLAIR; as it is if it lies there already."""
    if mask.values.shape == flair.values.shape and np.allclose(mask.affine, flair.affine, atol=1e-3):
        return mask.values
    return read_nearest(mask.values, mask.affine, flair.affine, flair.values.shape)


def _write_scans(root: Path, job: Job, visits: Mapping[str, _Visit], motions: Mapping[str, Motion]) -> None:
    first = next(iter(visits))
    for visit, scans in visits.items():
        anat, stem = Path(job.label, f"ses-{visit}", "anat"), f"{job.label}_ses-{visit}"
        motion = motions.get(visit)
        matrix = (np.eye(4) if motion is None else motion.matrix).round(6).tolist()
        sources = job.sources[visit]
        moved = {"WorldOfVisit": first, "MatrixToThatWorld": matrix, "Interpolation": "none: the affine was changed"}
        about = sidecar(
            "FLAIR as acquired, free of bias, in the world of the first visit",
            [sources["flair"]],
            BiasCorrection="N4",
            **moved,
        )
        flair = {f"{stem}_FLAIR.nii.gz": _nifti(scans.flair.values, scans.flair.affine), f"{stem}_FLAIR.json": about}
        write_together(root / anat, flair)
        masks = {("lesions", _LABELS[kind]): (kind, mask) for kind, mask in scans.masks.items()}
        if scans.given:
            masks["brain", "desc-brain_mask"] = ("brain", scans.brain)
        for (pipeline, name), (kind, mask) in masks.items():
            about = sidecar("mask as supplied, in the world of the first visit", [sources[kind]], **moved)
            files = {
                f"{stem}_{name}.nii.gz": _nifti(mask.astype(np.uint8), scans.flair.affine),
                f"{stem}_{name}.json": about,
            }
            write_together(root / "derivatives" / pipeline / anat, files)
        if motion is not None:
            name = f"{stem}_from-{first}_to-{visit}_mode-points_xfm"
            about = sidecar(
                f"rigid transform that resamples {visit} onto {first}: points of {first} to points of {visit}, LPS, mm",
                [job.sources[first]["flair"], sources["flair"]],
            )
            folder = root / "derivatives" / "preparation" / job.label
            write_together(folder, {f"{name}.tfm": _transform(motion), f"{name}.json": about})
    rows = [f"ses-{visit}\t{'n/a' if job.months[visit] is None else job.months[visit]}\n" for visit in visits]
    write_together(root / job.label, {f"{job.label}_sessions.tsv": "".join(["session_id\tmonths\n", *rows]).encode()})


def _checked(root: Path, job: Job) -> tuple[dict[str, Any], list[str]]:
    """Inputs and warnings of the patient as inference will read them.

    Raises:
        InputError: inference would refuse them.
    """
    try:
        return plain_inputs(LoadCased()({"image": root / job.label, "dataset_dir": root}))
    except InputError as error:  # names a file that is about to be removed
        raise InputError(error.problem, error.fix, case=job.label) from error


def _record(
    job: Job,
    visits: Mapping[str, _Visit],
    motions: Mapping[str, Motion],
    before: Mapping[str, Agreement],
    after: Mapping[str, Agreement],
    inputs: Mapping[str, Any],
    warnings: list[str],
) -> dict[str, Any]:
    return {
        "status": "prepared",
        "problem": "",
        "key": job.key,
        "sources": job.sources,
        "months": job.months,
        "registration": {
            visit: {
                "rotation_degrees": round(motion.degrees, 2),
                "shift_mm": round(motion.millimetres, 2),
                "correlation_before": _rounded(before[visit].correlation),
                "correlation": _rounded(after[visit].correlation),
                "mutual_information_before": _rounded(before[visit].mutual_information),
                "mutual_information": _rounded(after[visit].mutual_information),
            }
            for visit, motion in motions.items()
        },
        "slab_correlation": inputs["alignment"],
        "brain": {visit: "given" if scans.given else "estimated" for visit, scans in visits.items()},
        "used": inputs["used"],
        "missing": inputs["missing"],
        "warnings": warnings,
    }


def _move(staged: Path, job: Job) -> None:
    remove_patient(job.out, job.label)
    for place in reversed(places_of(job.label)):
        if (staged / place).is_dir():
            (job.out / place).parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged / place, job.out / place)


def _nifti(values: np.ndarray, affine: np.ndarray) -> bytes:
    image = nib.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=4, mtime=0) as file:
        file.write(image.to_bytes())
    return stream.getvalue()


def _transform(motion: Motion) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.tfm")
        sitk.WriteTransform(motion.itk(), str(path))
        return path.read_bytes()


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def _rounded(number: float) -> float | None:
    return None if np.isnan(number) else round(number, 3)
