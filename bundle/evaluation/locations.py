"""Scores of where a heatmap puts the new lesions of a patient, whatever volume it forecasts.

Every heatmap is first scaled to the same total, so that forecasts of who is active and of how much have no effect.
"""

from collections.abc import Mapping

import numpy as np
from nibabel.affines import apply_affine

from bundle.lesions import LesionRule, Volume
from bundle.metrics import Values
from bundle.outputs.sites import likely_sites

UNIFORM = 0.01  # fraction of the density that is spread over the brain, so that the log score is finite
TOP_FRACTIONS = (0.01, 0.05, 0.10)  # of the brain's volume
NUM_SITES = (1, 3, 5, 10)
RADIUS_MM = 10.0


def location_scores(
    heatmap: np.ndarray, outcome: np.ndarray, brain: np.ndarray, affine: np.ndarray, rule: LesionRule
) -> Mapping[str, Values]:
    """Sums over the lesions of one patient, from which the metrics of the table "where" are computed.

    Args:
        heatmap: (H, W, S) in [0, 1].
        outcome: (H, W, S) bool, NET2 at w096.
        brain: (H, W, S) bool.
        affine: (4, 4) of the slab.
        rule: what counts as a lesion.

    Returns:
        "outcome_voxels", "outcome_lesions": their numbers in the brain; "log score of voxels", "log score of lesions":
        sum over voxels of log(density / uniform density) in nats, and sum over lesions of its mean in the lesion;
        "lesions in top": (3,) lesions whose centre lies in the top `TOP_FRACTIONS` of the brain by the heatmap, a
        fraction of those whose value is tied with others; "lesions near sites": (4,) lesions that come within 10 mm of
        the first `NUM_SITES` likely sites. All are 0 of a patient without lesions.
    """
    labels = np.where(brain, rule.label(outcome & brain, affine), 0)
    lesions = [np.argwhere(labels == label) for label in range(1, labels.max(initial=0) + 1)]
    p = np.where(brain, heatmap, 0).astype(float)
    density = p / p.sum() if p.sum() > 0 else brain / brain.sum()
    log_ratio = np.log((1 - UNIFORM) * density * brain.sum() + UNIFORM)
    of_lesions = [log_ratio[tuple(voxels.T)] for voxels in lesions]
    centres = [tuple(voxels[np.linalg.norm(voxels - voxels.mean(axis=0), axis=1).argmin()]) for voxels in lesions]
    sites = _sites(density, affine) if lesions else np.zeros((0, 3))
    first = [_first_site_near(apply_affine(affine, voxels), sites) for voxels in lesions]
    return {
        "outcome_voxels": np.array(sum(len(x) for x in of_lesions)),
        "outcome_lesions": np.array(len(lesions)),
        "log score of voxels": np.array(float(sum(x.sum() for x in of_lesions))),
        "log score of lesions": np.array(float(sum(x.mean() for x in of_lesions))),
        "lesions in top": np.array([_in_top(density[brain], [density[c] for c in centres], x) for x in TOP_FRACTIONS]),
        "lesions near sites": np.array([sum(index < n for index in first) for n in NUM_SITES]),
    }


def _in_top(brain_values: np.ndarray, values: list[float], fraction: float) -> float:
    """How many of the values are in that fraction of the brain's; ties are shared, so that a constant scores chance."""
    limit, chance = fraction * len(brain_values), 0.0
    for value in values:
        above, equal = (brain_values > value).sum(), (brain_values == value).sum()
        chance += float(np.clip((limit - above) / equal, 0, 1))
    return chance


def _sites(density: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """(n, 3) centres in mm of the likely sites, the most probable first."""
    found = likely_sites(
        Volume(density, affine), np.ones(1), limit=max(NUM_SITES), radius_mm=RADIUS_MM, min_probability=0
    )
    return np.array([site.centre_mm for site in found]).reshape(-1, 3)


def _first_site_near(points_mm: np.ndarray, sites: np.ndarray) -> float:
    """Index of the first site within `RADIUS_MM` of the lesion (N, 3), infinity if there is none."""
    distance_mm = np.linalg.norm(points_mm[:, None] - sites[None], axis=-1).min(axis=0, initial=np.inf)
    near = np.flatnonzero(distance_mm <= RADIUS_MM)
    return near[0] if len(near) else np.inf
