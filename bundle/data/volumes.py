"""Reading one NIfTI volume, with every check that its file allows."""

import gzip
import math
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.imageglobals import LoggingOutputSuppressor
from nibabel.spatialimages import HeaderDataError, SpatialImage

from bundle.errors import InputError
from bundle.lesions import Volume

_MAX_VOXELS = 2**27  # 512 x 512 x 512; a patient's volumes then fit into 4 GB
_CHUNK = 1 << 22
_SPACING_MM = (0.1, 20.0)  # voxel sizes of any brain scan
_LEAST_VOLUME = 0.5  # of a voxel, as a fraction of the box of its three sizes: axes further from square are an error
_UNREADABLE = (
    ImageFileError,
    HeaderDataError,
    OSError,
    EOFError,
    zlib.error,
    ValueError,
    TypeError,
    MemoryError,
    OverflowError,
)
_SAME_GRID_MM = 0.1  # corners of two grids of one visit may differ by this much: headers hold rounded numbers


def read_volume(path: Path, case: str) -> Volume:
    """One three-dimensional scan, float32 (X, Y, Z).

    Memory is bounded before any voxel is read, and the length of the file is compared with its header: bytes that were
    inserted or lost shift every voxel after them.

    Raises:
        InputError: unreadable, truncated, longer than its header says, not 3-D, too many voxels, colours or complex
            numbers, NaN or infinite voxels, or an implausible affine.
    """
    # What is wrong is refused in one line, without the remarks of numpy and nibabel on it.
    with np.errstate(all="ignore"), LoggingOutputSuppressor():
        try:
            image = nib.load(path)
            shape, dtype = image.shape, image.get_data_dtype()
        except _UNREADABLE as error:
            raise _unreadable(path, case) from error
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) != 3 or min(shape) < 1:
            raise InputError(f"shape {image.shape} is not a volume", "give one 3-D volume", case=case, file=path)
        if math.prod(map(int, shape)) > _MAX_VOXELS:
            problem = f"shape {shape} has more than {_MAX_VOXELS} voxels"
            raise InputError(problem, "crop or resample it", case=case, file=path)
        if dtype.kind not in "iuf":
            problem = f"voxels of type {dtype} are not numbers"
            raise InputError(problem, "give one grey value a voxel", case=case, file=path)
        affine = _checked_affine(image, path, case)
        _check_length(image, path, case)
        try:
            values = image.get_fdata(dtype=np.float32, caching="unchanged").reshape(shape)
        except _UNREADABLE as error:
            raise _unreadable(path, case) from error
    if not np.isfinite(values).all():
        raise InputError("NaN or infinite voxels", "replace them", case=case, file=path)
    return Volume(values, affine, path)


def read_flair(path: Path, case: str) -> Volume:
    """A FLAIR scan, float32, shifted so that its darkest voxel is 0: the value of what lies outside the scan.

    Raises:
        InputError: as `read_volume`, or all voxels are equal.
    """
    flair = read_volume(path, case)
    darkest = flair.values.min()
    if flair.values.max() == darkest:
        raise InputError("all voxels are equal", "give the FLAIR scan", case=case, file=path)
    values = flair.values - darkest
    if not np.isfinite(values).all():
        raise InputError("its range of values overflows", "scale it", case=case, file=path)
    return flair._replace(values=values)


def read_mask(path: Path, case: str) -> Volume:
    """A binary mask, bool; written as 0 and any one positive value, e.g. 255.

    Raises:
        InputError: as `read_volume`, or more than two values.
    """
    mask = read_volume(path, case)
    marked = mask.values != 0
    values = mask.values[marked]
    if values.size and (values.min() != values.max() or values[0] < 0):
        raise InputError("not a binary mask", "keep 0 and 1 only", case=case, file=path)
    return mask._replace(values=marked)


def check_same_grid(mask: Volume, flair: Volume, case: str) -> None:
    """A mask must lie voxel by voxel on the FLAIR of its visit.

    Raises:
        InputError: shapes differ, or corners are more than 0.1 mm apart.
    """
    fix = f"resample it to {flair.path.name}"
    if mask.values.shape != flair.values.shape:
        problem = f"shape {mask.values.shape} is not the FLAIR's {flair.values.shape}"
        raise InputError(problem, fix, case=case, file=mask.path)
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in mask.values.shape]), axis=-1).reshape(-1, 3)
    apart = apply_affine(mask.affine, corners) - apply_affine(flair.affine, corners)
    if np.linalg.norm(apart, axis=1).max() > _SAME_GRID_MM:
        raise InputError("its affine is not the FLAIR's", fix, case=case, file=mask.path)


def has_orientation(path: Path) -> bool:
    """Whether the header says where the voxels lie: sform or qform code above 0. Else nibabel assumes LAS axes."""
    header = nib.load(path).header
    return bool(header["sform_code"] > 0 or header["qform_code"] > 0)


def _checked_affine(image: SpatialImage, path: Path, case: str) -> np.ndarray:
    affine = np.asarray(image.affine, np.float64)
    fix = "correct the qform or sform"
    if not np.isfinite(affine).all() or np.abs(affine).max() > 1e6 or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise InputError("its affine cannot be inverted", fix, case=case, file=path)
    sizes = voxel_sizes(affine)
    if sizes.min() < _SPACING_MM[0] or sizes.max() > _SPACING_MM[1]:
        measured = " x ".join(f"{size:.4g}" for size in sizes)
        raise InputError(f"voxels of {measured} mm are implausible for a brain scan", fix, case=case, file=path)
    if abs(np.linalg.det(affine[:3, :3])) < _LEAST_VOLUME * sizes.prod():
        raise InputError("the axes of its affine are nearly parallel", fix, case=case, file=path)
    return affine


def _check_length(image: SpatialImage, path: Path, case: str) -> None:
    """Reads a compressed file to its end, which also verifies its checksum: nibabel stops at the last voxel."""
    try:
        expected = image.dataobj.offset + math.prod(map(int, image.shape)) * image.get_data_dtype().itemsize
        length = 0
        if path.suffix == ".gz":
            with gzip.open(path) as stream:
                while (chunk := len(stream.read(_CHUNK))) and length <= expected:
                    length += chunk
        else:
            length = path.stat().st_size
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, case) from error
    if length < expected:
        raise _unreadable(path, case)
    if length > expected:
        raise InputError("more bytes than its header says", "copy or convert it again", case=case, file=path)


def _unreadable(path: Path, case: str) -> InputError:
    return InputError("unreadable or truncated", "copy or convert it again", case=case, file=path)
