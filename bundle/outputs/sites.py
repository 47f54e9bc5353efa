"""Likely sites: where the heatmap expects lesions, with probabilities that agree with it and with the lesion counts."""

from dataclasses import dataclass

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from scipy import ndimage

from bundle.lesions import Volume, region_of


@dataclass(frozen=True)
class Site:
    """A region in which lesions are likely, whether or not any single voxel is.

    centre_mm: its strongest voxel in world millimetres (RAS+).
    radius_mm: extent of the site.
    probability: that a lesion lies within the radius, see `site_probability`.
    expected_lesions: expected number of lesions within the radius.
    peak_probability: the highest voxel of the heatmap within the radius.
    region: anatomical region of the strongest voxel, None without a segmentation.
    """

    centre_mm: tuple[float, float, float]
    radius_mm: float
    probability: float
    expected_lesions: float
    peak_probability: float
    region: str | None


def likely_sites(
    heatmap: Volume,
    counts: np.ndarray,
    probabilities: np.ndarray | None = None,
    *,
    dseg: Volume | None = None,
    limit: int = 10,
    radius_mm: float = 10.0,
    min_probability: float = 0.01,
) -> list[Site]:
    """Up to `limit` sites, at least two radii apart, where the heatmap is strongest; the most probable first.

    Members rarely agree on a voxel but often on a region, so sites are maxima of the heatmap smoothed by a Gaussian of
    half the radius. The expected number of lesions within the radius is the mean count times the fraction of the
    heatmap's volume that lies there. Over regions that tile the slab these numbers sum to the mean count.

    Args:
        heatmap: (H, W, S) in [0, 1].
        counts: (M,) numbers of lesions that the patient may have.
        probabilities: (M,) theirs, adding up to 1; equal if not given.
        dseg: FreeSurfer labels on any grid of the same world.
        limit: most sites returned.
        radius_mm: extent of a site.
        min_probability: sites below are left out.
    """
    probabilities = np.full(len(counts), 1 / len(counts)) if probabilities is None else probabilities
    total = float(heatmap.values.sum(dtype=np.float64))
    sigma = radius_mm / 2 / voxel_sizes(heatmap.affine)
    strength = ndimage.gaussian_filter(heatmap.values, sigma, mode="constant") * (heatmap.values > 0)
    points_mm = apply_affine(heatmap.affine, np.moveaxis(np.indices(strength.shape), 0, -1))
    sites = []
    while len(sites) < limit and strength.any():
        strongest = np.unravel_index(strength.argmax(), strength.shape)
        centre_mm = points_mm[strongest]
        distance_mm = np.linalg.norm(points_mm - centre_mm, axis=-1)
        within = heatmap.values[distance_mm <= radius_mm]
        fraction, peak = min(float(within.sum(dtype=np.float64)) / total, 1.0), float(within.max())
        sites.append(
            Site(
                centre_mm=tuple(centre_mm.tolist()),
                radius_mm=radius_mm,
                probability=site_probability(fraction, peak, counts, probabilities),
                expected_lesions=fraction * float(probabilities @ counts),
                peak_probability=peak,
                region=None if dseg is None else region_of(centre_mm[None], dseg),
            )
        )
        strength[distance_mm <= 2 * radius_mm] = 0
    return sorted((site for site in sites if site.probability >= min_probability), key=lambda site: -site.probability)


def site_probability(fraction: float, peak: float, counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Probability that at least one lesion lies in a region.

    max(peak, 1 - E[(1 - fraction)^N]): each of N lesions lies in the region with probability `fraction`, independently
    of the others. The whole slab (fraction 1) thus has P(active). A region cannot be less probable than its most
    probable voxel, which bounds the result from below: where the heatmap is sure of a small lesion, its volume alone
    says too little.

    Args:
        fraction: of the heatmap's volume that lies in the region, in [0, 1].
        peak: the highest voxel of the heatmap in the region, in [0, 1].
        counts, probabilities: (M,) distribution of N.
    """
    return max(peak, float(1 - probabilities @ (1 - fraction) ** np.asarray(counts, np.float64)))
