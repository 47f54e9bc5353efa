"""python -m scripts.check_simulation counts|places ...: the oracle's calibration, and what images add to counts."""

import warnings

import fire
import numpy as np
import pandas as pd
import statsmodels.api as sm
from scipy.ndimage import gaussian_filter
from scipy.stats import kstest, nbinom
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from bundle.arms import ARMS, NULL_ARM
from bundle.data.grid import SlabGrid, slab_centre, to_slab
from bundle.data.masks import mask_to_slab
from bundle.errors import InputError, report_in_one_line
from bundle.simulation.anatomy import AFFINE
from bundle.simulation.disease import patient_anatomy, patient_history
from bundle.simulation.drawing import QUIET
from bundle.simulation.events import History, assigned_arm
from bundle.simulation.observation import observe
from bundle.simulation.oracle import COUNTS, MAX_COUNT, Oracle
from bundle.simulation.patient import simulate_patient
from bundle.simulation.protocol import MONTHS, PRESETS, Protocol


def counts(patients: int = 12000, preset: str = "trial", seed: int = 7, trained: int = 6000) -> None:
    """Forecasts of patients without images: calibration of the oracle, and regressions on what masks and tables hold.

    Args:
        patients: to forecast.
        preset: of the trial.
        seed: of the trial.
        trained: further patients, that the regressions are fitted to.
    """
    protocol = _protocol(preset)
    histories = [patient_history(seed, i, protocol) for i in tqdm(range(patients + trained), "histories")]
    arms = np.array([assigned_arm(seed, i) for i in range(patients + trained)])
    truth = np.array([h.count(a, 1) for h, a in zip(histories, arms)])
    oracle = Oracle(protocol)
    told = [
        oracle(observe(h, a, protocol), a if h.sees_arm else NULL_ARM)
        for h, a in tqdm(list(zip(histories, arms))[:patients], "oracle")
    ]
    pmf = np.array([f.count_pmf for f in told])
    test, fit = slice(patients), slice(patients, None)
    for line in calibration(pmf, truth[test], np.array([f.expected_count for f in told]), np.random.default_rng(0)):
        print(line)
    rows = {"oracle": pmf}
    for name, tables in (("regression on counts", False), ("regression on counts, months, covariates", True)):
        x = np.array([features(h, a, protocol, tables) for h, a in zip(histories, arms)])
        rows[name] = regression(x[fit], truth[fit], x[test])
    scores = pd.DataFrame({name: score(p, truth[test]) for name, p in rows.items()}).T
    scores["crps_ratio"] = scores.crps["oracle"] / scores.crps
    print(scores.round(4).to_string())
    by_arm = {name: [roc_auc_score(truth[test][arms[test] == a] > 0, 1 - p[arms[test] == a, 0]) for a in range(6)] for name, p in rows.items()}
    print(pd.DataFrame(by_arm, index=ARMS).round(3).T.to_string())


def calibration(pmf: np.ndarray, truth: np.ndarray, expected: np.ndarray, rng: np.random.Generator) -> list[str]:
    """z of activity in ten groups of like forecasts, of the mean and of the mean log count; uniformity of the PIT."""
    p, active = 1 - pmf[:, 0], truth > 0
    z = []
    for group in np.array_split(np.argsort(p, kind="stable"), 10):
        z.append((active[group].sum() - p[group].sum()) / np.sqrt((p[group] * (1 - p[group])).sum()))
    lines = ["z of activity in ten groups: " + " ".join(f"{value:+.2f}" for value in z)]
    variance = pmf @ COUNTS**2 - (pmf @ COUNTS) ** 2
    log_mean = pmf @ np.log1p(COUNTS)
    log_variance = pmf @ np.log1p(COUNTS) ** 2 - log_mean**2
    for name, residual, spread in (
        ("count", truth - expected, variance),
        ("log(1 + count)", np.log1p(truth) - log_mean, log_variance),
    ):
        lines.append(f"z of the mean {name}: {residual.sum() / np.sqrt(spread.sum()):+.2f}")
    below = np.cumsum(pmf, 1)[np.arange(len(pmf)), truth]
    pit = below - rng.random(len(pmf)) * pmf[np.arange(len(pmf)), truth]
    lines.append(f"PIT against uniform: Kolmogorov-Smirnov p = {kstest(pit, 'uniform').pvalue:.3f}")
    return lines


def score(pmf: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """AUC of activity, CRPS of the count, squared error of log(1 + count)."""
    cumulative = np.cumsum(pmf, 1)
    crps = ((cumulative - (COUNTS >= truth[:, None])) ** 2).sum(1).mean()
    log_error = np.square(np.log1p(truth) - pmf @ np.log1p(COUNTS)).mean()
    return {"auc": roc_auc_score(truth > 0, 1 - pmf[:, 0]), "crps": crps, "mse_log": log_error}


def features(history: History, arm: int, protocol: Protocol, tables: bool) -> list[float]:
    """Log counts of the masks and the arm; with `tables` also months and covariates, means where they are unknown."""
    seen = observe(history, arm, protocol)
    t2 = seen.num_t2 + seen.num_smouldering + seen.num_gd
    row = [*np.log1p([seen.num_gd, t2, seen.num_net2, seen.num_enhancing]), *(np.arange(6) == arm) * history.sees_arm]
    if not tables:
        return row
    months = seen.months or 2 * (np.mean(protocol.interval_months),)
    c = seen.covariates
    known = [
        36 if c.age is None else c.age,
        8 if c.disease_duration is None else c.disease_duration,
        2 if c.edss is None else c.edss,
        0.9 if c.relapses is None else c.relapses,
        0.7 if c.sex is None else c.sex == "F",
    ]
    return [*row, *np.log(months), *known]


def regression(x: np.ndarray, counts: np.ndarray, at: np.ndarray) -> np.ndarray:
    """(N, MAX_COUNT + 1): activity logistic, count negative binomial, the latter's zero moved to the former's."""
    active = make_pipeline(StandardScaler(), LogisticRegression(C=10, max_iter=1000)).fit(x, counts > 0)
    scaled = StandardScaler().fit(x)
    design, design_at = (sm.add_constant(scaled.transform(v), has_constant="add") for v in (x, at))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dispersion = 1.0
        for _ in range(20):
            model = sm.GLM(counts, design, family=sm.families.NegativeBinomial(alpha=dispersion)).fit()
            mean = model.predict(design)
            dispersion = float(np.clip(((counts - mean) ** 2 - mean).sum() / (mean**2).sum(), 1e-3, 50))
    size, mean = 1 / dispersion, model.predict(design_at)[:, None]
    pmf = nbinom.pmf(COUNTS, size, size / (size + mean))
    pmf[:, -1] += nbinom.sf(MAX_COUNT, size, size / (size + mean))[:, 0]
    p = active.predict_proba(at)[:, 1]
    pmf[:, 1:] *= (p / np.maximum(pmf[:, 1:].sum(1), 1e-12))[:, None]
    pmf[:, 0] = 1 - p
    return pmf


def _protocol(preset: str) -> Protocol:
    if preset not in PRESETS:
        raise InputError(f"--preset {preset!r} is none of {', '.join(PRESETS)}", "give one of them")
    return PRESETS[preset]


if __name__ == "__main__":
    report_in_one_line()
    fire.Fire({"counts": counts})
