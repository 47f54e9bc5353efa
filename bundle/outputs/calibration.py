"""How often forecasts like this one came true: what an evaluation measured, shown on a patient's page."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bundle.errors import InputError
from bundle.outputs.summary import percent

KEYS = ("data_set", "simulated", "split", "patients", "weights_sha256", "sampling", "bins")
IRRELEVANT = ("seed", "amp")  # settings that another calibration may have: they change the noise, not its law
UNKNOWN = "It is not known how often forecasts like this one come true"


def read_calibration(path: str | Path) -> dict[str, Any]:
    """The file calibration.json of an evaluation.

    Raises:
        InputError: it cannot be read or is no such file.
    """
    file, fix = Path(str(path)), "give the calibration.json that an evaluation wrote"
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {getattr(error, 'strerror', None) or error}", fix, file=file) from error
    if not isinstance(content, Mapping) or set(KEYS) - set(content):
        raise InputError("not a calibration", fix, file=file)
    return dict(content)


def calibration_sentence(calibration: Mapping[str, Any] | None, forecast: Mapping[str, Any]) -> str:
    """What was measured of forecasts near this P(active), or why nothing is known.

    A calibration counts for the weights and settings with which it was measured, and for no others.

    Args:
        calibration: of `read_calibration`.
        forecast: as `bundle.outputs.writers` writes it to JSON.
    """
    if calibration is None:
        return f"{UNKNOWN}: no calibration that an evaluation measured was given."
    if calibration["weights_sha256"] != forecast["weights_sha256"]:
        return f"{UNKNOWN}: the calibration that was given was measured with other weights."
    if calibration["split"] in ("training", "all"):
        return f"{UNKNOWN}: the calibration that was given was measured on patients of the model's training."
    measured = calibration["sampling"]
    used = forecast["sampling"] | {"count_model": forecast.get("count_model")}
    for name in sorted(set(measured) | set(used)):
        if name not in IRRELEVANT and measured.get(name) != used.get(name):
            return f"{UNKNOWN}: the calibration that was given was measured with another {name}."
    p = forecast["p_active"]
    found = next(part for part in reversed(calibration["bins"]) if p >= part["from"])
    span = f"{100 * found['from']:.0f} to {100 * found['to']:.0f} %"
    total = calibration["patients"]
    if not found["patients"]:
        return f"{UNKNOWN}: none of the {total} patients of the evaluation had a forecast chance of {span}."
    low, high = map(percent, found["interval"])
    simulated = "simulated " if calibration["simulated"] else ""
    return (
        f"Of {found['patients']} patients whose forecast chance was {span} (on average {percent(found['forecast'])}), "
        f"{found['active']} had new or enlarging lesions: {percent(found['observed'])} "
        f"(95 % interval {low} to {high}). Measured on {total} {simulated}patients of {calibration['data_set']} "
        f"(split {calibration['split']}), each under the treatment that was given and until that patient's next visit; "
        "other patients may differ."
    )
