"""Forecasters that every model must beat: from "no new lesions" to the regression a statistician would fit.

All follow the protocol of the model (`bundle.forecasters.base.Forecaster`). Those that have to be fitted take the
`Cohort` of the training split.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage
from scipy.optimize import minimize_scalar
from scipy.stats import nbinom
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from statsmodels.genmod import families
from statsmodels.genmod.generalized_linear_model import GLM, GLMResultsWrapper

from bundle.forecasters.base import SCORED_REGIONS, Forecast, Patient, Role, findings_of, key_of
from bundle.forecasters.cohort import MASKS, MONTHS, Cohort, count_masks
from bundle.lesions import MAX_COUNT, LesionRule
from bundle.seeding import seed_of


class NoNewLesions:
    """No patient has a new lesion."""

    role, num_members = Role.BASELINE, None
    key = key_of("no new lesions")

    def __call__(self, patient: Patient) -> Sequence[Forecast]:
        empty = np.zeros(patient.brain.shape, np.float32)
        return [Forecast(0.0, np.zeros(1), np.ones(1), dict.fromkeys(SCORED_REGIONS, 0.0), empty)]


class Persistence:
    """The second year repeats the first: as many new lesions as at w048, at the same voxels.

    Args:
        rule: what counts as a lesion.
    """

    role, num_members = Role.BASELINE, None

    def __init__(self, rule: LesionRule) -> None:
        self.rule = rule
        self.key = key_of("persistence", rule=rule)

    def __call__(self, patient: Patient) -> Sequence[Forecast]:
        mask = patient.volume("net2_w048") > 0
        found = findings_of(mask, patient.affine, self.rule, patient.dseg)
        presence = {region: float(present) for region, present in found.presence.items()}
        return [
            Forecast(float(found.count > 0), np.array([found.count]), np.ones(1), presence, mask.astype(np.float32))
        ]


class Population:
    """Monte Carlo baseline of the paper: each run draws the outcome of a random training patient of the same arm.

    Args:
        cohort: of the training split.
        runs: draws per patient, each of which is scored; scores are then averaged over runs.
        seed: of the draws.

    References:
        Favero et al. 2025, section 3 (100 runs).
    """

    role, num_members = Role.BASELINE, None

    def __init__(self, cohort: Cohort, runs: int = 100, seed: int = 0) -> None:
        self.cohort, self.runs, self.seed = cohort, runs, seed
        self.key = key_of("population", cohort.key, runs=runs, seed=seed)

    def __call__(self, patient: Patient) -> Sequence[Forecast]:
        records = self.cohort.of_arm(patient.arm)
        drawn = np.random.default_rng(seed_of("population", self.seed, patient.case)).integers(
            len(records), size=self.runs
        )
        outcomes = [records[index].outcome for index in drawn]
        return [
            Forecast(
                float(outcome.count > 0),
                np.array([outcome.count]),
                np.ones(1),
                {region: float(present) for region, present in outcome.presence.items()},
            )
            for outcome in outcomes
        ]


class AverageCount:
    """The mean lesion count of the arm's training patients; forecasts neither activity nor location.

    Args:
        cohort: of the training split.

    References:
        Favero et al. 2025, table 4.
    """

    role, num_members = Role.BASELINE, None

    def __init__(self, cohort: Cohort) -> None:
        self.cohort = cohort
        self.key = key_of("average count", cohort.key)

    def __call__(self, patient: Patient) -> Sequence[Forecast]:
        mean = np.mean([record.outcome.count for record in self.cohort.of_arm(patient.arm)])
        return [Forecast(np.nan, np.array([mean]), np.ones(1))]


class FrequencyMap:
    """The population as probabilities: count distribution, active fraction and frequency map of the training split.

    Counts and activity are those of the patient's arm. The map is that of all training patients, smoothed, and scaled
    to the arm's mean lesion volume; slabs are centred on the brain, which is all that aligns the patients.

    Args:
        cohort: of the training split.
        smoothing_mm: standard deviation of the Gaussian over the map.
    """

    role, num_members = Role.FLOOR, None

    def __init__(self, cohort: Cohort, smoothing_mm: float = 4.0) -> None:
        self.cohort, self.smoothing_mm = cohort, smoothing_mm
        self.key = key_of("frequency map", cohort.key, smoothing_mm=smoothing_mm)

    def __call__(self, patient: Patient) -> Sequence[Forecast]:
        outcomes = [record.outcome for record in self.cohort.of_arm(patient.arm)]
        counts, times = np.unique([outcome.count for outcome in outcomes], return_counts=True)
        presence = {
            region: float(np.mean([outcome.presence[region] for outcome in outcomes]))
            for region in SCORED_REGIONS
            if all(region in outcome.presence for outcome in outcomes)
        }
        fraction_active = float(np.mean([outcome.count > 0 for outcome in outcomes]))
        heatmap = self.map_of(patient, float(np.mean([outcome.volume_ml for outcome in outcomes])))
        return [Forecast(fraction_active, counts, times / len(outcomes), presence, heatmap)]

    def map_of(self, patient: Patient, volume_ml: float) -> np.ndarray:
        """(H, W, S) float32 probabilities that add up to `volume_ml`, 0 outside the brain."""
        return scaled(self.density(patient), patient, volume_ml)

    def density(self, patient: Patient) -> np.ndarray:
        """(H, W, S) the smoothed map, not scaled."""
        sigma = self.smoothing_mm / voxel_sizes(patient.affine)
        return ndimage.gaussian_filter(self.cohort.frequency, sigma, mode="constant")


class FreeOfLesions:
    """The frequency map without the voxels that are lesions at w048 already; forecasts places only.

    Args:
        frequency: the map.
    """

    role, num_members = Role.BASELINE, None

    def __init__(self, frequency: FrequencyMap) -> None:
        self.frequency = frequency
        self.key = key_of("frequency map free of lesions", frequency.key)

    def __call__(self, patient: Patient) -> Sequence[Forecast]:
        free = np.all([patient.volume(name) <= 0 for name in ("t2_w000", "t2_w048", "net2_w048")], axis=0)
        return [places_only(self.frequency.density(patient) * free, patient, self.frequency.cohort)]


class Uniform:
    """Every voxel of the brain is equally likely; forecasts places only.

    Args:
        cohort: of the training split.
    """

    role, num_members = Role.BASELINE, None

    def __init__(self, cohort: Cohort) -> None:
        self.cohort = cohort
        self.key = key_of("uniform", cohort.key)

    def __call__(self, patient: Patient) -> Sequence[Forecast]:
        return [places_only(np.ones(patient.brain.shape), patient, self.cohort)]


def places_only(density: np.ndarray, patient: Patient, cohort: Cohort) -> Forecast:
    """A forecast of places alone: a density (H, W, S) scaled to the mean lesion volume of the arm."""
    volume_ml = float(np.mean([record.outcome.volume_ml for record in cohort.of_arm(patient.arm)]))
    return Forecast(np.nan, np.array([np.nan]), np.ones(1), heatmap=scaled(density, patient, volume_ml))


def scaled(density: np.ndarray, patient: Patient, volume_ml: float) -> np.ndarray:
    """(H, W, S) float32 probabilities in proportion to a density, adding up to `volume_ml`, 0 outside the brain."""
    density = density * patient.brain
    voxels = volume_ml * 1000 / np.prod(voxel_sizes(patient.affine))
    return np.clip(density * (voxels / max(density.sum(), 1e-12)), 0, 1).astype(np.float32)


class Regression:
    """Regressions on lesion counts and arm: logistic for activity and regions, negative binomial for the count.

    Features are log(1 + lesions) of each mask, the arm, covariates, and the logarithm of months; the training mean
    where one is unknown. The heatmap is that of `FrequencyMap`, scaled to the expected count.

    Args:
        cohort: of the training split.
        rule: what counts as a lesion.
        masks: those that may be used, of `bundle.forecasters.cohort.MASKS`; without w048's for a forecast from w000
            alone.
        frequency: the map; by default that of the cohort.
        covariates: those that may be used, of `bundle.forecasters.cohort.TABLED`.
    """

    role, num_members = Role.BASELINE, None

    def __init__(
        self,
        cohort: Cohort,
        rule: LesionRule,
        masks: Sequence[str] = MASKS,
        frequency: FrequencyMap | None = None,
        covariates: Sequence[str] = (),
    ) -> None:
        self.cohort, self.rule, self.masks, self.covariates = cohort, rule, tuple(masks), tuple(covariates)
        self.frequency = frequency or FrequencyMap(cohort)
        settings = {"masks": self.masks, "covariates": self.covariates, "rule": rule}
        self.key = key_of("regression", cohort.key, self.frequency.key, **settings)

    def __call__(self, patient: Patient) -> Sequence[Forecast]:
        lesions = count_masks(patient.image.numpy(), patient.affine, self.rule)
        x = self._features([(patient.arm, self._numbers(lesions, patient.covariates))])
        counts = np.arange(MAX_COUNT + 1)
        mean, size = self._count(x)
        probabilities = nbinom.pmf(counts, size, size / (size + mean))
        probabilities[-1] += nbinom.sf(MAX_COUNT, size, size / (size + mean))
        volume_ml = mean * self._volume_of_a_lesion_ml
        return [
            Forecast(
                self._probability("active", x),
                counts,
                probabilities,
                {region: self._probability(region, x) for region in self._regions},
                self.frequency.map_of(patient, volume_ml),
            )
        ]

    def _probability(self, of: str, x: np.ndarray) -> float:
        model = self._presence_models[of]
        return model if isinstance(model, float) else float(model.predict_proba(x)[0, 1])

    @cached_property
    def _regions(self) -> list[str]:
        return [r for r in SCORED_REGIONS if all(r in record.outcome.presence for record in self.cohort.records)]

    @cached_property
    def _presence_models(self) -> dict[str, Pipeline | float]:
        """By outcome; a constant where it is the same in all training patients."""
        outcomes = [record.outcome for record in self.cohort.records]
        targets = {"active": [o.count > 0 for o in outcomes]} | {
            r: [o.presence[r] for o in outcomes] for r in self._regions
        }
        return {
            name: make_pipeline(StandardScaler(), LogisticRegression()).fit(self._training, target)
            if 0 < sum(target) < len(target)
            else float(target[0])
            for name, target in targets.items()
        }

    def _count(self, x: np.ndarray) -> tuple[float, float]:
        """Mean and size of the negative binomial."""
        if not self.cohort.counts.any():
            return 0.0, 1.0
        model, size = self._count_model
        return float(model.predict(self._design(x))[0]), size

    @cached_property
    def _count_model(self) -> tuple[GLMResultsWrapper, float]:
        """Coefficients and size by maximum likelihood in turn, which converges where fitting both at once diverges."""
        design, counts, size = self._design(self._training), self.cohort.counts, 1.0
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # a few patients may be fitted exactly
            for _ in range(10):
                model = GLM(counts, design, family=families.NegativeBinomial(alpha=1 / size)).fit()
                loss = partial(_negative_binomial_loss, counts, model.fittedvalues)
                size = float(np.exp(minimize_scalar(loss, bounds=(-5, 5), method="bounded").x))
        return model, size

    def _design(self, x: np.ndarray) -> np.ndarray:
        """Intercept and principal components of the features, of full rank: one arm and empty masks are redundant."""
        return np.column_stack([np.ones(len(x)), self._independent.transform(x)])

    @cached_property
    def _independent(self) -> Pipeline:
        return make_pipeline(StandardScaler(), PCA(1 - 1e-9)).fit(self._training)

    @cached_property
    def _volume_of_a_lesion_ml(self) -> float:
        return sum(record.outcome.volume_ml for record in self.cohort.records) / max(self.cohort.counts.sum(), 1)

    @cached_property
    def _training(self) -> np.ndarray:
        return self._features(
            [(record.arm, self._numbers(record.lesions, record.covariates)) for record in self.cohort.records]
        )

    @cached_property
    def _means(self) -> np.ndarray:
        """Of each number over the training patients in whom it is known; 0 if it is in none."""
        rows = np.array([self._numbers(record.lesions, record.covariates) for record in self.cohort.records])
        known = ~np.isnan(rows)
        return np.where(known, rows, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)

    def _numbers(self, lesions: Mapping[str, int | None], covariates: Mapping[str, float | None]) -> list[float]:
        """Masks and covariates as the regressions use them; NaN where unknown."""
        counts = [lesions[mask] for mask in self.masks]
        known = {name: covariates.get(name) for name in self.covariates}
        return [np.nan if count is None else float(np.log1p(count)) for count in counts] + [
            np.nan if value is None else float(np.log(value) if name in MONTHS else value)
            for name, value in known.items()
        ]

    def _features(self, patients: Iterable[tuple[int, list[float]]]) -> np.ndarray:
        """(N, arms + numbers) of pairs (arm, `_numbers`); an unseen arm has the frequencies of the arms."""
        trained = sorted(set(self.cohort.arms))
        frequencies = [np.mean(self.cohort.arms == arm) for arm in trained]
        rows = []
        for arm, numbers in patients:
            of_arm = [float(arm == other) for other in trained] if arm in trained else frequencies
            rows.append([*of_arm, *np.where(np.isnan(numbers), self._means, numbers)])
        return np.array(rows)


def _negative_binomial_loss(counts: np.ndarray, mean: np.ndarray, log_size: float) -> float:
    """Negative log likelihood of counts (N,) of these means (N,)."""
    return -nbinom.logpmf(counts, np.exp(log_size), 1 / (1 + mean / np.exp(log_size))).sum()
