"""A patient's lesions as voxels, at w000 and in all six potential outcomes of both intervals."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from bundle.arms import ARMS
from bundle.simulation.anatomy import SHAPE, Anatomy, draw_anatomy
from bundle.simulation.drawing import (
    ENHANCING,
    QUIET,
    RECENT,
    SMOULDERING,
    Surroundings,
    form_lesions,
    form_old_lesions,
)
from bundle.simulation.events import Event, History, draw_history
from bundle.simulation.protocol import PRESETS, Protocol

Lesions = list[tuple[np.ndarray, ...]]
HISTORY, ANATOMY, BASELINE, NET2, ACQUISITION, READING, FUTURES = range(
    7
)  # independent streams of a patient's randomness
_SMOULDERING_MM3 = 60.0  # they are large enough for their brightness to be seen


def stream(seed: int, index: int, *key: int) -> np.random.SeedSequence:
    """The randomness of one purpose of one patient; depends on nothing else."""
    return np.random.SeedSequence(seed, spawn_key=(1, index, *key))


@lru_cache(maxsize=1)
def patient_anatomy(seed: int, index: int) -> Anatomy:
    """The brain of patient `index` (from 0) of trial `seed`, kept until another is asked for: oracles share it."""
    return draw_anatomy(np.random.default_rng(stream(seed, index, ANATOMY)))


def patient_history(seed: int, index: int, protocol: Protocol = PRESETS["trial"]) -> History:
    """The disease of patient `index` (from 0) of trial `seed`; needs no images."""
    return draw_history(protocol, np.random.default_rng(stream(seed, index, HISTORY)))


@dataclass(frozen=True)
class Disease:
    """The lesions of one patient.

    Attributes:
        quiet, recent, smouldering: lesions at w000; recent are those that enhance.
        outcomes: per arm the NET2 lesions of both intervals.
    """

    quiet: Lesions
    recent: Lesions
    smouldering: Lesions
    outcomes: list[tuple[Lesions, Lesions]]

    @property
    def old(self) -> np.ndarray:
        """T2 lesions at w000: bool `SHAPE`."""
        return union(self.quiet + self.recent + self.smouldering)

    def status_w000(self) -> np.ndarray:
        """uint8 `SHAPE`, of `bundle.simulation.drawing.FREE` to `SMOULDERING`."""
        return _status(self.quiet, [], self.recent, self.smouldering)

    def status_w048(self, year_1: Lesions, num_enhancing: int, active: np.ndarray) -> np.ndarray:
        """The same at w048.

        Args:
            year_1: NET2 lesions of the first interval.
            num_enhancing: so many of its last ones enhance.
            active: (smouldering lesions,) bool, which are active still.
        """
        split = len(year_1) - num_enhancing
        active_still = [lesion for lesion, is_active in zip(self.smouldering, active) if is_active]
        old = self.quiet + self.recent + self.smouldering
        return _status(old, year_1[:split], year_1[split:], active_still)


def draw_disease(anatomy: Anatomy, history: History, seed: int, index: int, protocol: Protocol) -> Disease:
    """The lesions of patient `index`, whose history is given, in all arms."""
    rng = np.random.default_rng(stream(seed, index, BASELINE))
    effect = rng.standard_normal()
    quiet = form_old_lesions(anatomy, history.quiet, effect, rng)
    smouldering = form_old_lesions(anatomy, history.smouldering, effect, rng, at_least_mm3=_SMOULDERING_MM3)
    before = Surroundings(anatomy, _status(quiet, [], [], smouldering), protocol.hazards)
    marks = [stream(seed, index, BASELINE, j) for j in range(len(history.gd))]
    recent = form_lesions(before, [Event(int(t), False) for t in history.gd], marks)
    disease = Disease(quiet, recent, smouldering, [])
    return Disease(quiet, recent, smouldering, _potential_outcomes(anatomy, disease, history, seed, index, protocol))


def _potential_outcomes(
    anatomy: Anatomy, disease: Disease, history: History, seed: int, index: int, protocol: Protocol
) -> list[tuple[Lesions, Lesions]]:
    """Per arm the NET2 lesions of both intervals; arms that agree on the first share the places of the second."""
    arms = range(len(ARMS))

    def form(around: Surroundings, interval: int, some_arms: list[int]) -> Lesions:
        longest = max(some_arms, key=lambda a: history.count(a, interval))
        count = history.count(longest, interval)
        events = [
            Event(history.events[interval][j].territory, history.enlarges(longest, interval, j)) for j in range(count)
        ]
        return form_lesions(around, events, [stream(seed, index, NET2, interval, j) for j in range(count)])

    first = form(Surroundings(anatomy, disease.status_w000(), protocol.hazards), 0, list(arms))
    second: dict[tuple[int, int], Lesions] = {}
    state = {a: (history.count(a, 0), history.num_enhancing(a, protocol)) for a in arms}
    active = np.array(history.persistence < protocol.stays_active)  # full responders form no lesions anyway
    for count, enhancing in set(state.values()):
        alike = [a for a in arms if state[a] == (count, enhancing) and history.count(a, 1)]
        if alike:
            status = disease.status_w048(first[:count], enhancing, active)
            second[count, enhancing] = form(Surroundings(anatomy, status, protocol.hazards), 1, alike)
    return [(first[: history.count(a, 0)], second.get(state[a], [])[: history.count(a, 1)]) for a in arms]


def draw_futures(
    anatomy: Anatomy,
    disease: Disease,
    history: History,
    arm: int,
    seed: int,
    index: int,
    protocol: Protocol,
    number: int,
) -> list[Lesions]:
    """NET2 lesions of the second interval in further futures of a patient in `arm`, whose past is given.

    What w096 shows is one draw from the same distribution. A model of expected outcomes learns more from the mean of
    several draws than from one.
    """
    year_1 = disease.outcomes[arm][0]
    status = disease.status_w048(year_1, history.num_enhancing(arm, protocol), history.active(arm, protocol))
    around = Surroundings(anatomy, status, protocol.hazards)
    futures = []
    for k in range(number):
        rng = np.random.default_rng(stream(seed, index, FUTURES, k))
        count = rng.poisson(history.expected(arm, 1, protocol))
        territories = rng.choice(len(history.law), count, p=history.law)
        enlarges = (rng.random(count) < protocol.enlarging) & bool((status > 0).any())
        events = [Event(int(t), bool(e)) for t, e in zip(territories, enlarges)]
        futures.append(form_lesions(around, events, stream(seed, index, FUTURES, k, 0).spawn(count)))
    return futures


def union(lesions: Lesions) -> np.ndarray:
    """bool `SHAPE`."""
    mask = np.zeros(SHAPE, bool)
    for lesion in lesions:
        mask[lesion] = True
    return mask


def _status(quiet: Lesions, recent: Lesions, enhancing: Lesions, smouldering: Lesions) -> np.ndarray:
    status = np.zeros(SHAPE, np.uint8)
    for value, lesions in ((QUIET, quiet), (RECENT, recent), (ENHANCING, enhancing), (SMOULDERING, smouldering)):
        for lesion in lesions:
            status[lesion] = value
    return status
