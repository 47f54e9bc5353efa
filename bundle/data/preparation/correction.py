"""Correction of the slow brightness changes that receive coils leave (N4)."""

import numpy as np
import SimpleITK as sitk
from nibabel.affines import voxel_sizes

from bundle.data.preparation.images import from_itk, to_itk
from bundle.lesions import Volume

_COARSE_MM = 4.0  # the field is smooth: it is fitted on voxels of about this size
_ITERATIONS = (50, 50, 30)


def correct_bias(flair: Volume, brain: np.ndarray) -> Volume:
    """The FLAIR divided by its bias field, on its own grid; its mean in the brain stays.

    Args:
        flair: (X, Y, Z) float32, 0 is background.
        brain: (X, Y, Z) bool, where the field is fitted.

    References:
        Tustison et al. 2010, N4ITK: improved N3 bias correction.
    """
    image, mask = to_itk(flair.values, flair.affine), to_itk(brain.astype(np.uint8), flair.affine)
    shrink = [max(1, round(_COARSE_MM / size)) for size in voxel_sizes(flair.affine)]
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(_ITERATIONS)
    n4.Execute(sitk.Shrink(image, shrink), sitk.Shrink(mask, shrink))
    log_field, _ = from_itk(n4.GetLogBiasFieldAsImage(image))
    corrected = flair.values / np.exp(log_field)
    corrected *= flair.values[brain].mean() / corrected[brain].mean()
    return flair._replace(values=corrected.astype(np.float32))
