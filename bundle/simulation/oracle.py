"""The Bayes-optimal forecaster of the simulated trial: the ceiling that no model can pass."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
from scipy.special import gammaln

from bundle.arms import NULL_ARM
from bundle.lesions import MAX_COUNT
from bundle.simulation.anatomy import SHAPE
from bundle.simulation.covariates import CovariateModel, durations_of
from bundle.simulation.drawing import FREE, Surroundings, form_lesions, grow
from bundle.simulation.events import Event, net2_volume_mm3
from bundle.simulation.footprint import lesion_footprint
from bundle.simulation.observation import Observation, observe
from bundle.simulation.patient import SimulatedPatient
from bundle.simulation.protocol import MONTHS, PATIENTS_PER_ARM, PRESETS, WEEKS_PER_MONTH, Protocol

COUNTS = np.arange(MAX_COUNT + 1)

# Trapezoids in log frailty. The integrand is analytic and dies out at both ends, so the error falls exponentially with
# the step: .02 resolves posteriors as narrow as those of several hundred lesions. Below e^-64 lies a fraction of
# e^(-64 k) < 1e-12 at k = .45.
LOG_FRAILTY = np.arange(-64.0, 6.0, 0.02)
FRAILTY = np.exp(LOG_FRAILTY)


@dataclass(frozen=True)
class OracleForecast:
    """The exact forecast of NET2 lesions at w096.

    Attributes:
        count_pmf: (MAX_COUNT + 1,) probabilities of 0, 1, ... lesions.
        expected_count: posterior mean of the count.
        partial_response: posterior probability that the treatment lets some lesions through.
        dirichlet: (territories,) parameters of the posterior of the spatial law.
        around: where the next lesions may start; None without images.
        starts: float64 `SHAPE`, P(the next lesion starts at a voxel), adding up to 1; None without images.
        footprint: float32 `SHAPE`, the probability that one lesion covers a voxel; None without images.
    """

    count_pmf: np.ndarray
    expected_count: float
    partial_response: float
    dirichlet: np.ndarray
    around: Surroundings | None
    starts: np.ndarray | None
    footprint: np.ndarray | None

    @property
    def law(self) -> np.ndarray:
        """(territories,) posterior mean of the spatial law: P(the next new lesion starts there)."""
        return self.dirichlet / self.dirichlet.sum()

    @property
    def p_active(self) -> float:
        """Probability of at least one lesion."""
        return float(1 - self.count_pmf[0])

    @property
    def expected_log_count(self) -> float:
        """Mean of log(1 + count): the forecast with the least mean squared error of the log count."""
        return float(self.count_pmf @ np.log1p(COUNTS))

    @cached_property
    def heatmap(self) -> np.ndarray | None:
        """Probability of every voxel to lie in a lesion: float32 `SHAPE`.

        Lesions are taken as independent given their number; that they keep a voxel apart from each other, and that they
        share the spatial law's own uncertainty, is neglected.
        """
        if self.footprint is None:
            return None
        # P(no lesion here) is the generating function of the count at 1 - footprint: a smooth function of one number.
        table = np.linspace(0, float(self.footprint.max()), 1001)
        covered = 1 - np.polynomial.polynomial.polyval(1 - table, self.count_pmf)
        covered[0] = 0  # and not the rounding error of the sum
        return np.interp(self.footprint, table, covered).astype(np.float32)


class Oracle:
    """Forecasts w096 from what images and tables up to w048 show, knowing how the trial was simulated.

    Args:
        protocol: of the trial (`bundle.simulation.observation.read_protocol`).
    """

    def __init__(self, protocol: Protocol = PRESETS["trial"]) -> None:
        self.protocol = protocol
        k = protocol.frailty_shape
        self._log_prior = k * LOG_FRAILTY - k * FRAILTY  # density of log frailty, up to a constant
        self._covariates = CovariateModel(protocol, FRAILTY)

    def __call__(self, observation: Observation, arm: int) -> OracleForecast:
        """Posterior forecast.

        Args:
            observation: of one patient.
            arm: class index of the treatment given; 6 (unknown) weighs the arms by the trial's allocation and by what
                was seen.
        """
        arms = range(NULL_ARM) if arm == NULL_ARM else [arm]
        weights = self._posterior(observation, arms)  # (arms, partial or full response, frailty)
        horizons = self.protocol.interval_months if observation.months is None else [observation.months[1]]
        pmf, expected = np.zeros(MAX_COUNT + 1), 0.0
        for a, partial in zip(arms, weights[:, 0]):
            for months in horizons:
                mean = self.protocol.rates[a, 1] * months / MONTHS * FRAILTY
                pmf += poisson_mixture(mean, partial) / len(horizons)
                expected += float(partial @ mean) / len(horizons)
        pmf[0] += weights[:, 1].sum()
        dirichlet = self._dirichlet(observation)
        around = starts = footprint = None
        if observation.anatomy is not None:
            around = Surroundings(observation.anatomy, observation.status, self.protocol.hazards)
            new, enlarged = around.starts(dirichlet / dirichlet.sum(), self.protocol.enlarging)
            starts, footprint = new + enlarged, lesion_footprint(around, new, enlarged)
        return OracleForecast(pmf, expected, float(weights[:, 0].sum()), dirichlet, around, starts, footprint)

    def draw(self, forecast: OracleForecast, rng: np.random.Generator) -> list[tuple[np.ndarray, ...]]:
        """One outcome from a forecast with images: count, spatial law and lesions as the simulation draws them.

        Returns:
            Index arrays (3 x n voxels on `SHAPE`) per lesion.

        Raises:
            ValueError: the forecast was made without images.
        """
        if forecast.around is None:
            raise ValueError("an outcome can only be drawn from a forecast with images")
        count = int(rng.choice(COUNTS, p=forecast.count_pmf / forecast.count_pmf.sum()))
        territories = rng.choice(len(forecast.dirichlet), count, p=rng.dirichlet(forecast.dirichlet))
        enlarges = rng.random(count) < self.protocol.enlarging
        events = [Event(int(territory), bool(e)) for territory, e in zip(territories, enlarges)]
        return form_lesions(forecast.around, events, np.random.SeedSequence(int(rng.integers(2**63))).spawn(count))

    def next_lesions(self, forecast: OracleForecast, number: int, strata: np.ndarray) -> list[tuple[np.ndarray, ...]]:
        """The next lesion, drawn a number of times with equal weights; the same draws in every call.

        The starts are drawn systematically, in order of strata, and the volumes are evenly spaced quantiles: what is
        counted over these lesions varies less than over independent ones.

        Args:
            forecast: with images.
            number: of draws.
            strata: int `SHAPE`, what decides most of what will be counted.

        Returns:
            Index arrays (3 x n voxels on `SHAPE`) per lesion.
        """
        around, starts, rng = forecast.around, forecast.starts.ravel(), np.random.default_rng(0)
        where = np.flatnonzero(starts)
        where = where[np.argsort(strata.ravel()[where], kind="stable")]
        evenly = (np.arange(number) + 0.5) / number
        upto = starts[where].cumsum()
        chosen = where[np.searchsorted(upto, evenly * upto[-1])]
        lesions = []
        for start, quantile in zip(zip(*np.unravel_index(chosen, SHAPE)), rng.permutation(evenly)):
            room = around.fresh if around.touched[start] == FREE else around.free  # beside an old lesion it enlarges it
            lesions.append(grow(room, start, net2_volume_mm3(quantile), rng, around.anatomy.right))
        return lesions

    def posterior_frailty(self, observation: Observation, arm: int) -> np.ndarray:
        """(frailty,) weights on `FRAILTY`, adding up to 1."""
        arms = range(NULL_ARM) if arm == NULL_ARM else [arm]
        return self._posterior(observation, arms).sum((0, 1))

    def _dirichlet(self, observation: Observation) -> np.ndarray:
        """Posterior of the spatial law: Dirichlet and multinomial are conjugate."""
        return self.protocol.dirichlet + (0 if observation.territories is None else observation.territories)

    def _posterior(self, observation: Observation, arms: Sequence[int]) -> np.ndarray:
        """(arms, 2, frailty): joint posterior of arm, response (0 partial, 1 full) and frailty; adds up to 1."""
        before = self._log_prior + self._log_baseline(observation)
        fraction = np.array(PATIENTS_PER_ARM, float)[arms]
        q = np.array(self.protocol.partial_responders)[arms]
        with np.errstate(divide="ignore"):  # the logarithm of an impossible response is -inf, as it should be
            weights = before + np.log(fraction[:, None] * np.stack([q, 1 - q], 1))[..., None]
        weights = weights + self._log_first_year(observation, arms)
        if observation.num_active is not None:
            out = observation.num_smouldering - observation.num_active
            for response, stays in enumerate((self.protocol.stays_active, self.protocol.stays_active_treated)):
                weights[:, response] += observation.num_active * np.log(stays) + out * np.log1p(-stays)
        weights = np.exp(weights - weights.max())
        return weights / weights.sum()

    def _log_first_year(self, observation: Observation, arms: Sequence[int]) -> np.ndarray:
        """(arms, 2, frailty): log P(NET2 at w048, those that enhance, growth of the ventricles | arm, response,
        frailty), up to a constant; summed over the length of the interval where it is unknown.
        """
        n = observation.num_net2
        if n is None and observation.growth_mm is None:
            return np.zeros((1, 2, 1))
        lengths = self.protocol.interval_months if observation.months is None else [observation.months[0]]
        terms = []
        for months in lengths:
            term = np.zeros((len(arms), 2, len(FRAILTY)))
            if n is not None:
                term[:, 0] = _log_poisson(n, self.protocol.rates[arms, 0][:, None] * months / MONTHS)
                term[:, 1] = 0 if n == 0 else -np.inf
            terms.append(term + self._log_length(observation, months))
        return np.logaddexp.reduce(terms)

    def _log_length(self, observation: Observation, months: float) -> float:
        """log P(enhancing lesions of w048, growth of the ventricles | NET2 at w048, months), up to a constant."""
        total = 0.0
        if observation.num_enhancing is not None:  # each of them formed at a uniform time
            enhancing = self.protocol.gd_weeks / (months * WEEKS_PER_MONTH)
            quiet = observation.num_net2 - observation.num_enhancing
            total += observation.num_enhancing * np.log(enhancing) + quiet * np.log1p(-enhancing)
        if observation.growth_mm is not None:
            shape, rate = (
                self.protocol.growth_shape * months / 12,
                self.protocol.growth_shape / self.protocol.growth_mm_per_year,
            )
            total += shape * np.log(rate * observation.growth_mm) - gammaln(shape)
        return total

    def _log_baseline(self, observation: Observation) -> np.ndarray:
        """log P(what is seen at w000, and the diffuse signal | frailty), up to a constant."""
        protocol, total = self.protocol, np.zeros(len(FRAILTY))
        if observation.num_gd is not None:
            total += _log_poisson(observation.num_gd, protocol.gd_mean)
        if observation.num_smouldering is not None:
            total += _log_poisson(observation.num_smouldering, protocol.smouldering_mean)
        if observation.diffuse is not None:
            seen = (observation.diffuse - protocol.diffuse_level) / protocol.diffuse_slope
            total -= 0.5 * ((seen - protocol.soft_log(FRAILTY)) / protocol.diffuse_noise) ** 2
        log_t2 = self._log_t2(observation)  # (frailty, durations)
        highest = log_t2.max()
        likelihood = self._covariates.likelihood(observation.covariates, np.exp(log_t2 - highest))
        with np.errstate(divide="ignore"):
            return total + highest + np.log(likelihood)

    def _log_t2(self, observation: Observation) -> np.ndarray:
        """(frailty, durations): log P(number of T2 lesions | frailty, disease duration), up to a constant."""
        n, durations = observation.num_t2, durations_of(observation.covariates)
        if n is None:
            return np.zeros((len(FRAILTY), len(durations)))
        mean = self.protocol.t2_mean_given(FRAILTY[:, None], durations)
        if observation.num_smouldering is not None:
            return _log_negative_binomial(n, mean, self.protocol.t2_size)
        smouldering = range(n + 1)  # not distinguished from quiet ones: n is the sum of both
        return np.logaddexp.reduce(
            [
                _log_negative_binomial(n - s, mean, self.protocol.t2_size)
                + _log_poisson(s, self.protocol.smouldering_mean)[:, None]
                for s in smouldering
            ]
        )


def oracle_forecast(patient: SimulatedPatient, protocol: Protocol) -> OracleForecast:
    """The oracle's forecast of a patient in memory, from perfect reading of everything up to w048."""
    seen = observe(patient.history, patient.arm, protocol)
    return _oracle_of(protocol)(replace(seen, anatomy=patient.anatomy, status=patient.status["w048"]), patient.arm)


