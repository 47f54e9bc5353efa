"""The page a clinician reads: the forecast over the patient's own FLAIR."""

from collections.abc import Iterable
from io import BytesIO
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import NullLocator, PercentFormatter
from nibabel.affines import apply_affine, voxel_sizes

from bundle.lesions import Placed

NOTICE = "Research use only. Not a medical device. Weights trained on simulated data."
ROWS, COLUMNS = 3, 5
LEAST, MOST = 0.001, 0.1  # one scale for every page, so that patients and treatments can be compared by eye
HEAT = ListedColormap(colormaps["inferno"](np.linspace(0.35, 1, 256)))  # its black end would pass for dark tissue
OLD, AGREED, SITE = "#39c5ff", "#ffffff", "#7dff8a"
SITES_SHOWN = 8


class _Axial(NamedTuple):
    """What the panels show, axes turned to (right, anterior, superior) without resampling."""

    grey: np.ndarray
    heat: np.ndarray
    agreed: np.ndarray
    old: np.ndarray
    brain: np.ndarray
    affine: np.ndarray
    levels: list[int]
    names: list[int]  # of the levels, as slices of the file


def forecast_page(
    flair: Placed,
    heatmap: np.ndarray,
    consensus: np.ndarray,
    forecast: dict[str, Any],
    *,
    brain: np.ndarray,
    slices: tuple[int, int],
    old_lesions: np.ndarray | None = None,
) -> bytes:
    """One page as the bytes of a PNG of 1500 x 1100 pixels.

    Args:
        flair: (X, Y, Z) in any orientation, spacing and unit of grey.
        heatmap: (X, Y, Z) in [0, 1], on the grid of the FLAIR.
        consensus: (X, Y, Z), bool.
        forecast: as `bundle.outputs.writers` writes it to JSON.
        brain: (X, Y, Z), bool; the page shows its box.
        slices: first and last forecast slice, along the axis of the FLAIR that runs nearest to inferior-superior.
        old_lesions: (X, Y, Z), bool, T2 lesions of the second scan; None where they are not known.
    """
    figure = Figure(figsize=(15, 11), dpi=100, facecolor="white")
    known = old_lesions is not None
    header, body, footer = figure.subfigures(3, 1, height_ratios=(1.3, 9.3, 0.4))
    panels, side = body.subfigures(1, 2, width_ratios=(4, 1))
    _write_header(header, forecast)
    if not known:
        old_lesions = np.zeros_like(consensus)
    axial = _turn_axial(flair, (heatmap, consensus, old_lesions, brain), slices)
    _draw_panels(panels, axial, forecast["likely_sites"])
    _draw_legend(panels, known=known)
    _draw_scale(side.add_axes((0.08, 0.95, 0.8, 0.02)))
    _draw_counts(side.add_axes((0.2, 0.64, 0.7, 0.2)), forecast["count"]["histogram"])
    _write_sites(side, forecast["likely_sites"])
    footer.text(0.012, 0.5, NOTICE, va="center", fontsize=12, color="#a00000", weight="bold")
    footer.text(0.988, 0.5, _provenance(forecast), va="center", ha="right", fontsize=9, color="#555555")
    page = BytesIO()
    FigureCanvasAgg(figure).print_png(page)
    return page.getvalue()


def percent(share: float) -> str:
    """A share in [0, 1] as whole per cent, never rounded to a certainty that it is not."""
    if 0 < share < 0.01:
        return "< 1 %"
    return "> 99 %" if 0.99 < share < 1 else f"{100 * share:.0f} %"


