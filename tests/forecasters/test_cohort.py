"""Counts of a simulated trial, read once; what has changed is read again and what is broken is left out."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from bundle.data.datalist import load_split, with_outcome
from bundle.data.grid import SlabGrid
from bundle.errors import Guard, InputError
from bundle.forecasters import cohort
from bundle.forecasters.base import Findings
from bundle.forecasters.cohort import CaseReader, ObservedCase, Record, read_cohort
from bundle.lesions import LesionRule
from bundle.simulation.observation import read_truth

pytestmark = pytest.mark.slow

READ = CaseReader(SlabGrid((2, 2, 3), (80, 96, 15)), LesionRule())
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class TextReader:
    """Reads patients that are files holding their number of lesions."""

    grid: SlabGrid = SlabGrid((8, 8, 3), (6, 5, 4))
    setting: int = 0

    def __call__(self, item):
        text = Path(item["image"]).read_text()
        if not text.isdigit():
            raise InputError("no number", "write one", case=item["case"])
        outcome = np.zeros(self.grid.shape, bool)
        outcome.flat[: int(text)] = True
        return ObservedCase(None, Record(item["case"], 1, {"t2_w000": None}, Findings(int(text), 0.1)), outcome)

    def version(self, item):
        return str(Path(item["image"]).stat().st_mtime_ns)


@pytest.fixture
def four(tmp_path):
    """Items of four patients with 0 to 3 lesions, of `TextReader`."""
    for n in range(4):
        (tmp_path / f"sub-{n}").write_text(str(n))
    return [{"case": f"sub-{n}", "image": str(tmp_path / f"sub-{n}")} for n in range(4)]


@pytest.fixture
def reads(monkeypatch):
    """Cases that are read in this process, in order."""
    cases, count = [], cohort._count
    monkeypatch.setattr(cohort, "_count", lambda read, item: cases.append(item["case"]) or count(read, item))
    return cases


@pytest.fixture(scope="module")
def items(trial):
    return with_outcome(load_split(trial, "all"))


@pytest.fixture(scope="module")
def counted(items, tmp_path_factory):
    file = tmp_path_factory.mktemp("cohort") / "new" / "cohort.npz"
    return read_cohort(items, READ, file, workers=2), file


def replace(item, text):
    """Another file in the place of the patient's, a second later."""
    file = Path(item["image"])
    later = file.stat().st_mtime_ns + 10**9
    file.write_text(text)
    os.utime(file, ns=(later, later))


def test_counts_are_those_that_were_simulated(trial, items, counted):
    """Lesions that touch are one, here and nowhere else: all but a few counts agree."""
    truths = [read_truth(trial, item["case"]) for item in items]
    true = np.array([len(truth["arms"][truth["arm"]]["net2_w096"]) for truth in truths])
    assert len(items) == 12 and true.sum() > 0
    assert (counted[0].counts <= true).all() and counted[0].counts.sum() >= 0.85 * true.sum()
    assert [record.lesions["gd_w000"] for record in counted[0].records] == pytest.approx(
        [truth["num_gd_w000"] for truth in truths], abs=2
    )


def test_a_record_and_the_frequency_map_are_those_of_the_outcome(items, counted):
    index = int(counted[0].counts.argmax())
    observed, record = READ(items[index]), counted[0].records[index]
    assert observed.record == record and record.outcome.volume_ml == pytest.approx(observed.outcome.sum() * 12 / 1000)
    assert (counted[0].frequency[observed.outcome] >= 1 / 12 - 1e-6).all()
    total_ml = sum(record.outcome.volume_ml for record in counted[0].records)
    assert counted[0].frequency.sum() * 12 * 12 / 1000 == pytest.approx(total_ml, rel=1e-5)


def test_covariates_and_months_are_those_that_were_simulated(trial, items, counted):
    first, _ = counted
    for item, record in zip(items, first.records):
        truth = read_truth(trial, item["case"])
        seen = truth["seen_covariates"] | {"sex": float(truth["seen_covariates"]["sex"] == "F")}
        assert record.covariates == seen | dict(zip(("months_w048", "months_w096"), truth["months"]))


def test_patients_are_read_once(items, counted, reads):
    first, file = counted
    again = read_cohort(items, READ, file, workers=0)
    assert not reads and again.records == first.records and again.key == first.key
    np.testing.assert_array_equal(again.frequency, first.frequency)


