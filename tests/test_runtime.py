"""Freed memory is kept, counted in the pages that the system had to wipe; workers end with their parent."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bundle.errors import InputError
from bundle.runtime import check_device, quiet_libraries

ROOT = Path(__file__).parents[1]
PROGRAM = """
import resource
import numpy as np
from bundle.runtime import keep_freed_memory

def wiped(blocks, megabytes=64):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(blocks):
        np.full(megabytes << 17, 1.0)
    pages = blocks * (megabytes << 20) / resource.getpagesize()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / pages

before = wiped(10)
keep_freed_memory()
wiped(1)
print(before, wiped(10))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc alone")
def test_next_block_takes_the_memory_of_the_last():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=os.environ | {"NUMPY_MADVISE_HUGEPAGE": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = map(float, done.stdout.split())
    assert before > 0.9
    assert after < 0.01


POOL = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from bundle.runtime import end_with_parent

def work(_):
    os.write(1, b"%d\\n" % os.getpid())  # at once: lines of two workers must not mix
    time.sleep(600)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    with ProcessPoolExecutor(2, mp_context=context, initializer=end_with_parent) as pool:
        list(pool.map(work, range(2)))
"""

LOADER = """
import os, time
from torch.utils.data import Dataset
from bundle.training.batches import PatientLoader

class Slow(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        os.write(1, b"%d\\n" % os.getpid())  # at once: lines of two workers must not mix
        time.sleep(600)

if __name__ == "__main__":
    list(PatientLoader(Slow(), batch_size=1, num_workers=2))
"""


def runs(pid):
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


SHARER = """
import multiprocessing, os
from multiprocessing import resource_sharer
from bundle.runtime import end_with_parent

def work(sender):
    end_with_parent()
    for kind in (BrokenPipeError, EOFError, ValueError, ValueError):  # the end may come before the last is reported
        def send(connection, pid, kind=kind):
            raise kind(kind.__name__)
        sender.send(resource_sharer._resource_sharer.register(send, lambda: None))
    sender.recv()

if __name__ == "__main__":
    here, there = multiprocessing.get_context("fork").Pipe()
    worker = multiprocessing.get_context("fork").Process(target=work, args=(there,))
    worker.start()
    for _ in range(4):
        with resource_sharer._resource_sharer.get_connection(here.recv()) as connection:
            try:
                connection.recv()
            except EOFError:
                pass
    here.send(None)
    worker.join()
"""


def test_connections_closed_by_a_parent_that_ends_are_not_reported(tmp_path):
    """Ctrl-C of a training printed a traceback when a worker was just handing a tensor over."""
    (tmp_path / "program.py").write_text(SHARER)
    command = [sys.executable, str(tmp_path / "program.py")]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "ValueError: ValueError" in done.stderr  # what is wrong is still reported
    assert "BrokenPipe" not in done.stderr
    assert "EOFError" not in done.stderr


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize(
    "program, argument",
    [
        pytest.param(POOL, "fork", id="fork"),
        pytest.param(POOL, "spawn", id="spawn", marks=pytest.mark.slow),
        pytest.param(LOADER, "", id="loader", marks=pytest.mark.slow),
    ],
)
def test_workers_end_when_their_parent_is_killed(program, argument, tmp_path):
    (tmp_path / "program.py").write_text(program)
    command = [sys.executable, str(tmp_path / "program.py"), argument]
    parent = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    assert all(map(runs, workers))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 30
    while any(map(runs, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", 7.5])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(InputError, match=f"device={device} cannot be used; correct --device"):
        check_device(device)
    check_device("cpu")


@pytest.fixture
def console(monkeypatch):
    """What the root logger prints, as MONAI sets it up."""
    printed = []

    class Keep(logging.Handler):
        def emit(self, record):
            printed.append(record.getMessage())

    monkeypatch.setattr(logging.getLogger(), "handlers", [Keep()])
    return printed


def test_what_engines_say_of_themselves_is_dropped_and_metrics_stay(console):
    quiet_libraries()
    engine = logging.getLogger("ignite.engine.engine.OfThisTest")  # MONAI may have disabled those that exist
    engine.setLevel(logging.INFO)
    metrics = ["Epoch[1] Metrics -- loss: 0.1", "Epoch: 1/2, Iter: 1/8 -- train_loss: 0.2"]
    for line in (
        "Engine run resuming from iteration 0, epoch 0 until 1 epochs",
        "Engine run finished. Time taken: 00:00:01.000",
        "Epoch[1] Complete. Time taken: 00:00:01.000",
        "Current run is terminating due to exception: disk full",
        *metrics,
    ):
        engine.info(line)
    logging.getLogger("bundle").warning("Engine run by someone else")
    assert console == [*metrics, "Engine run by someone else"]
