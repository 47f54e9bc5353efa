"""One simulated patient in memory: scans, masks, and the truth that no scan shows."""

from dataclasses import asdict, dataclass

import numpy as np

from bundle.arms import ARMS
from bundle.data.bids import VISITS
from bundle.simulation.acquisition import acquire_flair, diffuse_extent, draw_texture, draw_variants, tissue_signal
from bundle.simulation.anatomy import AFFINE, SHAPE, VOXEL_MM3, Anatomy
from bundle.simulation.disease import (
    ACQUISITION,
    READING,
    Disease,
    Lesions,
    draw_disease,
    draw_futures,
    patient_anatomy,
    patient_history,
    stream,
    union,
)
from bundle.simulation.drawing import halo
from bundle.simulation.events import History, assigned_arm
from bundle.simulation.protocol import PRESETS, WEEKS_PER_MONTH, Protocol
from bundle.simulation.territories import TERRITORIES

# Added brightness of lesions, relative to white matter: mean, deviation, least and greatest. They do not overlap where
# it matters: a smouldering lesion can be distinguished from a quiet one.
_QUIET_GAIN, _NEW_GAIN, _SMOULDERING_GAIN = (0.42, 0.07, 0.25, 0.55), (0.55, 0.05, 0.42, 0.66), (0.85, 0.04, 0.76, 0.95)


@dataclass(frozen=True)
class SimulatedPatient:
    """A simulated patient.

    Attributes:
        arm: class index of the assigned arm.
        history: the disease, without voxels.
        anatomy: the brain.
        flair: visit -> int16 `SHAPE`.
        brain: visit -> bool `SHAPE`, the stripped brain.
        masks: (visit, label) -> bool `SHAPE`, label one of T2lesion, Gdlesion, NET2; as the reader drew them.
        status: visit (w000, w048) -> uint8 `SHAPE`, the true lesions and how active they are
            (`bundle.simulation.drawing`).
        truth: what goes into the sidecar.
        futures: bool `SHAPE` each, NET2 at w096 in further futures of the same past, as many as were asked for.
    """

    arm: int
    history: History
    anatomy: Anatomy
    flair: dict[str, np.ndarray]
    brain: dict[str, np.ndarray]
    masks: dict[tuple[str, str], np.ndarray]
    status: dict[str, np.ndarray]
    truth: dict
    futures: tuple[np.ndarray, ...] = ()


def simulate_patient(
    seed: int, index: int, protocol: Protocol = PRESETS["trial"], futures: int = 0
) -> SimulatedPatient:
    """Patient `index` (from 0) of trial `seed`; depends on nothing but these and the protocol.

    Args:
        seed, index, protocol: of the patient.
        futures: how many further outcomes to draw, which change nothing else.
    """
    arm, anatomy = assigned_arm(seed, index), patient_anatomy(seed, index)
    history = patient_history(seed, index, protocol)
    disease = draw_disease(anatomy, history, seed, index, protocol)
    year_1, year_2 = disease.outcomes[arm]
    num_enhancing = history.num_enhancing(arm, protocol)
    net2_w048, net2_w096, t2_w000 = union(year_1), union(year_2), disease.old
    true_masks = {
        ("w000", "T2lesion"): t2_w000,
        ("w000", "Gdlesion"): union(disease.recent),
        ("w048", "T2lesion"): t2_w000 | net2_w048,
        ("w048", "Gdlesion"): union(year_1[len(year_1) - num_enhancing :]),
        ("w048", "NET2"): net2_w048,
        ("w096", "NET2"): net2_w096,
    }
    active = history.active(arm, protocol)
    status = {"w000": disease.status_w000(), "w048": disease.status_w048(year_1, num_enhancing, active)}
    flair, brain = _scan(anatomy, history, disease, active, arm, seed, index, protocol)
    masks = protocol.reader(true_masks, np.random.default_rng(stream(seed, index, READING)))
    truth = _truth(seed, index, arm, history, disease, protocol)
    further = draw_futures(anatomy, disease, history, arm, seed, index, protocol, futures)
    return SimulatedPatient(arm, history, anatomy, flair, brain, masks, status, truth, tuple(map(union, further)))


