"""What every forecaster says of a patient, be it the model, a baseline or the oracle: one form, scored in one way."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from monai.data import MetaTensor
from torch import nn

from bundle.data.bids import CONDITION
from bundle.forecasting import EnsembleInferer
from bundle.lesions import LesionRule, Placed, region_of
from bundle.randomness import digest_of

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


class Diffusion:
    """The diffusion model as a forecaster.

    Args:
        network: with its weights.
        inferer: gives members (B, K, H, W, S) of images and network.
        rule: what counts as a lesion of a member.
        one_call: the heatmap is the network's one-call heatmap, else the share of members.
    """

    def __init__(self, network: nn.Module, inferer: EnsembleInferer, rule: LesionRule, one_call: bool = True) -> None:
        self.network, self.inferer, self.rule, self.one_call = network, inferer, rule, one_call
        weights = [value.cpu().float().numpy().tobytes() for value in network.state_dict().values()]
        heatmap = "one-call heatmap" if one_call else "share of members"
        self.key = f"diffusion, {heatmap}, {digest_of(*weights)}, {inferer.settings}, {rule}"
        self.device = next(network.parameters()).device

    def with_members(self, num_members: int) -> "Diffusion":
        """The same with ensembles of another size; as many members as both have are the same."""
        inferer = copy.copy(self.inferer)
        inferer.num_members = num_members
        return Diffusion(self.network, inferer, self.rule, self.one_call)

    def __call__(self, patient: Patient) -> Sequence[Forecast]:
        members = self._drawn(self.inferer, patient)
        heatmap = self.heatmap(patient) if self.one_call else None
        return [ensemble_forecast(members, patient.affine, self.rule, patient.dseg, heatmap)]

    def heatmap(self, patient: Patient) -> np.ndarray:
        """The one-call heatmap, (H, W, S) float32, 0 outside the brain."""
        return self._drawn(self.inferer.heatmap, patient)

    def _drawn(self, draw: Callable[[torch.Tensor, nn.Module], torch.Tensor], patient: Patient) -> np.ndarray:
        image = MetaTensor(patient.image[None].clone(), meta={"case": patient.case}).to(self.device)
        image[:, -1] = patient.arm
        return draw(image, self.network)[0].float().cpu().numpy() * patient.brain


def findings_of(mask: np.ndarray, affine: np.ndarray, rule: LesionRule, dseg: Placed | None = None) -> Findings:
    """Count a map of lesions (H, W, S); each lesion belongs to the region in which most of its labelled voxels lie."""
    labels = rule.label(mask, affine)
    count = int(labels.max(initial=0))
    presence = {}
    if dseg is not None:
        regions = {region_of(_points_mm(labels == label, affine), dseg) for label in range(1, count + 1)}
        presence = {region: region in regions for region in SCORED_REGIONS}
    return Findings(count, rule.volume_ml(mask, affine), presence)


def ensemble_forecast(
    members: np.ndarray,
    affine: np.ndarray,
    rule: LesionRule,
    dseg: Placed | None = None,
    heatmap: np.ndarray | None = None,
) -> Forecast:
    """Members (K, H, W, S), counted one by one and summed up; without a heatmap (H, W, S) it is the share of members."""
    marks = np.stack([rule.label(member, affine) > 0 for member in members])
    findings = [findings_of(mark, affine, LesionRule(), dseg) for mark in marks]
    member_counts = np.array([found.count for found in findings])
    counts, times = np.unique(member_counts, return_counts=True)
    regions = SCORED_REGIONS if dseg is not None else ()
    return Forecast(
        p_active=float(np.mean(member_counts > 0)),
        counts=counts,
        probabilities=times / len(marks),
        presence={region: float(np.mean([found.presence[region] for found in findings])) for region in regions},
        heatmap=marks.mean(axis=0, dtype=np.float32) if heatmap is None else heatmap,
        members=marks,
        member_counts=member_counts,
    )


def _points_mm(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]
