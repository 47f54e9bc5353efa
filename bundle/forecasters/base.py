"""What every forecaster says of a patient, be it the model, a baseline or the oracle: one form, scored in one way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import torch

from bundle.data.bids import CONDITION
from bundle.lesions import LesionRule, Placed, region_of

SCORED_REGIONS = ("cerebral white matter", "cortex")  # Favero et al. 2025, table 2


@dataclass(frozen=True)
class Patient:
    """What a forecaster may look at.

    Attributes:
        case: participant label.
        arm: class index of the treatment to forecast under.
        image: (8, H, W, S) float32, see `bundle.data.transforms.LoadCased`.
        brain: (H, W, S) bool.
        affine: (4, 4) of the slab.
        dseg: FreeSurfer labels on any grid of the same world, or None.
        dataset_dir: for forecasters that read more than scans (the oracle).
    """

    case: str
    arm: int
    image: torch.Tensor
    brain: np.ndarray
    affine: np.ndarray
    dseg: Placed | None = None
    dataset_dir: str = ""

    def volume(self, name: str) -> np.ndarray:
        """(H, W, S) of one of `bundle.data.bids.CONDITION`."""
        return self.image[CONDITION.index(name)].numpy()


@dataclass(frozen=True)
class Findings:
    """What is counted of one map of lesions, in truth and in a member alike.

    Attributes:
        count: lesions.
        volume_ml: their volume.
        presence: by region of `SCORED_REGIONS`, whether a lesion lies mostly there; empty without a segmentation.
    """

    count: int
    volume_ml: float
    presence: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Forecast:
    """What is forecast of one patient.

    Attributes:
        p_active: probability of at least one lesion.
        counts, probabilities: (M,), the distribution of the lesion count; any numbers, they need not be whole.
        presence: by region of `SCORED_REGIONS`, the probability of a lesion there; empty where nothing is said of it.
        heatmap: (H, W, S) float32, probability of each voxel to lie in a lesion; None where nothing is said of it.
        members: (K, H, W, S) bool, the lesions of each member, if the forecast is an ensemble.
        member_counts: (K,) how many each member has.
    """

    p_active: float
    counts: np.ndarray
    probabilities: np.ndarray
    presence: Mapping[str, float] = field(default_factory=dict)
    heatmap: np.ndarray | None = None
    members: np.ndarray | None = None
    member_counts: np.ndarray | None = None

    @cached_property
    def expected_count(self) -> float:
        """Mean lesion count."""
        return float(self.probabilities @ self.counts)

    @cached_property
    def expected_log_count(self) -> float:
        """Mean of log(1 + count): of all numbers the one with the least mean squared error of the log count."""
        return float(self.probabilities @ np.log1p(self.counts))


class Forecaster(Protocol):
    """Forecasts a patient: one forecast, or several equally good guesses, each of which is scored.

    Attributes:
        key: names all that its forecasts depend on beside the patient, so that kept scores are used for no other.
    """

    key: str

    def __call__(self, patient: Patient) -> Sequence[Forecast]: ...


def findings_of(mask: np.ndarray, affine: np.ndarray, rule: LesionRule, dseg: Placed | None = None) -> Findings:
    """Count a map of lesions (H, W, S); each lesion belongs to the region in which most of its labelled voxels lie."""
    labels = rule.label(mask, affine)
    count = int(labels.max(initial=0))
    presence = {}
    if dseg is not None:
        regions = {region_of(_points_mm(labels == label, affine), dseg) for label in range(1, count + 1)}
        presence = {region: region in regions for region in SCORED_REGIONS}
    return Findings(count, rule.volume_ml(mask, affine), presence)


def _points_mm(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]
