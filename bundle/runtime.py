"""What this process runs on: its device, its memory, its workers, and the processes beside it (torchrun)."""

import ctypes
import datetime
import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import torch
from torch import distributed

from bundle.errors import InputError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc
_ENGINE_STATE = re.compile(r"(Engine|Current) run |(Epoch|Run)\[\d+\] Complete\.")


def keep_freed_memory() -> None:
    """From now on memory that is freed stays with the process, for its next tensor.

    glibc hands every block of more than some megabytes back to the system, which wipes it again page by page for the
    next tensor of that size: a third of a forecast's time on a CPU. Where there is no glibc nothing happens. For
    commands; programs that embed the bundle choose for themselves.
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
    report = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        # The thread that hands tensors over prints its errors here; a parent that ends closes its connections.
        if not issubclass(kind, ConnectionError | EOFError):
            report(kind, error, trace)

    sys.excepthook = hook

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    if multiprocessing.parent_process() is not None:
        threading.Thread(target=wait, daemon=True).start()


@contextmanager
def sharing() -> Iterator[tuple[int, int]]:
    """(rank, number of processes) of this process under torchrun, (0, 1) otherwise; all leave together."""
    join_processes()
    try:
        yield rank_and_world()
        leave_processes()
    finally:
        if distributed.is_initialized():  # an error: the others may never come
            distributed.destroy_process_group()


def join_processes() -> None:
    """Joins the processes that torchrun started: nccl on GPUs, gloo on CPUs. Outside torchrun nothing happens."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or distributed.is_initialized():
        return
    # Processes wait for each other as long as their parts of the work differ, which may be hours.
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=datetime.timedelta(days=7))
    if torch.cuda.is_available():
        torch.cuda.set_device(pick_device())


def leave_processes() -> None:
    """Leaves what `join_processes` joined, when all have come so far."""
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def rank_and_world() -> tuple[int, int]:
    """This process's rank and how many there are; (0, 1) outside torchrun."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def is_follower() -> bool:
    """Whether another process than this one reports and saves."""
    return rank_and_world()[0] > 0


def pick_device() -> torch.device:
    """The GPU of this process if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def check_device(device: torch.device | str, option: str = "--device") -> None:
    """Refuses a device that this machine does not have; configs call this in `initialize`.

    Args:
        device: to use.
        option: that named it.

    Raises:
        InputError: torch cannot use it.
    """
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:  # a torch without CUDA asserts that it is there
        raise InputError(f"device={device} cannot be used", f"correct {option}, e.g. cpu, cuda or cuda:1") from error


def has_fast_bf16(device: torch.device | str) -> bool:
    """Whether bf16 is faster than fp32 on a device: a GPU, or a CPU with instructions for it.

    A CPU without them emulates bf16 and takes 2.5 times as long as in fp32.
    """
    if torch.device(device).type != "cpu":
        return True
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def quiet_libraries() -> None:
    """Drops what ignite's engines and highdicom say of themselves ("Engine run resuming from iteration 0").

    Their errors too: the exception is reported by whoever receives it. Metrics and losses, which handlers log under the
    same names, stay. For commands, when MONAI has set up logging.
    """
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_of_interest)
    logging.getLogger("highdicom").setLevel(logging.WARNING)


def _is_of_interest(record: logging.LogRecord) -> bool:
    return not (record.name.startswith("ignite.") and _ENGINE_STATE.match(record.getMessage()))
