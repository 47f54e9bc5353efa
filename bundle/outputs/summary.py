"""Members summarised to a forecast (MONAI dictionary transforms)."""

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy.stats import beta
from torch import nn

from bundle.data.tables import TRIAL_MONTHS
from bundle.data.transforms import plain_inputs
from bundle.errors import InputError
from bundle.forecasters.base import plain
from bundle.forecasters.counts import CountModel
from bundle.forecasters.ensemble import EnsembleInferer
from bundle.lesions import LesionRule, voxel_volume_mm3
from bundle.metrics import quantile

QUANTILES = (5, 25, 50, 75, 95)
LEAST_SHOWN = 1e-4  # probability of a count; the JSON has four decimals
CERTAIN = 1e-4, 1 - 1e-4  # a distribution is never sure; the JSON has four decimals
LEAST_ML = 0.01  # volumes are shown to two decimals
TOLERANCE = 0.2  # by which the volumes of heatmap and members may differ before the report says so


class ExpectHeatmapd(MapTransform):
    """Image -> the heatmap: each voxel's expected NET2 mask, by one network call.

    A new lesion is rare and may lie in many places: 20 members leave most voxels of some probability empty. Adds
    `heatmap` (1, H, W, S) float32 in [0, 1], 0 outside `brain` (1, H, W, S).

    Args:
        keys: image (8, H, W, S).
        network, inferer: those that draw the members.

    Raises:
        InputError: the heatmap is not finite.
    """

    def __init__(self, keys: KeysCollection = "image", *, network: nn.Module, inferer: EnsembleInferer) -> None:
        super().__init__(keys)
        self.network, self.inferer = network, inferer

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        output = dict(data)
        device = next(self.network.parameters()).device
        for key in self.key_iterator(output):
            heatmap = self.inferer.heatmap(output[key][None].to(device), self.network).float().cpu()
            if not heatmap.isfinite().all():
                raise not_finite(output["case"])
            output["heatmap"] = heatmap * output["brain"].cpu()
        return output


class SummariseMembersd(MapTransform):
    """Members of one forecast -> its distribution of lesion counts, heatmap and consensus, all by one counting rule.

    Args:
        keys: members (K, H, W, S) in [0, 1], the NET2 probability on the slab of `image`.
        rule: what counts as a lesion of a member.
        consensus_threshold: fraction of members that must mark a voxel of the consensus.
        counts: P(active) and the count follow from the heatmap by this model; from the members if not given.
        horizon_months: of the heatmap.

    What a member marks outside `brain` (1, H, W, S) is dropped first. Replaces the members by
        pred: the heatmap (1, H, W, S), float32: `heatmap` where there is one (`ExpectHeatmapd`), else the fraction of
            members with a lesion at the voxel.
    and adds
        heatmap: the same (H, W, S), to stay on the slab.
        members: (K, H, W, S) bool, each member's lesions.
        counts: (K,) int, their numbers.
        distribution: probabilities of 0, 1, ... lesions, (M,).
        consensus: (1, H, W, S) float32 in {0, 1}, the rule applied to the fraction of members at `consensus_threshold`.
        forecast: see `summarise`, and count_model; `WriteForecastd` completes it.

    Raises:
        InputError: a member is not finite.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        rule: LesionRule | None = None,
        consensus_threshold: float = 0.5,
        counts: CountModel | None = None,
        horizon_months: float = TRIAL_MONTHS,
    ) -> None:
        super().__init__(keys)
        self.rule, self.count_model, self.horizon_months = rule or LesionRule(), counts, horizon_months
        self.consensus_rule = replace(self.rule, threshold=consensus_threshold)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        output = dict(data)
        affine = output["image"].affine.numpy()
        brain = np.asarray(output["brain"].cpu(), dtype=bool)[0]
        for key in self.key_iterator(output):
            members = np.asarray(output[key].detach().float().cpu())
            if not np.isfinite(members).all():
                raise not_finite(output["case"])
            labels = np.stack([self.rule.label(member * brain, affine) for member in members])
            marks, counts = labels > 0, labels.max(axis=(1, 2, 3))
            frequency = marks.mean(axis=0, dtype=np.float32)
            consensus = self.consensus_rule.label(frequency, affine) > 0
            heatmap = np.asarray(output["heatmap"])[0] if "heatmap" in output else frequency
            volumes_ml = marks.sum(axis=(1, 2, 3)) * voxel_volume_mm3(affine) / 1000
            distribution = np.bincount(counts) / len(counts)
            from_heatmap = self.count_model is not None and "heatmap" in output
            if from_heatmap:
                months = plain_inputs(output)[0]["months"].get("w048")
                distribution = self.count_model.of_heatmap(
                    np.asarray(output["image"].cpu()), heatmap, affine, self.horizon_months, months
                )
            output |= {
                key: _on_slab(heatmap[None], affine),
                "heatmap": _on_slab(heatmap, affine),
                "members": _on_slab(marks, affine),
                "counts": counts,
                "distribution": distribution,
                "consensus": _on_slab(consensus[None].astype(np.float32), affine),
                "forecast": summarise(counts, volumes_ml, distribution if from_heatmap else None)
                | {"count_model": plain(self.count_model) if from_heatmap else None},
            }
        return output


def not_finite(case: str) -> InputError:
    """The error to raise where the network's output is not finite."""
    return InputError("the network's output is not finite", "use other weights", case=case)


