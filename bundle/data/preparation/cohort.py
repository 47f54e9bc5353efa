"""A folder of scans as a BIDS data set that inference reads: patient by patient, in parallel, each once."""

import json
import multiprocessing
import os
import queue
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bundle.data.preparation.job import DERIVATIVES, PHASES, Job, record_path, remove_patient
from bundle.data.preparation.overview import overview_html, table_tsv
from bundle.data.preparation.provenance import digests, generated_by, key_of, read_record
from bundle.data.preparation.sources import Subject, assign_visits, find_subjects
from bundle.data.preparation.study_list import read_rows
from bundle.data.tables import read_treatments
from bundle.errors import Guard, InputError
from bundle.files import check_writable, write_together
from bundle.runtime import end_with_parent

_NUMBERED = re.compile(r"sub-(\d+)")
_POLL_S = 0.2
_MEMORY = "memory ran out; give fewer --workers, or crop the scans"


def prepare_dataset(
    source: str | Path,
    out: str | Path,
    *,
    table: str | Path | None = None,
    workers: int | None = None,
    key: str | Path | None = None,
) -> tuple[list[str], list[InputError]]:
    """Prepares every patient below a folder; those that cannot be are reported in a line each, the others go on.

    A patient who is there already is left alone unless its sources changed. Labels that are not taken from BIDS are
    numbers, which stay the same from run to run: a patient is known again by the digests of the scans.

    Args:
        source: folder of DICOM or NIfTI files (`bundle.data.preparation.sources.find_subjects`).
        out: root of the data set; made if missing.
        table: of `bundle.data.preparation.study_list`.
        workers: processes; None takes one a core.
        key: file to write that says which patient of the source is which label; not inside `out`.

    Returns:
        Labels of the patients that are prepared, and what is wrong with the others.

    Raises:
        InputError: an argument cannot be used, the source holds no scans, or `out` holds something else.
    """
    workers = os.cpu_count() if workers is None else workers
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise InputError(f"--workers {workers!r} is not a whole number of 1 or more", "give e.g. --workers 2")
    source, out = Path(str(source)), Path(str(out))
    key_file = None if key is None else _outside(Path(str(key)), out)
    subjects = find_subjects(source, [] if table is None else read_rows(Path(str(table)), source))
    _open_dataset(out, source)
    labels, jobs, guard = _plan(subjects, out)
    if key_file is not None:
        lines = [f"{label}\t{subject.key}\n" for label, subject in labels.items()]
        write_together(key_file.parent, {key_file.name: "".join(["participant_id\tpatient\n", *lines]).encode()})
    refused = {label: job for label, job in jobs.items() if isinstance(job, InputError)}
    waiting = {label: job for label, job in jobs.items() if label not in refused and not _is_done(out, label, job.key)}
    for label, problem in refused.items():
        _refuse(out, label, problem, {})
    for label, problem in _run(waiting, workers, guard):
        _refuse(out, label, problem, waiting[label].sources)
        refused[label] = problem
    prepared = [label for label in labels if label not in refused]
    arms = {label: labels[label].arm for label in prepared}
    try:
        _write_tables(out, arms)
    except OSError as error:
        raise InputError(
            f"stopped ({error})", "free disk space and run the command again; it will resume", file=out
        ) from error
    return prepared, guard.failures


