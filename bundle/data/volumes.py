"""Reading one NIfTI volume, with every check that its content allows."""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from bundle.errors import InputError

_CHUNK = 1 << 22
_UNREADABLE = (
    ImageFileError, HeaderDataError, OSError, EOFError, zlib.error, ValueError, TypeError, MemoryError, OverflowError,
)  # fmt: skip
_SAME_PLACE_MM = 0.1  # corners of two grids of one visit may differ by this much: headers hold rounded numbers


@dataclass(frozen=True)
class Volume:
    """Voxels (X, Y, Z) as in the file, with the affine that maps their indices to RAS+ world millimetres."""

    data: np.ndarray
    affine: np.ndarray
    path: Path


def read_volume(path: Path, case: str) -> Volume:
    """One three-dimensional scan, float32.

    Raises:
        InputError: unreadable, truncated, not 3-D, NaN or infinite voxels, or an affine that cannot be inverted.
    """
    try:
        if path.suffix == ".gz":  # nibabel stops reading before the checksum
            with gzip.open(path) as stream:
                while stream.read(_CHUNK):
                    pass
        image = nib.load(path)
        data = image.get_fdata(dtype=np.float32, caching="unchanged")
        affine = np.asarray(image.affine, np.float64)
    except _UNREADABLE as error:
        raise InputError("unreadable or truncated", "copy or convert it again", case=case, file=path) from error
    if data.ndim > 3 and data.shape[3:] == (1,) * (data.ndim - 3):
        data = data.reshape(data.shape[:3])
    if data.ndim != 3 or 0 in data.shape:
        raise InputError(f"shape {data.shape} is not a volume", "give one 3-D volume", case=case, file=path)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise InputError("its affine cannot be inverted", "repair the qform or sform", case=case, file=path)
    if not np.isfinite(data).all():
        raise InputError("NaN or infinite voxels", "replace them", case=case, file=path)
    return Volume(data, affine, path)


def read_flair(path: Path, case: str) -> Volume:
    """A FLAIR scan, float32, shifted so that its darkest voxel is 0: the value of what lies outside the scan.

    Raises:
        InputError: as `read_volume`, or all voxels are equal.
    """
    flair = read_volume(path, case)
    darkest = flair.data.min()
    if flair.data.max() == darkest:
        raise InputError("all voxels are equal", "give the FLAIR scan", case=case, file=path)
    return Volume(flair.data - darkest, flair.affine, path)


def read_mask(path: Path, case: str) -> Volume:
    """A binary mask, float32 in {0, 1}; written as 0 and any one positive value, e.g. 255.

    Raises:
        InputError: as `read_volume`, or more than two values.
    """
    mask = read_volume(path, case)
    marked = mask.data != 0
    values = mask.data[marked]
    if values.size and (values.min() != values.max() or values[0] < 0):
        raise InputError("not a binary mask", "keep 0 and 1 only", case=case, file=path)
    return Volume(marked.astype(np.float32), mask.affine, path)


def check_same_grid(mask: Volume, flair: Volume, case: str) -> None:
    """A mask must lie voxel by voxel on the FLAIR of its visit.

    Raises:
        InputError: shapes differ, or corners are more than 0.1 mm apart.
    """
    mend = f"resample it to {flair.path.name}"
    if mask.data.shape != flair.data.shape:
        problem = f"shape {mask.data.shape} is not the FLAIR's {flair.data.shape}"
        raise InputError(problem, mend, case=case, file=mask.path)
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in mask.data.shape])).reshape(3, -1)
    apart = (mask.affine - flair.affine)[:3] @ np.vstack([corners, np.ones(8)])
    if np.linalg.norm(apart, axis=0).max() > _SAME_PLACE_MM:
        raise InputError("its affine is not the FLAIR's", mend, case=case, file=mask.path)
