"""The figures of an evaluation. Each function returns a matplotlib figure; none reads files or computes scores."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from sklearn.metrics import precision_recall_curve, roc_curve

from bundle.arms import ARMS, CLASSES
from bundle.evaluation.scoring import BIN_EDGES, CEILING, FLOOR, Scores
from bundle.evaluation.tables import ALL, HEATMAP_BINS, activity_bins, heatmap_bins
from bundle.forecasters.base import Forecast
from bundle.outputs.page import HEAT, LEAST, MOST

COLOURS = {
    "diffusion": "#c1121f", "oracle": "#222222", "regression": "#0077b6", "frequency_map": "#8d99ae",
    "population": "#adb5bd", "persistence": "#e09f3e", "average_count": "#2a9d8f", "no_new_lesions": "#6f4518",
}  # fmt: skip
OUTCOME = "#39ff88"


def spoken(name: str) -> str:
    """A name as it is written where people read it."""
    return name.replace("_", " ")


def colour(name: str) -> str:
    """One colour a forecaster, the same in every figure; a recalibrated one has its own."""
    return COLOURS.get(name, "#7b2cbf")


def members_beside_outcome(flair: np.ndarray, brain: np.ndarray, members: np.ndarray, outcome: np.ndarray) -> Figure:
    """Three members beside what came, on the three slices with most of the outcome (Favero et al. 2025, figure 2 left).

    Args:
        flair: (H, W, S) at w048.
        brain: (H, W, S) bool.
        members: (K, H, W, S) bool, K at least 1.
        outcome: (H, W, S) bool.
    """
    shown = [(f"member {k + 1}", member) for k, member in enumerate(members[:3])] + [("outcome", outcome)]
    levels = sorted(np.argsort(-outcome.sum(axis=(0, 1)), kind="stable")[:3])
    figure, axes = _grid(len(levels), len(shown), brain)
    for row, level in zip(axes, levels):
        for axis, (title, mask) in zip(row, shown):
            _grey(axis, flair, brain, level)
            _marks(axis, mask, brain, level, OUTCOME if title == "outcome" else "#ff5a5f")
            if level == levels[0]:
                axis.set_title(f"{title}: {int(mask.sum())} voxels", fontsize=10)
    return figure


def heatmaps_and_outcome(
    flair: np.ndarray, brain: np.ndarray, heatmaps: Mapping[str, np.ndarray], outcome: np.ndarray
) -> Figure:
    """Heatmaps of a patient, a row each, with the outline of what came (Favero et al. 2025, figure 2 right).

    Args:
        flair, brain, outcome: as for `members_beside_outcome`.
        heatmaps: by name, (H, W, S) in [0, 1].
    """
    levels = sorted(np.argsort(-outcome.sum(axis=(0, 1)), kind="stable")[:3])
    figure, axes = _grid(len(heatmaps), len(levels), brain)
    for row, (name, heatmap) in zip(axes, heatmaps.items()):
        row[0].set_title(name, fontsize=10, loc="left")
        for axis, level in zip(row, levels):
            _grey(axis, flair, brain, level)
            _heat(axis, heatmap, brain, level)
            if outcome[..., level].any():
                _outline(axis, outcome, brain, level)
    _scale(figure, axes)
    return figure


def six_arms(flair: np.ndarray, brain: np.ndarray, forecasts: Sequence[Forecast]) -> Figure:
    """One patient under each treatment, all else and the noise alike (Favero et al. 2025, figure 3).

    Args:
        flair, brain: as for `members_beside_outcome`.
        forecasts: one per arm, in order of class index, with heatmaps.
    """
    level = int(np.argmax(sum(f.heatmap for f in forecasts).sum(axis=(0, 1))))
    figure, axes = _grid(2, 3, brain, lines=3)
    for axis, name, forecast in zip(axes.ravel(), ARMS, forecasts):
        _grey(axis, flair, brain, level)
        _heat(axis, forecast.heatmap, brain, level)
        told = f"P(active) {forecast.p_active:.2f}\n{forecast.expected_count:.1f} lesions expected"
        axis.set_title(f"{spoken(name)}\n{told}", fontsize=9)
    _scale(figure, axes)
    return figure


def roc_and_pr(scores: Mapping[str, Scores]) -> Figure:
    """ROC and precision-recall curves of P(active), per arm; arms without both kinds of patients stay empty."""
    first = next(iter(scores.values()))
    groups = [(ALL, np.ones(len(first.cases), bool))]
    groups += [(spoken(CLASSES[arm]), first["arm"] == arm) for arm in np.unique(first["arm"])]
    drawn = {name: s for name, s in scores.items() if name not in ("truth", FLOOR, "no_new_lesions") and "p_active" in s}
    figure = Figure(figsize=(2.5 * len(groups), 5.4), layout="constrained")
    axes = figure.subplots(2, len(groups), squeeze=False, sharex=True, sharey=True)
    for column, (title, of_arm) in zip(axes.T, groups):
        active = first.active[of_arm]
        column[0].set_title(f"{title}\nn={of_arm.sum()}, active {active.sum()}", fontsize=9)
        column[0].plot([0, 1], [0, 1], color="#cccccc", lw=1)
        column[1].axhline(active.mean(), color="#cccccc", lw=1)
        if not 0 < active.sum() < len(active):
            continue
        for name, s in drawn.items():
            p = s["p_active"][of_arm, 0]
            false, true, _ = roc_curve(active, p)
            precision, recall, _ = precision_recall_curve(active, p)
            column[0].plot(false, true, color=colour(name), lw=1.4, label=spoken(name))
            column[1].step(recall, precision, color=colour(name), lw=1.4, where="post")
    axes[0, 0].set(ylabel="sensitivity", xlabel="1 - specificity")
    axes[1, 0].set(ylabel="precision", xlabel="recall")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    return figure


def count_scatter(scores: Mapping[str, Scores]) -> Figure:
    """Forecast against true count of each patient, the forecast being exp(E[log(1 + count)]) - 1."""
    drawn = {name: s for name, s in scores.items() if name not in ("truth", "no_new_lesions", FLOOR) and "log_count" in s}
    figure = Figure(figsize=(3 * len(drawn), 3.4), layout="constrained")
    axes = figure.subplots(1, len(drawn), squeeze=False, sharex=True, sharey=True)[0]
    rng = np.random.default_rng(0)
    for axis, (name, s) in zip(axes, drawn.items()):
        true = np.log1p(s["true_count"])
        axis.plot([0, true.max()], [0, true.max()], color="#cccccc", lw=1)
        for arm in np.unique(s["arm"]):
            of_arm = s["arm"] == arm
            jitter = rng.uniform(-0.06, 0.06, of_arm.sum())  # counts are whole: points would hide each other
            axis.scatter(true[of_arm] + jitter, s["log_count"][of_arm, 0], s=9, alpha=0.7, label=spoken(CLASSES[arm]), color=f"C{arm}")
        axis.set_title(spoken(name), fontsize=10)
        axis.set_xlabel("true count")
        ticks = [count for count in (0, 1, 3, 10, 30, 100) if np.log1p(count) <= true.max() + 0.2]
        axis.set_xticks(np.log1p(ticks), ticks)
        axis.set_yticks(np.log1p(ticks), ticks)
    axes[0].set_ylabel("forecast count")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8)
    return figure


def reliability(scores: Mapping[str, Scores]) -> Figure:
    """What came of what was said: P(active) in bins of .1 with 95 % Wilson intervals, and the heatmap's voxels."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="#cccccc", lw=1)
    right.plot([1e-6, 1], [1e-6, 1], color="#cccccc", lw=1)
    for name, s in scores.items():
        ones = np.ones((1, len(s.cases)))
        if "p_active" in s and s["p_active"].shape[1] == 1 and name not in ("truth", "no_new_lesions", "persistence"):
            total, forecast, observed = (x[0] for x in activity_bins(s["p_active"][:, 0], s, ones))
            held = total > 0
            total, said, came = total[held], forecast[held] / total[held], observed[held] / total[held]
            low, high = _wilson(came, total)
            left.errorbar(said, came, yerr=[came - low, high - came], color=colour(name), lw=1, ms=4, marker="o", label=spoken(name))
        if "voxels" in s and name != "truth":
            total, forecast, observed = (x[0] for x in heatmap_bins(s, ones))
            held = (total > 0) & (observed > 0) & (BIN_EDGES[HEATMAP_BINS] > 0)
            right.plot(forecast[held] / total[held], observed[held] / total[held], color=colour(name), marker="o", ms=3, lw=1)
    left.set(xlabel="P(active), mean of the bin", ylabel="share of patients active", title="Will there be a new lesion?")
    right.set(xscale="log", yscale="log", xlabel="probability of the voxel, mean of the bin", title="Will this voxel be NET2?")
    right.set(ylabel="share of voxels that became NET2", xlim=(1e-6, 1), ylim=(1e-6, 1))
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure


