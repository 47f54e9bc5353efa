"""Scores of forecasts. Each states its formula, range and edge cases; NaN says that it is not defined."""

import math

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor


def activity_auc(score: Tensor, active: Tensor) -> float:
    """Area under the ROC curve of a patient score for "has at least one NET2 lesion", in [0, 1].

    Args:
        score: (N,), higher means more likely active.
        active: (N,), 0 or 1.

    Returns:
        The AUC; NaN when all patients are active or none is.
    """
    if len(torch.unique(active)) < 2:
        return math.nan
    return float(roc_auc_score(active.cpu().numpy(), score.float().cpu().numpy()))


def log_skill(log_loss: Tensor, lesion_share: Tensor) -> float:
    """Share of the outcome maps' entropy that heatmaps explain: 1 - log loss / log loss of the best constant map.

    Args:
        log_loss: (N,), log loss of a patient's heatmap, mean over voxels, in nats.
        lesion_share: (N,), share of the patient's voxels that became NET2.

    Returns:
        1 for perfect heatmaps, 0 for the best constant one, negative for worse; NaN when no patient has a lesion.
    """
    p = float(lesion_share.double().mean())
    if not 0 < p < 1:
        return math.nan
    entropy = -(p * math.log(p) + (1 - p) * math.log1p(-p))
    return 1 - float(log_loss.double().mean()) / entropy
