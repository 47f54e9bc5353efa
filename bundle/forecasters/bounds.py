"""Forecasters that no model can pass: the best possible forecast of a simulated trial, and the outcome itself."""

from collections.abc import Sequence

import numpy as np

from bundle.data.grid import SlabGrid, to_slab
from bundle.forecasters.base import SCORED_REGIONS, Forecast, Patient
from bundle.forecasters.cohort import CaseReader
from bundle.lesions import REGIONS
from bundle.simulation.anatomy import AFFINE
from bundle.simulation.oracle import Oracle, OracleForecast, read_counts, read_observation


class BestPossible:
    """The exact forecast of a simulated patient, from what the images show (`bundle.simulation.oracle`).

    Args:
        visit: the last one to look at.
        places: also say where; without it a patient takes a millisecond instead of seconds.
    """

    def __init__(self, visit: str = "w048", places: bool = True) -> None:
        self.visit, self.places, self.oracle = visit, places, Oracle()
        self.key = f"oracle of {visit}, {places}"

    def __call__(self, patient: Patient) -> Sequence[Forecast]:
        """
        Raises:
            InputError: the data set is not a simulated one.
        """
        read = read_observation if self.places else read_counts
        told = self.oracle(read(patient.dataset_dir, patient.case, self.visit), patient.arm)
        counts = np.arange(len(told.count_pmf))
        if not self.places:
            return [Forecast(told.p_active, counts, told.count_pmf)]
        grid = SlabGrid(np.linalg.norm(patient.affine[:3, :3], axis=0), patient.brain.shape)
        on_slab = to_slab(told.heatmap, AFFINE, patient.affine, grid)
        return [Forecast(told.p_active, counts, told.count_pmf, region_presence(told, patient), on_slab)]


def region_presence(told: OracleForecast, patient: Patient) -> dict[str, float]:
    """P(a lesion lies in the region), each lesion belonging to it with the share of its expected volume that lies there."""
    if patient.dseg is None:
        return {}
    voxels = np.argwhere(told.footprint > 0)
    mass = told.footprint[tuple(voxels.T)]
    labels = patient.dseg.at(voxels @ AFFINE[:3, :3].T + AFFINE[:3, 3])
    presence = {}
    for region in SCORED_REGIONS:
        there = np.isin(labels, [label for label, name in REGIONS.items() if name == region])
        named = np.isin(labels, list(REGIONS))  # a lesion's voxels without a name have no say in where it lies
        share = mass[there].sum() / max(mass[named].sum(), 1e-12)
        presence[region] = float(1 - np.polynomial.polynomial.polyval(1 - share, told.count_pmf))
    return presence


class Truth:
    """What came, as a forecast: the perfect score of every metric.

    Args:
        read: reads the outcome.
    """

    def __init__(self, read: CaseReader) -> None:
        self.read = read
        self.key = "truth"

    def __call__(self, patient: Patient) -> Sequence[Forecast]:
        seen = self.read({"image": f"{patient.dataset_dir}/{patient.case}", "arm": patient.arm})
        found = seen.record.outcome
        presence = {region: float(there) for region, there in found.presence.items()}
        return [
            Forecast(float(found.count > 0), np.array([found.count]), np.ones(1), presence, seen.outcome.astype(np.float32))
        ]
