"""What a scanner makes of a brain with lesions: a skull-stripped FLAIR slab."""

import numpy as np
from scipy import ndimage

from bundle.simulation.anatomy import SHAPE, SPACING_MM, Anatomy

# Relative to white matter; measured on the two public patients (docs/explanation/simulated-trial.md).
GREY, FLUID = 1.17, 0.25
BLUR = np.divide(0.7, SPACING_MM)


def draw_texture(anatomy: Anatomy, rng: np.random.Generator) -> np.ndarray:
    """A patient's own pattern of tissue, the same at every visit: float32 `SHAPE` factors round 1."""
    texture = np.ones(SHAPE, np.float32)
    for width_mm, deviation in ((1.5, 0.03), (8.0, 0.02)):
        pattern = ndimage.gaussian_filter(
            rng.standard_normal(SHAPE, np.float32), np.divide(width_mm, SPACING_MM), truncate=2
        )
        texture += deviation / pattern.std() * pattern
    return texture


def acquire_flair(
    anatomy: Anatomy, texture: np.ndarray, lesion_gain: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """One visit's FLAIR.

    Args:
        anatomy: the brain.
        texture: from `draw_texture`.
        lesion_gain: float32 `SHAPE`, added brightness relative to white matter; 0 without a lesion.
        rng: draws the visit's intensity scale, bias field and noise.

    Returns:
        int16 `SHAPE`; 0 outside the brain, at least 1 inside.
    """
    white, grey, fluid = anatomy.tissue
    signal = (white + GREY * grey + FLUID * fluid) * texture
    signal += ndimage.gaussian_filter(lesion_gain, BLUR, truncate=3)
    signal *= _bias_field(rng)
    noise = rng.standard_normal((2, int(anatomy.brain.sum())), np.float32) * np.float32(rng.uniform(0.02, 0.035))
    measured = np.hypot(signal[anatomy.brain] + noise[0], noise[1])  # magnitude of a complex signal: Rician
    image = np.zeros(SHAPE, np.int16)
    image[anatomy.brain] = np.clip(np.rint(measured * 300 * np.exp(rng.normal(0, 0.25))), 1, 32767)
    return image


def _bias_field(rng: np.random.Generator) -> np.ndarray:
    """Smooth factors `SHAPE`: the exponential of a random quadratic of the position."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in SHAPE), indexing="ij", sparse=True)
    terms = [*axes, *(a * b for i, a in enumerate(axes) for b in axes[i:])]
    return np.exp(sum(np.float32(c) * t for c, t in zip(rng.normal(0, 0.06, len(terms)), terms)))
