"""The six treatment arms of the pooled trials and the null class, in order of class index (Favero et al. 2025)."""

from typing import Any

ARMS = ("placebo", "laquinimod", "avonex", "interferon_beta_1a", "dimethyl_fumarate", "ocrelizumab")
UNKNOWN = "unknown"
CLASSES = ARMS + (UNKNOWN,)
NULL_ARM = len(ARMS)


def arm_index(arm: Any) -> int:
    """Class index of a treatment arm.

    Numbers are refused: trials code their arms in ways of their own, so a code read as a class index would silently be
    another treatment.

    Args:
        arm: a name of `CLASSES`, `None` / "" / "n/a" for unknown, or a list of these (a drop-down of MONAI Label sends
            its default as the list of its choices: the first one counts).

    Returns:
        An index in [0, 6]; 6 is the null class.

    Raises:
        ValueError: the arm is none of these.
    """
    if isinstance(arm, (list, tuple)):
        arm = arm[0] if arm else None
    if arm is None or arm != arm:  # NaN is how pandas reads n/a
        return NULL_ARM
    name = str(arm).strip().lower()
    if name in ("", "n/a"):
        return NULL_ARM
    if name in CLASSES:
        return CLASSES.index(name)
    raise ValueError(f"unknown treatment arm {arm!r}; use one of {', '.join(CLASSES)}")
