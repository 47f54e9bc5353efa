"""What only the preparation needs must not slow down training and inference."""

import subprocess
import sys

import pytest
from conftest import ROOT

PROGRAM = """
import sys

def loaded():
    return "SimpleITK" in sys.modules, any("preparation" in name for name in sys.modules)

import bundle.data.transforms
print(*loaded())
import scripts.prepare
print(*loaded())
"""


@pytest.mark.slow
def test_reading_patients_loads_nothing_of_the_preparation_and_its_command_loads_itk_only_in_its_workers():
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["False False", "False True"]
