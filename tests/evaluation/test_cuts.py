import numpy as np
import pytest

from bundle.evaluation.cuts import choose_cuts
from bundle.evaluation.scoring import Scores
from bundle.forecasters.base import SCORED_REGIONS


def scores_of(p, truth):
    p = np.array(p, float).reshape(len(truth), -1)
    values = {f"presence of {region}": p for region in SCORED_REGIONS}
    values |= {f"true presence of {region}": np.array(truth, float) for region in SCORED_REGIONS}
    return Scores(tuple(f"sub-{n}" for n in range(len(truth))), values)


def test_the_cut_is_where_the_criterion_is_greatest():
    """From .2 on both positives are found, with one false one of three: F1 .8; balanced accuracy 5/6."""
    cuts = choose_cuts(scores_of([0.01, 0.02, 0.2, 0.3, 0.3], [0, 0, 1, 1, 0]))
    assert set(cuts) == {f"{name}, {region}" for name in ("balanced accuracy", "F1") for region in SCORED_REGIONS}
    assert set(cuts.values()) == {0.2}


def test_of_equal_cuts_that_nearest_to_one_half_is_chosen():
    cuts = choose_cuts(scores_of([0.1, 0.6, 0.9], [0, np.nan, 1]))
    assert set(cuts.values()) == {0.9}


@pytest.mark.parametrize("p", [[0, 1, 1], [np.nan] * 3])
def test_who_states_no_probabilities_has_no_cut(p):
    assert choose_cuts(scores_of(p, [0, 1, 0])) == {}


def test_without_a_patient_with_a_lesion_there_is_no_cut_for_balanced_accuracy():
    cuts = choose_cuts(scores_of([0.1, 0.2, 0.3], [0, 0, 0]))
    assert not any(name.startswith("balanced") for name in cuts)
