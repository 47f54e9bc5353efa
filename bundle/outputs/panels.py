"""Axial panels of a heatmap over a FLAIR, as a radiologist hangs them: the patient's left on the right, anterior up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.ticker import NullLocator
from nibabel.affines import voxel_sizes

from bundle.lesions import Volume
from bundle.outputs.coverage import COMPLETE, axial_axis, covered_fractions

LEAST, MOST = 0.001, 0.1  # one scale for every page, so that patients and treatments can be compared by eye
SOLID = 0.004  # from LEAST, where the map is transparent, it grows opaque up to here
OPACITY = 0.85
HEAT = ListedColormap(colormaps["inferno"](np.linspace(0.35, 1, 256)))  # its black end would pass for dark tissue
TISSUE = "#8c8c8c"  # behind the scale, as brain tissue is behind the map
COVERED = "#bbbbbb"


@dataclass(frozen=True)
class AxialView:
    """Layers on the axes (right, anterior, superior), turned without resampling.

    grey: FLAIR (X, Y, Z).
    heat: (X, Y, Z) in [0, 1].
    brain, covered: (X, Y, Z), bool; what of the brain lies in the slab is forecast.
    masks: further (X, Y, Z) by name, bool.
    affine: (4, 4) of these axes.
    flipped: whether the file counts its slices downwards.
    """

    grey: np.ndarray
    heat: np.ndarray
    brain: np.ndarray
    covered: np.ndarray
    masks: Mapping[str, np.ndarray]
    affine: np.ndarray
    flipped: bool

    @property
    def fractions(self) -> np.ndarray:
        """Fraction of the brain of each level that is forecast, (Z,)."""
        return covered_fractions(self.covered, self.brain, axis=2)

    def slice_number(self, level: int) -> int:
        """The slice of the file that a level is."""
        return self.grey.shape[2] - 1 - level if self.flipped else level


def axial_view(
    flair: Volume,
    heatmap: np.ndarray,
    *,
    brain: np.ndarray,
    covered: np.ndarray,
    masks: Mapping[str, np.ndarray] | None = None,
) -> AxialView:
    """The layers of a page, all (X, Y, Z) on the grid of the FLAIR in whatever orientation."""
    turn = nib.io_orientation(flair.affine)
    grey, heat, brain, covered = (
        nib.apply_orientation(layer, turn) for layer in (flair.values, heatmap, brain, covered)
    )
    turned = {name: nib.apply_orientation(mask, turn) for name, mask in (masks or {}).items()}
    affine = flair.affine @ nib.orientations.inv_ornt_aff(turn, flair.values.shape)
    flipped = bool(turn[axial_axis(flair.affine), 1] < 0)
    return AxialView(grey, heat, brain, covered, turned, affine, flipped)


def choose_levels(heat: np.ndarray, covered: np.ndarray, panels: int) -> tuple[list[int], int]:
    """Levels to show, rising, and how many levels with visible heat are left out.

    All that hold heat are shown, and other covered ones evenly while there is room. If more hold heat than there are
    panels, each panel shows one of a run of neighbours, that with most heat.

    Args:
        heat: (Z,) visible heat of each level.
        covered: (Z,) bool, levels of which a part is forecast.
        panels: most levels that can be shown.
    """
    held = np.flatnonzero(covered & (heat > 0))
    if len(held) > panels:
        chosen = [int(run[heat[run].argmax()]) for run in np.array_split(held, panels)]
        return chosen, len(held) - panels
    others = np.setdiff1d(np.flatnonzero(covered), held)
    free = min(panels - len(held), len(others))
    added = others[np.linspace(0, len(others) - 1, free).round().astype(int)] if free else others[:0]
    return sorted(map(int, [*held, *added])), 0


def visible_heat(heat: np.ndarray) -> np.ndarray:
    """What a page shows of each level of a heatmap (X, Y, Z), (Z,): the sum of its voxels at or above `LEAST`."""
    return np.where(heat >= LEAST, heat, 0).sum(axis=(0, 1))


def draw_panel(panel: Axes, view: AxialView, level: int, box: tuple[slice, slice], window: tuple[float, float]) -> None:
    """One level in its in-plane box: FLAIR, heatmap and, dashed, the border of the slab if it crosses the brain."""
    x, y = box
    width_mm, height_mm, _ = voxel_sizes(view.affine)
    extent = (x.start - 0.5, x.stop - 0.5, y.start - 0.5, y.stop - 0.5)
    frame = {"origin": "lower", "aspect": height_mm / width_mm, "extent": extent}
    panel.imshow(view.grey[x, y, level].T, cmap="gray", vmin=window[0], vmax=window[1], **frame)
    panel.imshow(heat_colours(view.heat[x, y, level].T), interpolation="nearest", **frame)
    fraction = view.fractions[level]
    if fraction < COMPLETE:
        outline(panel, view.covered[:, :, level], COVERED, 0.8, "dashed")
    part = "" if fraction >= COMPLETE else f", {100 * fraction:.0f} % of it forecast"
    caption = {"transform": panel.transAxes, "color": "white", "fontsize": 12, "va": "center"}
    panel.text(
        0.03,
        0.03,
        f"slice {view.slice_number(level)}{part}",
        **caption | {"color": "#cccccc", "fontsize": 9, "va": "bottom"},
    )
    panel.text(0.03, 0.93, "R", **caption)
    panel.text(0.97, 0.93, "L", ha="right", **caption)
    panel.set(xlim=extent[1::-1], ylim=extent[2:])  # the patient's left on the right


def heat_colours(heat: np.ndarray) -> np.ndarray:
    """RGBA (..., 4) of probabilities (...): transparent up to `LEAST`, nearly opaque from `SOLID` on."""
    floored = np.maximum(heat, LEAST)
    colours = HEAT(LogNorm(LEAST, MOST, clip=True)(floored))
    colours[..., 3] = OPACITY * np.clip(np.log(floored / LEAST) / np.log(SOLID / LEAST), 0, 1)
    return colours


def outline(panel: Axes, mask: np.ndarray, colour: str, width: float, style: str = "solid") -> None:
    """The border of a mask (X, Y), nothing where it is empty or everywhere."""
    if mask.any() and not mask.all():
        panel.contour(mask.T, levels=[0.5], colors=colour, linewidths=width, linestyles=style)


def draw_scale(axes: Axes) -> None:
    """The colours of `heat_colours`, over grey tissue."""
    ticks = {0.001: "0.1 %", 0.003: "0.3 %", 0.01: "1 %", 0.03: "3 %", 0.1: "\u2265 10 %"}
    edges = np.geomspace(LEAST, MOST, 257)
    axes.set_facecolor(TISSUE)
    axes.pcolormesh(edges, [0, 1], heat_colours(np.sqrt(edges[1:] * edges[:-1]))[None])
    axes.set(xscale="log", xlim=(LEAST, MOST), yticks=[], xticks=list(ticks))
    axes.set_xticklabels(list(ticks.values()))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_title("Chance of a lesion in the voxel", fontsize=11)


def box_of_brain(brain: np.ndarray, affine: np.ndarray) -> tuple[slice, slice]:
    """The in-plane box around the brain (X, Y, levels), with a margin of 8 mm; everything if there is no brain."""
    box = []
    for axis, step_mm in enumerate(voxel_sizes(affine)[:2]):
        seen = np.flatnonzero(brain.any(axis=(1 - axis, 2)))
        first, last = (int(seen[0]), int(seen[-1])) if seen.size else (0, brain.shape[axis] - 1)
        margin = round(8 / step_mm)
        box.append(slice(max(first - margin, 0), min(last + margin + 1, brain.shape[axis])))
    return box[0], box[1]


def grey_window(view: AxialView, levels: Sequence[int]) -> tuple[float, float]:
    """Black and white of the FLAIR: nearly all of what the brain holds in these levels."""
    grey, brain = view.grey[:, :, levels], view.brain[:, :, levels]
    black, white = np.percentile(grey[brain] if brain.any() else grey, (0.1, 99.8))
    return float(black), float(white)
