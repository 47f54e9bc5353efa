"""What an evaluation was made with: data, weights, settings and versions, so that its numbers can be made again."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bundle import __version__
from bundle.forecasters.base import Forecaster
from bundle.seeding import digest_of


@dataclass(frozen=True)
class Provenance:
    """The settings of a run that its forecasters do not hold.

    Args:
        split, calibration_split: that are evaluated, and calibrated on.
        weights, weights_w000: files of weights; "none" or a file that does not exist if there are none.
        num_members, seed: of the ensembles.
    """

    split: str
    calibration_split: str
    weights: str | Path | None
    weights_w000: str | Path | None
    num_members: int
    seed: int

    def describe(
        self, dataset_dir: str | Path, versions: Sequence[str], forecasters: Mapping[str, Forecaster]
    ) -> dict[str, Any]:
        """In plain JSON types.

        Args:
            dataset_dir: the data set.
            versions: of each patient's files, see `bundle.forecasters.cohort.CaseReader.version`.
            forecasters: by name; all their settings are listed.
        """
        return {
            "software": f"ms-net2-forecast {__version__}",
            "date": date.today().isoformat(),
            "dataset": describe_dataset(dataset_dir) | {"patients": len(versions), "scans": digest_of(*versions)},
            "split": self.split,
            "calibration_split": self.calibration_split,
            "weights": describe_weights(self.weights),
            "weights_w000": describe_weights(self.weights_w000),
            "num_members": self.num_members,
            "seed": self.seed,
            "intervals": "95 % percentiles of a bootstrap of 1000 draws over patients within arms, seed 0",
            "forecasters": {name: _settings(forecaster.key) for name, forecaster in forecasters.items()},
            "versions": {name: version(name) for name in ("torch", "monai", "numpy")},
        }


def describe_dataset(dataset_dir: str | Path) -> dict[str, Any]:
    """Name and, of a simulated trial, version, preset and seed of the simulation."""
    root = Path(dataset_dir)
    found: dict[str, Any] = {"name": root.name, "simulated": is_simulated(root)}
    try:
        generator = json.loads((root / "dataset_description.json").read_text())["GeneratedBy"][0]
        found |= {key.lower(): generator[key] for key in ("Version", "Preset", "Seed") if key in generator}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        pass  # BIDS asks for no generator of measured data
    return found


def is_simulated(dataset_dir: str | Path) -> bool:
    """Whether the data set comes with the potential outcomes of a simulation."""
    return (Path(dataset_dir) / "derivatives" / "truth").is_dir()


def describe_weights(path: str | Path | None) -> dict[str, str] | None:
    """Name and sha256 of a file; None if there is none."""
    if path is None or not Path(path).is_file():
        return None
    return {"file": Path(path).name, "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()}


def _settings(key: str) -> Any:
    """The settings in a forecaster's key (`bundle.forecasters.base.key_of`), keys within it included."""
    try:
        parts = json.loads(key)
    except ValueError:
        return key
    return [_settings(part) if isinstance(part, str) else part for part in parts] if isinstance(parts, list) else parts
