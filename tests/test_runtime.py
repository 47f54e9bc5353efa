"""Freed memory stays, counted in the pages that the system had to wipe."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=os.environ | {"NUMPY_MADVISE_HUGEPAGE": "0"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    before, after = map(float, done.stdout.split())
    assert before > 0.9
    assert after < 0.01
