"""Scores of where a heatmap puts the new lesions of a patient, whatever volume it forecasts.

Every heatmap is first scaled to the same total, so that forecasts of who is active and of how much have no effect.
"""

from collections.abc import Mapping

import numpy as np
from nibabel.affines import apply_affine

from bundle.forecasters.base import Forecast
from bundle.lesions import LesionRule, Volume
from bundle.metrics import Values
from bundle.outputs.sites import likely_sites

UNIFORM = 0.01  # fraction of the density that is spread over the brain, so that the log score is finite
TOP_FRACTIONS = (0.01, 0.05, 0.10)  # of the brain's volume
NUM_SITES = (1, 3, 5, 10)
RADIUS_MM = 10.0
SITE_FRACTIONS = np.geomspace(1e-3, 1, 61)  # of a heatmap, by which sites are put into bins; the last edge is the whole
SITE_PROBABILITIES = np.array([0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 1.0])  # edges of bins


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
        the first `NUM_SITES` likely sites; by bin of `SITE_FRACTIONS`, "false sites": (60,) sites of that fraction of
        the heatmap to which no lesion comes within 10 mm, "lesions by site": (60,) lesions by the greatest fraction of
        a site within 10 mm. All are 0 of a patient without lesions.
    """
    lesions = lesions_of(outcome, brain, affine, rule)
    density = density_of(heatmap, brain)
    log_ratio = log_density_ratio(density, brain)
    of_lesions = [log_ratio[tuple(voxels.T)] for voxels in lesions]
    centres = [centre_of(voxels) for voxels in lesions]
    sites, fractions = _sites(density, affine) if lesions else (np.zeros((0, 3)), np.zeros(0))
    near = np.array([_near(apply_affine(affine, voxels), sites) for voxels in lesions]).reshape(
        len(lesions), len(sites)
    )
    first = np.where(near.any(axis=1), near.argmax(axis=1), np.inf) if near.size else np.full(len(lesions), np.inf)
    return {
        "outcome_voxels": np.array(sum(len(x) for x in of_lesions)),
        "outcome_lesions": np.array(len(lesions)),
        "log score of voxels": np.array(float(sum(x.sum() for x in of_lesions))),
        "log score of lesions": np.array(float(sum(x.mean() for x in of_lesions))),
        "lesions in top": np.array([_in_top(density[brain], [density[c] for c in centres], x) for x in TOP_FRACTIONS]),
        "lesions near sites": np.array([np.sum(first < n) for n in NUM_SITES]),
        "false sites": _binned(fractions[~near.any(axis=0)]),
        "lesions by site": _binned(np.array([fractions[row].max() for row in near if row.any()])),
    }


def site_scores(
    forecast: Forecast, outcome: np.ndarray, brain: np.ndarray, affine: np.ndarray, rule: LesionRule
) -> Mapping[str, Values]:
    """Likely sites of a patient, active or not, by bin of `SITE_PROBABILITIES`, as a forecast's report states them.

    Args:
        forecast: with a heatmap.
        outcome, brain, affine, rule: as for `location_scores`.

    Returns:
        (7,) each: "sites", "site probability", the sum of theirs, and "sites with a lesion", those in whose radius the
        centre of a lesion lies. NaN if the forecast states no counts.
    """
    bins = len(SITE_PROBABILITIES) - 1
    if np.isnan(forecast.counts).any():
        return {name: np.full(bins, np.nan) for name in ("sites", "site probability", "sites with a lesion")}
    heatmap = Volume(np.where(brain, forecast.heatmap, 0), affine)
    distribution = forecast.counts, forecast.probabilities
    sites = likely_sites(heatmap, *distribution, limit=max(NUM_SITES), radius_mm=RADIUS_MM, min_probability=0)
    p = np.array([site.probability for site in sites])
    centres_mm = np.array([site.centre_mm for site in sites]).reshape(-1, 3)
    lesions = lesions_of(outcome, brain, affine, rule)
    hit = np.zeros(len(sites), bool)
    for voxels in lesions:
        hit |= _near(apply_affine(affine, np.array([centre_of(voxels)])), centres_mm)
    of_site = np.clip(np.searchsorted(SITE_PROBABILITIES, p, side="right") - 1, 0, bins - 1)
    return {
        "sites": np.bincount(of_site, minlength=bins).astype(float),
        "site probability": np.bincount(of_site, p, minlength=bins),
        "sites with a lesion": np.bincount(of_site, hit, minlength=bins),
    }


def lesions_of(outcome: np.ndarray, brain: np.ndarray, affine: np.ndarray, rule: LesionRule) -> list[np.ndarray]:
    """Voxels (n, 3) of each lesion in the brain."""
    labels = np.where(brain, rule.label(outcome & brain, affine), 0)
    return [np.argwhere(labels == label) for label in range(1, labels.max(initial=0) + 1)]


def centre_of(voxels: np.ndarray) -> tuple[int, ...]:
    """The voxel of a lesion (n, 3) that is nearest to its centroid."""
    return tuple(voxels[np.linalg.norm(voxels - voxels.mean(axis=0), axis=1).argmin()].tolist())


def density_of(heatmap: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """The heatmap scaled to 1 within the brain; uniform if it is 0 everywhere."""
    p = np.where(brain, heatmap, 0).astype(float)
    return p / p.sum() if p.sum() > 0 else brain / brain.sum()


def log_density_ratio(density: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """log(density / uniform density) in nats, after spreading `UNIFORM` of it over the brain."""
    return np.log((1 - UNIFORM) * density * brain.sum() + UNIFORM)


def _in_top(brain_values: np.ndarray, values: list[float], fraction: float) -> float:
    """How many of the values are in that fraction of the brain's; ties are shared, so that a constant scores chance."""
    limit, chance = fraction * len(brain_values), 0.0
    for value in values:
        above, equal = (brain_values > value).sum(), (brain_values == value).sum()
        chance += float(np.clip((limit - above) / equal, 0, 1))
    return chance


def _sites(density: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3) centres in mm of the likely sites, and the fraction (n,) of the density that each holds, descending."""
    found = likely_sites(
        Volume(density, affine), np.ones(1), limit=max(NUM_SITES), radius_mm=RADIUS_MM, min_probability=0
    )
    centres_mm = np.array([site.centre_mm for site in found]).reshape(-1, 3)
    return centres_mm, np.array([site.expected_lesions for site in found])


def _near(points_mm: np.ndarray, sites_mm: np.ndarray) -> np.ndarray:
    """(n,) bool: sites within `RADIUS_MM` of any of the points (N, 3)."""
    return np.linalg.norm(points_mm[:, None] - sites_mm[None], axis=-1).min(axis=0, initial=np.inf) <= RADIUS_MM


def _binned(fractions: np.ndarray) -> np.ndarray:
    """(60,) how many lie in each bin of `SITE_FRACTIONS`."""
    last = len(SITE_FRACTIONS) - 2
    return np.bincount(np.clip(np.searchsorted(SITE_FRACTIONS, fractions) - 1, 0, last), minlength=last + 1)
