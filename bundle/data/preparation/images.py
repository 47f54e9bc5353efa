"""Volumes between nibabel's world (RAS) and ITK's (LPS), with the checks that a scan's grid allows."""

import numpy as np
import SimpleITK as sitk
from nibabel.affines import voxel_sizes

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from RAS to LPS and back


def to_itk(values: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """A volume (X, Y, Z) with its affine (4, 4) in RAS as an ITK image.

    ITK knows no shear: of an affine that has some, the nearest rotation is taken.
    """
    image = sitk.GetImageFromArray(np.ascontiguousarray(values.T))
    spacing, lps = voxel_sizes(affine), LPS @ affine
    left, _, right = np.linalg.svd(lps[:3, :3] / spacing)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((left @ right).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def from_itk(image: sitk.Image) -> tuple[np.ndarray, np.ndarray]:
    """Values (X, Y, Z) and affine (4, 4) in RAS of an ITK image."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).T, LPS @ affine
