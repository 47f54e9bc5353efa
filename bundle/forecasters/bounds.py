"""Upper bounds: the best possible forecast of a simulated trial, and the observed outcome."""

from collections.abc import Sequence

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes

from bundle.data.grid import SlabGrid, to_slab
from bundle.forecasters.base import SCORED_REGIONS, Forecast, Patient, Role, key_of
from bundle.forecasters.cohort import CaseReader
from bundle.lesions import REGIONS
from bundle.simulation.anatomy import AFFINE
from bundle.simulation.oracle import Oracle, OracleForecast, read_counts, read_observation


class BestPossible:
    """The exact forecast of a simulated patient from the observed counts (`bundle.simulation.oracle`): the oracle.

    Args:
        visit: the last visit to use.
        with_heatmap: also forecast the heatmap; without it a patient takes a millisecond instead of seconds.
    """

    role, num_members = Role.CEILING, None

    def __init__(self, visit: str = "w048", with_heatmap: bool = True) -> None:
        self.visit, self.with_heatmap, self.oracle = visit, with_heatmap, Oracle()
        self.key = key_of("oracle", visit=visit, with_heatmap=with_heatmap)

    def __call__(self, patient: Patient) -> Sequence[Forecast]:
        """
        Raises:
            InputError: the data set is not a simulated one.
        """
        read = read_observation if self.with_heatmap else read_counts
        exact = self.oracle(read(patient.dataset_dir, patient.case, self.visit), patient.arm)
        counts = np.arange(len(exact.count_pmf))
        if not self.with_heatmap:
            return [Forecast(exact.p_active, counts, exact.count_pmf)]
        grid = SlabGrid(tuple(voxel_sizes(patient.affine)), patient.brain.shape)
        on_slab = to_slab(exact.heatmap, AFFINE, patient.affine, grid)
        return [Forecast(exact.p_active, counts, exact.count_pmf, region_presence(exact, patient), on_slab)]


def region_presence(exact: OracleForecast, patient: Patient) -> dict[str, float]:
    """P(a lesion lies in the region); each lesion does with the fraction of its expected volume that lies there."""
    if patient.dseg is None or exact.footprint is None:
        return {}
    voxels = np.argwhere(exact.footprint > 0)
    mass = exact.footprint[tuple(voxels.T)]
    labels = patient.dseg.at(apply_affine(AFFINE, voxels))
    presence = {}
    for region in SCORED_REGIONS:
        inside = np.isin(labels, [label for label, name in REGIONS.items() if name == region])
        labelled = np.isin(
            labels, list(REGIONS)
        )  # unlabelled voxels do not count when a lesion is assigned to a region
        fraction = mass[inside].sum() / max(mass[labelled].sum(), 1e-12)
        presence[region] = float(1 - np.polynomial.polynomial.polyval(1 - fraction, exact.count_pmf))
    return presence


class Truth:
    """The observed outcome as a forecast: the perfect value of every metric.

    Args:
        read: reads the outcome.
    """

    role, num_members = Role.OUTCOME, None

    def __init__(self, read: CaseReader) -> None:
        self.read = read
        self.key = key_of("truth", read=read)

    def __call__(self, patient: Patient) -> Sequence[Forecast]:
        observed = self.read({"image": f"{patient.dataset_dir}/{patient.case}", "arm": patient.arm})
        found = observed.record.outcome
        presence = {region: float(present) for region, present in found.presence.items()}
        heatmap = observed.outcome.astype(np.float32)
        return [Forecast(float(found.count > 0), np.array([found.count]), np.ones(1), presence, heatmap)]
