"""python -m scripts.check_simulation counts|locations|sizes ...: the oracle's calibration, what images add to
counts, and how large the simulated effects are.
"""

import warnings
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import statsmodels.api as sm
from scipy.ndimage import gaussian_filter, label
from scipy.stats import kstest, nbinom
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from bundle.arms import ARMS, NULL_ARM
from bundle.data.grid import SlabGrid, slab_centre, to_slab
from bundle.data.masks import mask_to_slab
from bundle.errors import InputError
from bundle.simulation.acquisition import diffuse_extent
from bundle.simulation.anatomy import AFFINE, VOXEL_MM3
from bundle.simulation.disease import draw_disease, patient_anatomy, patient_history, union
from bundle.simulation.drawing import QUIET
from bundle.simulation.events import History, assigned_arm
from bundle.simulation.observation import Observation, observe
from bundle.simulation.oracle import COUNTS, MAX_COUNT, Oracle
from bundle.simulation.protocol import PRESETS, Protocol
from scripts.command import run


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
    forecasts = [
        oracle(observe(h, a, protocol), a if h.sees_arm else NULL_ARM)
        for h, a in tqdm(list(zip(histories, arms))[:patients], "oracle")
    ]
    pmf = np.array([f.count_pmf for f in forecasts])
    test, fit = slice(patients), slice(patients, None)
    for line in calibration(
        pmf, truth[test], np.array([f.expected_count for f in forecasts]), np.random.default_rng(0)
    ):
        print(line)
    only_counts = [
        oracle(without_signs(observe(h, a, protocol)), a if h.sees_arm else NULL_ARM)
        for h, a in zip(histories[:patients], arms)
    ]
    rows = {"oracle": pmf, "oracle of counts and tables": np.array([f.count_pmf for f in only_counts])}
    for name, tables in (("regression on counts", False), ("regression on counts, months, covariates", True)):
        x = np.array([features(h, a, protocol, tables) for h, a in zip(histories, arms)])
        rows[name] = regression(x[fit], truth[fit], x[test])
    scores = pd.DataFrame({name: score(p, truth[test]) for name, p in rows.items()}).T
    scores["crps_ratio"] = scores.crps["oracle"] / scores.crps
    print(scores.round(4).to_string())
    by_arm = {
        name: [roc_auc_score(truth[test][arms[test] == a] > 0, 1 - p[arms[test] == a, 0]) for a in range(6)]
        for name, p in rows.items()
    }
    print(pd.DataFrame(by_arm, index=ARMS).round(3).T.to_string())


def without_signs(seen: Observation) -> Observation:
    """The counts of the masks and the tables: smouldering lesions are not distinguished from quiet ones."""
    return Observation(
        num_gd=seen.num_gd,
        num_t2=seen.num_t2 + seen.num_smouldering,
        num_net2=seen.num_net2,
        num_enhancing=seen.num_enhancing,
        covariates=seen.covariates,
        months=seen.months,
    )


def locations(
    patients: int = 100, trained: int = 200, arm: str = "placebo", preset: str = "trial", seed: int = 7
) -> None:
    """Log scores of the locations of new lesions on the model's grid: oracle, frequency map, what the signs are worth.

    Args:
        patients: to forecast, from the first with a lesion to come.
        trained: further patients, whose expected lesions make the frequency map: the limit of many outcomes of each.
        arm: whose potential outcomes are forecast; placebo has the most lesions.
        preset: of the trial.
        seed: of the trial.
    """
    protocol, number, grid = _protocol(preset), ARMS.index(arm), SlabGrid()
    oracle = Oracle(protocol)
    frequency, rows, done = np.zeros(grid.shape), [], 0
    for i in tqdm(range(trained), "frequency map"):
        # What many outcomes of this patient would add, if the spatial law were not known: less noisy than one outcome.
        _, seen, _, affine = _outcome(seed, 10**6 + i, number, protocol)
        footprint = oracle(replace(seen, territories=None), number).footprint
        frequency += to_slab(footprint, AFFINE, affine, grid) * patient_history(seed, 10**6 + i, protocol).frailty
    maps = {f"frequency map, {mm} mm": gaussian_filter(frequency, np.divide(mm, grid.spacing_mm)) for mm in (0, 3, 6)}
    index = -1
    with tqdm(total=patients, desc="oracle") as bar:
        while done < patients:
            index += 1
            if not patient_history(seed, index, protocol).count(number, 1):
                continue
            anatomy, seen, lesions, affine = _outcome(seed, index, number, protocol)
            done += 1
            bar.update()
            brain = to_slab(anatomy.brain.astype(np.float32), AFFINE, affine, grid) >= 0.5
            status = seen.status
            variants = {
                "oracle": seen,
                "oracle without the spatial law": replace(seen, territories=None),
                "oracle without activity": replace(seen, status=np.where(status > 0, QUIET, 0).astype(np.uint8)),
            }
            footprints = {n: to_slab(oracle(o, number).footprint, AFFINE, affine, grid) for n, o in variants.items()}
            labels, n = label(mask_to_slab(lesions, AFFINE, affine, grid), np.ones((3, 3, 3)))
            for name, values in (footprints | maps).items():
                density = np.where(brain, values, 0)
                density = 0.99 * density / density.sum() + 0.01 * brain / brain.sum()
                gain = np.log(np.maximum(density * brain.sum(), 1e-3))
                for k in range(1, n + 1):
                    rows.append((name, index, k, gain[labels == k].mean(), (labels == k).sum()))
    table = pd.DataFrame(rows, columns=["forecaster", "patient", "lesion", "nats", "voxels"])
    reference = table[table.forecaster == "frequency map, 3 mm"].set_index(["patient", "lesion"]).nats
    for name, group in table.groupby("forecaster", sort=False):
        paired = group.set_index(["patient", "lesion"]).nats - reference
        by_patient = paired.groupby("patient").sum()
        error = np.sqrt(((by_patient - paired.mean() * paired.groupby("patient").size()) ** 2).sum()) / len(paired)
        per_voxel = np.average(group.nats, weights=group.voxels)
        score = f"{group.nats.mean():.3f} a lesion, {per_voxel:.3f} a voxel"
        gained = f"{paired.mean():+.3f} a lesion (standard error {error:.3f})"
        print(f"{name:32s} nats over uniform: {score}; over the map of 3 mm: {gained}; {len(group)} lesions")