def convergence(table: pd.DataFrame) -> Figure:
    """Figures of merit over the size of the ensemble (`bundle.evaluation.tables.members_table`), for all patients; a line where they settle."""
    table = table[table.arm == ALL]
    names = list(dict.fromkeys(table.metric))
    figure = Figure(figsize=(2.9 * max(len(names), 1), 3.2), layout="constrained")
    axes = figure.subplots(1, max(len(names), 1), squeeze=False)[0]
    for axis, metric in zip(axes, names):
        for name, rows in table[table.metric == metric].groupby("forecaster"):
            axis.plot(rows.members, rows.value, marker="o", ms=3, color=colour(name), label=spoken(name))
            axis.fill_between(rows.members, rows.ci_low, rows.ci_high, color=colour(name), alpha=0.15, lw=0)
            for enough in rows.members[rows.settled][:1]:
                axis.axvline(enough, color=colour(name), lw=1, ls=":")
                axis.annotate(f"{enough}", (enough, 1), xycoords=("data", "axes fraction"), va="top", fontsize=8)
        axis.set(title=metric, xlabel="members", xscale="log")
        axis.title.set_fontsize(9)
        sizes = [size for size in (1, 3, 10, 30, 100) if size <= table.members.max()]
        axis.set_xticks(sizes, sizes)
        axis.xaxis.set_minor_locator(NullLocator())
    return figure


