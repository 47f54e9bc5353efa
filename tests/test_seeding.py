import pytest
import torch

from bundle.seeding import Streams, seed_of


def test_seeds_are_the_same_everywhere():
    assert seed_of(0, "sub-0001", 3) == seed_of(0, "sub-0001", 3) < 2**63
    assert len({seed_of(a, b, c) for a in range(9) for b in "xy" for c in range(9)}) == 162
    assert seed_of("1", 2) != seed_of(1, "2")


def test_a_member_draws_the_same_numbers_in_any_batch():
    together = Streams.for_members(7, "sub-0001", range(4))
    alone = [Streams.for_members(7, "sub-0001", [member]) for member in range(4)]
    for draw in (lambda s: s.normal((2, 3)), lambda s: s.uniform((5,)), lambda s: s.normal((1,))):
        assert torch.equal(draw(together), torch.cat([draw(stream) for stream in alone]))


@torch.inference_mode()
def test_many_numbers_are_drawn_by_threads_as_by_one():
    shape = (40, 100, 100)
    many = Streams.for_members(7, "sub-0001", range(3)).normal(shape)
    for member in range(3):
        assert torch.equal(many[member], Streams.for_members(7, "sub-0001", [member]).normal(shape)[0])


def test_members_cases_and_seeds_differ():
    first = Streams.for_members(0, "a", [0, 1]).normal((4,))
    assert not torch.equal(first[0], first[1])
    for seed, case in [(1, "a"), (0, "b")]:
        assert not torch.equal(first, Streams.for_members(seed, case, [0, 1]).normal((4,)))


@pytest.mark.parametrize("iteration", [0, 5])
def test_training_draws_do_not_depend_on_how_the_batch_is_shared(iteration):
    whole = Streams.for_batch(3, iteration, range(6), 6)
    halves = [Streams.for_batch(3, iteration, positions, 6) for positions in (range(3), range(3, 6))]
    for draw in (lambda s: s.stratified_uniform(), lambda s: s.normal((2,)), lambda s: s.uniform()):
        assert torch.equal(draw(whole), torch.cat([draw(half) for half in halves]))


def test_stratified_times_fall_one_in_each_stratum():
    times = Streams.for_batch(0, 1, range(8), 8).stratified_uniform()
    assert times.min() >= 0 and times.max() < 1
    spacing = times.sort().values.diff()
    torch.testing.assert_close(spacing, torch.full((7,), 1 / 8))
