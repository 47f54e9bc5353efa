import json
from io import BytesIO

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from monai.data import MetaTensor
from scipy.stats import ttest_rel

from bundle.arms import ARMS, NULL_ARM
from bundle.data.grid import SlabGrid
from bundle.lesions import Volume
from bundle.outputs import comparison
from bundle.outputs.comparison import CompareArmsd, compare, mean_and_interval, under_each_arm
from bundle.outputs.panels import axial_view
from bundle.outputs.summary import summarise
from bundle.outputs.writers import arm_entity

pytestmark = pytest.mark.slow

GRID = SlabGrid(spacing_mm=(8, 8, 3), shape=(20, 24, 15))
RNG = np.random.default_rng(0)
COUNTS = {arm: RNG.poisson(rate, 8) for arm, rate in zip(ARMS, (3, 3, 2, 2, 1, 0.1))}


def loaded(arm=0, case="sub-1"):
    image = torch.rand(8, *GRID.shape, generator=torch.Generator().manual_seed(0))
    image[-1] = arm
    affine = torch.tensor(GRID.affine(np.zeros(3)))
    brain = torch.ones(1, *GRID.shape, dtype=torch.bool)
    return {"image": MetaTensor(image, affine=affine, meta={"case": case}), "brain": brain, "case": case, "arm": arm}


def forecast(arm, **changes):
    summary = summarise(COUNTS[arm], COUNTS[arm] * 0.1)
    shared = {"schema_version": "2.0", "notice": "Research use only.", "case": "sub-1", "warnings": []}
    made = {
        "inputs": {"session": {"w000": "ses-w000", "w048": "ses-w048"}},
        "sampling": {"seed": 0, "num_steps": 2, "guidance_scale": 1},
        "weights_sha256": None,
        "versions": {"bundle": "0"},
    }
    return shared | summary | made | {"arm": arm, "volume_ml": {"mean": float(COUNTS[arm].mean()) / 5}} | changes


def as_forecast(data):
    """What post-processing adds to an arm of `under_each_arm`."""
    arm = ARMS[data["arm"]]
    heatmap = MetaTensor(torch.full(GRID.shape, 0.02 * (6 - data["arm"])))
    return data | {"forecast": forecast(arm), "counts": COUNTS[arm], "heatmap": heatmap, "files": []}


def test_a_patient_is_read_once_and_forecast_under_each_arm():
    patient = loaded(arm=4)
    arms = list(under_each_arm(patient))
    assert [data["arm"] for data in arms] == list(range(6)) and {data["reference_arm"] for data in arms} == {4}
    for data in arms:
        assert (data["image"][-1] == data["arm"]).all() and torch.equal(data["image"][:-1], patient["image"][:-1])
        assert data["image"].meta["case"] == "sub-1"  # so that the members' noise is the same
    assert (patient["image"][-1] == 4).all()
    assert {data["reference_arm"] for data in under_each_arm(loaded(arm=NULL_ARM))} == {0}


def test_differences_are_taken_between_members_of_one_number():
    compared = compare({arm: forecast(arm) for arm in ARMS}, COUNTS, "avonex")
    found = compared["arms"]["ocrelizumab"]
    assert found["expected_lesions"]["mean"] == pytest.approx(COUNTS["ocrelizumab"].mean())
    paired = ttest_rel(COUNTS["ocrelizumab"], COUNTS["avonex"]).confidence_interval(0.95)
    assert found["difference"]["lesions"]["interval"] == pytest.approx(paired, abs=1e-4)
    assert compared["arms"]["avonex"]["difference"] == {"lesions": {"mean": 0, "interval": None}, "volume_ml": 0}
    assert compared["reference_arm"] == "avonex" and compared["num_members"] == 8
    assert compared["arms"]["interferon_beta_1a"]["entity"] == "interferonbeta1a"


def test_the_interval_of_a_count_is_not_negative():
    assert mean_and_interval(np.array([0, 0, 0, 1]), least=0)["interval"][0] == 0
    assert mean_and_interval(np.array([0, 0, 0, 1]))["interval"][0] < 0


def test_warnings_are_on_the_page(tmp_path):
    pages = []
    for warnings in ([], ["the visits hardly correlate"]):
        write = CompareArmsd(output_dir=tmp_path)
        for data in map(as_forecast, under_each_arm(loaded())):
            done = write(data | {"forecast": data["forecast"] | {"warnings": warnings}})
        pages.append(imread(BytesIO(done["files"][1].read_bytes()))[..., :3])
    amber = [np.abs(page - np.array([255, 191, 0]) / 255).max(axis=-1) < 0.01 for page in pages]
    assert not amber[0].any() and (amber[1].mean(axis=1) > 0.9).sum() >= 20


def test_the_page_says_what_is_compared_however_many_warnings_there_are(monkeypatch):
    written = []
    monkeypatch.setattr(comparison, "write_notes", lambda header, notes, **place: written.extend(notes))
    warnings = [f"problem {number} " + "x" * 300 for number in range(5)]
    brain = np.ones(GRID.shape, bool)
    view = axial_view(Volume(RNG.random(GRID.shape), GRID.affine(np.zeros(3))), brain * 0.0, brain=brain, covered=brain)
    compared = compare({arm: forecast(arm, warnings=warnings) for arm in ARMS}, COUNTS, "placebo")
    comparison.comparison_page(compared, dict.fromkeys(ARMS, view))
    assert comparison.NO_SWITCH in " ".join(text for text, _ in written)


def test_one_member_or_equal_ones_have_a_mean_and_no_interval():
    assert mean_and_interval(np.array([2, 2, 2])) == {"mean": 2, "interval": None}
    assert mean_and_interval(np.array([3])) == {"mean": 3, "interval": None}


def test_entities_hold_letters_and_digits_only_and_differ():
    entities = [arm_entity(arm) for arm in ARMS]
    assert all(entity.isalnum() for entity in entities) and len(set(entities)) == 6


def test_the_comparison_is_written_when_the_last_arm_is_there(tmp_path):
    write = CompareArmsd(output_dir=tmp_path)
    *first, last = [write(as_forecast(data)) for data in under_each_arm(loaded(arm=2))]
    assert not any(data["files"] for data in first)
    report, page = last["files"]
    assert (report.name, page.name) == ("sub-1_desc-arms_comparison.json", "sub-1_desc-arms_comparison.png")
    assert list(json.loads(report.read_text())["arms"]) == list(ARMS)
    assert imread(BytesIO(page.read_bytes())).shape[:2] == (1100, 1500)


def test_a_case_of_which_an_arm_failed_is_not_compared(tmp_path):
    write = CompareArmsd(output_dir=tmp_path)
    for data in list(under_each_arm(loaded(case="sub-1")))[1:]:
        write(as_forecast(data))
    done = [write(as_forecast(data)) for data in under_each_arm(loaded(case="sub-2"))]
    assert [len(data["files"]) for data in done] == [0, 0, 0, 0, 0, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["sub-2"]


def test_a_forecast_under_one_arm_passes_through(tmp_path):
    data = as_forecast(loaded())
    assert CompareArmsd(output_dir=tmp_path)(data) == data and not any(tmp_path.iterdir())
