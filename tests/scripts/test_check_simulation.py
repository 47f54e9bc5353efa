"""Sizes of effects of hand-made patients."""

import numpy as np
import pandas as pd
import pytest

from scripts.check_simulation import effect_sizes


def test_effect_sizes_of_patients_made_by_hand():
    table = pd.DataFrame(
        {
            "age": [30, 30, 30, 30, 45, 45, 45, 45],
            "sex": ["F", "M"] * 4,
            "frailty": [3.0, 1.0] * 4,
            "relapses": [2, 1] * 4,
            "net2": [4, 4, 4, 0, 4, 0, 0, 0],
            "gd": np.arange(8),
            "edss": np.arange(8) ** 2,
            "old": 9 - np.arange(8),
            "diffuse": [0.4, 0.4, 0.4, 0.0, 0.4, 0.0, 0.0, 0.0],
            "smouldering": [0, 0, 0, 0, 0, 0, 4, 5],
        }
    )
    stated = effect_sizes(table)
    assert stated["patients with a smouldering lesion"] == pytest.approx(2 / 8)
    assert stated["old lesions that smoulder"] == pytest.approx(9 / 44)
    assert stated["new lesions, women over men"] == pytest.approx(3)
    assert stated["relapses, women over men"] == pytest.approx(2)
    assert stated["odds of activity, 40 to 49 over under 40"] == pytest.approx((1 / 3) / 3)
    assert stated["new lesions, ratio per 5 years of age"] == pytest.approx(
        3 ** (-1 / 3)
    )  # 3 lesions fall to 1 in 15 years
    assert stated["rank correlation of EDSS and T2 lesions"] == pytest.approx(-1)
    assert stated["rank correlation of diffuse signal and new lesions"] == pytest.approx(1)
    assert stated["median diffuse signal"] == pytest.approx(0.2)
