"""Forecasters side by side on the patients of a split: each patient is forecast and scored once by every forecaster.

The scores of a patient are stored in one file per forecaster: an evaluation that was stopped resumes where it was, and
several processes (torchrun) divide the patients. Tables and figures are computed from these files alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from bundle.arms import ARMS
from bundle.errors import Guard, InputError
from bundle.evaluation.scoring import SCORES_VERSION, Scores, Scoring
from bundle.files import check_writable, read_arrays, write_arrays
from bundle.forecasters.base import Forecast, Forecaster, key_of
from bundle.forecasters.cohort import ObservedCase
from bundle.metrics import Values
from bundle.seeding import digest_of


class Reader(Protocol):
    """Reads patients; see `bundle.forecasters.cohort.CaseReader`. A dataclass, as its settings are part of keys.

    Attributes:
        visits: session labels, see `bundle.data.bids.find_case`.
    """

    visits: Mapping[str, str] | None

    def __call__(self, item: Mapping[str, Any]) -> ObservedCase: ...

    def version(self, item: Mapping[str, Any]) -> str:
        """Identifies the files that are read for a patient."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of forecasters on patients.

    Args:
        dataset_dir: the BIDS data set.
        items: of `bundle.data.datalist.load_split`, outcome known.
        read: reads them.
        forecasters: by name.
        scoring: scores them.
        output_dir: scores are stored in its folder `cases`.
        guard: reports patients that cannot be read; they are left out.
    """

    dataset_dir: str | Path
    items: Sequence[Mapping[str, Any]]
    read: Reader
    forecasters: Mapping[str, Forecaster]
    scoring: Scoring
    output_dir: str | Path
    guard: Guard

    def score(self, rank: int = 0, world: int = 1) -> None:
        """Forecast and score the patients of this process that have no stored scores yet."""
        check_writable(Path(self.output_dir))
        for item in tqdm(self.items[rank::world], desc="forecasting", unit="patient", disable=rank > 0):
            self.guard.call(self._score_patient, item, None)

    def _score_patient(self, item: Mapping[str, Any]) -> None:
        keys = {name: self.key(forecaster, item) for name, forecaster in self.forecasters.items()}
        missing = [name for name, key in keys.items() if read_arrays(self.file(name, item["case"]), key) is None]
        if not missing:
            return
        observed = self.read(item)
        for name in missing:
            scores = self.scoring(self.forecasters[name](observed.patient), observed)
            write_arrays(self.file(name, item["case"]), keys[name], scores)

    def under_each_arm(self, name: str, item: Mapping[str, Any]) -> list[Forecast]:
        """Forecasts of a patient by one forecaster under each of the six arms, all else equal; stored as scores are."""
        forecaster, patient, forecasts = self.forecasters[name], None, []
        key = self.key(forecaster, item)
        for arm, treatment in enumerate(ARMS):
            file = self.file(f"{name} under {treatment}", item["case"])
            stored = read_arrays(file, key)
            if stored is None:
                patient = patient or self.read(item).patient
                forecast = forecaster(replace(patient, arm=arm))[0]
                stored = {
                    "p_active": forecast.p_active,
                    "counts": forecast.counts,
                    "probabilities": forecast.probabilities,
                }
                stored |= {} if forecast.heatmap is None else {"heatmap": forecast.heatmap}
                write_arrays(file, key, stored)
            heatmap = stored.get("heatmap")
            forecasts.append(
                Forecast(float(stored["p_active"]), stored["counts"], stored["probabilities"], heatmap=heatmap)
            )
        return forecasts

    def scores(self) -> dict[str, Scores]:
        """By forecaster, of the patients that have stored scores of all forecasters.

        Raises:
            InputError: there is no such patient.
        """
        stored = {item["case"]: self._stored(item) for item in self.items}
        complete = {case: scores for case, scores in stored.items() if scores is not None}
        if not complete:
            raise InputError("no patient of this split could be scored", "see the lines above")
        return {
            name: Scores.of(list(complete), [scores[name] for scores in complete.values()], forecaster.role)
            for name, forecaster in self.forecasters.items()
        }

    def _stored(self, item: Mapping[str, Any]) -> dict[str, dict[str, Values]] | None:
        """Scores by forecaster; None unless there are some of each."""
        try:
            keys = {name: self.key(forecaster, item) for name, forecaster in self.forecasters.items()}
        except InputError:  # its files are gone; `score` reports it
            return None
        scores = {name: read_arrays(self.file(name, item["case"]), key) for name, key in keys.items()}
        return None if None in scores.values() else scores

    def file(self, name: str, case: str) -> Path:
        """Where the scores of a patient by one forecaster are stored."""
        return Path(self.output_dir) / "cases" / name / f"{case}.npz"

    def key(self, forecaster: Forecaster, item: Mapping[str, Any]) -> str:
        """Identifies all that a patient's scores depend on; stored scores with another key are made again.

        Raises:
            InputError: there is no such patient.
        """
        settings = key_of("scores", version=SCORES_VERSION, read=self.read, scoring=self.scoring)
        return digest_of(settings, forecaster.key, self.read.version(item))
