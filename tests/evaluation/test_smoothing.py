import numpy as np
import pytest

from bundle.data.datalist import load_split
from bundle.data.grid import SlabGrid
from bundle.errors import InputError
from bundle.evaluation.smoothing import DEFAULT_MM, choose_smoothing, log_score
from bundle.forecasters.baselines import FrequencyMap
from bundle.forecasters.cohort import CaseReader, Cohort
from bundle.lesions import LesionRule

GRID = SlabGrid((8, 8, 3), (20, 24, 15))


class Reader(CaseReader):
    """Counts the patients that it reads."""

    number = 0

    def __call__(self, item):
        Reader.number += 1
        return super().__call__(item)


@pytest.mark.slow
def test_the_candidate_with_the_greatest_log_score_is_chosen_and_stored(trial, tmp_path):
    read = Reader(GRID, LesionRule())
    active = [item for item in load_split(trial, "training") if item["active"]]
    outcomes = [read(item) for item in active]
    cohort = Cohort((), np.mean([x.outcome for x in outcomes[:2]], axis=0, dtype=np.float32), "two")
    total = {mm: sum(log_score(FrequencyMap(cohort, mm), x, read) for x in outcomes) for mm in (2, 8, 30)}
    arguments = (cohort, trial, "training", read, tmp_path / "smoothing.npz", (2, 8, 30))
    Reader.number = 0
    assert choose_smoothing(*arguments) == max(total, key=total.get) and Reader.number == len(active)
    assert choose_smoothing(*arguments) == max(total, key=total.get) and Reader.number == len(active)


def test_without_a_split_it_is_the_default(tmp_path):
    assert choose_smoothing(None, tmp_path, "none", None, tmp_path / "smoothing.npz") == DEFAULT_MM
    with pytest.raises(InputError):
        choose_smoothing(None, tmp_path, "validation", None, tmp_path / "smoothing.npz")
