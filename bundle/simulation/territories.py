"""The territories of the brain that a patient's own spatial law weighs against each other."""

import numpy as np

from bundle.simulation.labels import BRAINSTEM, LEFT, RIGHT

KINDS = (
    "periventricular frontal",
    "periventricular parietal",
    "periventricular occipital",
    "periventricular temporal",
    "deep white matter",
    "juxtacortical",
    "callosal",
)
TERRITORIES = tuple(f"{side} {kind}" for kind in KINDS for side in ("left", "right"))
NUM_TERRITORIES = len(TERRITORIES)

_PERIVENTRICULAR_MM = 10.0
_JUXTACORTICAL_MM = 4.0


def divide(
    labels: np.ndarray,
    ventricle_distance_mm: np.ndarray,
    cortex_distance_mm: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    z: np.ndarray,
) -> np.ndarray:
    """Territory of every voxel of the template, by its place in MNI space.

    Periventricular white matter lies within 10 mm of the lateral ventricles, juxtacortical within 4 mm of the cortex,
    whose own lesions count as juxtacortical; those of deep grey matter count as deep. The lobes are cut by planes.

    Args:
        labels: (X, Y, Z) FreeSurfer labels.
        ventricle_distance_mm, cortex_distance_mm: (X, Y, Z) distance to the lateral ventricles and to the cortex.
        x, y, z: MNI coordinates in mm, sparse or full.

    Returns:
        uint8 (X, Y, Z): 0 outside cerebrum and brain stem, else 1 + the index in `TERRITORIES`.
    """
    white, cortex = np.isin(labels, (LEFT["white"], RIGHT["white"])), np.isin(labels, (LEFT["cortex"], RIGHT["cortex"]))
    deep = np.isin(labels, (LEFT["deep"], RIGHT["deep"], BRAINSTEM))
    kind = np.zeros(labels.shape, np.uint8)
    near = white & (ventricle_distance_mm < _PERIVENTRICULAR_MM)
    frontal, occipital = y >= 5, y <= -42
    kind[white | deep] = 5
    kind[cortex | (white & (cortex_distance_mm <= _JUXTACORTICAL_MM))] = 6
    for number, place in enumerate((frontal, ~frontal & ~occipital, occipital, ~frontal & (z < 4) & (abs(x) > 18)), 1):
        kind[near & place] = number
    callosal = white & (abs(x) < 12) & (y > -50) & (y < 38) & (z > -8) & (ventricle_distance_mm < 14)
    kind[callosal] = 7
    return np.where(kind > 0, 2 * kind - (x < 0), 0).astype(np.uint8)