def _plan(subjects: Sequence[Subject], out: Path) -> tuple[dict[str, Subject], dict[str, Job | InputError], Guard]:
    """Subject by label; job by label, or why there is none."""
    guard = Guard()
    planned: list[tuple[Subject, Any]] = []
    for subject in tqdm(subjects, "looking at the sources", unit="patient", leave=False):
        try:
            if subject.problem:
                raise subject.problem
            visits, remarks = assign_visits(subject.studies, "")
            planned.append((subject, (visits, digests(visits), [*subject.remarks, *remarks])))
        except InputError as error:
            planned.append((subject, InputError(error.problem, error.fix)))
        except OSError as error:
            planned.append((subject, InputError(f"cannot be read: {error.strerror}", "check its rights")))
    labels = _labels(planned, out)
    jobs: dict[str, Job | InputError] = {}
    for (subject, plan), label in zip(planned, labels):
        if isinstance(plan, InputError):
            remark = "".join(f" ({text})" for text in subject.remarks)
            jobs[label] = InputError(plan.problem, plan.fix, case=label)
            guard.refuse(InputError(f"{plan.problem}{remark}", plan.fix, case=label, file=_place(subject)))
            continue
        visits, sources, remarks = plan
        for text in remarks:
            tqdm.write(f"{label}: {text}")
        start = visits["w000"].months
        months = {
            visit: None if start is None or study.months is None else round(study.months - start, 2)
            for visit, study in visits.items()
        }
        jobs[label] = Job(label, visits, months, sources, key_of(sources, months), out)
    return dict(zip(labels, (subject for subject, _ in planned))), jobs, guard


def _labels(planned: Sequence[tuple[Subject, Any]], out: Path) -> list[str]:
    """A label for each: its own, that of an earlier run that had one of its scans, or the next free number."""
    known = {}
    for path in sorted((out / "derivatives" / "preparation").glob("sub-*/sub-*_preparation.json")):
        for scans in read_record(path).get("sources", {}).values():
            known |= dict.fromkeys(scans.values(), path.parent.name)
    labels: list[str | None] = []
    for subject, plan in planned:
        own = [] if isinstance(plan, InputError) else [d for scans in plan[1].values() for d in scans.values()]
        earlier = next((known[digest] for digest in own if digest in known), None)
        labels.append(subject.label or (earlier if earlier not in labels else None))
    for label in labels:
        if label and labels.count(label) > 1:
            raise InputError(f"two patients are {label}", "give each a participant_id of its own in the table")
    taken = {int(found[1]) for label in {*labels, *known.values()} if label and (found := _NUMBERED.fullmatch(label))}
    free = (number for number in range(1, len(planned) + len(taken) + 1) if number not in taken)
    return [label or f"sub-{next(free):03d}" for label in labels]


def _run(jobs: Mapping[str, Job], workers: int, guard: Guard) -> Iterator[tuple[str, InputError]]:
    """Prepares patients in processes of their own; yields those that cannot be."""
    if not jobs:
        return
    workers = min(workers, len(jobs))
    progress = multiprocessing.Queue()
    threads = max(1, (os.cpu_count() or 1) // workers)
    with (
        ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(progress, threads)) as pool,
        tqdm(total=len(jobs) * len(PHASES), unit="step", bar_format=_BAR) as bar,
    ):
        waiting: dict[Future, str] = {pool.submit(_work, job): label for label, job in jobs.items()}
        phase: dict[str, int] = dict.fromkeys(jobs, 0)
        try:
            while waiting:
                done, _ = wait(waiting, timeout=_POLL_S, return_when=FIRST_COMPLETED)
                _show(bar, progress, phase)
                for future in done:
                    label = waiting.pop(future)
                    bar.update(len(PHASES) - phase.pop(label))
                    try:
                        future.result()
                    except BrokenProcessPool as error:
                        raise InputError("a worker was killed by the operating system", _MEMORY, case=label) from error
                    except MemoryError:
                        problem = InputError("too large for the memory", _MEMORY, case=label)
                        guard.refuse(problem)
                        yield label, problem
                    except InputError as error:
                        guard.refuse(error)
                        yield label, error
                    except OSError as error:
                        fix = "free disk space and run the command again; it will resume"
                        raise InputError(f"stopped ({error.strerror})", fix, case=label) from error
        except BaseException:
            pool.shutdown(cancel_futures=True, wait=False)
            raise


_BAR = "{desc} |{bar}| {n_fmt}/{total_fmt} steps [{elapsed}<{remaining}]"


