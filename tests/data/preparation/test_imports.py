"""What only the preparation needs must not slow down training and inference."""

import subprocess
import sys

import pytest
from conftest import ROOT

PROGRAM = """
import sys
import {module}
print("SimpleITK" in sys.modules, any("preparation" in name for name in sys.modules))
"""


def loaded_by(module):
    command = [sys.executable, "-c", PROGRAM.format(module=module)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_reading_patients_loads_nothing_of_the_preparation():
    assert loaded_by("bundle.data.transforms") == "False False"


@pytest.mark.slow
def test_the_command_loads_itk_only_in_its_workers():
    assert loaded_by("scripts.prepare") == "False True"
