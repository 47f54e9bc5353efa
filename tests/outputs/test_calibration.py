import json

import pytest

from bundle.errors import InputError
from bundle.outputs.calibration import calibration_sentence, read_calibration

SAMPLING = {"num_members": 20, "num_steps": 24, "seed": 0, "amp": True}
COUNTS = {"mean": [1.0, 1.0], "size": [0.0, 1.0]}


def bins(filled):
    known = {"patients": 25, "forecast": 0.26, "active": 7, "observed": 0.28, "interval": [0.13, 0.48]}
    empty = {"patients": 0, "forecast": None, "active": 0, "observed": None, "interval": None}
    return [{"from": n / 10, "to": (n + 1) / 10, **(known if n in filled else empty)} for n in range(10)]


def calibration(filled=(2, 9), **changes):
    measured = {"data_set": "trial", "simulated": True, "split": "test", "patients": 213}
    measured |= {"weights_sha256": "abc", "sampling": SAMPLING | {"count_model": COUNTS}}
    return measured | {"bins": bins(filled)} | changes


def forecast(p, **changes):
    return {"p_active": p, "weights_sha256": "abc", "sampling": SAMPLING, "count_model": COUNTS} | changes


@pytest.mark.parametrize(("p", "span"), [(0.2, "20 to 30 %"), (0.25, "20 to 30 %"), (1.0, "90 to 100 %")])
def test_the_bin_of_the_forecast_is_told_with_its_interval(p, span):
    text = calibration_sentence(calibration(), forecast(p))
    assert text.startswith(f"Of 25 patients whose forecast chance was {span} (on average 26 %), 7 had new or enlarging")
    assert (
        "28 % (95 % interval 13 % to 48 %)" in text
        and "Measured on 213 simulated patients of trial (split test)" in text
    )


@pytest.mark.parametrize(
    ("measured", "made", "reason"),
    [
        (None, forecast(0.2), "no calibration that an evaluation measured was given"),
        (calibration(), forecast(0.2, weights_sha256="d"), "measured with other weights"),
        (calibration(), forecast(0.2, sampling=SAMPLING | {"num_members": 5}), "measured with another num_members"),
        (calibration(), forecast(0.2, sampling=SAMPLING | {"new": 5}), "measured with another new"),
        (calibration(), forecast(0.2, count_model=None), "measured with another count_model"),
        (calibration(split="all"), forecast(0.2), "on patients of the model's training"),
        (calibration(), forecast(0.35), "none of the 213 patients of the evaluation had a forecast chance of 30 to 40"),
    ],
)
def test_what_was_not_measured_is_said_to_be_unknown(measured, made, reason):
    text = calibration_sentence(measured, made)
    assert text.startswith("It is not known") and reason in text


def test_another_seed_or_precision_is_the_same_model():
    assert calibration_sentence(calibration(), forecast(0.2, sampling=SAMPLING | {"seed": 3, "amp": False}))[:2] == "Of"


@pytest.mark.parametrize("content", ["", "[]", '{"bins": []}', None])
def test_another_file_is_one_line(tmp_path, content):
    path = tmp_path / "calibration.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match="; give the calibration.json that an evaluation wrote$"):
        read_calibration(path)
    path.write_text(json.dumps(calibration()))
    assert read_calibration(path) == calibration()
