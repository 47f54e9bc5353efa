"""The charts of an evaluation, from scores and tables. Each function returns a matplotlib figure and reads no file."""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from scipy.stats import binom
from sklearn.metrics import precision_recall_curve, roc_curve
from statsmodels.stats.proportion import proportion_confint

from bundle.arms import CLASSES
from bundle.evaluation.metrics.calibration import HEATMAP_BINS, activity_bins, heatmap_bins, site_bins
from bundle.evaluation.metrics.where import LOG_SCORE, froc
from bundle.evaluation.scoring import BIN_EDGES, Scores
from bundle.evaluation.tables import ALL
from bundle.forecasters.base import Role
from bundle.metrics import net_benefit

COLOURS = {  # by role, used in turn
    Role.FLOOR: ("#adb5bd", "#8d99ae"),
    Role.BASELINE: (
        *("#2a9d8f", "#6f4518", "#0077b6", "#90be6d", "#84a59d", "#f28482", "#b5838d", "#e09f3e"),
        *("#f3722c", "#577590"),
    ),
    Role.MODEL: ("#c1121f", "#7b2cbf", "#f15bb5"),
    Role.CEILING: ("#222222", "#4a6fa5", "#b08968"),
    Role.OUTCOME: ("#39ff88",),
}
DIAGONAL = {"color": "#cccccc", "lw": 1}


def display_name(name: str) -> str:
    """A name as people read it."""
    return name.replace("_", " ")


def colours_of(roles: Mapping[str, Role]) -> dict[str, str]:
    """One colour for each forecaster, the same in every chart that is given the same `roles`."""
    colours: dict[str, str] = {}
    for role, palette in COLOURS.items():
        names = [name for name in roles if roles[name] is role]
        colours |= {name: palette[index % len(palette)] for index, name in enumerate(names)}
    return colours


def roc_and_pr(scores: Mapping[str, Scores]) -> Figure:
    """ROC and precision-recall curves of P(active), per arm; empty where all patients are active or all inactive."""
    first, colours = next(iter(scores.values())), colours_of({name: s.role for name, s in scores.items()})
    groups = [(ALL, np.ones(len(first.cases), bool))]
    groups += [(display_name(CLASSES[arm]), first["arm"] == arm) for arm in np.unique(first["arm"])]
    shown = dict(_distinguishing(scores, "p_active"))
    figure = Figure(figsize=(2.5 * len(groups), 5.4), layout="constrained")
    axes = figure.subplots(2, len(groups), squeeze=False, sharex=True, sharey=True)
    for column, (title, of_arm) in zip(axes.T, groups):
        active = first.active[of_arm]
        column[0].set_title(f"{title}\nn={of_arm.sum()}, active {active.sum()}", fontsize=9)
        column[0].plot([0, 1], [0, 1], **DIAGONAL)
        column[1].axhline(active.mean(), **DIAGONAL)
        if not 0 < active.sum() < len(active):
            continue
        for name, p in shown.items():
            false_positive_rate, true_positive_rate, _ = roc_curve(active, p[of_arm])
            precision, recall, _ = precision_recall_curve(active, p[of_arm])
            style = {"color": colours[name], "lw": 1.4}
            column[0].plot(false_positive_rate, true_positive_rate, label=display_name(name), **style)
            column[1].step(recall, precision, where="post", **style)
    axes[0, 0].set(ylabel="sensitivity", xlabel="1 - specificity")
    axes[1, 0].set(ylabel="precision", xlabel="recall")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=max(len(labels), 1), frameon=False, fontsize=9)
    return figure


def count_scatter(scores: Mapping[str, Scores]) -> Figure:
    """Forecast against true count of each patient, the forecast being exp(E[log(1 + count)]) - 1."""
    shown = dict(_distinguishing(scores, "log_count"))
    figure = Figure(figsize=(3 * max(len(shown), 1), 3.4), layout="constrained")
    axes = figure.subplots(1, max(len(shown), 1), squeeze=False, sharex=True, sharey=True)[0]
    rng = np.random.default_rng(0)
    for axis, (name, log_count) in zip(axes, shown.items()):
        true, arms = np.log1p(scores[name]["true_count"]), scores[name]["arm"]
        axis.plot([0, true.max()], [0, true.max()], **DIAGONAL)
        for arm in np.unique(arms):
            of_arm = arms == arm
            jitter = rng.uniform(-0.06, 0.06, of_arm.sum())  # counts are integers: points would hide each other
            style = {"s": 9, "alpha": 0.7, "label": display_name(CLASSES[arm]), "color": f"C{arm}"}
            axis.scatter(true[of_arm] + jitter, log_count[of_arm], **style)
        axis.set_title(display_name(name), fontsize=10)
        axis.set_xlabel("true count")
        ticks = [count for count in (0, 1, 3, 10, 30, 100) if np.log1p(count) <= true.max() + 0.2]
        axis.set_xticks(np.log1p(ticks), ticks)
        axis.set_yticks(np.log1p(ticks), ticks)
    axes[0].set_ylabel("forecast count")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=max(len(labels), 1), frameon=False, fontsize=8)
    return figure


