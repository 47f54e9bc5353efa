"""How much the frequency map is smoothed: by what scores best on patients that are not evaluated."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bundle.data.datalist import load_split, with_outcome
from bundle.errors import Guard
from bundle.evaluation.locations import density_of, lesions_of, log_density_ratio
from bundle.files import read_arrays, write_arrays
from bundle.forecasters.base import key_of
from bundle.forecasters.baselines import FrequencyMap
from bundle.forecasters.cohort import CaseReader, Cohort, ObservedCase
from bundle.seeding import digest_of

DEFAULT_MM = 4.0


def choose_smoothing(
    cohort: Cohort,
    dataset_dir: str | Path,
    split: str,
    read: CaseReader,
    file: str | Path,
    candidates_mm: Sequence[float] = (0, 3, 4, 6, 8),
    visits: Mapping[str, str] | None = None,
    guard: Guard | None = None,
) -> float:
    """The candidate whose frequency map has the greatest log score per lesion on a split.

    Args:
        cohort: of the training split.
        dataset_dir: the BIDS data set.
        split: to choose on; "none" for `DEFAULT_MM`.
        read: reads its patients.
        file: .npz in which the scores are stored; ignored if it was made of other patients.
        candidates_mm: standard deviations of the Gaussian.
        visits: session labels, see `bundle.data.bids.find_case`.
        guard: reports patients that cannot be read.

    Returns:
        In mm; `DEFAULT_MM` if no patient of the split has a lesion.

    Raises:
        InputError: no such split.
    """
    if split == "none":
        return DEFAULT_MM
    guard, file = guard or Guard(), Path(file)
    items = with_outcome(load_split(dataset_dir, split, visits=visits))
    versions = [guard.call(read.version, item, None) for item in items]
    key = digest_of(key_of("smoothing", read=read, candidates=list(candidates_mm)), cohort.key, versions)
    stored = read_arrays(file, key)
    if stored is None:
        maps = [FrequencyMap(cohort, mm) for mm in candidates_mm]
        seen = (guard.call(read, item, None) for item in items if item["active"])
        scores = [[log_score(frequency, observed, read) for frequency in maps] for observed in seen if observed]
        stored = {"scores": np.sum(scores, axis=0) if scores else np.zeros(len(maps))}
        write_arrays(file, key, stored)
    total = stored["scores"]
    return float(candidates_mm[int(total.argmax())]) if total.any() else DEFAULT_MM


def log_score(frequency: FrequencyMap, observed: ObservedCase, read: CaseReader) -> float:
    """Sum over the lesions of a patient of the mean log score in the lesion, in nats over uniform."""
    patient = observed.patient
    ratio = log_density_ratio(density_of(frequency.density(patient), patient.brain), patient.brain)
    lesions = lesions_of(observed.outcome, patient.brain, patient.affine, read.rule)
    return float(sum(ratio[tuple(voxels.T)].mean() for voxels in lesions))