def gap_closed(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Share of the way from the population baseline to the best possible forecast, for all patients."""
    table = pd.concat(tables.values())
    table = table[(table.arm == ALL) & table.gap_closed.notna() & ~table.forecaster.isin([FLOOR, CEILING, "truth"])]
    names = list(dict.fromkeys(table.metric))
    figure = Figure(figsize=(9, 0.45 * len(names) + 1.2), layout="constrained")
    axis = figure.subplots()
    axis.axvline(0, color="#8d99ae", lw=1)
    axis.axvline(1, color="#222222", lw=1)
    for place, metric in enumerate(names):
        for _, row in table[table.metric == metric].iterrows():
            axis.plot(np.clip(row.gap_closed, -0.5, 1.3), -place, "o", color=colour(row.forecaster), ms=6, alpha=0.9)
    axis.set_yticks([-place for place in range(len(names))], names, fontsize=9)
    axis.set(xlim=(-0.55, 1.35), xlabel="share of the gap closed: 0 population, 1 oracle (clipped to the frame)")
    for name in dict.fromkeys(table.forecaster):
        axis.plot([], [], "o", color=colour(name), label=spoken(name))
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure


def _wilson(share: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of a share of n."""
    z = 1.96
    middle, half = share + z**2 / 2 / n, z * np.sqrt(share * (1 - share) / n + z**2 / 4 / n**2)
    return np.minimum((middle - half) / (1 + z**2 / n), share), np.maximum((middle + half) / (1 + z**2 / n), share)


def _grid(rows: int, columns: int, brain: np.ndarray, lines: int = 1) -> tuple[Figure, np.ndarray]:
    """Empty axes of the brain's shape, each with so many lines of text above."""
    high, wide = _box(brain)
    shape = (wide.stop - wide.start) / (high.stop - high.start)
    figure = Figure(figsize=(2.6 * columns, (2.6 * shape + 0.17 * lines) * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    return figure, axes


def _box(brain: np.ndarray) -> tuple[slice, slice]:
    return tuple(slice(max(found[0] - 1, 0), found[-1] + 2) for found in map(np.flatnonzero, (brain.any((1, 2)), brain.any((0, 2)))))


def _turn(plane: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Anterior up, the patient's right on the left, as radiologists look at it; (H, W) runs to the right and anterior."""
    return plane[_box(brain)].T[::-1, ::-1]


def _grey(axis: Axes, flair: np.ndarray, brain: np.ndarray, level: int) -> None:
    axis.imshow(_turn(flair[..., level], brain), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")


def _marks(axis: Axes, mask: np.ndarray, brain: np.ndarray, level: int, of_colour: str) -> None:
    plane = _turn(mask[..., level], brain)
    axis.imshow(np.ma.masked_equal(plane, 0), cmap=ListedColormap([of_colour]), vmin=0, vmax=1, interpolation="nearest")


def _heat(axis: Axes, heatmap: np.ndarray, brain: np.ndarray, level: int) -> None:
    plane = _turn(heatmap[..., level], brain)
    axis.imshow(np.ma.masked_less(plane, LEAST), cmap=HEAT, norm=LogNorm(LEAST, MOST), interpolation="nearest")


def _outline(axis: Axes, mask: np.ndarray, brain: np.ndarray, level: int) -> None:
    plane = np.kron(_turn(mask[..., level], brain), np.ones((5, 5)))  # so that the line follows the voxels' edges
    extent = (-0.5, plane.shape[1] / 5 - 0.5, plane.shape[0] / 5 - 0.5, -0.5)
    axis.contour(plane, levels=[0.5], colors=OUTCOME, linewidths=1, extent=extent, origin="upper")


def _scale(figure: Figure, axes: np.ndarray) -> None:
    figure.colorbar(ScalarMappable(LogNorm(LEAST, MOST), HEAT), ax=axes, shrink=0.6, extend="max", label="probability of NET2")