def sizes(patients: int = 20000, brains: int = 20, preset: str = "trial", seed: int = 4, resamples: int = 300) -> None:
    """Sizes of simulated effects, to be held against the literature; 95 % intervals by bootstrap over patients.

    Args:
        patients: whose histories are drawn.
        brains: of the first patients, for the volume of diffusely abnormal white matter.
        preset: of the trial.
        seed: of the trial.
        resamples: of the bootstrap.
    """
    protocol, rng = _protocol(preset), np.random.default_rng(0)
    histories = (patient_history(seed, i, protocol) for i in tqdm(range(patients), "histories"))
    table = pd.DataFrame(
        {
            **asdict(h.covariates),
            "frailty": h.frailty,
            "diffuse": h.diffuse,
            "gd": len(h.gd),
            "smouldering": len(h.smouldering),
            "old": h.num_old,
            "net2": h.count(ARMS.index("placebo"), 0),
        }
        for h in histories
    )
    extent = [diffuse_extent(patient_anatomy(seed, i)).sum() * VOXEL_MM3 / 1000 for i in tqdm(range(brains), "brains")]
    drawn = pd.DataFrame(
        effect_sizes(table.iloc[rng.integers(0, patients, patients)]) for _ in tqdm(range(resamples), "bootstrap")
    )
    low, high = drawn.quantile(0.025), drawn.quantile(0.975)
    print(pd.DataFrame({"value": effect_sizes(table), "low": low, "high": high}).round(3).to_string())
    volume = f"{np.mean(extent):.0f} ({min(extent):.0f} to {max(extent):.0f})"
    print(f"diffusely abnormal white matter in the slab, mean (least to greatest) of {brains} brains: {volume} ml")


def effect_sizes(table: pd.DataFrame) -> pd.Series:
    """Of one row per patient: covariates, frailty, diffuse, and counts of old, gd, smouldering and net2 lesions."""
    women, active = table.sex == "F", table.net2 > 0
    odds = [p / (1 - p) for p in (active[table.age.between(40, 49)].mean(), active[table.age < 40].mean())]
    by_age = sm.GLM(table.net2, sm.add_constant(table.age / 5), family=sm.families.Poisson()).fit().params["age"]
    ranks = table[["gd", "relapses", "edss", "old", "diffuse", "net2"]].rank().corr()
    return pd.Series(
        {
            "patients with a smouldering lesion": (table.smouldering > 0).mean(),
            "old lesions that smoulder": table.smouldering.sum() / table.old.sum(),
            "new lesions, women over men": table.frailty[women].mean() / table.frailty[~women].mean(),
            "relapses, women over men": table.relapses[women].mean() / table.relapses[~women].mean(),
            "new lesions, ratio per 5 years of age": np.exp(by_age),
            "odds of activity, 40 to 49 over under 40": odds[0] / odds[1],
            "rank correlation of gadolinium and relapses": ranks.loc["gd", "relapses"],
            "rank correlation of EDSS and T2 lesions": ranks.loc["edss", "old"],
            "rank correlation of diffuse signal and new lesions": ranks.loc["diffuse", "net2"],
            "median diffuse signal": table.diffuse.median(),
        }
    )


def _outcome(seed: int, index: int, arm: int, protocol: Protocol):
    """Brain, observation, NET2 of w096 (bool) had the patient been in `arm`, and the slab's affine."""
    history, anatomy = patient_history(seed, index, protocol), patient_anatomy(seed, index)
    disease = draw_disease(anatomy, history, seed, index, protocol)
    first, second = disease.outcomes[arm]
    status = disease.status_w048(first, history.num_enhancing(arm, protocol), history.active(arm, protocol))
    seen = replace(observe(history, arm, protocol), anatomy=anatomy, status=status)
    grid = SlabGrid()
    return anatomy, seen, union(second), grid.affine(slab_centre(anatomy.brain, AFFINE, grid))


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
    run({"counts": counts, "locations": locations, "sizes": sizes})