def reliability(scores: Mapping[str, Scores]) -> Figure:
    """Observed against forecast frequency: P(active) in bins of .1 with 95 % Wilson intervals, voxels, sites."""
    colours = colours_of({name: s.role for name, s in scores.items()})
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    left, right, sites = figure.subplots(1, 3)
    left.plot([0, 1], [0, 1], **DIAGONAL)
    sites.plot([0, 1], [0, 1], **DIAGONAL)
    right.plot([1e-6, 1], [1e-6, 1], **DIAGONAL)
    for name, p in _distinguishing(scores, "p_active"):
        if np.isin(p, (0, 1)).all():  # yes or no instead of a probability
            continue
        total, forecast, observed = (x[0] for x in activity_bins(p, scores[name], np.ones((1, len(p)))))
        filled = total > 0
        n, forecast, observed = total[filled], forecast[filled] / total[filled], observed[filled] / total[filled]
        low, high = proportion_confint(observed * n, n, method="wilson")
        error = np.maximum([observed - low, high - observed], 0)  # rounding makes them negative at 0 and 1
        style = {"color": colours[name], "lw": 1, "ms": 4, "marker": "o", "label": display_name(name)}
        left.errorbar(forecast, observed, yerr=error, **style)
    for name, s in scores.items():
        if "voxels" in s and s.role is not Role.OUTCOME:
            total, forecast, observed = (x[0] for x in heatmap_bins(s, np.ones((1, len(s.cases)))))
            filled = (total > 0) & (observed > 0) & (BIN_EDGES[HEATMAP_BINS] > 0)
            x, y = forecast[filled] / total[filled], observed[filled] / total[filled]
            right.plot(x, y, color=colours[name], marker="o", ms=3, lw=1)
        if "sites" in s and s.role is not Role.OUTCOME:
            total, forecast, observed = (x[0] for x in site_bins(s, np.ones((1, len(s.cases)))))
            filled = total > 0
            x, y = forecast[filled] / total[filled], observed[filled] / total[filled]
            sites.plot(x, y, color=colours[name], marker="o", ms=3, lw=1)
    left.set(xlabel="forecast P(active), mean of the bin", ylabel="observed fraction active", title="Patients")
    right.set(xscale="log", yscale="log", xlim=(1e-6, 1), ylim=(1e-6, 1), title="Voxels")
    right.set(xlabel="forecast probability of NET2, mean of the bin", ylabel="observed fraction of NET2 voxels")
    sites.set(
        xlabel="forecast probability of a site, mean of the bin", ylabel="observed fraction", title="Likely sites"
    )
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure


def froc_curves(scores: Mapping[str, Scores]) -> Figure:
    """Fraction of lesions near a likely site over false sites per active patient."""
    colours = colours_of({name: s.role for name, s in scores.items()})
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axis = figure.subplots()
    for name, s in scores.items():
        if LOG_SCORE in s and s.role is not Role.OUTCOME:
            false, found = froc(s, np.ones((1, len(s.cases))))
            axis.plot(false[0], found[0], color=colours[name], lw=1.4, label=display_name(name))
    axis.set(
        xlim=(0, 8), ylim=(0, 1), xlabel="false sites per active patient", ylabel="fraction of lesions within 10 mm"
    )
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    return figure


