"""FLAIR between -1 and 1: bright values are compressed, so that even the brightest lesions stay distinct.

Linear FLAIR has two percentiles of a brain at -1 and 1. The brightest 6 ml of a brain are its lesions, and how bright
they are tells which of them are active: clipped at 1 they would all look alike.
"""

import numpy as np
from torch import Tensor

_SHOULDER = 0.5  # up to here nothing is changed
_BRIGHTEST = 3.0  # linear values that stay distinct


def compress_bright(flair: np.ndarray) -> np.ndarray:
    """Linear FLAIR of any value to [-1, 1]: clipped below, bent from the shoulder on above."""
    room = 1 - _SHOULDER
    excess = np.maximum(flair - _SHOULDER, 0) / room
    return np.clip(np.minimum(flair, _SHOULDER) - room * np.expm1(-excess), -1, 1)


def expand_bright(flair: Tensor) -> Tensor:
    """The inverse of `compress_bright`, values up to 3."""
    room = 1 - _SHOULDER
    excess = (flair - _SHOULDER).clamp(min=0) / room
    linear = flair.clamp(max=_SHOULDER) - room * (-excess).clamp(min=-0.9999).log1p()
    return linear.clamp(max=_BRIGHTEST)
