"""What the simulated trial is made of: every number that the oracle knows and a patient's images do not show."""

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from bundle.simulation.readers import Reader
from bundle.simulation.scanners import EndlessScanners, Fleet, OneScanner, Scanners, SiteScanners
from bundle.simulation.territories import KINDS

PATIENTS_PER_ARM = (327, 237, 271, 529, 193, 574)
MONTHS = 11.0  # the 48 weeks that the paper's means refer to
WEEKS_PER_MONTH = 48 / MONTHS
# (arm, interval): the means of the paper's training set (Favero et al. 2025).
MEAN_NET2 = np.array([[4.60, 3.33], [5.51, 4.49], [4.37, 4.37], [0.63, 1.59], [0.60, 1.03], [0.07, 0.07]])


@dataclass(frozen=True)
class Protocol:
    """The generative model's parameters; docs/explanation/simulated-trial.md gives equations and sources.

    Attributes:
        frailty_shape: k; a patient's frailty g is Gamma(k, 1/k), of mean 1.
        softening: g0 of the softened log frailty l(g) = log((g + g0) / (1 + g0)), by which signs follow the frailty.
        partial_responders: q per arm; the other patients of the arm form no lesion under treatment.
        gd_mean: gadolinium lesions at w000 are Poisson(gd_mean * g).
        gd_weeks: a lesion enhances this long after it has formed.
        t2_mean, t2_floor, t2_size, t2_duration: other quiet lesions at w000 are negative binomial of size t2_size and
            mean t2_mean * (t2_floor + (1 - t2_floor) g) * ((1 + years since onset) / 9) ** t2_duration.
        smouldering_mean: visibly active old lesions at w000 are Poisson(smouldering_mean * g).
        stays_active, stays_active_treated: chance of each to be active still at w048, in a partial and in a full
            responder.
        diffuse_level, diffuse_slope, diffuse_noise: FLAIR signal of diffusely abnormal white matter, relative to normal
            white matter: level + slope * (l(g) + diffuse_noise * N(0, 1)).
        territory_weights: mean of a patient's spatial law over `KINDS`, half of each on either side.
        concentration: sum of the Dirichlet parameters of that law; small for patients who differ much.
        enlarging: chance that an event enlarges an old lesion rather than forms a new one.
        hazards: how readily a voxel beside an old lesion that is quiet, recent, enhancing, smouldering is the start of
            an enlargement.
        interval_months: lengths of the two intervals, each drawn from these with equal chances.
        growth_mm_per_year, growth_shape: the borders of the ventricles move by Gamma(shape * years, rate / shape).
        age_mean, age_slope, age_deviation: age is normal round mean + slope * (l(g) + 1), cut at 18 and 60 years.
        female_logit, female_slope: log odds of being female are logit + slope * (l(g) + 1).
        duration_mean: years since onset, exponential, cut where the patient was 17.
        relapses_mean, relapses_slope: relapses in the year before are Poisson(mean * exp(slope * (l(g) + 1))).
        edss: intercept, slope per year since onset, slope per year of age over 36, deviation of the EDSS.
        scanners: what the images are made with.
        reader: who draws the lesion masks of w000 and w048.
        unknown_arm, unknown_covariate, unknown_months: fractions of patients for whom the tables say n/a.
    """

    frailty_shape: float = 0.45
    softening: float = 0.1
    partial_responders: tuple[float, ...] = (0.939, 0.884, 0.771, 0.578, 0.454, 0.050)
    gd_mean: float = 1.0
    gd_weeks: float = 6.0
    t2_mean: float = 95.0
    t2_floor: float = 0.8
    t2_size: float = 1.3
    t2_duration: float = 0.3
    smouldering_mean: float = 2.0
    stays_active: float = 0.95
    stays_active_treated: float = 0.05
    diffuse_level: float = 0.12
    diffuse_slope: float = 0.045
    diffuse_noise: float = 0.35
    territory_weights: tuple[float, ...] = (0.12, 0.17, 0.09, 0.05, 0.19, 0.30, 0.08)
    concentration: float = 6.0
    enlarging: float = 0.35
    hazards: tuple[float, float, float, float] = (1.0, 4.0, 10.0, 60.0)
    interval_months: tuple[float, ...] = (10.5, 11.0, 11.5)
    growth_mm_per_year: float = 0.25
    growth_shape: float = 4.0
    age_mean: float = 36.0
    age_slope: float = -2.5
    age_deviation: float = 9.0
    female_logit: float = 0.85
    female_slope: float = 0.12
    duration_mean: float = 8.0
    relapses_mean: float = 0.9
    relapses_slope: float = 0.25
    edss: tuple[float, float, float, float] = (1.6, 0.06, 0.02, 1.2)
    scanners: Scanners = field(default_factory=OneScanner)
    reader: Reader = field(default_factory=Reader)
    unknown_arm: float = 0.0
    unknown_covariate: float = 0.0
    unknown_months: float = 0.0

    @cached_property
    def rates(self) -> np.ndarray:
        """(arm, interval): expected NET2 lesions of a partial responder of frailty 1 in 48 weeks; times q it is
        `MEAN_NET2`.
        """
        return MEAN_NET2 / np.array(self.partial_responders)[:, None]

    @cached_property
    def dirichlet(self) -> np.ndarray:
        """(territories,) parameters of a patient's spatial law before anything is seen."""
        if len(self.territory_weights) != len(KINDS):
            raise ValueError(f"territory_weights must be {len(KINDS)} numbers, not {self.territory_weights}")
        weights = np.repeat(np.array(self.territory_weights) / 2, 2)
        return self.concentration * weights / weights.sum()

    def soft_log(self, frailty: np.ndarray | float) -> np.ndarray | float:
        """l(g), the softened log frailty: log(g) where g is large, level where it is next to none."""
        return np.log((frailty + self.softening) / (1 + self.softening))

    def t2_mean_given(self, frailty: np.ndarray | float, duration: np.ndarray | float) -> np.ndarray | float:
        """Mean of the number of quiet lesions at w000."""
        load = self.t2_floor + (1 - self.t2_floor) * frailty
        return self.t2_mean * load * ((1 + duration) / 9) ** self.t2_duration


_CLINIC = Protocol(
    interval_months=tuple(float(m) for m in range(6, 25)),
    scanners=EndlessScanners(),
    reader=Reader(careless=0.5, missing=0.15),
    unknown_arm=0.15,
    unknown_covariate=0.2,
    unknown_months=0.1,
)
PRESETS = {
    "trial": Protocol(),
    "clinic": _CLINIC,
    "sites": replace(_CLINIC, scanners=SiteScanners()),
    # To train the segmenter: the masks are the truth, and scans vary more than they do in any clinic.
    "scanners": replace(
        _CLINIC,
        reader=Reader(),
        scanners=EndlessScanners(
            Fleet(
                grey=(1.05, 1.9),
                fluid=(0.12, 0.7),
                bias=(0.015, 0.2),
                grey_pattern=(0.0, 0.2),
                lining=(0.0, 0.4),
                plexus=(0.3, 1.8),
            )
        ),
    ),
}
