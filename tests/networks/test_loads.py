import numpy as np
import torch

from bundle.networks.loads import lesion_loads


def test_loads_are_logs_of_volume_and_say_what_is_known():
    volumes = torch.zeros(1, 3, 2, 4, 4)
    volumes[0, 1] = -1
    volumes[0, 2, 0, 0, :3] = 1
    expected = torch.tensor([[0, 0, np.log(4) / 2, 0, 1, 1]], dtype=torch.float32)
    torch.testing.assert_close(lesion_loads(volumes), expected)