@cache
def _oracle_of(protocol: Protocol) -> Oracle:
    return Oracle(protocol)


def poisson_mixture(mean: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Distribution of a count that is Poisson given its mean: (MAX_COUNT + 1,), adding up to the weights' sum.

    Args:
        mean: (G,) positive, ascending.
        weights: (G,).
    """
    pmf = np.zeros(MAX_COUNT + 1)
    for part, most in ((mean < 1e-3, 5), (mean >= 1e-3, MAX_COUNT)):  # P(more than 5) < 1e-20 there
        part = part & (weights > 1e-18)
        number = np.arange(most)
        table = np.exp(number * np.log(mean[part, None]) - mean[part, None] - gammaln(number + 1))
        pmf[:most] += weights[part] @ table
        if most == MAX_COUNT:
            pmf[-1] += weights[part] @ np.maximum(1 - table.sum(1), 0)
    pmf[0] += weights[weights <= 1e-18].sum()
    return pmf


def _log_poisson(count: int, rate: np.ndarray | float) -> np.ndarray:
    return count * np.log(rate * FRAILTY) - rate * FRAILTY - gammaln(count + 1)


def _log_negative_binomial(count: int, mean: np.ndarray, size: float) -> np.ndarray:
    constant = gammaln(count + size) - gammaln(size) - gammaln(count + 1)
    return constant + count * np.log(mean / (mean + size)) + size * np.log(size / (mean + size))
