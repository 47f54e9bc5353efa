"""Networks for tests of the segmenter."""

from torch import nn

TINY = {  # overrides of segment.json
    "device": "cpu",
    "network_def#features": [8, 8, 8, 8, 8, 8],
    "network_def#norm": ["group", {"num_groups": 4}],
}


class Bright(nn.Module):
    """Marks what is bright."""

    def forward(self, x):
        return 40 * (x[:, 1:2] - 0.6)
