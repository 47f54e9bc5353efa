"""The images of an HTML page: axial slices as WebP, maps and masks as compressed bytes, all on the same pixels."""

import base64
import io
import zlib
from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from PIL import Image

from bundle.lesions import Volume
from bundle.outputs.panels import AxialView, axial_view, box_of_brain, grey_window, heat_colours

FLOOR = 1e-4  # the smallest probability distinguished from 0
VALUES = np.r_[0, np.geomspace(FLOOR, 1, 255)]  # the probability of each code of `heat_codes`
STEP = VALUES[2] / VALUES[1] - 1  # from one code to the next, relative
QUALITY = 80  # of WebP


@dataclass(frozen=True)
class Frame:
    """The pixels of a page: slices from below upwards, rows from front to back, columns from the patient's right.

    view: FLAIR, brain and slab on the axes (right, anterior, superior).
    turn: orientation of the file's axes, see `nibabel.io_orientation`.
    columns, rows, levels: voxel of each pixel along the axes of `view`. Pixels are voxels, every n-th where these are
        small, and never averages: a value on the page is one of the file.
    """

    view: AxialView
    turn: np.ndarray
    columns: np.ndarray
    rows: np.ndarray
    levels: np.ndarray

    @property
    def step(self) -> tuple[int, int]:
        """Voxels from one column to the next, and from one row to the next."""
        return tuple(int(places[0] - places[1]) if len(places) > 1 else 1 for places in (self.columns, self.rows))

    @property
    def pixel_mm(self) -> tuple[float, float]:
        """Width and height of a pixel."""
        width, height = (step * float(size) for step, size in zip(self.step, voxel_sizes(self.view.affine)))
        return width, height

    def pixels(self, volume: np.ndarray) -> np.ndarray:
        """A volume (X, Y, Z) on the grid of the FLAIR as (slices, rows, columns)."""
        turned = nib.apply_orientation(volume, self.turn)
        return turned[np.ix_(self.columns, self.rows, self.levels)].transpose(2, 1, 0)

    def nearest(self, point_mm: np.ndarray) -> tuple[int, int, int] | None:
        """Slice, row and column of the pixel nearest to a point (3,) in world millimetres; None outside the frame."""
        voxel = nib.affines.apply_affine(np.linalg.inv(self.view.affine), point_mm)
        found = []
        for place, axis in ((voxel[2], self.levels), (voxel[1], self.rows), (voxel[0], self.columns)):
            nearest = int(np.abs(axis - place).argmin())
            if abs(axis[nearest] - place) > (1 if len(axis) == 1 else abs(int(axis[0] - axis[1]))):
                return None
            found.append(nearest)
        return tuple(found)


def frame_of(flair: Volume, brain: np.ndarray, covered: np.ndarray, pixel_mm: float) -> Frame:
    """The slices that hold a part of the forecast, or the middle one, cut to the box of their brain.

    Args:
        flair: (X, Y, Z) in any orientation.
        brain, covered: (X, Y, Z), bool.
        pixel_mm: voxels smaller than half of it are skipped, so that pixels have at most this size.
    """
    view = axial_view(flair, np.broadcast_to(np.float32(0), brain.shape), brain=brain, covered=covered)
    levels = np.flatnonzero(view.fractions > 0)
    if not levels.size:
        levels = np.array([view.grey.shape[2] // 2])
    box = box_of_brain(view.brain[:, :, levels], view.affine)
    steps = [max(int(pixel_mm / size + 1e-6), 1) for size in voxel_sizes(view.affine)[:2]]
    columns, rows = (np.arange(part.start, part.stop)[step // 2 :: step][::-1] for part, step in zip(box, steps))
    return Frame(view, nib.io_orientation(flair.affine), columns, rows, levels)


def grey_images(frame: Frame, flair: np.ndarray) -> list[str]:
    """The slices of a FLAIR (X, Y, Z) on the frame's grid as data URIs of WebP, black and white set by its brain."""
    view = replace(frame.view, grey=nib.apply_orientation(flair, frame.turn))
    black, white = grey_window(view, list(frame.levels))
    grey = np.clip((frame.pixels(flair) - black) / max(white - black, 1e-6), 0, 1) * 255
    return [_data_uri(pixels) for pixels in grey.round().astype(np.uint8)]


def heat_codes(heatmap: np.ndarray) -> np.ndarray:
    """Probabilities in [0, 1] as uint8 codes of `VALUES`: 0 below `FLOOR`, else the nearest by ratio."""
    floored = np.maximum(heatmap, FLOOR)
    codes = 1 + np.round(254 * np.log(floored / FLOOR) / np.log(1 / FLOOR))
    return np.where(heatmap < FLOOR, 0, np.clip(codes, 1, 255)).astype(np.uint8)


def code_colours() -> list[list[int]]:
    """Red, green and blue of each code, those of `bundle.outputs.panels`."""
    return (heat_colours(VALUES)[:, :3] * 255).round().astype(int).tolist()


def packed(values: np.ndarray) -> str:
    """Bytes compressed by zlib, as base64."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(values, np.uint8).tobytes(), 9)).decode()


def _data_uri(grey: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, "WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