def _show(bar: tqdm, progress: Any, phase: dict[str, int]) -> None:
    """Moves the bar on by what the workers reported, and names a phase."""
    while True:
        try:
            label, name = progress.get_nowait()
        except queue.Empty:
            return
        if label in phase:
            bar.update(PHASES.index(name) - phase[label])
            phase[label] = PHASES.index(name)
            bar.set_description_str(f"{label} {name:11}")


def _start_worker(progress: Any, threads: int) -> None:
    end_with_parent()
    import SimpleITK as sitk
    import torch

    global _progress
    _progress = progress
    torch.set_num_threads(threads)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


def _work(job: Job) -> None:
    from bundle.data.preparation.patient import prepare_patient

    prepare_patient(job, lambda phase: _progress.put((job.label, phase)))


def _is_done(out: Path, label: str, key: str) -> bool:
    record = read_record(record_path(out, label))
    return record.get("key") == key and (out / label).is_dir()


def _refuse(out: Path, label: str, problem: InputError, sources: Mapping[str, Any]) -> None:
    """Removes what an earlier run made of other sources, and records why there is nothing now."""
    remove_patient(out, label)
    record = {"status": "refused", "problem": f"{problem.problem}; {problem.fix}", "sources": sources}
    content = (json.dumps(record, indent=1) + "\n").encode()
    path = record_path(out, label)
    write_together(path.parent, {path.name: content})


def _write_tables(out: Path, arms: Mapping[str, str]) -> None:
    """participants.tsv, and the table and page over all patients; those of earlier runs stay."""
    arms = {label: arm for label, arm in read_treatments(out).items() if (out / label).is_dir()} | {
        label: arm or "n/a" for label, arm in arms.items()
    }
    rows = [f"{label}\t{arm}\n" for label, arm in sorted(arms.items())]
    write_together(out, {"participants.tsv": "".join(["participant_id\ttreatment_arm\n", *rows]).encode()})
    folder = out / "derivatives" / "preparation"
    paths = sorted(folder.glob("sub-*/sub-*_preparation.json"))
    records = {path.parent.name: read_record(path) for path in paths}
    write_together(folder, {"patients.tsv": table_tsv(records), "patients.html": overview_html(records)})


def _open_dataset(out: Path, source: Path) -> None:
    description = {
        "Name": "FLAIR prepared for the forecast of new and enlarging T2 lesions",
        "BIDSVersion": "1.10.0",
        "DatasetType": "raw",
        "GeneratedBy": generated_by(),
    }
    if out.resolve() == source.resolve() or source.resolve() in out.resolve().parents:
        raise InputError("lies in the source", "give a folder outside it", file=out)
    check_writable(out)
    name = "dataset_description.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if (out / name).exists():
            before = read_record(out / name).get("GeneratedBy")
            if not isinstance(before, list) or not before or before[0].get("Name") != "scripts.prepare":
                raise InputError("holds another data set", "give an empty folder", file=out)
        elif any(not path.name.startswith(".") for path in out.iterdir()):
            raise InputError("is not empty and does not hold a prepared data set", "give an empty folder", file=out)
        for leftover in out.glob(".sub-*.partial"):  # of a run that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        write_together(out, {name: json.dumps(description, indent=1).encode()})
        for derivative in DERIVATIVES:
            derived = description | {"Name": derivative, "DatasetType": "derivative"}
            write_together(out / "derivatives" / derivative, {name: json.dumps(derived, indent=1).encode()})
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", "give another folder", file=out) from error


def _outside(key: Path, out: Path) -> Path:
    if out.resolve() in key.resolve().parents:
        raise InputError("is inside the data set, which must stay pseudonymised", "give another --key", file=key)
    check_writable(key.parent)
    return key


def _place(subject: Subject) -> Path | None:
    """A folder that shows the user which patient is meant; printed, never written."""
    scans = [scan for study in subject.studies for scan in study.scans.values()]
    return scans[0].files[0].parent if scans else None