def test_the_version_of_a_patient_changes_with_any_of_its_files(trial, items, tmp_path):
    item = items[0]
    for found in sorted(trial.rglob(item["case"])):
        shutil.copytree(found, tmp_path / found.relative_to(trial))
    table = tmp_path / "participants.tsv"
    shutil.copy(trial / table.name, table)
    copied = item | {"image": str(tmp_path / item["case"])}
    versions = [READ.version(copied)]  # shutil keeps the times: the same files in another folder
    assert versions == [READ.version(item)] == [READ.version(copied)]
    files = [path for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    for file in (
        file for kind in ("FLAIR", "NET2", "brain", "w048_dseg", "truth") for file in files if kind in file.name
    ):
        later = file.stat().st_mtime_ns + 10**9
        os.utime(file, ns=(later, later))
        versions.append(READ.version(copied))
    versions.append(READ.version(copied | {"arm": "unknown"}))
    table.unlink()  # covariates are read from it
    versions.append(READ.version(copied))
    assert len(versions) > 10 and len(set(versions)) == len(versions)


def test_only_new_patients_are_read_and_another_reader_reads_all(four, tmp_path, reads):
    file = tmp_path / "cohort.npz"
    two = read_cohort(four[:2], TextReader(), file, workers=0)
    assert len(two.records) == 2 and reads == ["sub-0", "sub-1"]
    all_four = read_cohort(four, TextReader(), file, workers=0)
    assert reads[2:] == ["sub-2", "sub-3"] and all_four.key != two.key
    assert all_four.counts.tolist() == [0, 1, 2, 3] and all_four.frequency.flat[:4].tolist() == [0.75, 0.5, 0.25, 0]
    read_cohort(four, TextReader(setting=1), file, workers=0)
    assert len(reads) == 8


def test_a_replaced_scan_is_read_again_and_gives_another_key(four, tmp_path, reads):
    file = tmp_path / "cohort.npz"
    first = read_cohort(four, TextReader(), file, workers=0)
    replace(four[1], "9")
    second = read_cohort(four, TextReader(), file, workers=0)
    assert reads[4:] == ["sub-1"] and second.key != first.key and second.counts.tolist() == [0, 9, 2, 3]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_patient_is_reported_in_one_line_and_left_out(four, tmp_path, workers, capsys):
    replace(four[2], "no number")
    guard = Guard()
    found = read_cohort(four, TextReader(), tmp_path / "cohort.npz", workers=workers, guard=guard)
    assert found.counts.tolist() == [0, 1, 3]
    assert capsys.readouterr().err.splitlines()[-1] == "error: sub-2: no number; write one"
    read_cohort(four, TextReader(), tmp_path / "cohort.npz", workers=workers, guard=guard)
    assert len(guard.failures) == 2  # reported by every run, not only by the one that counted


def test_a_damaged_file_is_made_again(four, tmp_path, reads):
    file = tmp_path / "cohort.npz"
    first = read_cohort(four, TextReader(), file, workers=0)
    file.write_bytes(file.read_bytes()[:-100])
    again = read_cohort(four, TextReader(), file, workers=0)
    assert len(reads) == 8 and again.key == first.key and again.records == first.records


def test_without_any_readable_patient_there_is_no_cohort(four, tmp_path):
    with pytest.raises(InputError, match="no patient with a known outcome"):
        read_cohort([], TextReader(), tmp_path / "cohort.npz")
    replace(four[0], "no number")
    with pytest.raises(InputError, match="no patient of the training split could be read"):
        read_cohort(four[:1], TextReader(), tmp_path / "cohort.npz", workers=0)


WAITING = """
import os, time, sys
from concurrent.futures import ProcessPoolExecutor
from bundle.runtime import end_with_parent
with ProcessPoolExecutor(3, initializer=end_with_parent) as pool:
    print(*{pool.submit(os.getpid).result() for _ in range(9)} | set(pool._processes), flush=True)
    time.sleep(60)
"""


def test_workers_end_with_a_killed_parent():
    process = subprocess.Popen([sys.executable, "-c", WAITING], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    workers = [int(pid) for pid in process.stdout.readline().split()]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert workers and not any(Path(f"/proc/{pid}").exists() for pid in workers)
