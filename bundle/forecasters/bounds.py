"""Upper bounds: the best possible forecast of a simulated trial, and the observed outcome."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes

from bundle.arms import CLASSES
from bundle.data.grid import SlabGrid, to_slab
from bundle.data.masks import mask_to_slab
from bundle.errors import check_count
from bundle.forecasters.base import SCORED_REGIONS, Forecast, Patient, Role, key_of, present_in
from bundle.forecasters.cohort import CaseReader
from bundle.forecasters.ensemble import ensemble_forecast
from bundle.lesions import LesionRule
from bundle.seeding import seed_of
from bundle.simulation.anatomy import AFFINE, SHAPE
from bundle.simulation.disease import union
from bundle.simulation.observation import Observation, read_counts, read_masks, read_observation, read_protocol
from bundle.simulation.oracle import Oracle, OracleForecast

DRAWN_LESIONS = 300  # by which regions are forecast: their chances then vary by less than .01


class BestPossible:
    """The exact forecast of a simulated patient from images and tables, given perfect reading: the oracle.

    Perfect reading (`bundle.simulation.observation`): no reader's error, no missing mask, and everything that FLAIR
    shows (diffuse signal, smouldering lesions) known exactly.

    Args:
        visit: the last visit to use.
        with_heatmap: also forecast the heatmap; without it a patient takes milliseconds instead of seconds.
        masks: read the lesions from the masks as they were written, with readers' errors and missing masks, and take
            them as correct. A second ceiling, below the first; needs w048 and forecasts the heatmap.

    Raises:
        ValueError: `masks` with another visit or without the heatmap.
    """

    role, num_members = Role.CEILING, None

    def __init__(self, visit: str = "w048", with_heatmap: bool = True, masks: bool = False) -> None:
        if masks and (visit != "w048" or not with_heatmap):
            raise ValueError("masks are read up to w048 and with the heatmap")
        self.visit, self.with_heatmap, self.masks = visit, with_heatmap, masks
        self.key = key_of("oracle", visit=visit, with_heatmap=with_heatmap, masks=masks)

    def __call__(self, patient: Patient) -> Sequence[Forecast]:
        """
        Raises:
            InputError: the data set is not a simulated one.
        """
        oracle = _oracle(patient.dataset_dir)
        exact = oracle(self._read(patient), patient.arm)
        counts = np.arange(len(exact.count_pmf))
        if exact.heatmap is None:
            return [Forecast(exact.p_active, counts, exact.count_pmf)]
        grid = SlabGrid(tuple(voxel_sizes(patient.affine)), patient.brain.shape)
        on_slab = to_slab(exact.heatmap, AFFINE, patient.affine, grid)
        return [Forecast(exact.p_active, counts, exact.count_pmf, region_presence(oracle, exact, patient), on_slab)]

    def _read(self, patient: Patient) -> Observation:
        if self.masks:
            return read_masks(patient.dataset_dir, patient.case)
        read = read_observation if self.with_heatmap else read_counts
        return read(patient.dataset_dir, patient.case, self.visit)


class BestEnsemble:
    """The oracle drawn a few times: the best possible ensemble of that size, against which ensembles are judged.

    Count, spatial law and lesions of each member are drawn from the posterior of `BestPossible` and counted by the rule
    that counts the outcome. Even this ensemble is worse than the exact distribution: 20 members cannot state a
    probability of 1 %, and their 80 % interval does not cover what that of the distribution does.

    Args:
        rule: what counts as a lesion of a member.
        num_members: size of the ensemble.
        seed: seeds each member, together with the case's id and the member's number; the arm is left out.
    """

    role = Role.CEILING

    def __init__(self, rule: LesionRule, num_members: int = 20, seed: int = 0) -> None:
        check_count("num_members", num_members)
        self.rule, self.num_members, self.seed = rule, num_members, seed
        self.key = key_of("oracle ensemble", rule=rule, num_members=num_members, seed=seed)

    def with_members(self, num_members: int) -> "BestEnsemble":
        """The same forecaster with ensembles of another size; the members that both draw are the same."""
        return BestEnsemble(self.rule, num_members, self.seed)

    def __call__(self, patient: Patient) -> Sequence[Forecast]:
        """
        Raises:
            InputError: the data set is not a simulated one.
        """
        oracle, grid = _oracle(patient.dataset_dir), SlabGrid(tuple(voxel_sizes(patient.affine)), patient.brain.shape)
        exact = oracle(read_observation(patient.dataset_dir, patient.case), patient.arm)
        members = []
        for member in range(self.num_members):
            rng = np.random.default_rng(seed_of("oracle ensemble", self.seed, patient.case, member))
            mask = union(oracle.draw(exact, rng))
            members.append(mask_to_slab(mask, AFFINE, patient.affine, grid) & patient.brain)
        return [ensemble_forecast(np.array(members), patient.affine, self.rule, patient.dseg)]


@lru_cache(maxsize=4)
def _oracle(dataset_dir: str) -> Oracle:
    """The oracle of a simulated trial, which knows its protocol."""
    return Oracle(read_protocol(dataset_dir))


def region_presence(oracle: Oracle, exact: OracleForecast, patient: Patient) -> dict[str, float]:
    """P(a lesion lies in the region), by the rule that the outcome is counted by (`present_in`).

    The chance that a lesion lies there is the fraction of drawn lesions that do; lesions are taken as independent given
    their number, as in the heatmap.
    """
    if patient.dseg is None or exact.starts is None:
        return {}
    labels = patient.dseg.at(apply_affine(AFFINE, np.moveaxis(np.indices(SHAPE), 0, -1).reshape(-1, 3)))
    lesions = oracle.next_lesions(exact, DRAWN_LESIONS, labels)
    present = [present_in(apply_affine(AFFINE, np.stack(lesion, axis=1)), patient.dseg) for lesion in lesions]
    fractions = {region: np.mean([region in regions for regions in present]) for region in SCORED_REGIONS}
    return {
        region: float(1 - np.polynomial.polynomial.polyval(1 - fraction, exact.count_pmf))
        for region, fraction in fractions.items()
    }


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
        observed = self.read({"image": f"{patient.dataset_dir}/{patient.case}", "arm": CLASSES[patient.arm]})
        found = observed.record.outcome
        presence = {region: float(present) for region, present in found.presence.items()}
        heatmap = observed.outcome.astype(np.float32)
        return [Forecast(float(found.count > 0), np.array([found.count]), np.ones(1), presence, heatmap)]
