"""Pixels of the HTML page are voxels of the file, and codes are probabilities to a stated step."""

import base64
import io

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from PIL import Image

from bundle.lesions import Volume
from bundle.outputs.page_images import FLOOR, STEP, VALUES, code_colours, frame_of, grey_images, heat_codes

SHAPE = (30, 40, 12)
AFFINE = np.array([[4.0, 0, 0, -58], [0, 4, 0, -78], [0, 0, 3, -20], [0, 0, 0, 1]])


def head(affine=AFFINE, shape=SHAPE, slices=slice(2, 9)):
    x, y, _ = np.indices(shape)
    brain = ((x / shape[0] - 0.5) / 0.4) ** 2 + ((y / shape[1] - 0.5) / 0.4) ** 2 < 1
    covered = np.zeros(shape, bool)
    covered[:, :, slices] = True
    return Volume(np.where(brain, 100.0 + x + y, 0).astype(np.float32), affine), brain, covered


def test_codes_are_within_half_a_step_of_the_probability():
    p = np.r_[np.geomspace(FLOOR, 1, 10_001), np.linspace(FLOOR, 1, 10_001)]
    assert (np.abs(VALUES[heat_codes(p)] / p - 1) <= STEP / 2).all() and STEP == pytest.approx(0.0369, abs=1e-4)
    np.testing.assert_array_equal(heat_codes(np.array([0, FLOOR * 0.99, FLOOR, 1])), [0, 0, 1, 255])
    np.testing.assert_array_equal(heat_codes(VALUES), np.arange(256))
    assert len(code_colours()) == 256


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "ASR", "SRA"])
def test_a_pixel_is_the_voxel_at_its_place_in_the_world_whatever_the_files_axes(orientation):
    turn = nib.orientations.ornt_transform(*map(nib.orientations.axcodes2ornt, ("RAS", orientation)))
    affine = AFFINE @ nib.orientations.inv_ornt_aff(turn, SHAPE)
    flair, brain, covered = head()
    volume = np.random.default_rng(0).random(SHAPE)
    turned = [nib.apply_orientation(x, turn) for x in (flair.values, brain, covered, volume)]
    frame = frame_of(Volume(turned[0], affine), *turned[1:3], 1.0)
    pixels = frame.pixels(turned[3])
    assert len(pixels) == 7
    for place in [(0, 0, 0), (3, 5, 7), tuple(np.subtract(pixels.shape, 1))]:
        z, row, column = place
        voxel = frame.columns[column], frame.rows[row], frame.levels[z]
        point = apply_affine(frame.view.affine, voxel)
        assert pixels[place] == Volume(volume, AFFINE).at(point[None])[0]
        assert frame.nearest(point) == place
    x = [apply_affine(frame.view.affine, (column, 0, 0))[0] for column in frame.columns]
    y = [apply_affine(frame.view.affine, (0, row, 0))[1] for row in frame.rows]
    assert (np.diff(x) < 0).all() and (np.diff(y) < 0).all()  # from the patient's right, from the front
    numbers = [frame.view.slice_number(level) for level in frame.levels]
    axis = nib.io_orientation(affine)[:, 0].argmax()
    assert all(np.moveaxis(turned[2], axis, 0)[number].all() for number in numbers)


def test_small_voxels_are_skipped_and_never_averaged():
    affine, shape = np.diag([0.4, 0.9, 2.0, 1]), (300, 120, 9)
    flair, brain, covered = head(affine, shape)
    frame = frame_of(flair, brain, covered, 1.0)
    assert frame.step == (2, 1) and frame.pixel_mm == pytest.approx((0.8, 0.9))
    values = np.random.default_rng(0).random(shape)
    assert set(frame.pixels(values).ravel()) <= set(values.ravel())


def test_a_point_outside_the_frame_has_no_pixel():
    frame = frame_of(*head(), 1.0)
    assert frame.nearest(np.array([0.0, 0, 900])) is None and frame.nearest(np.array([500.0, 0, 0])) is None


def test_a_scan_outside_the_slab_shows_its_middle_slice():
    flair, brain, covered = head()
    assert frame_of(flair, brain, covered & False, 1.0).levels.tolist() == [6]


def test_images_hold_the_slices_from_black_to_white():
    flair, brain, covered = head()
    frame = frame_of(flair, brain, covered, 1.0)
    images = grey_images(frame, flair.values)
    assert len(images) == 7 and all(image.startswith("data:image/webp;base64,") for image in images)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(images[0].partition(",")[2]))).convert("L"), float)
    shown = frame.pixels(flair.values)[0]
    assert pixels.shape == shown.shape and pixels.min() < 10 and pixels.max() > 240
    assert np.corrcoef(pixels[shown > 0], shown[shown > 0])[0, 1] > 0.95