def _scan(
    anatomy: Anatomy,
    history: History,
    disease: Disease,
    active: np.ndarray,
    arm: int,
    seed: int,
    index: int,
    protocol: Protocol,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """FLAIR and stripped brain at every visit."""
    rng = np.random.default_rng(stream(seed, index, ACQUISITION))
    texture, diffuse = draw_texture(rng), np.float32(history.diffuse) * diffuse_extent(anatomy)
    settings = protocol.scanners.settings(seed, len(VISITS), rng)
    variants = draw_variants(anatomy, rng) if any(setting.has_variants for setting in settings) else None
    growth_mm = dict(zip(VISITS, np.cumsum([0.0, *history.growth_mm])))
    flair, brain = {}, {}
    for (visit, gain), setting in zip(_lesion_gains(disease, active, arm, rng).items(), settings):
        signal = tissue_signal(anatomy, setting, texture, growth_mm[visit], gain, diffuse, variants)
        flair[visit], brain[visit] = acquire_flair(anatomy, signal, setting, rng)
    return flair, brain


def _lesion_gains(disease: Disease, active: np.ndarray, arm: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Added brightness at each visit, float32 `SHAPE`; the brightest of overlapping lesions counts.

    New lesions are brighter than old ones and have faded to them by the next visit (Meier and Guttmann 2006, doi
    10.1016/j.neuroimage.2006.04.181); a smouldering lesion stays brightest for as long as it is active (assumed).
    """

    def draw(lesions: Lesions, law: tuple[float, float, float, float]) -> list[float]:
        mean, deviation, least, most = law
        return np.clip(rng.normal(mean, deviation, len(lesions)), least, most).tolist()

    year_1, year_2 = disease.outcomes[arm]
    old = disease.quiet + disease.recent + disease.smouldering + year_1
    faded = dict(zip(map(id, old), draw(old, _QUIET_GAIN)))
    new = dict(zip(map(id, disease.recent + year_1 + year_2), draw(disease.recent + year_1 + year_2, _NEW_GAIN)))
    bright = dict(zip(map(id, disease.smouldering), draw(disease.smouldering, _SMOULDERING_GAIN)))
    burning = [lesion for lesion, is_active in zip(disease.smouldering, active) if is_active]
    out = [lesion for lesion, is_active in zip(disease.smouldering, active) if not is_active]
    shown = {  # visit: lesions as old, as new, as active
        "w000": (disease.quiet, disease.recent, disease.smouldering),
        "w048": (disease.quiet + disease.recent + out, year_1, burning),
        "w096": (disease.quiet + disease.recent + out + year_1, year_2, burning),
    }
    gains = {}
    for visit, kinds in shown.items():
        gain = gains[visit] = np.zeros(SHAPE, np.float32)
        for lesions, brightness in zip(kinds, (faded, new, bright)):
            for lesion in lesions:
                gain[lesion] = np.maximum(gain[lesion], brightness[id(lesion)])
    return gains


def _truth(seed: int, index: int, arm: int, history: History, disease: Disease, protocol: Protocol) -> dict:
    """What goes into the sidecar."""
    t2_w000 = disease.old
    names = np.array(TERRITORIES)
    outcomes = {}
    for a, (name, (first, second)) in enumerate(zip(ARMS, disease.outcomes)):
        before = (t2_w000, t2_w000 | union(first))
        outcomes[name] = {
            "partial_response": history.partly(a, protocol),
            "expected_net2_w048": history.expected(a, 0, protocol),
            "expected_net2_w096": history.expected(a, 1, protocol),
            "active_smouldering_w048": int(history.active(a, protocol).sum()),
            "num_gd_w048": history.num_enhancing(a, protocol),
        } | {
            f"net2_{visit}": _records(lesions, history, a, i, before[i])
            for i, (visit, lesions) in enumerate((("w048", first), ("w096", second)))
        }
    return {
        "seed": seed,
        "index": index,
        "arm": ARMS[arm],
        "sees_arm": history.sees_arm,
        "frailty": history.frailty,
        "response_uniform": history.response,
        "diffuse": history.diffuse,
        "places": dict(zip(TERRITORIES, history.law.tolist())),
        "covariates": asdict(history.covariates),
        "seen_covariates": asdict(history.seen_covariates),
        "months": list(history.months),
        "sees_months": history.sees_months,
        "ventricle_growth_mm": list(history.growth_mm),
        "num_gd_w000": len(history.gd),
        "num_t2_w000": history.num_old,
        "num_smouldering_w000": len(history.smouldering),
        "territories_w000": {
            name: int(n) for name, n in zip(names, np.bincount(_old_territories(history), minlength=len(names)))
        },
        "arms": outcomes,
    }


def _old_territories(history: History) -> np.ndarray:
    return np.concatenate([history.quiet, history.gd, history.smouldering]).astype(int)


def _records(lesions: Lesions, history: History, arm: int, interval: int, before: np.ndarray) -> list[dict]:
    def touches_old(lesion: tuple[np.ndarray, ...]) -> bool:
        box, touching = halo(lesion)
        return bool((before[box] & touching).any())

    return [
        {
            "week": round(float(week), 3),
            "month": round(float(week) / WEEKS_PER_MONTH, 3),
            "centroid_mm": [round(float(c), 2) for c in AFFINE[:3, :3] @ np.mean(lesion, axis=1) + AFFINE[:3, 3]],
            "start_mm": [round(float(c), 2) for c in AFFINE[:3, :3] @ [i[0] for i in lesion] + AFFINE[:3, 3]],
            "volume_mm3": VOXEL_MM3 * len(lesion[0]),
            "enlarging": touches_old(lesion),
            "territory": None
            if history.enlarges(arm, interval, j)
            else TERRITORIES[history.events[interval][j].territory],
        }
        for j, (lesion, week) in enumerate(zip(lesions, history.weeks[arm][interval]))
    ]
