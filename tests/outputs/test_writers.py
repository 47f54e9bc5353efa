import hashlib
import json
import os
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from bundle.data.grid import SlabGrid
from bundle.data.plausibility import Plausibility
from bundle.data.transforms import LoadCased, RestoreNatived
from bundle.errors import InputError
from bundle.forecasters.counts import CountModel, count_features
from bundle.lesions import LesionRule, voxel_volume_mm3
from bundle.outputs import writers
from bundle.outputs.summary import ExpectHeatmapd, SummariseMembersd, differences, jeffreys_interval, percent
from bundle.outputs.writers import WriteForecastd, WritePreviewd

GRID = SlabGrid(spacing_mm=(2, 2, 3), shape=(20, 24, 5))
ANY = Plausibility(section_cm2=(0, np.inf), alignment_doubtful_wrong=(-1, -1), contrast_doubtful_wrong=(0, 0))
SHAPE = (40, 48, 5)  # at 1 x 1 x 3 mm the very slab
ANY = Plausibility(  # a phantom is no brain
    section_cm2=(0, 300), contrast_doubtful_wrong=(-1, -1), overlap_doubtful_wrong=(0, 0)
)
AFFINE = np.array([[1.0, 0, 0, -19.5], [0, 1, 0, -23.5], [0, 0, 3, -6], [0, 0, 0, 1]])
SUFFIXES = ("probseg.nii.gz", "mask.nii.gz", "forecast.json", "forecast.png")


def summarised(members, brain=None, **settings):
    affine = torch.tensor(GRID.affine(np.zeros(3)))
    brain = torch.ones(1, *members.shape[1:], dtype=torch.bool) if brain is None else brain
    case = {"image": MetaTensor(torch.zeros(8, *members.shape[1:]), affine=affine), "brain": brain, "case": "sub-1"}
    return SummariseMembersd(**settings)(case | {"pred": members})


def members_of_a_patient(num_members=4):
    """In every member a lesion of 2 x 1 x 1 voxels, in the first a second one of a voxel."""
    members = torch.zeros(num_members, *GRID.shape)
    members[:, 5:7, 8, 2] = 0.9
    members[0, 15, 16, 3] = 0.9
    return members


@pytest.fixture
def drawn():
    """Asked for by a test of which the page is part."""


