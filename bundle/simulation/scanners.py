"""Scanners: the settings that each visit's FLAIR is made with."""

from dataclasses import dataclass, field
from typing import Protocol as Interface

import numpy as np

Range = tuple[float, float]


@dataclass(frozen=True)
class Settings:
    """One acquisition; intensities are relative to normal white matter.

    Attributes:
        grey, fluid: signal of grey matter and of cerebrospinal fluid.
        lesion: factor on the contrast of lesions and of diffusely abnormal white matter.
        blur_mm: standard deviation of the point spread in plane.
        slice_mm: thickness of the acquired slices, which are brought to the grid's 3 mm.
        noise: standard deviation in each channel of the complex signal at 3 mm slices.
        bias: standard deviation of each of the nine coefficients of the log bias field.
        gain: scanner units per unit of white matter.
        ghost: amplitude of the ghost, shifted by half the field of view along the phase encoding.
        residue: fraction of the surface of the brain where skull stripping left something.
        shift_mm: (3,) error of the registration of this visit to the patient's grid.
        grey_pattern: standard deviation of the patient's own pattern of brightness of grey matter.
        lining: added signal of the lining of the ventricles.
        plexus: signal of the choroid plexus.
    """

    grey: float = 1.25
    fluid: float = 0.25
    lesion: float = 1.0
    blur_mm: float = 0.5
    slice_mm: float = 3.0
    noise: float = 0.025
    bias: float = 0.03
    gain: float = 300.0
    ghost: float = 0.0
    residue: float = 0.0
    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    grey_pattern: float = 0.0
    lining: float = 0.0
    plexus: float = 0.0

    @property
    def has_variants(self) -> bool:
        """Whether a patient's normal variants (`bundle.simulation.acquisition.Variants`) show."""
        return bool(self.grey_pattern or self.lining or self.plexus)


class Scanners(Interface):
    """Where a patient's visits are scanned."""

    def settings(self, seed: int, visits: int, rng: np.random.Generator) -> list[Settings]:
        """Settings of each visit of one patient.

        Args:
            seed: of the trial; sites are the same for all its patients.
            visits: how many.
            rng: of this patient's acquisitions.
        """


@dataclass(frozen=True)
class OneScanner:
    """One protocol on well-kept scanners: only gain and noise differ between visits.

    Contrast and noise are those of the two public patients (docs/explanation/simulated-trial.md).
    """

    noise: Range = (0.02, 0.035)

    def settings(self, seed: int, visits: int, rng: np.random.Generator) -> list[Settings]:
        return [Settings(noise=rng.uniform(*self.noise), gain=300 * np.exp(rng.normal(0, 0.25))) for _ in range(visits)]


@dataclass(frozen=True)
class Fleet:
    """Ranges that scanners are drawn from, uniformly; blur, noise, bias, ghost and gain on a logarithmic scale.

    Attributes:
        shift_mm: largest error of registration, in any direction.
        ghosting, residual: fractions of acquisitions with ghosts and with residue of the skull.
        grey_pattern: how much the brightness of grey matter varies over the brain, as that of the insula and of the
            cingulate cortex differs from other cortex in real FLAIR; none if not given.
        lining, plexus: of the ventricles and the choroid plexus, both bright in real FLAIR; none if not given.
    """

    grey: Range = (1.08, 1.4)
    fluid: Range = (0.12, 0.45)
    lesion: Range = (0.75, 1.35)
    blur_mm: Range = (0.3, 1.1)
    slice_mm: Range = (1.0, 5.0)
    noise: Range = (0.01, 0.07)
    bias: Range = (0.015, 0.1)
    gain: Range = (30.0, 3000.0)
    ghost: Range = (0.005, 0.04)
    residue: Range = (0.02, 0.2)
    shift_mm: float = 1.0
    ghosting: float = 0.3
    residual: float = 0.4
    grey_pattern: Range | None = None
    lining: Range | None = None
    plexus: Range | None = None

    def draw(self, rng: np.random.Generator) -> Settings:
        """One scanner with visit-specific artefacts."""
        direction = rng.standard_normal(3)
        shift = direction / np.linalg.norm(direction) * rng.uniform(0, self.shift_mm)
        return Settings(
            grey=rng.uniform(*self.grey),
            fluid=rng.uniform(*self.fluid),
            lesion=rng.uniform(*self.lesion),
            blur_mm=_log_uniform(rng, self.blur_mm),
            slice_mm=rng.uniform(*self.slice_mm),
            noise=_log_uniform(rng, self.noise),
            bias=_log_uniform(rng, self.bias),
            gain=_log_uniform(rng, self.gain),
            ghost=_log_uniform(rng, self.ghost) * (rng.random() < self.ghosting),
            residue=rng.uniform(*self.residue) * (rng.random() < self.residual),
            shift_mm=tuple(shift.tolist()),
            **{
                name: rng.uniform(*limits)
                for name in ("grey_pattern", "lining", "plexus")
                if (limits := getattr(self, name)) is not None
            },
        )


@dataclass(frozen=True)
class SiteScanners:
    """A number of sites, each with one scanner; all visits of a patient are made at one of them.

    What a scanner is stays the same from visit to visit; residue, registration and a drift of the gain do not.
    """

    sites: int = 20
    fleet: Fleet = field(default_factory=Fleet)

    def settings(self, seed: int, visits: int, rng: np.random.Generator) -> list[Settings]:
        site = int(rng.integers(self.sites))
        scanner = vars(self.fleet.draw(np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(2, site)))))
        acquired = []
        for _ in range(visits):
            visit = self.fleet.draw(rng)
            changes = {
                "residue": visit.residue,
                "shift_mm": visit.shift_mm,
                "gain": scanner["gain"] * np.exp(rng.normal(0, 0.1)),
            }
            acquired.append(Settings(**(scanner | changes)))
        return acquired


@dataclass(frozen=True)
class EndlessScanners:
    """Another scanner at every visit, so that real scans are one more of many."""

    fleet: Fleet = field(default_factory=Fleet)

    def settings(self, seed: int, visits: int, rng: np.random.Generator) -> list[Settings]:
        return [self.fleet.draw(rng) for _ in range(visits)]


def _log_uniform(rng: np.random.Generator, limits: Range) -> float:
    return float(np.exp(rng.uniform(*np.log(limits))))
