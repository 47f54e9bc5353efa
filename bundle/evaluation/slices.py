"""Pictures of one patient: axial slices with members, heatmaps and outcome (Favero et al. 2025, figures 2 and 3).

In all of them flair and heatmaps are (H, W, S) on the slab, brain and outcome (H, W, S) bool.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure

from bundle.arms import ARMS
from bundle.evaluation.charts import display_name
from bundle.forecasters.base import Forecast
from bundle.outputs.panels import HEAT, LEAST, MOST

OUTCOME, MEMBER = "#39ff88", "#ff5a5f"


def members_and_outcome(flair: np.ndarray, brain: np.ndarray, members: np.ndarray, outcome: np.ndarray) -> Figure:
    """Three members beside the outcome, on the three slices with most of the outcome (figure 2, left).

    Args:
        flair: at w048, in [-1, 1].
        brain: mask.
        members: (K, H, W, S) bool, K at least 1.
        outcome: NET2 at w096.
    """
    shown = [(f"member {k + 1}", member) for k, member in enumerate(members[:3])] + [("outcome", outcome)]
    levels = _levels(outcome)
    figure, axes = _grid(len(levels), len(shown), brain)
    for row, level in zip(axes, levels):
        for axis, (title, mask) in zip(row, shown):
            _grey(axis, flair, brain, level)
            _marks(axis, mask, brain, level, OUTCOME if title == "outcome" else MEMBER)
            if level == levels[0]:
                axis.set_title(f"{title}: {int(mask.sum())} voxels", fontsize=10)
    return figure


def heatmaps_and_outcome(
    flair: np.ndarray, brain: np.ndarray, heatmaps: Mapping[str, np.ndarray], outcome: np.ndarray
) -> Figure:
    """Heatmaps of a patient, one a row, with the outline of the outcome (figure 2, right).

    Args:
        flair, brain, outcome: as for `members_and_outcome`.
        heatmaps: by title, in [0, 1].
    """
    levels = _levels(outcome)
    figure, axes = _grid(len(heatmaps), len(levels), brain)
    for row, (title, heatmap) in zip(axes, heatmaps.items()):
        row[0].set_title(title, fontsize=10, loc="left")
        for axis, level in zip(row, levels):
            _grey(axis, flair, brain, level)
            _heat(axis, heatmap, brain, level)
            if outcome[..., level].any():
                _outline(axis, outcome, brain, level)
    _scale(figure, axes)
    return figure


def six_arms(flair: np.ndarray, brain: np.ndarray, forecasts: Sequence[Forecast]) -> Figure:
    """One patient under each treatment, all else and the noise alike (figure 3).

    Args:
        flair, brain: as for `members_and_outcome`.
        forecasts: one per arm, in order of class index, with heatmaps.
    """
    level = int(np.argmax(np.sum([f.heatmap for f in forecasts], axis=0).sum(axis=(0, 1))))
    figure, axes = _grid(2, 3, brain, lines=3)
    for axis, name, forecast in zip(axes.ravel(), ARMS, forecasts):
        _grey(axis, flair, brain, level)
        _heat(axis, forecast.heatmap, brain, level)
        numbers = f"P(active) {forecast.p_active:.2f}\n{forecast.expected_count:.1f} lesions expected"
        axis.set_title(f"{display_name(name)}\n{numbers}", fontsize=9)
    _scale(figure, axes)
    return figure


def _levels(outcome: np.ndarray) -> list[int]:
    """The three slices with most of the outcome, from below upwards."""
    return sorted(np.argsort(-outcome.sum(axis=(0, 1)), kind="stable")[:3].tolist())


def _grid(rows: int, columns: int, brain: np.ndarray, lines: int = 1) -> tuple[Figure, np.ndarray]:
    """Empty axes in the brain's proportions, each with room for so many lines of text above."""
    high, wide = _box(brain)
    shape = (wide.stop - wide.start) / (high.stop - high.start)
    figure = Figure(figsize=(2.6 * columns, (2.6 * shape + 0.17 * lines) * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    return figure, axes


def _box(brain: np.ndarray) -> tuple[slice, slice]:
    """In-plane bounding box of the brain and one voxel around it."""
    extents = (np.flatnonzero(brain.any(axis=axes)) for axes in ((1, 2), (0, 2)))
    return tuple(slice(max(extent[0] - 1, 0), extent[-1] + 2) for extent in extents)


def _turn(plane: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Radiological convention: anterior up, the patient's right on the left. (H, W) runs to the right and anterior."""
    return plane[_box(brain)].T[::-1, ::-1]


def _grey(axis: Axes, flair: np.ndarray, brain: np.ndarray, level: int) -> None:
    axis.imshow(_turn(flair[..., level], brain), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")


def _marks(axis: Axes, mask: np.ndarray, brain: np.ndarray, level: int, colour: str) -> None:
    plane = _turn(mask[..., level], brain)
    axis.imshow(np.ma.masked_equal(plane, 0), cmap=ListedColormap([colour]), vmin=0, vmax=1, interpolation="nearest")


def _heat(axis: Axes, heatmap: np.ndarray, brain: np.ndarray, level: int) -> None:
    plane = _turn(heatmap[..., level], brain)
    axis.imshow(np.ma.masked_less(plane, LEAST), cmap=HEAT, norm=LogNorm(LEAST, MOST), interpolation="nearest")


def _outline(axis: Axes, mask: np.ndarray, brain: np.ndarray, level: int) -> None:
    plane = np.kron(_turn(mask[..., level], brain), np.ones((5, 5)))  # so that the line follows the voxels' edges
    extent = (-0.5, plane.shape[1] / 5 - 0.5, plane.shape[0] / 5 - 0.5, -0.5)
    axis.contour(plane, levels=[0.5], colors=OUTCOME, linewidths=1, extent=extent, origin="upper")


def _scale(figure: Figure, axes: np.ndarray) -> None:
    mappable = ScalarMappable(LogNorm(LEAST, MOST), HEAT)
    figure.colorbar(mappable, ax=axes, shrink=0.6, extend="max", label="probability of NET2")
