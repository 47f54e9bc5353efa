import gzip
import re

import nibabel as nib
import numpy as np
import pytest

from bundle.data.volumes import check_same_grid, read_flair, read_mask, read_volume
from bundle.errors import InputError

DATA = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def saved(path, data, affine=None):
    nib.save(nib.Nifti1Image(data, np.eye(4) if affine is None else affine), path)
    return path


def test_voxels_and_affine_are_the_files(tmp_path):
    affine = np.array([[0, -2.0, 0, 5], [3, 0, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1]])
    volume = read_volume(saved(tmp_path / "a.nii.gz", DATA, affine), "sub-1")
    np.testing.assert_array_equal(volume.data, DATA)
    np.testing.assert_array_equal(volume.affine, affine)


def test_a_single_time_point_is_a_volume(tmp_path):
    np.testing.assert_array_equal(read_volume(saved(tmp_path / "a.nii.gz", DATA[..., None]), "sub-1").data, DATA)


def test_a_flair_starts_at_zero(tmp_path):
    np.testing.assert_array_equal(read_flair(saved(tmp_path / "a.nii.gz", DATA - 7), "sub-1").data, DATA)


def test_a_mask_may_be_written_with_any_positive_value(tmp_path):
    mask = (DATA > 11).astype(np.uint8)
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "a.nii.gz", mask * 255), "sub-1").data, mask)
    assert not read_mask(saved(tmp_path / "b.nii.gz", mask * 0), "sub-1").data.any()


def four_dimensional(path):
    saved(path, np.stack([DATA, DATA], -1))


def not_finite(path):
    saved(path, np.where(DATA == 5, np.nan, DATA))


def infinite(path):
    saved(path, np.where(DATA == 5, np.inf, DATA))


def constant(path):
    saved(path, np.full_like(DATA, 3))


def truncated(path):
    saved(path, np.random.default_rng(0).normal(size=(20, 20, 20)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_in_the_header(path):
    saved(path, DATA)
    path.write_bytes(path.read_bytes()[:40])


def damaged_in_the_middle(path):
    saved(path, np.random.default_rng(0).normal(size=(20, 20, 20)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(bytes(content))


def of_no_known_type(path):
    content = bytearray(nib.Nifti1Image(DATA, np.eye(4)).to_bytes())
    content[70:72] = np.int16(9999).tobytes()  # datatype
    path.write_bytes(gzip.compress(bytes(content)))


def not_an_image(path):
    path.write_bytes(b"hello")


def empty(path):
    path.touch()


def zero_affine(path):
    content = bytearray(nib.Nifti1Image(DATA, np.eye(4)).to_bytes())
    content[280:328] = bytes(48)  # srow_x, srow_y, srow_z
    path.write_bytes(gzip.compress(bytes(content)))


def nan_affine(path):
    content = bytearray(nib.Nifti1Image(DATA, np.eye(4)).to_bytes())
    content[280:284] = np.float32(np.nan).tobytes()
    path.write_bytes(gzip.compress(bytes(content)))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (four_dimensional, "shape (2, 3, 4, 2) is not a volume; give one 3-D volume"),
        (not_finite, "NaN or infinite voxels; replace them"),
        (infinite, "NaN or infinite voxels; replace them"),
        (constant, "all voxels are equal; give the FLAIR scan"),
        (truncated, "unreadable or truncated; copy or convert it again"),
        (damaged_in_the_middle, "unreadable or truncated; copy or convert it again"),
        (of_no_known_type, "unreadable or truncated; copy or convert it again"),
        (cut_in_the_header, "unreadable or truncated; copy or convert it again"),
        (not_an_image, "unreadable or truncated; copy or convert it again"),
        (empty, "unreadable or truncated; copy or convert it again"),
        (zero_affine, "its affine cannot be inverted; repair the qform or sform"),
        (nan_affine, "its affine cannot be inverted; repair the qform or sform"),
    ],
)
def test_a_spoilt_scan_is_told_in_one_line(tmp_path, spoil, told):
    path = tmp_path / "scan.nii.gz"
    spoil(path)
    with pytest.raises(InputError, match=f"^{re.escape(f'sub-1: {path}: {told}')}$"):
        read_flair(path, "sub-1")


@pytest.mark.parametrize("values", [DATA, -(DATA > 11).astype(np.float32), (DATA > 3) * 0.3 + (DATA > 11) * 0.3])
def test_a_mask_with_other_values_is_refused(tmp_path, values):
    path = saved(tmp_path / "mask.nii.gz", values)
    with pytest.raises(InputError, match="not a binary mask; keep 0 and 1 only"):
        read_mask(path, "sub-1")


def test_a_mask_must_lie_on_its_flair(tmp_path):
    flair = read_volume(saved(tmp_path / "flair.nii.gz", DATA), "sub-1")
    nearly, apart = np.eye(4), np.eye(4)
    nearly[0, 3], apart[0, 3] = 0.05, 0.2
    check_same_grid(read_volume(saved(tmp_path / "a.nii.gz", DATA, nearly), "sub-1"), flair, "sub-1")
    with pytest.raises(InputError, match="sub-1: .*b.nii.gz: its affine is not the FLAIR's; resample it to flair"):
        check_same_grid(read_volume(saved(tmp_path / "b.nii.gz", DATA, apart), "sub-1"), flair, "sub-1")
    with pytest.raises(InputError, match=r"c.nii.gz: shape \(2, 3, 3\) is not the FLAIR's \(2, 3, 4\); resample"):
        check_same_grid(read_volume(saved(tmp_path / "c.nii.gz", DATA[..., :3]), "sub-1"), flair, "sub-1")
