"""Forecasts that look at no image: the floor of every table."""

from collections.abc import Sequence
from typing import Any

from bundle.arms import arm_index


class PopulationBaseline:
    """The share of active patients in the arm, as seen in training (Favero et al. 2025, section 3, in expectation).

    Args:
        items: of the training split, each with "arm" and "active".

    Raises:
        ValueError: no item has a known outcome.
    """

    def __init__(self, items: Sequence[dict[str, Any]]) -> None:
        known = [(arm_index(item["arm"]), bool(item["active"])) for item in items if item["active"] is not None]
        if not known:
            raise ValueError("a population needs at least one patient with a known outcome")
        by_arm: dict[int, list[bool]] = {}
        for arm, active in known:
            by_arm.setdefault(arm, []).append(active)
        self.overall = sum(active for _, active in known) / len(known)
        self.by_arm = {arm: sum(outcomes) / len(outcomes) for arm, outcomes in by_arm.items()}

    def __call__(self, arm: int) -> float:
        """P(active) of a patient under an arm; of all patients where the arm is unknown or was never seen."""
        return self.by_arm.get(arm, self.overall)
