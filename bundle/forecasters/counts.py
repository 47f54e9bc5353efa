"""The number of lesions to come, given the heatmap: a negative binomial fitted to a network's heatmaps.

A heatmap is the mean of infinitely many members, so its volume says more of a patient's lesion count than twenty
members do. What it does not say is how the count varies about its mean; both are fitted to patients with a known
outcome, once for each file of weights.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.stats import nbinom

from bundle.data.bids import CONDITION
from bundle.data.tables import TRIAL_MONTHS
from bundle.errors import InputError
from bundle.lesions import MAX_COUNT, voxel_volume_mm3
from bundle.networks.weights import numbers_of, read_fitted

_MASKS = [index for index, name in enumerate(CONDITION) if not name.startswith("flair")]
_NET2 = CONDITION.index("net2_w048")
_W048 = [index for index, name in enumerate(CONDITION) if name.endswith("w048")]
_LEAST_ML = 1e-4  # a smaller volume counts as this one
_LOG_MEAN, _LOG_SIZE = (-9.0, math.log(MAX_COUNT)), (-5.0, 7.0)  # what is beyond makes no difference to a count
_INTERVAL = (1.0, 60.0)  # months; a shorter or longer interval counts as this one
_LARGEST = 100.0  # coefficient
_RIDGE = 0.01  # on all coefficients but the intercepts and the volume's: some inputs may be known in all patients
NUM_FEATURES = 5
KIND = "count_model"  # as `bundle.networks.weights.fitted_file` has it


@dataclass(frozen=True)
class CountModel:
    """Negative binomial of the number of lesions; see `count_features`.

    Args:
        mean: coefficients of the logarithm of its mean, as many as there are features.
        size: of the logarithm of its size: the variance is mean + mean^2 / size.
    """

    mean: tuple[float, ...]
    size: tuple[float, ...]

    def mean_and_size(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of patients with these features (N, 5): (N,) each."""
        log_mean, log_size = features @ np.array(self.mean), features @ np.array(self.size)
        return np.exp(np.clip(log_mean, *_LOG_MEAN)), np.exp(np.clip(log_size, *_LOG_SIZE))

    def of_heatmap(
        self,
        image: np.ndarray,
        heatmap: np.ndarray,
        affine: np.ndarray,
        horizon_months: float = TRIAL_MONTHS,
        interval_months: float | None = None,
    ) -> np.ndarray:
        """Probabilities as of `__call__`.

        The months change the mean alone: the size says how sure a patient's rate is, and that is the same for any
        horizon. So both are read off the volume that the heatmap would have for `TRIAL_MONTHS`, whose odds are in
        proportion (nearly: to 3 % of the volume at 22 months in patients with the most lesions).

        Args:
            image, heatmap, affine, interval_months: as for `count_features`.
            horizon_months: of the heatmap.
        """
        longer = horizon_months / TRIAL_MONTHS
        usual = heatmap if longer == 1 else heatmap / (heatmap + longer * (1 - heatmap))
        return self(count_features(image, usual, affine, interval_months), longer)

    def __call__(self, features: np.ndarray, longer: float = 1.0) -> np.ndarray:
        """Probabilities of 0, 1, ..., `MAX_COUNT` or more lesions of one patient with these features (5,).

        Args:
            features: of the heatmap for `TRIAL_MONTHS`.
            longer: the horizon as a multiple of `TRIAL_MONTHS`; the mean is multiplied by it.
        """
        (mean,), (size,) = self.mean_and_size(features[None])
        mean = mean * longer
        counts = np.arange(MAX_COUNT + 1)
        probabilities = nbinom.pmf(counts, size, size / (size + mean))
        probabilities[-1] += nbinom.sf(MAX_COUNT, size, size / (size + mean))
        return probabilities


def count_features(
    image: np.ndarray, heatmap: np.ndarray, affine: np.ndarray, interval_months: float | None = None
) -> np.ndarray:
    """What the count is forecast from: 1, log volume of the heatmap, and what was unknown when it was made.

    A heatmap made without lesion masks or without w048 rests on less, so that the count varies more about it. That the
    arm was unknown is not among the features. The network takes NET2 lesions of w048 as those of `TRIAL_MONTHS`; if
    they came in a longer time, the patient's rate is lower.

    Args:
        image: (7 or more, H, W, S), volumes in the order of `CONDITION`; an unknown one is all 0.
        heatmap: (H, W, S) on the same slab, 0 outside the brain.
        affine: (4, 4) of the slab.
        interval_months: from w000 to w048; None, unknown, counts as `TRIAL_MONTHS`.

    Returns:
        (5,): 1, log volume in ml, fraction of lesion masks that are unknown, whether all of w048 is, and, where NET2 of
        w048 is known, log(interval_months / `TRIAL_MONTHS`), else 0.
    """
    volume_ml = float(heatmap.sum(dtype=np.float64)) * voxel_volume_mm3(affine) / 1000
    unknown = np.array([not volume.any() for volume in image[: len(CONDITION)]])
    known = interval_months is not None and not unknown[_NET2]
    longer = math.log(float(np.clip(interval_months, *_INTERVAL)) / TRIAL_MONTHS) if known else 0.0
    missing = [float(unknown[_MASKS].mean()), float(unknown[_W048].all())]
    return np.array([1.0, math.log(max(volume_ml, _LEAST_ML)), *missing, longer])


def fit_counts(features: np.ndarray, counts: np.ndarray, longer: np.ndarray | float = 1.0) -> CountModel:
    """The model of maximum likelihood.

    Args:
        features: (N, 5), of `count_features`, of heatmaps for `TRIAL_MONTHS`.
        counts: (N,) lesions of these patients at w096.
        longer: (N,) months from w048 to w096 as multiples of `TRIAL_MONTHS`.

    Raises:
        InputError: none of the patients has a lesion, or all have.
    """
    if counts.all() or not counts.any():
        raise InputError("patients with and without lesions at w096 are needed", "give more patients")

    def loss(coefficients: np.ndarray) -> float:
        model = CountModel(*map(tuple, coefficients.reshape(2, -1)))
        mean, size = model.mean_and_size(features)
        mean = mean * longer
        ridge = _RIDGE * np.square(coefficients.reshape(2, -1)[:, 2:]).sum()
        return -float(nbinom.logpmf(counts, size, size / (size + mean)).mean()) + ridge / len(counts)

    start = np.zeros((2, features.shape[1]))
    start[0, :2] = math.log(counts.mean()) - features[:, 1].mean(), 1
    found = minimize(loss, start.ravel(), method="BFGS").x.reshape(2, -1)
    return CountModel(*(tuple(row.round(4).tolist()) for row in found))


def count_model(
    weights: str | Path, guidance_scale: float = 1.0, arm_guidance_scale: float | None = None
) -> CountModel | None:
    """The model that `scripts.fit_counts` fitted for these weights.

    Args:
        weights: their file.
        guidance_scale, arm_guidance_scale: of the forecast, see `bundle.forecasters.ensemble.SamplingSettings`.

    Returns:
        None if there is none for these weights, or with guidance: it changes the heatmap's volume.

    Raises:
        InputError: see `bundle.networks.weights.read_fitted`.
    """

    def build(found: Any) -> CountModel:
        mean, size = (numbers_of(found[name], NUM_FEATURES, _LARGEST) for name in ("mean", "size"))
        return CountModel(mean, size)

    if guidance_scale != 1 or arm_guidance_scale not in (None, 1):
        return None
    return read_fitted(weights, KIND, build, "scripts.fit_counts")