def summarise(counts: np.ndarray, volumes_ml: np.ndarray, distribution: np.ndarray | None = None) -> dict[str, Any]:
    """The distribution of lesions, and that of the members.

    Args:
        counts: (K,) lesions of each member.
        volumes_ml: (K,) their volume.
        distribution: probabilities of 0, 1, ... lesions that follow from the heatmap, (M,); those of the members if not
            given.

    Returns:
        num_members; p_active; p_active_interval, the 95 % Jeffreys interval of a fraction of K members (of sampling:
        the model's own error is not in it), None where p_active is no such fraction; count: see `describe_counts`;
        count_source: "heatmap" or "members"; members: p_active, p_active_interval and count of the members;
        volume_ml: members, mean and quantiles of their volumes.
    """
    active = int(np.count_nonzero(counts))
    volume_quantiles = np.quantile(volumes_ml, np.divide(QUANTILES, 100))
    members = {
        "p_active": active / len(counts),
        "p_active_interval": list(jeffreys_interval(active, len(counts))),
        "count": describe_counts(np.bincount(counts) / len(counts)),
    }
    heatmap = {}
    if distribution is not None:
        count = describe_counts(distribution)
        p_active = float(np.clip(1 - distribution[0], *CERTAIN))
        heatmap = {"p_active": p_active, "p_active_interval": None, "count": count}
    return {
        "num_members": len(counts),
        **(heatmap or members),
        "count_source": "heatmap" if heatmap else "members",
        "members": members,
        "volume_ml": {
            "members": {
                "mean": float(np.mean(volumes_ml)),
                "quantiles": {str(q): float(value) for q, value in zip(QUANTILES, volume_quantiles)},
            }
        },
    }


def describe_counts(probabilities: np.ndarray) -> dict[str, Any]:
    """A distribution of the number of lesions.

    Args:
        probabilities: of 0, 1, ... lesions, (M,).

    Returns:
        mean, median, quantiles (counts that occur), and histogram: probability by count, 0 to the greatest above
        `LEAST_SHOWN`.
    """
    numbers = np.arange(len(probabilities))
    quantiles = {str(q): int(quantile(numbers, probabilities, q / 100)) for q in QUANTILES}
    last = int(np.flatnonzero(probabilities >= LEAST_SHOWN).max())
    return {
        "mean": float(probabilities @ numbers),
        "median": quantiles["50"],
        "quantiles": quantiles,
        "histogram": {str(n): float(probabilities[n]) for n in range(last + 1)},
    }


def chance_note(forecast: Mapping[str, Any]) -> str:
    """What P(active) of a forecast rests on, as a sentence for a page."""
    samples = f"{forecast['num_members']} sample{'s' * (forecast['num_members'] > 1)}"
    low, high = map(percent, forecast["members"]["p_active_interval"])
    if forecast["count_source"] == "members":
        return f"95 % interval {low} to {high}: for the sampling error of {samples} only, not for errors of the model."
    members = percent(forecast["members"]["p_active"])
    return (
        "Chance and number follow from the heatmap; errors of the model are not included. "
        f"Of {samples}, {members} have a lesion (95 % interval {low} to {high})."
    )


def differences(summary: Mapping[str, Any], volume_ml: float, peak: float) -> list[str]:
    """Where the heatmap and the members disagree, as sentences.

    The heatmap is the network's expected outcome, members are samples of it; in theory the heatmap is the mean of
    infinitely many members.

    Args:
        summary: of `summarise`.
        volume_ml: integral of the heatmap.
        peak: the highest voxel of the heatmap.

    Returns:
        A sentence where the volumes differ by more than `TOLERANCE`, one where P(active) of the heatmap lies outside
        the interval of the members, and one where a voxel is more probable than any lesion at all.
    """
    found, p_active, members = [], summary["p_active"], summary["members"]
    from_heatmap = summary["count_source"] == "heatmap"
    members_ml = summary["volume_ml"]["members"]["mean"]
    low, high = sorted((volume_ml, members_ml))
    if high > (1 + TOLERANCE) * low and high - low >= LEAST_ML:
        rest = "" if from_heatmap else ", the lesion count and the chance the samples'"
        found.append(
            f"The heatmap holds {volume_ml:.2f} ml, the samples {members_ml:.2f} ml on average: "
            f"the expected volume and the sites are the heatmap's{rest}."
        )
    low, high = members["p_active_interval"]
    if from_heatmap and not low <= p_active <= high:
        found.append(
            f"{percent(members['p_active'])} of the samples have a lesion; by the heatmap the chance is "
            f"{percent(p_active)}."
        )
    if peak > p_active:
        than = "the chance of any lesion" if from_heatmap else "the fraction of samples with a lesion anywhere"
        found.append(f"The heatmap's highest voxel has {percent(peak)}, more than {than}, {percent(p_active)}.")
    return found


def percent(fraction: float) -> str:
    """A fraction in [0, 1] as whole per cent, never rounded to a certainty that it is not."""
    if 0 < fraction < 0.01:
        return "< 1 %"
    return "> 99 %" if 0.99 < fraction < 1 else f"{100 * fraction:.0f} %"


def jeffreys_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a probability, closed at 0 and 1 where none or all succeed.

    By scipy: statsmodels, which has it too, takes longer to import than the first patient to read.

    References:
        Brown, Cai, DasGupta 2001, Interval Estimation for a Binomial Proportion, section 3.1.
    """
    low, high = beta.interval(0.95, successes + 0.5, trials - successes + 0.5)
    return (float(low) if successes else 0.0), (float(high) if successes < trials else 1.0)


def _on_slab(values: np.ndarray, affine: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.from_numpy(values), affine=torch.from_numpy(affine))
