import pytest

from bundle.arms import NULL_ARM
from bundle.baselines import PopulationBaseline

ITEMS = [
    {"arm": "placebo", "active": True},
    {"arm": "placebo", "active": False},
    {"arm": "placebo", "active": True},
    {"arm": "ocrelizumab", "active": False},
    {"arm": "ocrelizumab", "active": None},
]


def test_the_population_is_counted_by_arm():
    baseline = PopulationBaseline(ITEMS)
    assert baseline(0) == pytest.approx(2 / 3) and baseline(5) == 0


def test_an_unknown_or_unseen_arm_gets_the_share_of_all():
    baseline = PopulationBaseline(ITEMS)
    assert baseline(NULL_ARM) == baseline(3) == 0.5


def test_no_known_outcome_is_refused():
    with pytest.raises(ValueError, match="at least one patient"):
        PopulationBaseline(ITEMS[-1:])
