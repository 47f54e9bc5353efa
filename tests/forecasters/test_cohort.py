import numpy as np
import pytest

from bundle.data.datalist import load_split, with_outcome
from bundle.data.grid import SlabGrid
from bundle.errors import InputError
from bundle.forecasters import cohort
from bundle.forecasters.cohort import CaseReader, read_cohort
from bundle.lesions import LesionRule
from bundle.simulation.oracle import read_truth

READ = CaseReader(SlabGrid((2, 2, 3), (80, 96, 15)), LesionRule())


@pytest.fixture(scope="module")
def items(trial):
    return with_outcome(load_split(trial, "all"))


@pytest.fixture(scope="module")
def counted(items, tmp_path_factory):
    file = tmp_path_factory.mktemp("cohort") / "new" / "cohort.npz"
    return read_cohort(items, READ, file, workers=0), file


def test_counts_are_those_that_were_simulated(trial, items, counted):
    """Lesions that touch are one, here and in no other place: all but a few counts agree."""
    truths = [read_truth(trial, item["case"]) for item in items]
    true = np.array([len(truth["arms"][truth["arm"]]["net2_w096"]) for truth in truths])
    assert len(items) == 12 and true.sum() > 0
    assert (counted[0].counts <= true).all() and counted[0].counts.sum() >= 0.85 * true.sum()
    assert [record.lesions["gd_w000"] for record in counted[0].records] == pytest.approx(
        [truth["num_gd_w000"] for truth in truths], abs=2
    )


def test_the_frequency_map_is_the_mean_of_the_outcomes(items, counted):
    outcomes = [READ(item).outcome for item in items]
    np.testing.assert_allclose(counted[0].frequency, np.mean(outcomes, axis=0), atol=1e-6)
    volumes = [record.outcome.volume_ml for record in counted[0].records]
    assert sum(volumes) == pytest.approx(np.sum(outcomes) * 12 / 1000)


def test_it_is_read_once(items, counted, monkeypatch):
    kept, file = counted
    monkeypatch.setattr(cohort, "_count", None)  # reading anew would fail
    again = read_cohort(items, READ, file, workers=0)
    assert again.records == kept.records and again.key == kept.key
    np.testing.assert_array_equal(again.frequency, kept.frequency)


def test_other_patients_or_another_reader_are_read_anew(items, counted, tmp_path):
    kept, file = counted
    copy = tmp_path / "cohort.npz"
    copy.write_bytes(file.read_bytes())
    assert len(read_cohort(items[:2], READ, copy, workers=0).records) == 2
    without = CaseReader(READ.grid, READ.rule, drop_visits=("w048",))
    record = read_cohort(items[:2], without, copy, workers=0).records[0]
    assert record.lesions["t2_w048"] is None and record.lesions["t2_w000"] > 0


def test_no_outcome_is_told(tmp_path):
    with pytest.raises(InputError, match="no patient with a known outcome"):
        read_cohort([], READ, tmp_path / "cohort.npz")
