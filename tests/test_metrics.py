import math

import pytest
import torch

from bundle.metrics import activity_auc, log_skill


def test_auc_is_the_share_of_pairs_in_order_ties_counted_half():
    score, active = torch.tensor([0.1, 0.4, 0.4, 0.8, 0.3]), torch.tensor([0, 0, 1, 1, 1])
    pairs = [(a, b) for a in score[active == 1] for b in score[active == 0]]
    expected = sum(float(a > b) + 0.5 * float(a == b) for a, b in pairs) / len(pairs)
    assert activity_auc(score, active) == pytest.approx(expected)


@pytest.mark.parametrize("label", [0, 1])
def test_auc_is_undefined_when_all_are_alike(label):
    assert math.isnan(activity_auc(torch.rand(4), torch.full((4,), label)))


def test_log_skill_of_constant_and_perfect_maps():
    share = torch.tensor([0.0, 0.02, 0.04])
    constant = -(share * math.log(0.02) + (1 - share) * math.log(0.98))
    assert log_skill(constant, share) == pytest.approx(0, abs=1e-6)
    assert log_skill(torch.zeros(3), share) == 1
    worse = -(share * math.log(0.2) + (1 - share) * math.log(0.8))
    assert log_skill(worse, share) < 0
    assert math.isnan(log_skill(constant, torch.zeros(3)))
