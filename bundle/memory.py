"""How this process keeps its memory."""

import ctypes
import sys

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