def _write_header(header: SubFigure, forecast: dict[str, Any]) -> None:
    low, high = map(percent, forecast["p_active_interval"])
    count, volume = forecast["count"], forecast["volume_ml"]
    few, many = (count["quantiles"][q] for q in ("5", "95"))
    little, much = (volume["quantiles"][q] for q in ("5", "95"))
    arm = forecast["arm"].replace("_", " ")
    header.text(0.012, 0.8, forecast["case"], va="center", fontsize=18, weight="bold")
    header.text(0.988, 0.8, f"Treatment: {arm}", va="center", ha="right", fontsize=18, weight="bold")
    chance = percent(forecast["p_active"])
    header.text(
        0.012,
        0.45,
        f"Chance of new or enlarging T2 lesions from week 48 to week 96: {chance}  "
        f"(95 % interval {low} to {high})",
        va="center",
        fontsize=16,
    )
    header.text(
        0.012,
        0.14,
        f"{forecast['num_members']} sample{'s' * (forecast['num_members'] > 1)}.     "
        f"Lesions expected: {count['mean']:.1f} (90 % of samples {few} to {many}).     "
        f"Their volume: {volume['mean']:.2f} ml (90 % of samples {little:.2f} to {much:.2f}).",
        va="center",
        fontsize=12,
        color="#333333",
    )


def _turn_axial(flair: Placed, overlays: Iterable[np.ndarray], slices: tuple[int, int]) -> _Axial:
    turn = nib.io_orientation(flair.affine)
    layers = [nib.apply_orientation(layer, turn) for layer in (flair.values, *overlays)]
    axis = int(np.flatnonzero(turn[:, 0] == 2)[0])
    top = flair.values.shape[axis] - 1
    number = (lambda k: top - k) if turn[axis, 1] < 0 else (lambda k: k)  # its own inverse
    first, last = sorted(map(number, slices))
    levels = np.unique(np.linspace(first, last, ROWS * COLUMNS).round().astype(int)).tolist()
    affine = flair.affine @ nib.orientations.inv_ornt_aff(turn, flair.values.shape)
    return _Axial(*layers, affine, levels, list(map(number, levels)))


def _draw_panels(panels: SubFigure, axial: _Axial, sites: list[dict[str, Any]]) -> None:
    """Axial panels as a radiologist hangs them: the patient's left on the right, anterior up, from below upwards."""
    axes = panels.subplots(
        ROWS, COLUMNS, gridspec_kw=dict(left=0.012, right=0.995, bottom=0.04, top=1, wspace=0.02, hspace=0.02)
    ).flat
    width_mm, height_mm, _ = voxel_sizes(axial.affine)
    shown = axial.brain[:, :, axial.levels]
    x, y = _box_of_brain(shown, (width_mm, height_mm))
    black, white = np.percentile(axial.grey[:, :, axial.levels][shown if shown.any() else ~shown], (0.1, 99.8))
    nearest = [_nearest_level(site["centre_mm"], axial) for site in sites[:SITES_SHOWN]]

    for panel, level, name in zip(axes, axial.levels, axial.names):
        extent = (x.start - 0.5, x.stop - 0.5, y.start - 0.5, y.stop - 0.5)
        frame = dict(origin="lower", aspect=height_mm / width_mm, extent=extent)
        panel.imshow(axial.grey[x, y, level].T, cmap="gray", vmin=black, vmax=white, **frame)
        heat = np.ma.masked_less(axial.heat[x, y, level].T, LEAST)
        panel.imshow(heat, cmap=HEAT, norm=LogNorm(LEAST, MOST), alpha=0.8, interpolation="nearest", **frame)
        _outline(panel, axial.old[:, :, level], OLD, 0.8)
        _outline(panel, axial.agreed[:, :, level], AGREED, 1.8)
        for rank, (i, j, k) in enumerate(nearest, start=1):
            if k == level:
                panel.add_patch(Circle((i, j), 5 / width_mm, fill=False, color=SITE, lw=1))
                number = panel.text(i - 7 / width_mm, j, rank, color=SITE, fontsize=12, weight="bold", va="center")
                number.set_path_effects([withStroke(linewidth=2, foreground="black")])
        panel.text(0.03, 0.03, f"slice {name}", transform=panel.transAxes, color="#cccccc", fontsize=9)
        panel.text(0.03, 0.5, "R", transform=panel.transAxes, va="center", color="white", fontsize=12)
        panel.text(0.97, 0.5, "L", transform=panel.transAxes, va="center", ha="right", color="white", fontsize=12)
        panel.set(xlim=extent[1::-1], ylim=extent[2:])
    panels.set_facecolor("black")
    for panel in panels.axes:
        panel.set(xticks=[], yticks=[], facecolor="black")


