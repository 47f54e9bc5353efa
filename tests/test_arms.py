import pytest

from bundle.arms import ARMS, AS_RECORDED, NULL_ARM, arm_index, requested_arm


@pytest.mark.parametrize("index, name", list(enumerate(ARMS)))
def test_every_way_to_name_an_arm(index, name):
    assert arm_index(name) == arm_index(name.upper()) == index
    assert arm_index(requested_arm(name)) == arm_index(requested_arm([name, "unknown"])) == index


@pytest.mark.parametrize("nothing", [None, "", "n/a", " N/A ", "unknown", float("nan")])
def test_unknown_is_the_null_class(nothing):
    assert arm_index(nothing) == NULL_ARM == 6


@pytest.mark.parametrize("wrong", ["aspirin", "7", "3", "\u00b2", "3.0", 0, 3, -1, 7, 2.0, True, '"placebo', {"a": 1}])
def test_other_names_are_refused_with_the_choices(wrong):
    with pytest.raises(ValueError, match="placebo, laquinimod"):
        arm_index(wrong)


@pytest.mark.parametrize("nothing", [None, [], AS_RECORDED, "As recorded ", [AS_RECORDED, *ARMS]])
def test_a_request_may_leave_the_arm_to_the_data_set(nothing):
    assert requested_arm(nothing) is None
