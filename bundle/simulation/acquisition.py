"""What a scanner makes of a brain with lesions: a skull-stripped FLAIR slab."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bundle.simulation.anatomy import SHAPE, SPACING_MM, Anatomy, doubled
from bundle.simulation.scanners import Settings

_DIFFUSE_REACH_MM = 18.0  # diffusely abnormal white matter surrounds the ventricles as far as this


def draw_texture(rng: np.random.Generator) -> np.ndarray:
    """A patient's own pattern of tissue, the same at every visit: float32 `SHAPE` factors round 1."""
    texture = np.ones(SHAPE, np.float32)
    fine = ndimage.gaussian_filter(rng.standard_normal(SHAPE, np.float32), (1.5, 1.5, 0.5), truncate=2)
    coarse = (SHAPE[0] // 4, SHAPE[1] // 4, SHAPE[2])
    broad = ndimage.gaussian_filter(rng.standard_normal(coarse, np.float32), (2, 2, 8 / 3), truncate=2)
    for pattern, deviation in ((fine, 0.03), (doubled(doubled(broad)), 0.02)):
        texture += deviation / pattern.std() * pattern
    return texture


@dataclass(frozen=True)
class Variants:
    """How a patient's normal tissue differs from others', the same at every visit.

    Attributes:
        grey: float32 `SHAPE` of mean 0 and deviation 1, pattern of the brightness of grey matter.
        lining: float32 `SHAPE` in [0, 1], the bright lining of the lateral ventricles and the caps of their horns.
        plexus: bool `SHAPE`, choroid plexus.
    """

    grey: np.ndarray
    lining: np.ndarray
    plexus: np.ndarray


def draw_variants(anatomy: Anatomy, rng: np.random.Generator) -> Variants:
    """A patient's own."""
    coarse = (SHAPE[0] // 4, SHAPE[1] // 4, SHAPE[2])
    grey, caps = (
        doubled(doubled(ndimage.gaussian_filter(rng.standard_normal(coarse, np.float32), (3, 3, 4), truncate=2)))
        for _ in range(2)
    )
    fine = ndimage.gaussian_filter(rng.standard_normal(SHAPE, np.float32), (2, 2, 1), truncate=2)
    inside = (anatomy.ventricle_mm == 0) & anatomy.brain
    plexus = inside & (fine > np.quantile(fine[inside], 1 - rng.uniform(0, 0.3))) if inside.any() else inside
    thickness_mm = 1 + 2 * np.maximum(caps / caps.std(), 0)
    lining = np.clip(thickness_mm + 1 - anatomy.ventricle_mm, 0, 1) * (anatomy.ventricle_mm > 0)
    return Variants(grey / grey.std(), lining.astype(np.float32), plexus)


def diffuse_extent(anatomy: Anatomy) -> np.ndarray:
    """Where white matter is diffusely abnormal, if it is: float32 `SHAPE` in [0, 1], the white matter round the
    lateral ventricles (Filippi and Rocca 2010, AJNR 31:390), with a border 4 mm wide.
    """
    return anatomy.tissue[0] * np.clip((_DIFFUSE_REACH_MM - anatomy.ventricle_mm) / 4 + 0.5, 0, 1)


def tissue_signal(
    anatomy: Anatomy,
    settings: Settings,
    texture: np.ndarray,
    growth_mm: float,
    lesion_gain: np.ndarray,
    diffuse: np.ndarray,
    variants: Variants | None = None,
) -> np.ndarray:
    """Signal before the scanner's own imperfections: float32 `SHAPE`, relative to normal white matter.

    Args:
        anatomy: the brain at w000.
        settings: of the acquisition.
        texture: from `draw_texture`.
        growth_mm: how far the ventricles have widened since w000.
        lesion_gain: float32 `SHAPE`, added brightness relative to white matter; 0 without a lesion.
        diffuse: float32 `SHAPE`, added brightness of diffusely abnormal white matter.
        variants: from `draw_variants`; none if not given.
    """
    white, grey, fluid = anatomy.tissue
    # The distance is 0 inside, 1 mm in the first voxels outside: these are lost first, each in proportion.
    lost = np.clip(growth_mm + 1 - anatomy.ventricle_mm, 0, 1) * (anatomy.ventricle_mm > 0)
    grey_signal: np.ndarray | float = settings.grey
    if variants is not None:
        grey_signal = settings.grey * (1 + settings.grey_pattern * variants.grey)
    signal = (white + grey_signal * grey + settings.fluid * fluid) * texture
    if variants is not None:
        signal += settings.lining * variants.lining * anatomy.brain
        signal = np.where(variants.plexus, np.maximum(signal, settings.plexus * texture), signal)
    added = settings.lesion * np.where(lesion_gain > 0, np.maximum(lesion_gain, diffuse), diffuse)
    return (signal + added) * (1 - lost) + settings.fluid * lost * anatomy.brain


def acquire_flair(
    anatomy: Anatomy, signal: np.ndarray, settings: Settings, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One visit's FLAIR.

    Args:
        anatomy: the brain.
        signal: from `tissue_signal`.
        settings: of the acquisition.
        rng: draws bias field, noise and residue.

    Returns:
        int16 `SHAPE`, 0 outside the stripped brain, at least 1 inside; and the stripped brain, bool: the brain and what
        the stripping left of its surroundings.
    """
    stripped = anatomy.brain
    if settings.residue:
        stripped = anatomy.brain | _residue(anatomy.brain, settings.residue, rng)
        signal = np.where(stripped & ~anatomy.brain, rng.uniform(0.5, 1.8), signal)
    if any(settings.shift_mm):
        offset = np.divide(settings.shift_mm, SPACING_MM)
        signal = ndimage.shift(signal, offset, order=1, mode="nearest", prefilter=False)
    through_plane_mm = np.sqrt(max(settings.slice_mm**2 - SPACING_MM[2] ** 2, 0) / 12)  # of the wider box
    width = np.divide((settings.blur_mm, settings.blur_mm, through_plane_mm), SPACING_MM)
    signal = ndimage.gaussian_filter(signal, width, truncate=3)
    if settings.ghost:
        signal = signal + settings.ghost * np.roll(signal, SHAPE[1] // 2, axis=1)
    signal *= _bias_field(rng, settings.bias)
    # Thick slices gather more signal; thin ones, averaged to the grid's 3 mm, are as noisy as one of 3 mm.
    deviation = np.float32(settings.noise * np.sqrt(3 / max(settings.slice_mm, 3)))
    noise = rng.standard_normal((2, int(stripped.sum())), np.float32) * deviation
    measured = np.hypot(signal[stripped] + noise[0], noise[1])  # magnitude of a complex signal: Rician
    image = np.zeros(SHAPE, np.int16)
    image[stripped] = np.clip(np.rint(measured * settings.gain), 1, 32767)
    return image, stripped


def _residue(brain: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Patches of a two-voxel rim round the brain: bool `SHAPE`."""
    in_plane = ndimage.generate_binary_structure(3, 1)
    in_plane[:, :, [0, 2]] = False
    rim = ndimage.binary_dilation(brain, in_plane, iterations=2) & ~brain
    field = ndimage.gaussian_filter(rng.standard_normal(SHAPE, np.float32), (6, 6, 1), truncate=2)
    return rim & (field > np.quantile(field[rim], 1 - fraction))


def _bias_field(rng: np.random.Generator, deviation: float) -> np.ndarray:
    """Smooth factors `SHAPE`: the exponential of a random quadratic of the position."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in SHAPE), indexing="ij", sparse=True)
    terms = [*axes, *(a * b for i, a in enumerate(axes) for b in axes[i:])]
    return np.exp(sum(np.float32(c) * t for c, t in zip(rng.normal(0, deviation, len(terms)), terms)))
