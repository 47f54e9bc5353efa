"""Whether the registration of two visits can be trusted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bundle.data.preparation.registration import FIX, Agreement, Motion
from bundle.errors import InputError


@dataclass(frozen=True)
class Limits:
    """Limits outside which a registration is refused or carries a warning (docs/experiments/2026-11-registration.md).

    They come before those that inference has for every patient (`bundle.data.plausibility`), as registration makes the
    best even of scans that do not belong together.

    Args:
        correlation_doubtful_wrong: of the two FLAIR in the brain after registration; a warning below the first value,
            refused below the second.
        most_degrees: rotation; beyond it a scan is more probably upside down or flipped than turned.
    """

    correlation_doubtful_wrong: tuple[float, float] = (0.75, 0.7)
    most_degrees: float = 45.0

    def check(self, motion: Motion, figures: Agreement, *, case: str, visits: Sequence[str]) -> None:
        """Refuses what cannot be a registration of two FLAIR of one head.

        Raises:
            InputError: it cannot be.
        """
        pair = f"{visits[1]} and {visits[0]}"
        if motion.degrees > self.most_degrees:
            problem = f"{pair} could be registered only with a rotation of {motion.degrees:.0f} degrees"
            raise InputError(problem, FIX, case=case)
        if not figures.correlation >= self.correlation_doubtful_wrong[1]:
            problem = f"{pair} cannot be registered (correlation {figures.correlation:.2f} after it, usually above "
            raise InputError(f"{problem}{self.correlation_doubtful_wrong[0]:.2f})", FIX, case=case)

    def warnings(self, after: Mapping[str, Agreement], first: str) -> list[str]:
        """Warnings on registrations that `check` let pass, by visit."""
        doubtful = self.correlation_doubtful_wrong[0]
        return [
            f"{visit} and {first} may not be registered: correlation {figures.correlation:.2f}, usually above "
            f"{doubtful:.2f}"
            for visit, figures in after.items()
            if figures.correlation < doubtful
        ]
