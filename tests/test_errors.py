import pickle

from bundle.errors import InputError


def test_an_error_comes_whole_from_a_worker():
    error = InputError("it is broken", "repair it", case="sub-1", file="x")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.problem, again.fix) == ("sub-1: x: it is broken; repair it", "it is broken", "repair it")
