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
from bundle.lesions import LesionRule, Placed
from bundle.outputs.summary import ExpectHeatmapd, SummariseMembersd, jeffreys_interval
from bundle.outputs.writers import WriteForecastd, covered_slices

GRID = SlabGrid(spacing_mm=(2, 2, 3), shape=(20, 24, 5))
SHAPE = (40, 48, 5)  # at 1 x 1 x 3 mm the very slab
ANY = Plausibility(  # a phantom is no brain
    section_cm2=(0, 300), contrast_doubtful_wrong=(-1, -1), overlap_doubtful_wrong=(0, 0)
)
AFFINE = np.array([[1.0, 0, 0, -19.5], [0, 1, 0, -23.5], [0, 0, 3, -6], [0, 0, 0, 1]])
SUFFIXES = ("probseg.nii.gz", "mask.nii.gz", "forecast.json", "forecast.png")


def summed_up(members, brain=None, **settings):
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
def patient(tmp_path):
    """Writes a patient whose scans lie in an orientation like "LPS" or "SRA"; returns what the inferer would pass on."""

    def write(orientation="RAS", members=None, **settings):
        turn = nib.orientations.axcodes2ornt(orientation)
        ras = nib.orientations.axcodes2ornt("RAS")
        flair = np.full(SHAPE, 100, np.int16)
        flair[10:30, 10:30] += np.arange(20, dtype=np.int16)[:, None, None]
        t2 = np.zeros(SHAPE, np.uint8)
        t2[12:15, 12:15, 1] = 1
        dseg = np.full(SHAPE, 2, np.uint8)
        dseg[20:] = 42
        files = {
            f"sub-1/ses-{visit}/anat/sub-1_ses-{visit}_FLAIR": flair for visit in ("w000", "w048")
        } | {
            "derivatives/brain/sub-1/ses-w048/anat/sub-1_ses-w048_desc-brain_mask": np.ones(SHAPE, np.uint8),
            "derivatives/lesions/sub-1/ses-w048/anat/sub-1_ses-w048_label-T2lesion_mask": t2,
            "derivatives/synthseg/sub-1/ses-w048/anat/sub-1_ses-w048_dseg": dseg,
        }  # fmt: skip
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


def written(patient, **settings):
    WriteForecastd(output_dir=patient.out, **settings)(patient.data)
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
    result = summed_up(members, brain, rule=rule)
    opened = np.stack([rule.label((member * brain[0]).numpy(), np.eye(4)) > 0 for member in members])
    assert opened.any()
    np.testing.assert_array_equal(result["members"].numpy(), opened)
    np.testing.assert_allclose(result["pred"].numpy()[0], opened.mean(axis=0), rtol=1e-6)


def test_the_forecast_tells_the_members_distribution():
    forecast = summed_up(members_of_a_patient())["forecast"]
    assert forecast["num_members"] == 4 and forecast["p_active"] == 1
    assert forecast["count"] == {
        "mean": 1.25,
        "median": 1,
        "quantiles": {"5": 1, "25": 1, "50": 1, "75": 1, "95": 2},
        "histogram": {"0": 0, "1": 0.75, "2": 0.25},
    }
    assert forecast["volume_ml"]["mean"] == pytest.approx((3 * 2 + 3) / 4 * 0.012)
    assert forecast["volume_ml"]["quantiles"]["50"] == pytest.approx(0.024)


def test_one_member_forecasts_yes_or_no():
    result = summed_up(members_of_a_patient(1))
    assert set(np.unique(result["pred"].numpy())) == {0, 1}
    np.testing.assert_array_equal(result["consensus"], result["pred"])
    assert result["forecast"]["p_active"] == 1 and result["forecast"]["count"]["median"] == 2