def pit_histograms(scores: Mapping[str, Scores]) -> Figure:
    """Randomised probability integral transform of the count, one panel for each forecaster that states a distribution.

    Where the outcome lies in the forecast distribution, P(X < y) + u P(X = y) with u uniform: uniform for a calibrated
    forecast, a U for one that is too narrow. The band holds 95 % of the bars of a calibrated one.

    References:
        Czado, Gneiting, Held 2009, Predictive model assessment for count data, Biometrics 65:1254.
    """
    shown = {name: randomised_pit(s) for name, s in scores.items() if _states_a_distribution(s)}
    rows, columns = -(-max(len(shown), 1) // 4), min(max(len(shown), 1), 4)
    figure = Figure(figsize=(2.7 * columns, 2.5 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    colours = colours_of({name: s.role for name, s in scores.items()})
    for axis, (name, pit) in zip(axes, shown.items()):
        low, high = np.array(binom.interval(0.95, len(pit), 0.1)) / len(pit) * 10
        axis.axhspan(low, high, color="#eeeeee", lw=0)
        axis.axhline(1, **DIAGONAL)
        axis.hist(pit, bins=10, range=(0, 1), weights=np.full(len(pit), 10 / len(pit)), color=colours[name], alpha=0.8)
        axis.set_title(display_name(name), fontsize=9)
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    figure.supxlabel("randomised PIT of the count", fontsize=9)
    figure.supylabel("density", fontsize=9)
    return figure


def randomised_pit(scores: Scores) -> np.ndarray:
    """(N,) P(X < y) + u P(X = y) of the count; the same uniform numbers u for every forecaster."""
    fewer, at_most = scores["fewer"][:, 0], scores["at_most"][:, 0]
    return fewer + np.random.default_rng(0).random(len(fewer)) * (at_most - fewer)


def decision_curves(scores: Mapping[str, Scores]) -> Figure:
    """Net benefit over the threshold of P(active) from which on a patient is treated, beside treating all and none."""
    colours = colours_of({name: s.role for name, s in scores.items()})
    thresholds, ones = np.linspace(0.02, 0.8, 79), np.ones((1, len(next(iter(scores.values())).cases)))
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axis = figure.subplots()
    active = next(iter(scores.values())).active

    def curve(p: np.ndarray) -> list[float]:
        return [net_benefit(p >= threshold, active, ones, threshold)[0] for threshold in thresholds]

    axis.plot(thresholds, curve(np.ones(len(active))), color="#777777", lw=1, ls="--", label="treat all")
    axis.plot(thresholds, curve(np.zeros(len(active))), color="#777777", lw=1, ls=":", label="treat none")
    for name, p in _distinguishing(scores, "p_active"):
        if not np.isin(p, (0, 1)).all():
            axis.plot(thresholds, curve(p), color=colours[name], lw=1.4, label=display_name(name))
    top = max(active.mean(), 0.01)
    axis.set(ylim=(-0.25 * top, 1.05 * top), xlabel="threshold of P(active)", ylabel="net benefit")
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    return figure


def convergence(table: pd.DataFrame, colours: Mapping[str, str]) -> Figure:
    """Metrics over the size of the ensemble, all patients; a dotted line where they have converged.

    Args:
        table: of `bundle.evaluation.tables.members_table`.
        colours: by forecaster, of `colours_of`.
    """
    table = table[table.arm == ALL]
    names = list(dict.fromkeys(table.metric))
    figure = Figure(figsize=(2.9 * max(len(names), 1), 3.2), layout="constrained")
    axes = figure.subplots(1, max(len(names), 1), squeeze=False)[0]
    for axis, metric in zip(axes, names):
        for name, rows in table[table.metric == metric].groupby("forecaster"):
            colour = colours[name]
            axis.plot(rows.members, rows.value, marker="o", ms=3, color=colour, label=display_name(name))
            axis.fill_between(rows.members, rows.ci_low, rows.ci_high, color=colour, alpha=0.15, lw=0)
            for enough in rows.members[rows.converged][:1]:
                axis.axvline(enough, color=colour, lw=1, ls=":")
                axis.annotate(f"{enough}", (enough, 1), xycoords=("data", "axes fraction"), va="top", fontsize=8)
        axis.set(title=metric, xlabel="members", xscale="log")
        axis.title.set_fontsize(9)
        sizes = [size for size in (1, 3, 10, 30, 100) if size <= table.members.max()]
        axis.set_xticks(sizes, sizes)
        axis.xaxis.set_minor_locator(NullLocator())
    return figure


def gap_closed(tables: Mapping[str, pd.DataFrame], colours: Mapping[str, str]) -> Figure:
    """Fraction of the gap between floor and best possible forecast that baselines and models close, all patients.

    Args:
        tables: long tables by name.
        colours: by forecaster, of `colours_of`.
    """
    table = pd.concat(tables.values())
    table = table[(table.arm == ALL) & table.gap_closed.notna()]
    table = table[table.role.isin([Role.BASELINE.value, Role.MODEL.value])]
    names = list(dict.fromkeys(table.metric))
    figure = Figure(figsize=(9, 0.45 * len(names) + 1.2), layout="constrained")
    axis = figure.subplots()
    axis.axvline(0, color=COLOURS[Role.FLOOR][1], lw=1)
    axis.axvline(1, color=COLOURS[Role.CEILING][0], lw=1)
    for row, metric in enumerate(names):
        for point in table[table.metric == metric].itertuples():
            low, x, high = np.clip([point.gap_low, point.gap_closed, point.gap_high], -0.5, 1.3)
            axis.plot([low, high], [-row, -row], color=colours[point.forecaster], lw=1, alpha=0.5)
            axis.plot(x, -row, "o", color=colours[point.forecaster], ms=6, alpha=0.9)
    axis.set_yticks([-row for row in range(len(names))], names, fontsize=9)
    axis.set(xlim=(-0.55, 1.35), xlabel="fraction of the gap closed: 0 floor, 1 oracle (clipped to the frame)")
    for name in dict.fromkeys(table.forecaster):
        axis.plot([], [], "o", color=colours[name], label=display_name(name))
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure


def _states_a_distribution(scores: Scores) -> bool:
    """Whether it has a distribution of the count, and not one number (a draw, the outcome)."""
    if "at_most" not in scores or scores.num_draws > 1:
        return False
    return not (np.isin(scores["fewer"], (0, 1)) & np.isin(scores["at_most"], (0, 1))).all()


def _distinguishing(scores: Mapping[str, Scores], score: str) -> Iterator[tuple[str, np.ndarray]]:
    """(name, (N,)) of forecasters that state one value a patient, not the same for all; without the outcome."""
    for name, s in scores.items():
        if score in s and s.role is not Role.OUTCOME and s.num_draws == 1 and np.ptp(s[score][:, 0]) > 0:
            yield name, s[score][:, 0]
