"""What the pictures of a patient show, read back from the drawn artists."""

import numpy as np
import pytest

from bundle.arms import ARMS
from bundle.evaluation import slices
from bundle.forecasters.base import Forecast

SHAPE = (20, 24, 6)  # runs to the patient's right, anterior, superior
RIGHT_FRONT = (15, 18)


@pytest.fixture
def brain():
    brain = np.zeros(SHAPE, bool)
    brain[2:18, 2:22] = True
    return brain


@pytest.fixture
def flair():
    return np.random.default_rng(0).uniform(-1, 1, SHAPE)


def mask_at(*voxels):
    mask = np.zeros(SHAPE, bool)
    for voxel in voxels:
        mask[voxel] = True
    return mask


def drawn(axis):
    """Row, column and value of the voxels of the picture on top, row 0 being at its upper edge."""
    picture = axis.images[-1].get_array()
    rows, columns = np.nonzero(~np.ma.getmaskarray(picture))
    return list(zip(rows.tolist(), columns.tolist(), np.ma.getdata(picture)[rows, columns].tolist()))


def test_members_and_outcome_are_shown_in_radiological_convention(flair, brain):
    members = np.stack([mask_at((*RIGHT_FRONT, level)) for level in (1, 2, 3, 4)])
    figure = slices.members_and_outcome(
        flair, brain, members, mask_at((*RIGHT_FRONT, 1), (*RIGHT_FRONT, 3), (*RIGHT_FRONT, 5))
    )
    axes = np.reshape(figure.axes, (3, 4))
    assert [axis.get_title().split(":")[0] for axis in axes[0]] == ["member 1", "member 2", "member 3", "outcome"]
    assert [len(drawn(axis)) for axis in axes[:, 3]] == [1, 1, 1]  # the slices of the outcome, from below
    assert [[len(drawn(axis)) for axis in row[:3]] for row in axes] == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    ((row, column, _),) = drawn(axes[0, 3])
    rows, columns = axes[0, 3].images[-1].get_array().shape
    assert row < rows / 2 and column < columns / 2  # anterior is up, the patient's right on the left


def test_the_heatmap_leaves_out_what_is_below_one_in_a_thousand(flair, brain):
    heatmap = np.zeros(SHAPE)
    heatmap[5, 5, 2], heatmap[6, 5, 2], heatmap[7, 5, 2] = 0.0009, 0.001, 0.5
    figure = slices.heatmaps_and_outcome(flair, brain, {"one": heatmap, "none": 0 * heatmap}, mask_at((7, 5, 2)))
    of_level = [axis for axis in figure.axes[:3] if drawn(axis)]
    assert [sorted(value for *_, value in drawn(axis)) for axis in of_level] == [[0.001, 0.5]]
    assert len(of_level[0].collections) == 1  # the outline of the outcome


def test_each_arm_shows_its_own_numbers(flair, brain):
    heatmap = mask_at((5, 5, 2)) * 0.3
    forecasts = [Forecast(n / 10, np.array([n, n + 1]), np.array([0.5, 0.5]), heatmap=heatmap) for n in range(6)]
    figure = slices.six_arms(flair, brain, forecasts)
    for n, (axis, arm) in enumerate(zip(figure.axes, ARMS)):
        assert axis.get_title() == f"{arm.replace('_', ' ')}\nP(active) {n / 10:.2f}\n{n + 0.5:.1f} lesions expected"
