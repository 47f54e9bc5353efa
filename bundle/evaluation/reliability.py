"""calibration.json: how often forecasts of each chance came true, for the pages of further patients."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bundle import __version__
from bundle.evaluation.metrics.calibration import PROBABILITY_BINS, activity_bins
from bundle.evaluation.scoring import Scores
from bundle.outputs.summary import jeffreys_interval


def measured_calibration(
    scores: Scores, *, data_set: str, simulated: bool, split: str, weights_sha256: str, sampling: Mapping[str, Any]
) -> dict[str, Any]:
    """P(active) against the fraction of patients that were active, in ten bins of .1.

    Args:
        scores: of a model; its first draw counts.
        data_set: name of the data set.
        simulated: whether its patients are.
        split: whose patients they are.
        weights_sha256: checksum of the model's weights.
        sampling: its settings, see `bundle.forecasters.ensemble.SamplingSettings.as_dict`.

    Returns:
        bins: from, to, patients, forecast (mean), active (patients), observed (fraction), interval (95 %, Jeffreys);
        forecast, observed and interval are None where there are no patients. The rest is as given.
    """
    bins = []
    p = scores["p_active"][:, 0]
    sums = (x[0] for x in activity_bins(p, scores, np.ones((1, len(p)))))
    for low, high, n, forecast, active in zip(PROBABILITY_BINS[:-1], PROBABILITY_BINS[1:], *sums):
        known = n > 0
        bins.append(
            {
                "from": round(float(low), 4),
                "to": round(float(high), 4),
                "patients": int(n),
                "forecast": round(float(forecast / n), 4) if known else None,
                "active": int(active),
                "observed": round(float(active / n), 4) if known else None,
                "interval": [round(x, 4) for x in jeffreys_interval(int(active), int(n))] if known else None,
            }
        )
    return {
        "schema_version": "1.0",
        "data_set": data_set,
        "simulated": simulated,
        "split": split,
        "patients": len(scores.cases),
        "weights_sha256": weights_sha256,
        "sampling": dict(sampling),
        "bins": bins,
        "versions": {"bundle": __version__},
    }
