"""Forecasters side by side on the patients of a split: each patient is forecast and scored once, by every forecaster.

What is scored of a patient is kept in a file, one per forecaster and patient: an evaluation that was stopped goes on
where it was, and several processes (torchrun) share the patients. Tables and figures come from these files alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bundle import metrics
from bundle.arms import ARMS
from bundle.errors import Guard, InputError
from bundle.files import check_writable, written_whole
from bundle.forecasters.base import SCORED_REGIONS, Forecast, Forecaster
from bundle.forecasters.cohort import CaseReader, Seen
from bundle.lesions import DetectionRule, LesionRule, voxel_volume_mm3
from bundle.seeding import digest_of

Values = NDArray[np.floating]
FLOOR, CEILING = "population", "oracle"  # of every table
FLOOR_OF_PLACES = "frequency_map"  # the population as a map: the floor where voxels are scored
# Probabilities of a heatmap are sorted into these bins: 0, then 1000 steps of 1.4 % from 1e-6 to 1. That tells shares
# of up to 70 members apart, and costs AP and AUC of smooth maps less than .001.
BIN_EDGES = np.concatenate([[-np.inf], np.geomspace(1e-6, 1, 1001)[:-1], [np.inf]])
ENSEMBLE_SIZES = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100)
NUMBERS = ("p_active", "count", "log_count", "crps", "low_80", "high_80", "low_95", "high_95")


@dataclass(frozen=True)
class Scoring:
    """Scores of one patient's forecasts.

    Args:
        rule: what counts as a lesion; its threshold is the share of members that must mark a voxel of the consensus.
        detection: when a lesion of the consensus counts as found.
    """

    rule: LesionRule
    detection: DetectionRule = DetectionRule()

    def __call__(self, forecasts: Sequence[Forecast], seen: Seen) -> dict[str, Values]:
        """Arrays by name.

        Of each forecast (R,), NaN where it says nothing: `NUMBERS` and "presence of <region>". Of the outcome: "arm",
        "true_count", "true presence of <region>". Of the first forecast's heatmap and members, if it has them, what
        `_of_heatmap` and `_of_members` tell.
        """
        outcome = seen.record.outcome
        scores = {name: np.array([number(name, f, outcome.count) for f in forecasts], float) for name in NUMBERS}
        scores |= {"arm": np.array(seen.patient.arm), "true_count": np.array(outcome.count)}
        for region in SCORED_REGIONS:
            scores[f"presence of {region}"] = np.array([f.presence.get(region, np.nan) for f in forecasts], float)
            scores[f"true presence of {region}"] = np.array(outcome.presence.get(region, np.nan), float)
        first = forecasts[0]
        if first.heatmap is not None:
            agreed = first.heatmap if first.members is None else first.members.mean(axis=0)
            scores |= self._of_heatmap(first.heatmap, agreed, seen)
        if first.members is not None:
            scores |= self._of_members(first, seen)
        return scores

    def _of_heatmap(self, heatmap: np.ndarray, agreed: np.ndarray, seen: Seen) -> dict[str, Values]:
        """Voxels of the brain by bin of `BIN_EDGES`; lesions of the consensus and of the truth, and how many match.

        `agreed` (H, W, S) is the share of members, the heatmap of forecasts without any.
        """
        brain, affine = seen.patient.brain, seen.patient.affine
        p, truth = heatmap[brain].astype(float), seen.outcome[brain]
        bins = np.searchsorted(BIN_EDGES, p, side="right") - 1
        size = len(BIN_EDGES) - 1
        least = self.detection.min_volume_mm3 / voxel_volume_mm3(affine)
        found, true = (large_enough(self.rule.label(x, affine), least) for x in (agreed, seen.outcome))
        return {
            "brier": np.square(p - truth).mean(),
            "voxels": np.bincount(bins, minlength=size),
            "forecast_voxels": np.bincount(bins, p, minlength=size),
            "lesion_voxels": np.bincount(bins, truth, minlength=size),
            "lesions": np.array(true.max(initial=0)),
            "lesions_found": np.array(self.detection(true, found).sum()),
            "marked": np.array(found.max(initial=0)),
            "marked_rightly": np.array(self.detection(found, true).sum()),
        }

    def _of_members(self, forecast: Forecast, seen: Seen) -> dict[str, Values]:
        """Scores of the first 1, 2, ... members alone, and the members themselves, eight voxels a byte."""
        counts, members = forecast.member_counts, forecast.members
        sizes = [size for size in ENSEMBLE_SIZES if size <= len(counts)]
        truth, brain = seen.outcome[seen.patient.brain], seen.patient.brain
        marks = members[:, brain].cumsum(axis=0)
        likely = [(counts[:k], np.full(k, 1 / k)) for k in sizes]
        return {
            "sizes": np.array(sizes),
            "p_active of first": np.array([np.mean(c > 0) for c, _ in likely]),
            "log_count of first": np.array([np.log1p(c).mean() for c, _ in likely]),
            "crps of first": np.array([metrics.crps(c, p, seen.record.outcome.count) for c, p in likely]),
            "brier of first": np.array([np.square(marks[k - 1] / k - truth).mean() for k in sizes]),
            "member_counts": counts,
            "members": np.packbits(members.reshape(len(members), -1), axis=1),
        }


def number(name: str, forecast: Forecast, true_count: int) -> float:
    """One of `NUMBERS`."""
    if name == "p_active":
        return forecast.p_active
    if name == "count":
        return forecast.expected_count
    if name == "log_count":
        return forecast.expected_log_count
    if name == "crps":
        return metrics.crps(forecast.counts, forecast.probabilities, true_count)
    end, percent = name.split("_")
    tail = (1 - float(percent) / 100) / 2
    return metrics.quantile(forecast.counts, forecast.probabilities, tail if end == "low" else 1 - tail)


def large_enough(labels: np.ndarray, least_voxels: float) -> np.ndarray:
    """Labels of the lesions of at least so many voxels, numbered anew."""
    kept = np.bincount(labels.ravel()) >= least_voxels
    kept[0] = False
    return (np.cumsum(kept) * kept)[labels]


@dataclass(frozen=True)
class ScoreFiles:
    """Where the scores of patients are kept.

    Args:
        directory: holds a folder per forecaster.
        key: names all that scores depend on beside forecaster and patient.
    """

    directory: Path
    key: str

    def file(self, name: str, case: str) -> Path:
        """Of one patient by one forecaster."""
        return self.directory / name / f"{case}.npz"

    def read(self, name: str, forecaster: Forecaster, case: str) -> dict[str, Values] | None:
        """What is kept; None if nothing is, or it was made otherwise."""
        file = self.file(name, case)
        if not file.is_file():
            return None
        with np.load(file) as kept:
            if str(kept["key"]) == self._key(forecaster):
                return {score: kept[score] for score in kept.files if score != "key"}
        return None

    def write(self, name: str, forecaster: Forecaster, case: str, scores: Mapping[str, Values]) -> None:
        """Keep scores; the file appears whole or not at all."""
        file = self.file(name, case)
        with written_whole(file) as stream:
            np.savez_compressed(stream, key=self._key(forecaster), **scores)

    def _key(self, forecaster: Forecaster) -> str:
        return digest_of(self.key, forecaster.key)


@dataclass(frozen=True)
class Evaluation:
    """Scores of forecasters on patients.

    Args:
        dataset_dir: the BIDS data set.
        items: of `bundle.data.datalist.load_split`, outcome known.
        read: reads them.
        forecasters: by name.
        scoring: scores them.
        output_dir: scores are kept in its folder `cases`.
        guard: is told of patients that cannot be read; they are left out.
    """

    dataset_dir: str | Path
    items: Sequence[Mapping[str, Any]]
    read: CaseReader
    forecasters: Mapping[str, Forecaster]
    scoring: Scoring
    output_dir: str | Path
    guard: Guard

    @property
    def files(self) -> ScoreFiles:
        """Where scores are kept."""
        return ScoreFiles(Path(self.output_dir) / "cases", repr((self.read, self.scoring)))

    def score(self, rank: int = 0, world: int = 1) -> None:
        """Forecast and score every patient of this process's share whose scores are not kept yet."""
        check_writable(Path(self.output_dir))
        with tqdm(self.items[rank::world], desc="forecasting", unit="patient", disable=rank > 0) as bar:
            for item in bar:
                self.guard.call(self._score_patient, item, None)

    def _score_patient(self, item: Mapping[str, Any]) -> None:
        case = item["case"]
        missing = [name for name, f in self.forecasters.items() if self.files.read(name, f, case) is None]
        if not missing:
            return
        seen = self.read(item)
        for name in missing:
            forecaster = self.forecasters[name]
            self.files.write(name, forecaster, case, self.scoring(forecaster(seen.patient), seen))

    def under_each_arm(self, name: str, item: Mapping[str, Any]) -> list[Forecast]:
        """Forecasts of one patient by one forecaster under each of the six treatments, all else alike; kept as scores are."""
        patient, forecaster, forecasts = None, self.forecasters[name], []
        for arm, treatment in enumerate(ARMS):
            kept = self.files.read(f"{name} under {treatment}", forecaster, item["case"])
            if kept is None:
                patient = patient or self.read(item).patient
                forecast = forecaster(replace(patient, arm=arm))[0]
                kept = {"p_active": forecast.p_active, "counts": forecast.counts, "probabilities": forecast.probabilities}
                kept |= {} if forecast.heatmap is None else {"heatmap": forecast.heatmap}
                self.files.write(f"{name} under {treatment}", forecaster, item["case"], kept)
            heatmap = kept.get("heatmap")
            forecasts.append(Forecast(float(kept["p_active"]), kept["counts"], kept["probabilities"], heatmap=heatmap))
        return forecasts

    def scores(self) -> dict[str, "Scores"]:
        """By forecaster, of the patients that all forecasters have scores of.

        Raises:
            InputError: there is none.
        """
        kept = {
            item["case"]: {name: self.files.read(name, f, item["case"]) for name, f in self.forecasters.items()}
            for item in self.items
        }
        cases = [case for case, scores in kept.items() if None not in scores.values()]
        if not cases:
            raise InputError("no patient of this split could be scored", "see the lines above")
        return {name: Scores.of(cases, [kept[case][name] for case in cases]) for name in self.forecasters}


@dataclass(frozen=True)
class Scores:
    """One forecaster's scores of N patients.

    Attributes:
        cases: their labels.
        values: arrays by name, (N, ...); see `Scoring`.
    """

    cases: tuple[str, ...]
    values: Mapping[str, Values]

    @classmethod
    def of(cls, cases: Sequence[str], scores: Sequence[Mapping[str, Values]]) -> "Scores":
        """Stack the scores of single patients."""
        return cls(tuple(cases), {name: np.stack([patient[name] for patient in scores]) for name in scores[0]})

    def __getitem__(self, name: str) -> Values:
        return self.values[name]

    def __contains__(self, name: str) -> bool:
        """Whether the forecaster says anything of it."""
        return name in self.values and not np.isnan(self.values[name]).all()

    @property
    def active(self) -> Values:
        """(N,) bool, truth."""
        return self["true_count"] > 0
