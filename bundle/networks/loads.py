"""Lesion loads as numbers, and the class embedding that reads them beside the arm."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def lesion_loads(volumes: Tensor) -> Tensor:
    """Two numbers for each volume: (B, C, ...) -> (B, 2*C).

    First log(1 + voxels above 0) / 2, the load of a mask; then 1 if the volume is known, 0 if it is 0 everywhere.
    """
    volumes = volumes.flatten(2)
    load = torch.log1p((volumes > 0).sum(2).to(volumes.dtype)) / 2
    return torch.cat([load, (volumes != 0).any(2).to(volumes.dtype)], dim=1)


class ArmAndLoads(nn.Module):
    """Embedding of the arm plus a function of arm and lesion loads; replaces a network's class embedding.

    A patient's activity is spread over a few voxels of five masks, and what it means for the next year depends on the
    arm. The ControlNet could learn that voxel by voxel; given as numbers it is learnt as fast as the arm is. The added
    function starts as zero.

    Args:
        num_contrasts: volumes of the image.
        arms: the class embedding that it replaces.
    """

    def __init__(self, num_contrasts: int, arms: nn.Embedding) -> None:
        super().__init__()
        self.arms = arms
        width = arms.embedding_dim
        self.loads = nn.Sequential(
            nn.Linear(arms.num_embeddings + 2 * num_contrasts, width), nn.SiLU(), nn.Linear(width, width)
        )
        nn.init.zeros_(self.loads[-1].weight)
        nn.init.zeros_(self.loads[-1].bias)

    def forward(self, labels: Tensor) -> Tensor:
        """(B, width) of labels (B, 1 + 2*C): class index, then `lesion_loads`."""
        arm = labels[:, 0].long()
        one_hot = F.one_hot(arm, self.arms.num_embeddings).to(labels.dtype)
        return self.arms(arm) + self.loads(torch.cat([one_hot, labels[:, 1:]], dim=1))
