"""Per-patient scores of a forecast: everything that the metrics of an evaluation are computed from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import logit

from bundle.evaluation.locations import location_scores, site_scores
from bundle.forecasters.base import SCORED_REGIONS, Forecast, Role
from bundle.forecasters.cohort import ObservedCase
from bundle.lesions import DetectionRule, LesionRule, voxel_volume_mm3
from bundle.metrics import Values, crps, fair_crps, quantile

SCORES_VERSION = 5  # raise it when a forecaster or `Scoring` gives other numbers with the same settings
# Bins of heatmap probabilities: 0, then 1000 geometric steps of 1.4 % from 1e-6 to 1. They separate the fractions of
# up to 70 members, and change AP and AUC of smooth maps by less than .001.
BIN_EDGES = np.concatenate([[-np.inf], np.geomspace(1e-6, 1, 1001)[:-1], [np.inf]])
ENSEMBLE_SIZES = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100)
NUMBERS = (
    *("p_active", "count", "log_count", "crps", "fair_crps"),
    *("low_80", "high_80", "low_95", "high_95", "fewer", "at_most"),
)


@dataclass(frozen=True)
class Scoring:
    """Scores of one patient's forecasts.

    Args:
        rule: what counts as a lesion; its threshold is the fraction of members that must mark a voxel of the consensus.
        detection: when a lesion of the consensus counts as found.
    """

    rule: LesionRule
    detection: DetectionRule = DetectionRule()

    def __call__(self, forecasts: Sequence[Forecast], observed: ObservedCase) -> dict[str, Values]:
        """Arrays by name.

        Of each of R draws (R,), NaN where it forecasts nothing: `NUMBERS` and "presence of <region>". Of the outcome:
        "arm", "true_count", "true presence of <region>". Of the first draw's heatmap and members, if it has them: see
        `_heatmap_scores`, `bundle.evaluation.locations` and `_member_scores`.
        """
        outcome = observed.record.outcome
        scores = {name: np.array([number(name, f, outcome.count) for f in forecasts], float) for name in NUMBERS}
        scores |= {"arm": np.array(observed.patient.arm), "true_count": np.array(outcome.count)}
        for region in SCORED_REGIONS:
            scores[f"presence of {region}"] = np.array([f.presence.get(region, np.nan) for f in forecasts], float)
            scores[f"true presence of {region}"] = np.array(outcome.presence.get(region, np.nan), float)
        first = forecasts[0]
        if first.heatmap is not None:
            patient = observed.patient
            scores |= self._heatmap_scores(first, observed)
            scores |= location_scores(first.heatmap, observed.outcome, patient.brain, patient.affine, self.rule)
            scores |= site_scores(first, observed.outcome, patient.brain, patient.affine, self.rule)
        if first.members is not None:
            scores |= _member_scores(first, observed)
        return scores

    def _heatmap_scores(self, forecast: Forecast, observed: ObservedCase) -> dict[str, Values]:
        """Brier score; brain voxels by bin of `BIN_EDGES`; lesions of consensus and outcome, and how many match.

        The consensus is that of the members, or of the heatmap where there are none.
        """
        brain, affine = observed.patient.brain, observed.patient.affine
        p, truth = forecast.heatmap[brain].astype(float), observed.outcome[brain]
        bins = np.searchsorted(BIN_EDGES, p, side="right") - 1
        size = len(BIN_EDGES) - 1
        fraction = forecast.heatmap if forecast.members is None else forecast.members.mean(axis=0)
        min_voxels = self.detection.min_volume_mm3 / voxel_volume_mm3(affine)
        marked, lesions = (at_least(self.rule.label(x, affine), min_voxels) for x in (fraction, observed.outcome))
        return {
            "brier": np.square(p - truth).mean(),
            "voxels": np.bincount(bins, minlength=size),
            "forecast_voxels": np.bincount(bins, p, minlength=size),
            "lesion_voxels": np.bincount(bins, truth, minlength=size),
            "lesions": np.array(lesions.max(initial=0)),
            "lesions_found": np.array(self.detection(lesions, marked).sum()),
            "marked": np.array(marked.max(initial=0)),
            "marked_correctly": np.array(self.detection(marked, lesions).sum()),
        }


def _member_scores(forecast: Forecast, observed: ObservedCase) -> dict[str, Values]:
    """Scores of the first 1, 2, ... members alone (`ENSEMBLE_SIZES`), and the members, eight voxels a byte."""
    counts, members, brain = forecast.member_counts, forecast.members, observed.patient.brain
    sizes = [size for size in ENSEMBLE_SIZES if size <= len(counts)]
    truth = observed.outcome[brain]
    marks = members[:, brain].cumsum(axis=0)
    true_count = observed.record.outcome.count
    return {
        "sizes": np.array(sizes),
        "p_active of first members": np.array([np.mean(counts[:k] > 0) for k in sizes]),
        "log_count of first members": np.array([np.log1p(counts[:k]).mean() for k in sizes]),
        "crps of first members": np.array([crps(counts[:k], np.full(k, 1 / k), true_count) for k in sizes]),
        "brier of first members": np.array([np.square(marks[k - 1] / k - truth).mean() for k in sizes]),
        "member_counts": counts,
        "size of ensemble": np.array(len(counts) if forecast.of_members else 0),
        "members": np.packbits(members.reshape(len(members), -1), axis=1),
    }


def number(name: str, forecast: Forecast, true_count: int) -> float:
    """One of `NUMBERS`."""
    if name == "p_active":
        return forecast.p_active
    if np.isnan(forecast.counts).any():
        return np.nan
    if name == "count":
        return forecast.expected_count
    if name == "log_count":
        return forecast.expected_log_count
    if name == "crps":
        return crps(forecast.counts, forecast.probabilities, true_count)
    if name == "fair_crps":  # what is not an ensemble states its distribution itself
        members = forecast.member_counts
        return fair_crps(members, true_count) if forecast.of_members else number("crps", forecast, true_count)
    if name in ("fewer", "at_most"):  # the distribution function at the true count, without and with its own chance
        inside = forecast.counts < true_count if name == "fewer" else forecast.counts <= true_count
        return float(forecast.probabilities @ inside)
    end, percent = name.split("_")
    tail = (1 - float(percent) / 100) / 2
    return quantile(forecast.counts, forecast.probabilities, tail if end == "low" else 1 - tail)


def at_least(labels: np.ndarray, min_voxels: float) -> np.ndarray:
    """The lesions of a label map that have at least so many voxels, numbered consecutively."""
    kept = np.bincount(labels.ravel()) >= min_voxels
    kept[0] = False
    return (np.cumsum(kept) * kept)[labels]


@dataclass(frozen=True)
class Scores:
    """One forecaster's scores of N patients.

    Attributes:
        cases: their labels.
        values: arrays by name, (N, ...); see `Scoring`.
        role: what the forecaster is compared as.
        cuts: of its probabilities, see `bundle.evaluation.cuts`.
    """

    cases: tuple[str, ...]
    values: Mapping[str, Values]
    role: Role = Role.MODEL
    cuts: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, cases: Sequence[str], scores: Sequence[Mapping[str, Values]], role: Role) -> "Scores":
        """Stack the scores of single patients."""
        return cls(tuple(cases), {name: np.stack([patient[name] for patient in scores]) for name in scores[0]}, role)

    def __getitem__(self, name: str) -> Values:
        return self.values[name]

    def __contains__(self, name: str) -> bool:
        """Whether the forecaster has this score for any patient."""
        return name in self.values and not np.isnan(self.values[name]).all()

    def first_members(self, index: int) -> "Scores":
        """Scores of the first `sizes[:, index]` members alone, under the names of the whole ensemble's."""
        values = {name: self[name] for name in ("arm", "true_count")}
        for name in ("p_active", "log_count", "crps"):
            values[name] = self[f"{name} of first members"][:, index : index + 1]
        values["brier"] = self["brier of first members"][:, index]
        return Scores(self.cases, values, self.role)

    @property
    def num_draws(self) -> int:
        """Draws per patient, each scored for itself; 1 unless the forecaster is a Monte Carlo simulation."""
        return self["p_active"].shape[1]

    @property
    def log_odds(self) -> Values:
        """(N, R), of P(active); of a fraction of K members of (active + 1/2) / (K + 1), which is never 0 or 1."""
        if not np.any(self.values.get("size of ensemble", 0)):
            return logit(np.clip(self["p_active"], 1e-6, 1 - 1e-6))
        counts = self["member_counts"]
        return logit(((counts > 0).sum(axis=1, keepdims=True) + 0.5) / (counts.shape[1] + 1))

    @property
    def active(self) -> Values:
        """(N,) bool, whether the patient has a new or enlarging lesion at w096."""
        return self["true_count"] > 0
