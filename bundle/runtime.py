"""What this process runs on: its device, its memory, and the processes beside it (torchrun)."""

import ctypes
import datetime
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc
_ENGINE_STATE = re.compile(r"(Engine|Current) run |(Epoch|Run)\[\d+\] Complete\.")


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
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else torch.device("cpu")


def quiet_libraries() -> None:
    """Drops what ignite's engines say of themselves ("Engine run resuming from iteration 0") from the console.

    Their errors too: the exception is reported by whoever receives it. Metrics and losses, which handlers log under the
    same names, stay. Configs call this in `initialize`, when MONAI has set up logging.
    """
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_of_interest)


def _is_of_interest(record: logging.LogRecord) -> bool:
    return not (record.name.startswith("ignite.") and _ENGINE_STATE.match(record.getMessage()))
