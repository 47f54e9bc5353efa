"""What this process runs on: its device, its memory, and the processes beside it (torchrun)."""

import ctypes
import datetime
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc


def keep_freed_memory() -> None:
    """From now on memory that is freed stays with the process, for its next tensor.

    glibc hands every block of more than some megabytes back to the system, which wipes it again page by page for the next
    tensor of that size: a third of a forecast's time on a CPU. Where there is no glibc nothing happens. Configs call
    this in `initialize`; programs that embed the bundle choose for themselves.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def end_with_parent(*_: object) -> None:
    """Initializer of worker processes: they end when the process that started them ends, and leave Ctrl-C to it.

    Without it the workers of a killed command wait for work for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    if multiprocessing.parent_process() is not None:
        threading.Thread(target=wait, daemon=True).start()


@contextmanager
def sharing() -> Iterator[tuple[int, int]]:
    """(rank, number of processes) of this process under torchrun, (0, 1) otherwise; all leave together."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        yield 0, 1
        return
    distributed.init_process_group("gloo", timeout=datetime.timedelta(days=7))
    try:
        yield distributed.get_rank(), world
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


def rank_and_world() -> tuple[int, int]:
    """This process's rank and how many there are; (0, 1) outside torchrun."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def join_processes() -> None:
    """Join the processes torchrun started: nccl on GPUs, gloo on CPUs."""
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if torch.cuda.is_available():
        torch.cuda.set_device(pick_device())


def is_follower() -> bool:
    """Whether another process than this one reports and saves."""
    return rank_and_world()[0] > 0


def pick_device() -> torch.device:
    """The GPU of this process if there is one, else the CPU."""
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else torch.device("cpu")
    )
