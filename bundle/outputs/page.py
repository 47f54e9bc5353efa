"""The page a clinician reads: the forecast over the patient's own FLAIR."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import PercentFormatter
from nibabel.affines import apply_affine, voxel_sizes

from bundle.lesions import Volume
from bundle.outputs.notes import AMBER, LINE, horizon, input_lines, png_bytes, wrap_notes, write_footer, write_notes
from bundle.outputs.panels import (
    AxialView,
    axial_view,
    box_of_brain,
    choose_levels,
    draw_panel,
    draw_scale,
    grey_window,
    outline,
    visible_heat,
)
from bundle.outputs.summary import chance_note, percent

WIDTH, HEIGHT, DPI = 15.0, 11.0, 100  # inches, and pixels an inch
ROWS, COLUMNS = 3, 5
OLD, AGREED, SITE = "#39c5ff", "#ffffff", "#7dff8a"
SITES_SHOWN = 5


def forecast_page(
    flair: Volume,
    heatmap: np.ndarray,
    consensus: np.ndarray,
    forecast: Mapping[str, Any],
    *,
    brain: np.ndarray,
    covered: np.ndarray,
    old_lesions: np.ndarray | None = None,
) -> bytes:
    """One page as the bytes of a PNG of 1500 x 1100 pixels.

    Args:
        flair: (X, Y, Z) in any orientation, spacing and unit of grey.
        heatmap: (X, Y, Z) in [0, 1], on the grid of the FLAIR.
        consensus: (X, Y, Z), bool.
        forecast: as `bundle.outputs.writers` writes it to JSON.
        brain: (X, Y, Z), bool; the page shows its box.
        covered: (X, Y, Z), bool, the voxels in the slab; slices that hold none of the brain in it are not shown.
        old_lesions: (X, Y, Z), bool, T2 lesions of the second scan; None where they are not known.
    """
    known = old_lesions is not None
    masks = {"consensus": consensus} | ({"old": old_lesions} if known else {})
    view = axial_view(flair, heatmap, brain=brain, covered=covered, masks=masks)
    levels, left_out = choose_levels(visible_heat(view.heat), view.fractions > 0, ROWS * COLUMNS)
    notes = [(f"Warning: {text}", True) for text in forecast["warnings"]]
    notes = wrap_notes([*notes, *((text, False) for text in forecast["differences"])])

    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, facecolor="white")
    top, bottom = 1.6 + LINE * len(notes), 0.4
    header, body, footer = figure.subfigures(3, 1, height_ratios=(top, HEIGHT - top - bottom, bottom))
    panels, side = body.subfigures(1, 2, width_ratios=(4, 1))
    _write_header(header, forecast, notes, top)
    _draw_panels(panels, view, levels, forecast["likely_sites"])
    _draw_legend(panels, known=known, left_out=left_out)
    draw_scale(side.add_axes((0.08, 0.95, 0.8, 0.02)))
    _draw_counts(side.add_axes((0.2, 0.68, 0.7, 0.18)), forecast)
    _write_sites(side, forecast["likely_sites"])
    _write_inputs(side, forecast["inputs"])
    write_footer(footer, forecast)
    return png_bytes(figure)


def _write_header(
    header: SubFigure, forecast: Mapping[str, Any], notes: Sequence[tuple[str, bool]], height: float
) -> None:
    count, volume = forecast["count"], forecast["volume_ml"]
    few, many = (count["quantiles"][q] for q in ("5", "95"))
    little, much = (volume["members"]["quantiles"][q] for q in ("5", "95"))

    def write(text: str, inches: float, *, right: bool = False, **style: Any) -> None:
        where = {"x": 0.988, "ha": "right"} if right else {"x": 0.012}
        header.text(s=text, y=1 - inches / height, va="center", **where, **style)

    write(forecast["case"], 0.27, fontsize=18, weight="bold")
    write(f"Treatment: {forecast['arm'].replace('_', ' ')}", 0.27, right=True, fontsize=18, weight="bold")
    chance = percent(forecast["p_active"])
    write(f"Chance of new or enlarging T2 lesions {horizon(forecast)}: {chance}", 0.69, fontsize=16)
    details = {"fontsize": 12, "color": "#333333"}
    write(chance_note(forecast), 1.05, **details)
    interval = "90 % of samples" if forecast["count_source"] == "members" else "90 % interval"
    write(
        f"Lesions expected: {count['mean']:.1f} ({interval} {few} to {many}).     "
        f"Volume expected: {volume['mean']:.2f} ml, the sum of the heatmap "
        f"(90 % of samples {little:.2f} to {much:.2f} ml).",
        1.35,
        **details,
    )
    write_notes(header, notes, first=1.5, height=height)


def _draw_panels(panels: SubFigure, view: AxialView, levels: Sequence[int], sites: Sequence[Mapping[str, Any]]) -> None:
    """The levels from below upwards, with old lesions, consensus and sites."""
    axes = panels.subplots(
        ROWS,
        COLUMNS,
        gridspec_kw={"left": 0.012, "right": 0.995, "bottom": 0.04, "top": 1, "wspace": 0.02, "hspace": 0.02},
    )
    width_mm = voxel_sizes(view.affine)[0]
    shown = levels or [view.grey.shape[2] // 2]  # a scan outside the slab is shown all the same
    box, window = box_of_brain(view.brain[:, :, shown], view.affine), grey_window(view, shown)
    to_voxels = np.linalg.inv(view.affine)
    centres = [apply_affine(to_voxels, site["centre_mm"]) for site in sites[:SITES_SHOWN]]
    for panel, level in zip(axes.flat, shown):
        draw_panel(panel, view, level, box, window)
        if "old" in view.masks:
            outline(panel, view.masks["old"][:, :, level], OLD, 0.8)
        outline(panel, view.masks["consensus"][:, :, level], AGREED, 1.8)
        for rank, (i, j, k) in enumerate(centres, start=1):
            if level == min(shown, key=lambda other: abs(other - k)):
                panel.add_patch(Circle((i, j), 5 / width_mm, fill=False, color=SITE, lw=1))
                number = panel.text(i - 7 / width_mm, j, rank, color=SITE, fontsize=12, weight="bold", va="center")
                number.set_path_effects([withStroke(linewidth=2, foreground="black")])
    panels.set_facecolor("black")
    for panel in panels.axes:
        panel.set(xticks=[], yticks=[], facecolor="black")


def _draw_legend(panels: SubFigure, *, known: bool, left_out: int) -> None:
    old = "T2 lesions of the second scan" if known else "T2 lesions of the second scan: not given"
    ring = {"marker": "o", "markerfacecolor": "none", "markersize": 11, "lw": 0}
    handles = [
        Line2D([], [], color=OLD, label=old),
        Line2D([], [], color=AGREED, lw=3, label="consensus: most samples agree on these voxels"),
        Line2D([], [], color=SITE, label="likely sites, by rank", **ring),
    ]
    panels.legend(handles=handles, loc="lower left", ncols=3, fontsize=10, frameon=False, labelcolor="white")
    if left_out:
        text = f"{left_out} more slices hold heat and are not shown"
        panels.text(0.99, 0.018, text, ha="right", va="center", fontsize=10, color=AMBER)


def _draw_counts(axes: Axes, forecast: Mapping[str, Any]) -> None:
    histogram, many = forecast["count"]["histogram"], forecast["count"]["quantiles"]["95"]
    from_members = forecast["count_source"] == "members"
    counts = list(map(int, histogram))
    axes.bar(counts, list(histogram.values()), color="#5a5a8c")
    last = max(counts) if from_members else many  # a distribution has a long tail
    axes.set(xlabel="new or enlarging lesions", ylim=(0, 1), xlim=(-0.6, max(5, last) + 0.6))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("Fraction of samples" if from_members else "Probability", fontsize=11)


def _write_sites(side: SubFigure, sites: Sequence[Mapping[str, Any]]) -> None:
    side.text(0.05, 0.58, "Likely sites (x, y, z in mm)", fontsize=12, weight="bold")
    if not sites:
        side.text(0.05, 0.55, "No site reaches 1 %.", fontsize=10)
    for rank, site in enumerate(sites[:SITES_SHOWN], start=1):
        height = 0.595 - 0.055 * rank
        centre = ", ".join(f"{x:.0f}" for x in site["centre_mm"])
        side.text(0.05, height, f"{rank}", fontsize=12, weight="bold", color="#1d7a28")
        side.text(0.13, height, f"{percent(site['probability'])} within {site['radius_mm']:.0f} mm", fontsize=11)
        side.text(0.13, height - 0.02, f"{site['region'] or ''} ({centre})", fontsize=8.5, color="#555555")


def _write_inputs(side: SubFigure, inputs: Mapping[str, Any]) -> None:
    side.text(0.05, 0.265, "Inputs", fontsize=12, weight="bold")
    lines = [line for text in input_lines(inputs) for line in textwrap.wrap(text, 40, subsequent_indent="    ")]
    side.text(0.05, 0.255, "\n".join(lines), fontsize=9, va="top", linespacing=1.35, color="#333333")
