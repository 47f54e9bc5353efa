"""The quality page of a patient: the visits before and after registration, as PNG and HTML."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from nibabel.affines import apply_affine
from scipy import ndimage

from bundle import __version__
from bundle.data.preparation.registration import Agreement, Motion
from bundle.lesions import Volume

BRAIN, LESIONS = "#39c5ff", "#ffb000"
COLUMNS = ("first visit", "later visit, registered", "checkerboard before", "checkerboard after")
LEVELS = (0.38, 0.55, 0.72)  # heights of the axial slices, as fractions of the brain's height
SQUARE_MM = 24.0
MARGIN_MM = 14.0
GRID_MM = 1.0
_BINS = 64


@dataclass(frozen=True)
class Pair:
    """Two visits as they are compared.

    Attributes:
        visit: the later one.
        first, later: FLAIR; the later one's affine is that after registration.
        brain: (X, Y, Z) bool on the first one's grid.
        motion: of the later one.
        before, after: agreement.
        masks: lesions of the later visit on its grid, by kind.
    """

    visit: str
    first: Volume
    later: Volume
    brain: np.ndarray
    motion: Motion
    before: Agreement
    after: Agreement
    masks: Mapping[str, np.ndarray]


def quality_page(label: str, pairs: Sequence[Pair], record: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of a patient's page: one PNG a pair, and an HTML page that holds them.

    Args:
        label: "sub-X".
        pairs: w000 with each later visit.
        record: of `bundle.data.preparation.patient.prepare_patient`.
    """
    pictures = {f"{label}_ses-{pair.visit}_quality.png": pair_picture(pair) for pair in pairs}
    environment = Environment(loader=PackageLoader("bundle.data.preparation"), autoescape=True)
    page = environment.get_template("patient.html").render(
        label=label,
        record=record,
        pictures={name: base64.b64encode(content).decode() for name, content in pictures.items()},
        version=__version__,
    )
    return {**pictures, f"{label}_quality.html": page.encode()}


def pair_picture(pair: Pair) -> bytes:
    """A PNG: three axial slices and a sagittal one of both visits, checkerboards, joint histograms.

    Axial slices are hung as radiologists do: the patient's left on the right.
    """
    spots = apply_affine(pair.first.affine, np.argwhere(pair.brain))
    low, high = spots.min(axis=0) - MARGIN_MM, spots.max(axis=0) + MARGIN_MM
    figure = Figure(figsize=(14, 15.6), dpi=80, facecolor="black")
    margins = {"hspace": 0.03, "wspace": 0.03, "left": 0.01, "right": 0.99, "top": 0.95, "bottom": 0.04}
    axes = figure.subplots(5, 4, gridspec_kw=margins)
    heights = [low[2] + MARGIN_MM + level * (high[2] - low[2] - 2 * MARGIN_MM) for level in LEVELS]
    planes = [*(("axial", height) for height in heights), ("sagittal", float(spots[:, 0].mean()) + 6)]
    unmoved = pair.later._replace(affine=np.linalg.inv(pair.motion.matrix) @ pair.later.affine)
    for row, (plane, place) in zip(axes, planes):
        points = _plane(plane, place, low, high)
        scans = pair.first, pair.later, unmoved
        first, later, before = (_scaled(_read(scan.values, scan.affine, points)) for scan in scans)
        board = _board(first.shape)
        pictures = (first, later, np.where(board, first, before), np.where(board, first, later))
        for panel, picture in zip(row, pictures):
            panel.imshow(picture.T, cmap="gray", vmin=0, vmax=1, origin="lower")
        brain = _read(pair.brain.astype(np.float32), pair.first.affine, points) >= 0.5
        if plane == "axial":  # as radiologists hang it
            for panel in row:
                panel.invert_xaxis()
        for panel in row[:2]:
            _outline(panel, brain, BRAIN)
        lesions = [_read(mask.astype(np.float32), pair.later.affine, points) >= 0.5 for mask in pair.masks.values()]
        if lesions:
            _outline(row[1], np.any(lesions, axis=0), LESIONS)
        if plane == "axial":
            row[0].text(0.03, 0.5, "R", color="white", transform=row[0].transAxes)
            row[0].text(0.94, 0.5, "L", color="white", transform=row[0].transAxes)
    for panel, title in zip(axes[0], COLUMNS):
        panel.set_title(title, color="white", fontsize=12)
    for panel in axes.flat:
        panel.set(xticks=[], yticks=[], facecolor="black")
    _histogram(axes[4, 0], pair, unmoved, f"before: r = {pair.before.correlation:.2f}")
    _histogram(axes[4, 1], pair, pair.later, f"after: r = {pair.after.correlation:.2f}")
    for panel in axes[4, 2:]:
        panel.axis("off")
    text = (
        f"{pair.visit} moved by {pair.motion.millimetres:.1f} mm\nand turned by {pair.motion.degrees:.1f} degrees\n\n"
        f"mutual information {pair.before.mutual_information:.2f} before, {pair.after.mutual_information:.2f} after\n\n"
        "blue: brain of the first visit\n" + ("orange: lesion masks of the later visit" if pair.masks else "no masks")
    )
    axes[4, 2].text(0.05, 0.9, text, color="white", fontsize=12, va="top", transform=axes[4, 2].transAxes)
    stream = BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _plane(plane: str, place: float, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """World points (A, B, 3) of a slice, in steps of 1 mm."""
    x, y, z = (np.arange(a, b, GRID_MM) for a, b in zip(low, high))
    if plane == "axial":
        first, second = np.meshgrid(x, y, indexing="ij")
        return np.stack([first, second, np.full_like(first, place)], axis=-1)
    first, second = np.meshgrid(y, z, indexing="ij")
    return np.stack([np.full_like(first, place), first, second], axis=-1)


def _read(values: np.ndarray, affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    voxels = apply_affine(np.linalg.inv(affine), points)
    return ndimage.map_coordinates(values, np.moveaxis(voxels, -1, 0), order=1)


def _scaled(picture: np.ndarray) -> np.ndarray:
    seen = picture[picture > 0]
    return np.clip(picture / np.percentile(seen, 99.5), 0, 1) if seen.size else picture


def _board(shape: tuple[int, ...]) -> np.ndarray:
    squares = [np.arange(n) // int(SQUARE_MM / GRID_MM) for n in shape]
    return np.add.outer(*squares) % 2 == 0


def _outline(panel: Axes, mask: np.ndarray, colour: str) -> None:
    if mask.any() and not mask.all():
        panel.contour(mask.T, levels=[0.5], colors=colour, linewidths=0.9)


def _histogram(panel: Axes, pair: Pair, later: Volume, title: str) -> None:
    """Joint histogram of the brain's voxels: a narrow ridge where the visits are aligned."""
    where = np.argwhere(pair.brain)[::7]
    a = pair.first.values[tuple(where.T)]
    b = _read(later.values, later.affine, apply_affine(pair.first.affine, where))
    both = (a > 0) & (b > 0)
    if np.count_nonzero(both) > 100:
        ranges = [np.percentile(x[both], (0.5, 99.5)) for x in (a, b)]
        counts, _, _ = np.histogram2d(a[both], b[both], bins=_BINS, range=ranges)
        panel.imshow(np.log1p(counts).T, origin="lower", cmap="inferno", aspect="auto")
    panel.text(0.03, 0.93, title, color="white", fontsize=12, transform=panel.transAxes)