def test_no_lesion_in_any_member():
    result = summed_up(torch.full((16, *GRID.shape), 0.49))
    assert not result["pred"].any() and not result["consensus"].any()
    assert result["forecast"]["p_active"] == 0 and result["forecast"]["p_active_interval"][0] == 0
    assert result["forecast"]["count"]["histogram"] == {"0": 1}
    assert result["forecast"]["volume_ml"] == {"mean": 0, "quantiles": dict.fromkeys(("5", "25", "50", "75", "95"), 0)}


def test_the_consensus_holds_what_enough_members_mark():
    assert summed_up(members_of_a_patient(), consensus_threshold=0.25)["consensus"].sum() == 3
    assert summed_up(members_of_a_patient(), consensus_threshold=0.26)["consensus"].sum() == 2


def test_an_answer_that_is_not_finite_is_refused():
    members = members_of_a_patient()
    members[1, 2, 3, 4] = torch.nan
    with pytest.raises(InputError, match="sub-1: .*not finite; use other weights"):
        summed_up(members)


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
        "schema_version", "notice", "case", "arm", "num_members", "p_active", "p_active_interval", "count", "volume_ml",
        "lesions", "likely_sites", "field_of_view", "seed", "num_steps", "guidance_scale",
        "arm_guidance_scale", "guidance_interval", "reuse_within", "weights_sha256", "versions",
    }  # fmt: skip
    assert (report["case"], report["arm"]) == ("sub-1", "avonex")
    assert (report["seed"], report["num_steps"], report["guidance_scale"]) == (3, 20, 1.0)
    assert report["weights_sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert set(report["lesions"][0]) == {"centroid_mm", "volume_mm3", "region", "probability"}
    assert set(report["likely_sites"][0]) == {"centre_mm", "radius_mm", "probability", "peak_probability", "region"}
    assert report["field_of_view"] | {"statement": ""} == {
        "axis": 2, "first_slice": 0, "last_slice": 4, "num_slices": 5, "statement": "",
    }  # fmt: skip
    assert "Research use only" in report["notice"]


def test_nothing_of_the_patient_but_the_label_is_passed_on(patient):
    files = written(patient())
    for suffix in ("probseg.nii.gz", "mask.nii.gz"):
        assert b"Jane Doe" not in nib.load(files[suffix]).to_bytes()
    assert "Jane Doe" not in files["forecast.json"].read_text()


def test_a_patient_without_lesions_gets_all_four_files(patient):
    files = written(patient(members=torch.zeros(2, *GRID.shape)))
    assert all(path.is_file() for path in files.values())
    report = json.loads(files["forecast.json"].read_text())
    assert report["lesions"] == [] and report["likely_sites"] == []
    assert not nib.load(files["probseg.nii.gz"]).get_fdata().any()


def test_the_same_forecast_again_gives_the_same_bytes(patient):
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


def test_an_output_folder_that_cannot_be_is_told_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written: .*choose another output_dir"):
        WriteForecastd(output_dir=tmp_path / "file/out")


def test_an_output_folder_that_went_bad_is_told_in_one_line(patient):
    case = patient()
    write = WriteForecastd(output_dir=case.out)
    case.out.write_text("")
    with pytest.raises(InputError, match="sub-1: .*choose another output_dir") as error:
        write(case.data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("step_mm", "first_mm", "slices", "expected"),
    [
        (3, -6, 5, (0, 4)),  # the slab's own slices
        (-3, 6, 5, (0, 4)),  # the same from above
        (1, -20, 60, (13, 27)),  # the slab reaches from -7.5 to 7.5 mm
        (6, -30, 20, (4, 6)),
        (3, -3, 3, (0, 2)),  # a scan that ends inside the slab
    ],
)
def test_slices_are_covered_where_their_middle_lies_in_the_slab(step_mm, first_mm, slices, expected):
    affine = np.diag([1.0, 1.0, step_mm, 1.0])
    affine[2, 3] = first_mm
    slab = Placed(np.zeros(GRID.shape), GRID.affine(np.zeros(3)))
    assert covered_slices(Placed(np.zeros((10, 10, slices)), affine), slab) == expected