def _nearest_level(centre_mm: list[float], axial: _Axial) -> tuple[float, float, int]:
    """Column, row and shown slice nearest to a point of the world."""
    i, j, k = apply_affine(np.linalg.inv(axial.affine), centre_mm)
    return i, j, min(axial.levels, key=lambda level: abs(level - k))


def _box_of_brain(brain: np.ndarray, steps_mm: tuple[float, float]) -> tuple[slice, slice]:
    """The in-plane box around the brain (X, Y, levels), with a margin of 8 mm."""
    box = []
    for axis, step_mm in enumerate(steps_mm):
        seen = np.flatnonzero(brain.any(axis=(1 - axis, 2)))
        first, last = (seen[0], seen[-1]) if seen.size else (0, brain.shape[axis] - 1)
        margin = round(8 / step_mm)
        box.append(slice(max(first - margin, 0), min(last + margin + 1, brain.shape[axis])))
    return tuple(box)


def _outline(panel: Axes, mask: np.ndarray, colour: str, width: float) -> None:
    if mask.any():
        panel.contour(mask.T, levels=[0.5], colors=colour, linewidths=width)


def _draw_legend(panels: SubFigure, *, known: bool) -> None:
    old = "T2 lesions of the second scan" if known else "T2 lesions of the second scan: not given"
    ring = dict(marker="o", markerfacecolor="none", markersize=11, lw=0)
    handles = [
        Line2D([], [], color=OLD, label=old),
        Line2D([], [], color=AGREED, lw=3, label="consensus: most samples agree on these voxels"),
        Line2D([], [], color=SITE, label="likely sites, by rank", **ring),
    ]
    panels.legend(handles=handles, loc="lower center", ncols=3, fontsize=10, frameon=False, labelcolor="white")


def _draw_scale(axes: Axes) -> None:
    colours = np.geomspace(LEAST, MOST, 256)
    axes.pcolormesh(colours, [0, 1], colours[None, 1:], cmap=HEAT, norm=LogNorm(LEAST, MOST), shading="auto")
    axes.set(xscale="log", yticks=[], xticks=(0.001, 0.003, 0.01, 0.03, 0.1))
    axes.set_xticklabels(["0.1 %", "0.3 %", "1 %", "3 %", "\u2265 10 %"])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_title("Chance of a lesion in the voxel", fontsize=11)


def _draw_counts(axes: Axes, histogram: dict[str, float]) -> None:
    counts = list(map(int, histogram))
    axes.bar(counts, list(histogram.values()), color="#5a5a8c")
    axes.set(xlabel="new or enlarging lesions", ylim=(0, 1), xlim=(-0.6, max([5, *counts]) + 0.6))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("Share of samples", fontsize=11)


def _write_sites(side: SubFigure, sites: list[dict[str, Any]]) -> None:
    side.text(0.05, 0.53, "Likely sites (x, y, z in mm)", fontsize=12, weight="bold")
    if not sites:
        side.text(0.05, 0.5, "No sample places a lesion.", fontsize=10)
    for rank, site in enumerate(sites[:SITES_SHOWN], start=1):
        height = 0.545 - 0.06 * rank
        place = ", ".join(f"{x:.0f}" for x in site["centre_mm"])
        side.text(0.05, height, f"{rank}", fontsize=12, weight="bold", color="#1d7a28")
        side.text(0.13, height, f"{percent(site['probability'])} within {site['radius_mm']:.0f} mm", fontsize=11)
        side.text(0.13, height - 0.022, f"{site['region'] or ''} ({place})", fontsize=8.5, color="#555555")


def _provenance(forecast: dict[str, Any]) -> str:
    weights = (forecast["weights_sha256"] or "unnamed")[:12]
    return (
        f"weights {weights}, seed {forecast['seed']}, {forecast['num_steps']} steps, "
        f"guidance {forecast['guidance_scale']:g}, bundle {forecast['versions']['bundle']}"
    )
