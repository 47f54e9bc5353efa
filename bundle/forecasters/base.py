"""What every forecaster states about a patient, be it the model, a baseline or the oracle: one form, scored in one way.

A new forecaster is one class with the attributes of `Forecaster` and one line in the registry of configs/evaluate.json.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from functools import cached_property
from typing import Any, Protocol, cast

import numpy as np
import torch
from nibabel.affines import apply_affine

from bundle.data.bids import CONDITION
from bundle.lesions import LesionRule, Volume, region_of, regions_at, voxel_volume_mm3

_REGIONS, ANY_VOXEL = ("cerebral white matter", "cortex"), ", any voxel"  # Favero et al. 2025, table 2
# Where a lesion is present: in the region that holds most of it, or, as the paper's "at least one lesion in that
# region" is read here, in every region that holds a voxel of it.
SCORED_REGIONS = (*_REGIONS, *(f"{region}{ANY_VOXEL}" for region in _REGIONS))


class Role(str, Enum):
    """What a forecaster is compared as. Tables and charts treat forecasters by role, never by name.

    FLOOR: the best probabilities that need no more than the arm and the population; 0 on the scale of the gap closed.
    BASELINE: must be beaten by a model; the best one of each metric is compared with the models in pairs.
    MODEL: what is evaluated.
    CEILING: the best possible forecast; 1 on the scale of the gap closed.
    OUTCOME: the observed outcome as a forecast, which has the perfect value of every metric; not drawn in charts.
    """

    FLOOR = "floor"
    BASELINE = "baseline"
    MODEL = "model"
    CEILING = "ceiling"
    OUTCOME = "outcome"


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
        covariates: by name of `bundle.forecasters.cohort.TABLED`; None where it is unknown.
    """

    case: str
    arm: int
    image: torch.Tensor
    brain: np.ndarray
    affine: np.ndarray
    dseg: Volume | None = None
    dataset_dir: str = ""
    covariates: Mapping[str, float | None] = field(default_factory=dict)

    def volume(self, name: str) -> np.ndarray:
        """(H, W, S) of one of `bundle.data.bids.CONDITION`."""
        return self.image[CONDITION.index(name)].numpy()


@dataclass(frozen=True)
class Findings:
    """Lesions counted on one lesion map, by the same rule for the outcome and for each ensemble member.

    Attributes:
        count: number of lesions.
        volume_ml: their total volume.
        presence: by region of `SCORED_REGIONS`, whether a lesion lies there; empty without a segmentation.
    """

    count: int
    volume_ml: float
    presence: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Forecast:
    """Forecast of one patient.

    Attributes:
        p_active: probability of at least one lesion; NaN if not forecast.
        counts, probabilities: (M,), distribution of the lesion count; the counts need not be integers, and are NaN if
            not forecast.
        presence: by region of `SCORED_REGIONS`, the probability of a lesion there; empty if not forecast.
        heatmap: (H, W, S) float32, probability of each voxel to lie in a lesion; None if not forecast.
        members: (K, H, W, S) bool, the lesions of each member, if the forecast is an ensemble.
        member_counts: (K,) number of lesions of each member.
        of_members: whether p_active and the counts are those of the members; they may come from elsewhere.
    """

    p_active: float
    counts: np.ndarray
    probabilities: np.ndarray
    presence: Mapping[str, float] = field(default_factory=dict)
    heatmap: np.ndarray | None = None
    members: np.ndarray | None = None
    member_counts: np.ndarray | None = None
    of_members: bool = False

    @cached_property
    def expected_count(self) -> float:
        """Mean lesion count."""
        return float(self.probabilities @ self.counts)

    @cached_property
    def expected_log_count(self) -> float:
        """Mean of log(1 + count): the point forecast that minimises the mean squared error of the log count."""
        return float(self.probabilities @ np.log1p(self.counts))


class Forecaster(Protocol):
    """Forecasts a patient: one forecast, or several draws of equal weight, whose scores are averaged.

    Attributes:
        role: what it is compared as.
        num_members: size of its ensembles; None if it states distributions without drawing members.
        key: identifies everything its forecasts depend on besides the patient (see `key_of`), so that stored scores
            are never used for another forecaster.
    """

    role: Role
    num_members: int | None
    key: str

    def __call__(self, patient: Patient) -> Sequence[Forecast]: ...


class EnsembleForecaster(Forecaster, Protocol):
    """A forecaster whose `num_members` is not None."""

    def with_members(self, num_members: int) -> "EnsembleForecaster":
        """The same forecaster with ensembles of another size; the members that both draw are the same."""


def ensembles(forecasters: Mapping[str, Forecaster]) -> dict[str, EnsembleForecaster]:
    """The forecasters that draw members, by name."""
    return {name: cast(EnsembleForecaster, f) for name, f in forecasters.items() if f.num_members is not None}


def key_of(*names: str, **settings: Any) -> str:
    """Text that is equal for equal settings and different for different ones, to be used in cache keys.

    Args:
        names: of what is identified.
        settings: see `plain`.

    Raises:
        TypeError: as `plain`.
    """
    return json.dumps([*names, plain(settings)], sort_keys=True)


def plain(value: Any) -> Any:
    """A setting in plain JSON types: a dataclass becomes its type's name and its fields, an infinite number its name.

    Args:
        value: number, text, None, a dataclass, or sequences and mappings of these.

    Raises:
        TypeError: any other object: its `repr` may hold an address, or leave something out.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__} | {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise TypeError(f"{type(value).__name__} cannot stand in a cache key: use a dataclass")


def findings_of(mask: np.ndarray, affine: np.ndarray, rule: LesionRule, dseg: Volume | None = None) -> Findings:
    """Count a map of lesions (H, W, S), and the regions where they lie (`present_in`)."""
    labels = rule.label(mask, affine)
    count = int(labels.max(initial=0))
    presence = {}
    if dseg is not None:
        lesions = (apply_affine(affine, np.argwhere(labels == label)) for label in range(1, count + 1))
        present = set().union(*(present_in(points_mm, dseg) for points_mm in lesions))
        presence = {region: region in present for region in SCORED_REGIONS}
    return Findings(count, float(np.count_nonzero(labels) * voxel_volume_mm3(affine) / 1000), presence)


def present_in(points_mm: np.ndarray, dseg: Volume) -> set[str]:
    """The `SCORED_REGIONS` in which a lesion lies whose voxels have these centres (N, 3); others may be among them."""
    region = region_of(points_mm, dseg)
    return {f"{touched}{ANY_VOXEL}" for touched in regions_at(points_mm, dseg)} | ({region} if region else set())
