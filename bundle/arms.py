"""The six treatment arms of the pooled trials and the null class, in order of class index (Favero et al. 2025)."""

from typing import Any

ARMS = ("placebo", "laquinimod", "avonex", "interferon_beta_1a", "dimethyl_fumarate", "ocrelizumab")
UNKNOWN = "unknown"
CLASSES = ARMS + (UNKNOWN,)
NULL_ARM = len(ARMS)
AS_RECORDED = "as recorded"


def requested_arm(arm: Any) -> Any:
    """The treatment that a request asks for, to be read by `arm_index`; None where it leaves that to participants.tsv.

    Args:
        arm: as the request has it. A drop-down of MONAI Label sends its default as the list of its choices: the first
            one counts. None, an empty list and `AS_RECORDED` ask for nothing.
    """
    if isinstance(arm, (list, tuple)):
        arm = arm[0] if arm else None
    return None if isinstance(arm, str) and arm.strip().lower() == AS_RECORDED else arm


def arm_index(arm: Any) -> int:
    """Class index of a treatment arm.

    Numbers are refused: trials code their arms in ways of their own, so a code read as a class index would silently be
    another treatment.

    Args:
        arm: a name of `CLASSES`, or `None` / "" / "n/a" for unknown.

    Returns:
        An index in [0, 6]; 6 is the null class.

    Raises:
        ValueError: the arm is none of these.
    """
    if arm is None or arm != arm:  # NaN is how pandas reads n/a
        return NULL_ARM
    name = str(arm).strip().lower()
    if name in ("", "n/a"):
        return NULL_ARM
    if name in CLASSES:
        return CLASSES.index(name)
    raise ValueError(f"unknown treatment arm {arm!r}; use one of {', '.join(CLASSES)}")
