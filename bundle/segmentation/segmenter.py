"""Lesion masks of a patient from FLAIR alone, on the grid of each visit's own scan."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import nn

from bundle.data.bids import Case
from bundle.data.grid import read_linearly
from bundle.data.volumes import read_flair
from bundle.errors import InputError
from bundle.lesions import LesionRule, Volume
from bundle.networks.weights import read_fitted
from bundle.segmentation.scans import lesion_probability, read_scans

LESIONS = ("t2", "net2")
_BRIGHTER = 0.12  # three interquartile ranges of the brain: what scans of different scanners differ by elsewhere
KIND = "thresholds"  # as `bundle.networks.weights.fitted_file` has it


@dataclass(frozen=True)
class Thresholds:
    """A voxel is lesion where its probability is at least this; chosen on validation patients.

    Args:
        t2, net2: of each kind of lesion, in (0, 1).
    """

    t2: float = 0.5
    net2: float = 0.5


class Segmenter:
    """T2 lesions of a visit, and new and enlarging ones since an earlier visit, from FLAIR alone.

    They are marked in the slab that is forecast: the network was trained on simulated scans, which end there.

    Args:
        network: (B, 3, H, W) -> logits (B, 1, H, W), with its weights.
        thresholds: of the probabilities.
        min_volume_mm3: smaller lesions are left out.
        device: where the network runs.
    """

    def __init__(
        self,
        network: nn.Module,
        thresholds: Thresholds = Thresholds(),
        min_volume_mm3: float = 9.0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.network = network.to(device).eval()
        self.thresholds, self.min_volume_mm3, self.device = thresholds, min_volume_mm3, device

    def probability(self, case: Case, visit: str, earlier: str | None = None) -> dict[str, Volume]:
        """P(lesion) of each voxel on the grid of the visit's FLAIR: "t2" and, with an earlier visit, "net2".

        Args:
            case: the patient.
            visit, earlier: "w000", "w048" or "w096"; the scans must be registered.

        Raises:
            InputError: a FLAIR is missing or cannot be used.
        """
        visits = [visit] if earlier is None else [visit, earlier]
        for wanted in visits:
            if f"flair_{wanted}" not in case.volumes:
                file = case.expected_path(f"flair_{wanted}")
                raise InputError(f"no FLAIR of {wanted}", "add it", case=case.id, file=file)
        scans = read_scans(case, tuple(visits))
        t2 = [self._t2(scans.flair[v]) * (scans.brain & scans.in_slab) for v in visits]
        found = {"t2": t2[0]}
        if earlier is not None:
            found["net2"] = new_lesions(*t2, *(scans.flair[v] for v in visits))
        flair = read_flair(case.volumes[f"flair_{visit}"], case.id)
        return {
            kind: Volume(read_linearly(p, scans.affine, flair.affine, flair.values.shape), flair.affine, flair.path)
            for kind, p in found.items()
        }

    def masks(self, case: Case, visit: str, earlier: str | None = None) -> dict[str, np.ndarray]:
        """Lesion masks, bool, on the grid of the visit's FLAIR; see `probability`."""
        marked = {}
        for kind, probability in self.probability(case, visit, earlier).items():
            threshold = getattr(self.thresholds, kind)
            rule = LesionRule(threshold=threshold, min_volume_mm3=self.min_volume_mm3)
            marked[kind] = rule.label(probability.values, probability.affine) > 0
        return marked

    def _t2(self, flair: np.ndarray) -> np.ndarray:
        return lesion_probability(self.network, torch.from_numpy(flair).to(self.device)).cpu().numpy()


def new_lesions(t2: np.ndarray, before: np.ndarray, flair: np.ndarray, flair_before: np.ndarray) -> np.ndarray:
    """P(new or enlarging lesion) of each voxel: a lesion now, none there before, and brighter than before.

    A network that was shown both visits found fewer (docs/experiments/2026-11-segmenter.md).

    Args:
        t2, before: (H, W, S) P(T2 lesion) of a visit and of an earlier one.
        flair, flair_before: (H, W, S), of `bundle.segmentation.scans.in_brain_units`.
    """
    around = ndimage.maximum_filter(before, (3, 3, 1))  # a border drawn one voxel wider is no new lesion
    return t2 * (1 - around) * (flair - flair_before > _BRIGHTER)


def fitted_thresholds(weights: str | Path) -> Thresholds:
    """The thresholds that were chosen for these weights; .5 if there are none.

    Raises:
        InputError: see `bundle.networks.weights.read_fitted`.
    """

    def build(found: Any) -> Thresholds:
        values = {kind: float(found[kind]) for kind in LESIONS}
        if not all(0 < value < 1 for value in values.values()):
            raise ValueError("a threshold is not in (0, 1)")
        return Thresholds(**values)

    return read_fitted(weights, KIND, build, "scripts.score_segmentation") or Thresholds()
