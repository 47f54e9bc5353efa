"""A simulated patient as scans that are quick to register."""

import numpy as np
import pytest
from preparation_scans import coarse

from bundle.simulation.patient import simulate_patient


@pytest.fixture(scope="session")
def simulated():
    """A simulated patient with lesions at both visits."""
    return simulate_patient(5, 3)


@pytest.fixture(scope="session")
def visits(simulated):
    """FLAIR of w000 and w048 in one world."""
    return {visit: coarse(simulated.flair[visit].astype(np.float32)) for visit in ("w000", "w048")}