@pytest.fixture(autouse=True)
def page(request, monkeypatch):
    """A page takes half a second to draw, and has tests of its own."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(writers, "forecast_page", lambda *_, **__: b"page")


@pytest.fixture
def patient(tmp_path):
    """Writes a patient whose scans lie in an orientation like "LPS" or "SRA"; returns what post-processing gets."""

    def write(orientation="RAS", members=None, **settings):
        turn = nib.orientations.axcodes2ornt(orientation)
        ras = nib.orientations.axcodes2ornt("RAS")
        flair = np.full(SHAPE, 100, np.int16) + np.arange(40, dtype=np.int16)[:, None, None]
        flair[0, 0] = 0
        t2 = np.zeros(SHAPE, np.uint8)
        t2[12:15, 12:15, 1] = 1
        dseg = np.full(SHAPE, 2, np.uint8)
        dseg[20:] = 42
        files = {f"sub-1/ses-{visit}/anat/sub-1_ses-{visit}_FLAIR": flair for visit in ("w000", "w048")} | {
            "derivatives/brain/sub-1/ses-w048/anat/sub-1_ses-w048_desc-brain_mask": np.ones(SHAPE, np.uint8),
            "derivatives/lesions/sub-1/ses-w048/anat/sub-1_ses-w048_label-T2lesion_mask": t2,
            "derivatives/synthseg/sub-1/ses-w048/anat/sub-1_ses-w048_dseg": dseg,
        }
        for name, data in files.items():
            image = nib.Nifti1Image(data, AFFINE).as_reoriented(nib.orientations.ornt_transform(ras, turn))
            image.header["descrip"] = b"Jane Doe"
            path = tmp_path / "bids" / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(image, path)
        data = LoadCased(grid=GRID, plausibility=ANY)({"image": tmp_path / "bids/sub-1", "arm": "avonex"})
        data["pred"] = members_of_a_patient() if members is None else members
        data = RestoreNatived(keys=("pred", "consensus"))(SummariseMembersd(**settings)(data))
        flair = tmp_path / "bids/sub-1/ses-w048/anat/sub-1_ses-w048_FLAIR.nii.gz"
        return SimpleNamespace(data=data, flair=nib.load(flair), folder=tmp_path / "out/sub-1", out=tmp_path / "out")

    return write


def inferer(**settings):
    """What the writers need of an inferer: the settings that go into the report."""
    settings = {"seed": 0, "num_steps": 24, "guidance_scale": 1.0} | settings
    return SimpleNamespace(settings=SimpleNamespace(as_dict=lambda: settings))


def written(patient, weights=None, **settings):
    WriteForecastd(output_dir=patient.out, inferer=inferer(**settings), weights=weights)(patient.data)
    return {suffix: patient.folder / f"sub-1_desc-net2_{suffix}" for suffix in SUFFIXES}


def test_a_heatmap_that_is_given_stays_inside_the_brain_and_leaves_counts_alone():
    members = members_of_a_patient()
    brain = torch.ones(1, *GRID.shape, dtype=torch.bool)
    brain[..., 0] = False
    expected = torch.full((1, *GRID.shape), 0.02)
    affine = torch.tensor(GRID.affine(np.zeros(3)))
    image = MetaTensor(torch.zeros(8, *GRID.shape), affine=affine, meta={"case": "sub-1"})
    seen = []

    class Inferer:
        def heatmap(self, inputs, network):
            seen.append((inputs.shape, inputs.meta["case"]))
            return expected.to(torch.bfloat16)

    case = {"image": image, "brain": brain, "case": "sub-1", "pred": members}
    summed = SummariseMembersd()(ExpectHeatmapd(network=torch.nn.Linear(1, 1), inferer=Inferer())(case))
    assert seen == [((1, 8, *GRID.shape), "sub-1")]
    np.testing.assert_allclose(summed["pred"].numpy(), 0.02 * brain.numpy(), rtol=0.01)
    assert torch.equal(summed["heatmap"], summed["pred"][0])
    without = SummariseMembersd()(case)
    assert summed["forecast"] == without["forecast"] and torch.equal(summed["consensus"], without["consensus"])
    assert without["pred"].max() == 1


def test_the_heatmap_is_the_mean_of_the_opened_members_inside_the_brain():
    members = torch.rand(5, *GRID.shape, generator=torch.Generator().manual_seed(0)) ** 0.4
    brain = torch.zeros(1, *GRID.shape, dtype=torch.bool)
    brain[:, 3:17, 2:20] = True
    rule = LesionRule(kernel=(3, 3, 1))
    result = summarised(members, brain, rule=rule)
    opened = np.stack([rule.label((member * brain[0]).numpy(), np.eye(4)) > 0 for member in members])
    assert opened.any()
    np.testing.assert_array_equal(result["members"].numpy(), opened)
    np.testing.assert_allclose(result["pred"].numpy()[0], opened.mean(axis=0), rtol=1e-6)


def test_the_forecast_holds_the_members_distribution():
    forecast = summarised(members_of_a_patient())["forecast"]
    assert forecast["num_members"] == 4 and forecast["p_active"] == 1
    assert forecast["count"] == {
        "mean": 1.25,
        "median": 1,
        "quantiles": {"5": 1, "25": 1, "50": 1, "75": 1, "95": 2},
        "histogram": {"0": 0, "1": 0.75, "2": 0.25},
    }
    assert forecast["volume_ml"]["members"]["mean"] == pytest.approx((3 * 2 + 3) / 4 * 0.012)
    assert forecast["volume_ml"]["members"]["quantiles"]["50"] == pytest.approx(0.024)


@pytest.mark.parametrize("months", [float("nan"), 22.0])
def test_with_a_count_model_the_number_follows_from_the_heatmap_and_that_of_the_members_stands_beside_it(months):
    counts = CountModel((1.0, 1.0, 0.0, 0.0, -0.5), (0.5, 0.0, 0.0, 0.0, 0.0))
    heatmap = torch.full((1, *GRID.shape), 0.001)
    affine = torch.tensor(GRID.affine(np.zeros(3)))
    image = MetaTensor(torch.ones(8, *GRID.shape), affine=affine, meta={"case": "sub-1"})
    case = {"image": image, "brain": torch.ones(1, *GRID.shape, dtype=torch.bool), "case": "sub-1", "heatmap": heatmap}
    inputs = {"used": [], "missing": [], "estimated": [], "alignment": 1.0, "months": {"w000": 0.0, "w048": months}}
    case |= {"inputs": inputs, "warnings": []}
    result = SummariseMembersd(counts=counts)(case | {"pred": members_of_a_patient()})
    volume_ml = 0.001 * np.prod(GRID.shape) * np.prod(GRID.spacing_mm) / 1000
    known, rate = (None, 1) if np.isnan(months) else (months, 0.5**0.5)
    expected = counts(count_features(image.numpy(), heatmap[0].numpy(), affine.numpy(), known))
    forecast = result["forecast"]
    np.testing.assert_allclose(result["distribution"], expected, rtol=1e-5, atol=1e-12)
    assert forecast["count_source"] == "heatmap" and forecast["p_active_interval"] is None
    assert forecast["p_active"] == pytest.approx(1 - expected[0], rel=1e-5)
    assert forecast["count"]["mean"] == pytest.approx(np.e * volume_ml * rate, rel=1e-4)
    without = SummariseMembersd()(case | {"pred": members_of_a_patient()})["forecast"]
    assert without["count_source"] == "members" and without["count_model"] is None
    assert forecast["members"] == without["members"] and without["count"] == without["members"]["count"]


def test_one_member_forecasts_yes_or_no():
    result = summarised(members_of_a_patient(1))
    assert set(np.unique(result["pred"].numpy())) == {0, 1}
    np.testing.assert_array_equal(result["consensus"], result["pred"])
    assert result["forecast"]["p_active"] == 1 and result["forecast"]["count"]["median"] == 2


def test_no_lesion_in_any_member():
    result = summarised(torch.full((16, *GRID.shape), 0.49))
    assert not result["pred"].any() and not result["consensus"].any()
    assert result["forecast"]["p_active"] == 0 and result["forecast"]["p_active_interval"][0] == 0
    assert result["forecast"]["count"]["histogram"] == {"0": 1}
    nothing = {"mean": 0, "quantiles": dict.fromkeys(("5", "25", "50", "75", "95"), 0)}
    assert result["forecast"]["volume_ml"] == {"members": nothing}


def test_the_consensus_holds_what_enough_members_mark():
    assert summarised(members_of_a_patient(), consensus_threshold=0.25)["consensus"].sum() == 3
    assert summarised(members_of_a_patient(), consensus_threshold=0.26)["consensus"].sum() == 2


def test_an_answer_that_is_not_finite_is_refused():
    members = members_of_a_patient()
    members[1, 2, 3, 4] = torch.nan
    with pytest.raises(InputError, match="sub-1: .*not finite; use other weights"):
        summarised(members)


def test_the_interval_mirrors_itself_narrows_and_closes_at_the_ends():
    for successes in range(17):
        low, high = jeffreys_interval(successes, 16)
        assert 0 <= low <= successes / 16 <= high <= 1
        assert jeffreys_interval(16 - successes, 16) == pytest.approx((1 - high, 1 - low))
    assert np.ptp(jeffreys_interval(4, 16)) > 1.9 * np.ptp(jeffreys_interval(16, 64))
    assert jeffreys_interval(0, 5)[0] == 0 and jeffreys_interval(5, 5)[1] == 1


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SRA", "PIL"])
def test_maps_lie_voxel_by_voxel_on_the_patients_flair(patient, orientation):
    case = patient(orientation)
    files = written(case)
    for suffix, dtype in (("probseg.nii.gz", np.float32), ("mask.nii.gz", np.uint8)):
        image = nib.load(files[suffix])
        np.testing.assert_array_equal(image.affine, case.flair.affine)
        assert image.shape == case.flair.shape and image.get_data_dtype() == dtype
        for field in ("qform_code", "sform_code", "quatern_b", "qoffset_x", "pixdim", "xyzt_units"):
            np.testing.assert_array_equal(image.header[field], case.flair.header[field])
    heatmap = nib.as_closest_canonical(nib.load(files["probseg.nii.gz"])).get_fdata()
    assert heatmap.max() == pytest.approx(0.75)  # its voxels' centres lie a quarter of a cell from the cells'
    mask = nib.as_closest_canonical(nib.load(files["mask.nii.gz"])).get_fdata()
    np.testing.assert_array_equal(mask, heatmap >= 0.5)
    [lesion] = json.loads(files["forecast.json"].read_text())["lesions"]
    assert lesion["centroid_mm"] == pytest.approx([-8, -7, 0])  # between slab voxels (5, 8, 2) and (6, 8, 2)
    assert lesion["volume_mm3"] == pytest.approx(24)
    assert (lesion["probability"], lesion["region"]) == (1, "cerebral white matter")


def test_the_report_holds_these_and_only_these(patient, tmp_path):
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"weights")
    files = written(patient(), weights=weights, seed=3, num_steps=20, guidance_scale=1.0)
    report = json.loads(files["forecast.json"].read_text())
    assert set(report) == {
        "schema_version",
        "notice",
        "case",
        "arm",
        "num_members",
        "p_active",
        "p_active_interval",
        "p_active_interval_covers",
        "count",
        "count_source",
        "count_model",
        "members",
        "volume_ml",
        "differences",
        "lesions",
        "likely_sites",
        "field_of_view",
        "inputs",
        "warnings",
        "sampling",
        "weights_sha256",
        "versions",
    }
    assert (report["case"], report["arm"]) == ("sub-1", "avonex")
    assert report["sampling"] == {"seed": 3, "num_steps": 20, "guidance_scale": 1.0}
    assert report["weights_sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert set(report["lesions"][0]) == {"centroid_mm", "volume_mm3", "region", "probability"}
    assert set(report["likely_sites"][0]) == {
        "centre_mm",
        "radius_mm",
        "probability",
        "expected_lesions",
        "peak_probability",
        "region",
    }
    assert report["field_of_view"] | {"statement": ""} == {
        "axis": 2,
        "first_slice": 0,
        "last_slice": 4,
        "num_slices": 5,
        "covered_fraction": [1] * 5,
        "statement": "",
    }
    assert "Research use only" in report["notice"]


def test_nothing_of_the_patient_but_the_label_is_passed_on(patient):
    files = written(patient())
    for suffix in ("probseg.nii.gz", "mask.nii.gz"):
        assert b"Jane Doe" not in nib.load(files[suffix]).to_bytes()
    assert "Jane Doe" not in files["forecast.json"].read_text()


def test_a_patient_without_lesions_gets_all_four_files(patient, drawn):
    files = written(patient(members=torch.zeros(2, *GRID.shape)))
    assert all(path.is_file() for path in files.values())
    report = json.loads(files["forecast.json"].read_text())
    assert report["lesions"] == [] and report["likely_sites"] == []
    assert not nib.load(files["probseg.nii.gz"]).get_fdata().any()


def test_the_same_forecast_again_gives_the_same_bytes(patient, drawn):
    case = patient()
    first = {suffix: path.read_bytes() for suffix, path in written(case).items()}
    assert first == {suffix: path.read_bytes() for suffix, path in written(case).items()}
    assert sorted(path.name for path in case.folder.iterdir()) == sorted(f"sub-1_desc-net2_{s}" for s in SUFFIXES)


@pytest.mark.parametrize(("function", "good_calls"), [("fsync", 2), ("replace", 0), ("replace", 3)])
def test_a_write_that_fails_leaves_nothing(patient, monkeypatch, function, good_calls):
    case, calls, real = patient(), iter(range(10)), getattr(os, function)

    def fail(*args):
        if next(calls) >= good_calls:
            raise OSError(28, "No space left on device")
        return real(*args)

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(InputError, match="sub-1: .*No space left on device; choose another output_dir"):
        written(case)
    assert not case.folder.exists()


def test_a_write_that_fails_leaves_an_earlier_forecast_alone(patient, monkeypatch):
    case = patient()
    before = {path: path.read_bytes() for path in written(case).values()}
    monkeypatch.setattr(os, "fsync", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InputError):
        written(case, seed=1)
    assert {path: path.read_bytes() for path in case.folder.iterdir()} == before


def test_an_output_folder_that_cannot_be_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written: .*choose another output_dir"):
        WriteForecastd(output_dir=tmp_path / "file/out", inferer=inferer())


def test_an_output_folder_that_went_bad_gets_one_line(patient):
    case = patient()
    write = WriteForecastd(output_dir=case.out, inferer=inferer())
    case.out.write_text("")
    with pytest.raises(InputError, match="sub-1: .*choose another output_dir") as error:
        write(case.data)
    assert "\n" not in str(error.value)


def test_the_volume_is_the_integral_of_the_map_and_the_members_have_their_own(patient):
    case = patient()
    files = written(case)
    report, heatmap = json.loads(files["forecast.json"].read_text()), nib.load(files["probseg.nii.gz"])
    integral = heatmap.get_fdata().sum() * voxel_volume_mm3(heatmap.affine) / 1000
    assert report["volume_ml"]["mean"] == pytest.approx(integral, abs=1e-4)
    assert report["volume_ml"]["members"]["mean"] == pytest.approx((3 * 2 + 3) / 4 * 0.012)
    assert len(report["differences"]) == (abs(np.log(integral / report["volume_ml"]["members"]["mean"])) > np.log(1.2))
    [site, *_] = report["likely_sites"]
    assert site["peak_probability"] <= site["probability"] <= 1
    total = sum(site["expected_lesions"] for site in report["likely_sites"])
    assert total == pytest.approx(report["count"]["mean"], rel=1e-3)  # both lesions lie in sites


def test_per_cents_never_claim_a_certainty_that_is_not():
    fractions = (0, 0.004, 0.01, 0.256, 0.99, 0.996, 1)
    assert list(map(percent, fractions)) == ["0 %", "< 1 %", "1 %", "26 %", "99 %", "> 99 %", "100 %"]


def said(p_active, volume_ml, members_ml, peak, source="members", members_p_active=None, interval=(0.0, 1.0)):
    members = {"p_active": p_active if members_p_active is None else members_p_active, "p_active_interval": interval}
    summary = {"p_active": p_active, "count_source": source, "members": members}
    return differences(summary | {"volume_ml": {"members": {"mean": members_ml}}}, volume_ml, peak)


def test_differences_are_said_from_a_fifth_on():
    assert said(1.0, 1.19, 1.0, 0.5) == said(1.0, 1.0, 1.19, 0.5) == said(1.0, 0.0, 0.0, 0.0) == []
    assert said(1.0, 0.009, 0.0, 0.5) == []  # both are shown as 0.01 or less
    [volume] = said(1.0, 1.99, 0.9, 0.5)
    assert "1.99 ml" in volume and "0.90 ml" in volume and "the samples'" in volume
    [small] = said(0.0, 1.0, 1.0, 0.004)
    assert "has < 1 %, more than the fraction of samples with a lesion anywhere, 0 %" in small
    [peak] = said(0.5, 1.0, 1.0, 0.78)
    assert "78 %" in peak and "50 %" in peak


def test_a_chance_that_the_members_contradict_is_said():
    assert said(0.3, 1.0, 1.0, 0.1, "heatmap", members_p_active=0.4, interval=(0.2, 0.6)) == []
    [chance] = said(0.3, 1.0, 1.0, 0.1, "heatmap", members_p_active=0.8, interval=(0.6, 0.9))
    assert "80 % of the samples have a lesion; by the heatmap the chance is 30 %" in chance
    [volume] = said(0.3, 1.99, 0.9, 0.1, "heatmap")
    assert volume.endswith("the expected volume and the sites are the heatmap's.")


def test_the_interval_is_that_of_statsmodels():
    from statsmodels.stats.proportion import proportion_confint

    for successes in range(1, 16):
        expected = proportion_confint(successes, 16, method="jeffreys")
        assert jeffreys_interval(successes, 16) == pytest.approx(expected)


def test_inputs_and_warnings_go_into_the_report(patient):
    case = patient()
    case.data["warnings"] = ["the visits hardly correlate"]
    report = json.loads(written(case)["forecast.json"].read_text())
    assert report["warnings"] == ["the visits hardly correlate"]
    inputs = report["inputs"]
    assert inputs["used"] == ["flair_w000", "flair_w048", "t2_w048"] and inputs["brain"] == "given"
    assert set(inputs["missing"]) == {"t2_w000", "gd_w000", "gd_w048", "net2_w048"}
    assert inputs["alignment"] == pytest.approx(1) and inputs["months"] == {"w000": None, "w048": None}
    assert "sampling error" in report["p_active_interval_covers"]


def test_where_arms_are_compared_the_arm_is_in_the_name(patient):
    case = patient()
    WriteForecastd(output_dir=case.out, inferer=inferer())(case.data | {"arm": 3, "reference_arm": 2})
    names = {path.name for path in case.folder.iterdir()}
    assert names == {f"sub-1_arm-interferonbeta1a_desc-net2_{suffix}" for suffix in SUFFIXES}


def test_a_preview_carries_the_notice_and_what_it_was_made_of(patient):
    case = patient()
    heatmap = RestoreNatived(keys="heatmap")(case.data | {"heatmap": case.data["heatmap"][None]})
    image, sidecar = WritePreviewd(output_dir=case.out, inferer=inferer(seed=3))(heatmap)["files"]
    assert image.name == "sub-1_desc-preview_probseg.nii.gz" and sidecar.name == "sub-1_desc-preview_probseg.json"
    assert b"Research use only" in nib.load(image).header["descrip"].tobytes()
    report = json.loads(sidecar.read_text())
    assert "Research use only" in report["notice"] and report["sampling"]["seed"] == 3
    assert report["inputs"]["brain"] == "given" and report["arm"] == "avonex"
    integral = nib.load(image).get_fdata().sum() * 3 / 1000
    assert report["volume_ml"]["mean"] == pytest.approx(integral, abs=1e-4)


@pytest.mark.parametrize("name", [123, "a" * 300])
def test_output_folders_that_a_command_line_may_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    if isinstance(name, int):
        assert WriteForecastd(output_dir=name, inferer=inferer()).output_dir.name == "123"
    else:
        with pytest.raises(InputError, match="cannot be written: .*choose another output_dir"):
            WriteForecastd(output_dir=name, inferer=inferer())


def test_a_request_may_name_its_own_folder(patient, tmp_path):
    case = patient()
    own = tmp_path / "request"
    files = WriteForecastd(output_dir=case.out, inferer=inferer())(case.data | {"output_dir": str(own)})["files"]
    assert {file.parent for file in files} == {own / "sub-1"} and not case.folder.exists()
