import gzip
import re

import nibabel as nib
import numpy as np
import pytest

from bundle.data.volumes import check_same_grid, has_orientation, read_flair, read_mask, read_volume
from bundle.errors import InputError
from bundle.files import nifti_bytes

DATA = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


def saved(path, data, affine=None):
    nib.save(nib.Nifti1Image(data, np.eye(4) if affine is None else affine), path)
    return path


def test_voxels_and_affine_are_the_files(tmp_path):
    affine = np.array([[0, -2.0, 0, 5], [3, 0, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1]])
    volume = read_volume(saved(tmp_path / "a.nii.gz", DATA, affine), "sub-1")
    np.testing.assert_array_equal(volume.values, DATA)
    np.testing.assert_array_equal(volume.affine, affine)


def test_a_single_time_point_is_a_volume(tmp_path):
    np.testing.assert_array_equal(read_volume(saved(tmp_path / "a.nii.gz", DATA[..., None]), "sub-1").values, DATA)


def test_a_flair_starts_at_zero(tmp_path):
    np.testing.assert_array_equal(read_flair(saved(tmp_path / "a.nii.gz", DATA - 7), "sub-1").values, DATA)


def test_a_mask_may_be_written_with_any_positive_value(tmp_path):
    mask = (DATA > 11).astype(np.uint8)
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "a.nii.gz", mask * 255), "sub-1").values, mask)
    assert not read_mask(saved(tmp_path / "b.nii.gz", mask * 0), "sub-1").values.any()


def header_bytes(path, start, values, data=DATA):
    """Writes a volume whose header holds other values from a byte on."""
    content = bytearray(nib.Nifti1Image(data, np.eye(4)).to_bytes())
    content[start : start + values.nbytes] = values.tobytes()
    path.write_bytes(gzip.compress(bytes(content)))


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
    header_bytes(path, 70, np.int16(9999))


def not_an_image(path):
    path.write_bytes(b"hello")


def empty(path):
    path.touch()


def with_bytes_inserted(path):
    saved(path, DATA)
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[400:400] = b"\0\1\2\3"
    path.write_bytes(gzip.compress(bytes(content)))


def with_another_member(path):
    saved(path, DATA)
    path.write_bytes(path.read_bytes() + gzip.compress(b"more"))


def huge(path):
    header_bytes(path, 40, np.array([3, 32767, 32767, 32767, 1], np.int16))


def negative(path):
    header_bytes(path, 40, np.array([3, 2, -3, 4, 1], np.int16))


def complex_numbers(path):
    saved(path, DATA.astype(np.complex64))


def colours(path):
    nib.save(nib.Nifti1Image(np.zeros((2, 3, 4), RGB), np.eye(4)), path)


def zero_affine(path):
    header_bytes(path, 280, np.zeros(12, np.float32))  # srow_x, srow_y, srow_z


def nan_affine(path):
    header_bytes(path, 280, np.float32(np.nan))


def scaled_affine(path):
    saved(path, DATA, np.diag([1000, 1000, 3000, 1]))


def tiny_voxels(path):
    saved(path, DATA, np.diag([1e-3, 1e-3, 1, 1]))


def parallel_axes(path):
    saved(path, DATA, np.array([[1, 0.99, 0, 0], [0, 0.14, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))


def overflowing(path):
    saved(path, np.where(DATA == 5, 1e300, DATA.astype(np.float64)))


@pytest.mark.parametrize(
    ("spoil", "message"),
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
        (zero_affine, "its affine cannot be inverted; correct the qform or sform"),
        (nan_affine, "its affine cannot be inverted; correct the qform or sform"),
        (scaled_affine, "voxels of 1000 x 1000 x 3000 mm are implausible for a brain scan; correct the qform or sform"),
        (tiny_voxels, "voxels of 0.001 x 0.001 x 1 mm are implausible for a brain scan; correct the qform or sform"),
        (parallel_axes, "the axes of its affine are nearly parallel; correct the qform or sform"),
        (with_bytes_inserted, "more bytes than its header says; copy or convert it again"),
        (with_another_member, "more bytes than its header says; copy or convert it again"),
        (huge, f"shape {(32767,) * 3} has more than {2**27} voxels; crop or resample it"),
        (negative, "shape (2, -3, 4) is not a volume; give one 3-D volume"),
        (complex_numbers, "voxels of type complex64 are not numbers; give one grey value a voxel"),
        (
            colours,
            "voxels of type [('R', 'u1'), ('G', 'u1'), ('B', 'u1')] are not numbers; give one grey value a voxel",
        ),
        (overflowing, "NaN or infinite voxels; replace them"),
    ],
)
def test_an_unusable_scan_is_one_line(tmp_path, spoil, message):
    path = tmp_path / "scan.nii.gz"
    spoil(path)
    with pytest.raises(InputError, match=f"^{re.escape(f'sub-1: {path}: {message}')}$"):
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


@pytest.mark.parametrize("change", [lambda content: content + b"x", lambda content: content[:-1]])
def test_an_uncompressed_file_has_the_length_of_its_header(tmp_path, change):
    path = saved(tmp_path / "a.nii", DATA)
    read_volume(path, "sub-1")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match="more bytes than its header says|unreadable or truncated"):
        read_volume(path, "sub-1")


def test_a_shape_too_large_is_refused_before_anything_is_decompressed(tmp_path, monkeypatch):
    huge(tmp_path / "a.nii.gz")
    monkeypatch.setattr("bundle.data.volumes._check_length", lambda *_: pytest.fail("read the voxels"))
    with pytest.raises(InputError, match="more than"):
        read_volume(tmp_path / "a.nii.gz", "sub-1")


def test_nifti_2_is_read_and_written(tmp_path):
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti2Image(DATA, np.diag([2, 2, 3, 1])), path)
    np.testing.assert_array_equal(read_volume(path, "sub-1").values, DATA)
    (tmp_path / "b.nii.gz").write_bytes(nifti_bytes(DATA * 2, path))
    written = nib.load(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(written.get_fdata(), DATA * 2)
    np.testing.assert_array_equal(written.affine, np.diag([2, 2, 3, 1]))


def test_whether_the_orientation_is_known(tmp_path):
    image = nib.Nifti1Image(DATA, None)
    nib.save(image, tmp_path / "unknown.nii.gz")
    assert has_orientation(saved(tmp_path / "a.nii.gz", DATA)) and not has_orientation(tmp_path / "unknown.nii.gz")
