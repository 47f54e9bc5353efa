"""One simulated patient in memory: scans, masks, and the truth that no scan shows."""

from dataclasses import dataclass

import numpy as np

from bundle.arms import ARMS
from bundle.data.bids import VISITS
from bundle.simulation.acquisition import acquire_flair, draw_texture
from bundle.simulation.anatomy import AFFINE, SHAPE, VOXEL_MM3, Anatomy, draw_anatomy
from bundle.simulation.drawing import form_lesions, grow, halo, placement
from bundle.simulation.events import WEEKS, History, Protocol, assigned_arm, draw_history, t2_volume_mm3

HISTORY, ANATOMY, BASELINE, NET2, ACQUISITION = range(5)  # independent streams of a patient's randomness


@dataclass(frozen=True)
class Patient:
    """A simulated patient.

    Attributes:
        arm: class index of the assigned arm.
        anatomy: the brain.
        flair: visit -> int16 `SHAPE`.
        masks: (visit, label) -> bool `SHAPE`, label one of T2lesion, Gdlesion, NET2.
        truth: what goes into the sidecar: frailty, response, counts at w000, NET2 events under every arm.
    """

    arm: int
    anatomy: Anatomy
    flair: dict[str, np.ndarray]
    masks: dict[tuple[str, str], np.ndarray]
    truth: dict


def stream(seed: int, index: int, *key: int) -> np.random.SeedSequence:
    """The randomness of one purpose of one patient; depends on nothing else."""
    return np.random.SeedSequence(seed, spawn_key=(1, index, *key))


def patient_anatomy(seed: int, index: int) -> Anatomy:
    """The brain of patient `index` (from 0) of trial `seed`."""
    return draw_anatomy(np.random.default_rng(stream(seed, index, ANATOMY)))


def patient_history(seed: int, index: int, protocol: Protocol = Protocol()) -> History:
    """The disease of patient `index` (from 0) of trial `seed`; needs no images."""
    return draw_history(protocol, np.random.default_rng(stream(seed, index, HISTORY)))


def simulate_patient(seed: int, index: int, protocol: Protocol = Protocol()) -> Patient:
    """Patient `index` (from 0) of trial `seed`; depends on nothing but these and the protocol."""
    arm, anatomy = assigned_arm(seed, index), patient_anatomy(seed, index)
    history = patient_history(seed, index, protocol)
    rng = np.random.default_rng(stream(seed, index, BASELINE))
    old = _old_lesions(anatomy, history.num_t2, rng)
    old_mask = _union(old)
    recent = form_lesions(anatomy, old_mask, [stream(seed, index, BASELINE, j) for j in range(history.num_gd)])
    t2_w000 = old_mask | _union(recent)
    outcomes = _potential_outcomes(anatomy, t2_w000, history, seed, index)

    year_1, year_2 = outcomes[arm]
    enhancing = [lesion for lesion, week in zip(year_1, history.weeks[arm][0]) if week > WEEKS - protocol.gd_weeks]
    net2_w048, net2_w096 = _union(year_1), _union(year_2)
    masks = {
        ("w000", "T2lesion"): t2_w000,
        ("w000", "Gdlesion"): _union(recent),
        ("w048", "T2lesion"): t2_w000 | net2_w048,
        ("w048", "Gdlesion"): _union(enhancing),
        ("w048", "NET2"): net2_w048,
        ("w096", "NET2"): net2_w096,
    }
    formed = dict(zip(VISITS, (old + recent, year_1, year_2)))
    truth = {
        "seed": seed,
        "index": index,
        "arm": ARMS[arm],
        "frailty": history.frailty,
        "response_uniform": history.response,
        "num_gd_w000": history.num_gd,
        "num_t2_w000": history.num_t2 + history.num_gd,
        "arms": {
            name: {
                "partial_response": bool(history.response < q),
                "net2_w048": _records(first, weeks[0], t2_w000),
                "net2_w096": _records(second, weeks[1], t2_w000 | _union(first)),
            }
            for name, q, (first, second), weeks in zip(ARMS, protocol.partial_responders, outcomes, history.weeks)
        },
    }
    flair = _scan(anatomy, formed, np.random.default_rng(stream(seed, index, ACQUISITION)))
    return Patient(arm, anatomy, flair, masks, truth)


def _old_lesions(anatomy: Anatomy, count: int, rng: np.random.Generator) -> list[tuple[np.ndarray, ...]]:
    """Lesions of the years before the trial; they may overlap and merge."""
    density = placement(anatomy, np.zeros(SHAPE, bool)).ravel().cumsum(dtype=np.float64)
    places = np.unravel_index(np.searchsorted(density, rng.random(count) * density[-1], side="right"), SHAPE)
    inner = anatomy.susceptibility[places] / anatomy.susceptibility.max()
    volumes_mm3 = t2_volume_mm3(rng.random(count), rng.normal(0, 0.6), inner)
    return [grow(anatomy.parenchyma, place, volume, rng) for place, volume in zip(zip(*places), volumes_mm3)]


def _potential_outcomes(
    anatomy: Anatomy, t2_w000: np.ndarray, history: History, seed: int, index: int
) -> list[tuple[list, list]]:
    """Per arm the NET2 lesions of both intervals; arms that agree on the first share the places of the second."""
    arms = range(len(ARMS))

    def marks(interval: int, some_arms) -> list[np.random.SeedSequence]:
        return [
            stream(seed, index, NET2, interval, j) for j in range(max(history.count(a, interval) for a in some_arms))
        ]

    first = form_lesions(anatomy, t2_w000, marks(0, arms))
    second = {}
    for count in {history.count(a, 0) for a in arms}:
        alike = [a for a in arms if history.count(a, 0) == count]
        second[count] = form_lesions(anatomy, t2_w000 | _union(first[:count]), marks(1, alike))
    return [(first[: history.count(a, 0)], second[history.count(a, 0)][: history.count(a, 1)]) for a in arms]


def _scan(anatomy: Anatomy, formed: dict[str, list], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """FLAIR at every visit; lesions are brightest when new and fade a little by the next visit."""
    texture = draw_texture(anatomy, rng)
    gain, flair = np.zeros(SHAPE, np.float32), {}
    for visit, lesions in formed.items():
        gain *= np.float32(0.9)
        for lesion in lesions:
            gain[lesion] = np.maximum(gain[lesion], np.clip(rng.normal(0.48, 0.12), 0.22, 0.8))
        flair[visit] = acquire_flair(anatomy, texture, gain, rng)
    return flair


def _union(lesions: list[tuple[np.ndarray, ...]]) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    for lesion in lesions:
        mask[lesion] = True
    return mask


def _records(lesions: list[tuple[np.ndarray, ...]], weeks: np.ndarray, before: np.ndarray) -> list[dict]:
    def enlarging(lesion: tuple[np.ndarray, ...]) -> bool:
        box, touching = halo(lesion)
        return bool((before[box] & touching).any())

    return [
        {
            "week": round(float(week), 3),
            "centroid_mm": [round(float(c), 2) for c in AFFINE[:3, :3] @ np.mean(lesion, axis=1) + AFFINE[:3, 3]],
            "volume_mm3": VOXEL_MM3 * len(lesion[0]),
            "enlarging": enlarging(lesion),
        }
        for lesion, week in zip(lesions, weeks)
    ]
