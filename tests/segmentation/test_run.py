"""Masks for the visits that have none, marked as estimated all the way to the page."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import bundle_config, start_bundle
from segmentation_network import TINY, Bright

from bundle.data.bids import find_case
from bundle.data.estimated import estimation
from bundle.data.transforms import LoadCased, plain_inputs
from bundle.errors import Guard, InputError
from bundle.networks.weights import export_weights
from bundle.outputs.notes import input_lines
from bundle.segmentation.run import run_segmentation, segment_patient, wanted_masks
from bundle.segmentation.segmenter import Segmenter

CASE = "sub-0001"


@pytest.fixture
def hospital(trial, tmp_path):
    """A data set of one patient with FLAIR and brain masks alone."""
    root = tmp_path / "hospital"
    shutil.copytree(trial / CASE, root / CASE)
    shutil.copytree(trial / "derivatives/brain" / CASE, root / "derivatives/brain" / CASE)
    return root


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "segmenter.pt"
    path.write_bytes(b"weights")
    return path


def item(root):
    return {"image": str(root / CASE), "dataset_dir": str(root)}


def test_what_is_missing_is_made_and_what_is_there_stays(hospital, weights):
    given = find_case(CASE, hospital).expected_path("t2_w000")
    given.parent.mkdir(parents=True)
    flair = nib.load(find_case(CASE, hospital).volumes["flair_w000"])
    nib.save(nib.Nifti1Image(np.zeros(flair.shape, np.uint8), flair.affine), given)
    before = given.read_bytes()
    written = segment_patient(item(hospital), Segmenter(Bright()), weights)
    assert [path.name.split("_")[1:3] for path in written] == [
        ["ses-w048", "label-T2lesion"],
        ["ses-w048", "label-NET2"],
    ]
    assert given.read_bytes() == before
    assert segment_patient(item(hospital), Segmenter(Bright()), weights) == []


def test_forecasts_know_which_masks_are_estimated(hospital, weights):
    segment_patient(item(hospital), Segmenter(Bright()), weights)
    inputs, warnings = plain_inputs(LoadCased()({"image": hospital / CASE, "dataset_dir": hospital}))
    assert inputs["estimated"] == ["t2_w000", "t2_w048", "net2_w048"]
    assert inputs["missing"] == ["gd_w000", "gd_w048"]
    assert "marked by a program, not by a reader: t2_w000, t2_w048, net2_w048" in warnings
    lines = input_lines(inputs)
    assert "    marked by a program: T2 lesions, new T2 lesions" in lines


def test_a_mask_put_in_place_of_an_estimated_one_is_given(hospital, weights):
    first, *_ = segment_patient(item(hospital), Segmenter(Bright()), weights)
    about = estimation(first)
    assert about["Manual"] is False and about["Sources"] == [f"{CASE}_ses-w000_FLAIR.nii.gz"]
    mask = nib.load(first)
    values = np.asanyarray(mask.dataobj).copy()
    values[tuple(np.argwhere(values)[0])] = 0
    nib.save(nib.Nifti1Image(values, mask.affine), first)
    assert estimation(first) is None
    inputs, _ = plain_inputs(LoadCased()({"image": hospital / CASE, "dataset_dir": hospital}))
    assert inputs["estimated"] == ["t2_w048", "net2_w048"]


def test_masks_of_other_weights_are_made_again(hospital, weights):
    segment_patient(item(hospital), Segmenter(Bright()), weights)
    weights.write_bytes(b"others")
    assert len(segment_patient(item(hospital), Segmenter(Bright()), weights)) == 3


def test_one_visit_has_no_new_lesions_and_gadolinium_is_never_marked(hospital):
    case = find_case(CASE, hospital)
    assert wanted_masks(case, "") == [("w000", None, ["t2"]), ("w048", "w000", ["t2", "net2"])]
    assert wanted_masks(case, "", ["t2"]) == [("w000", None, ["t2"]), ("w048", None, ["t2"])]
    assert wanted_masks(case, "", ["net2"]) == [("w048", "w000", ["net2"])]
    shutil.rmtree(hospital / CASE / "ses-w000")
    assert wanted_masks(find_case(CASE, hospital), "") == [("w048", None, ["t2"])]


@pytest.mark.parametrize("lesions", ["t2", [], ["gd"]])
def test_kinds_that_it_cannot_mark_are_refused(hospital, weights, lesions):
    with pytest.raises(InputError, match="correct --lesions"):
        run_segmentation([item(hospital)], Segmenter(Bright()), weights, Guard(), lesions)


def test_the_command_segments_and_prints_a_line_for_what_it_cannot_read(hospital, tmp_path):
    path = tmp_path / "tiny.pt"
    torch.manual_seed(0)
    export_weights(bundle_config("segment.json", **TINY).get_parsed_content("network_def"), path)
    bad = hospital / "sub-0002" / "ses-w000" / "anat"
    bad.mkdir(parents=True)
    (bad / "sub-0002_ses-w000_FLAIR.nii.gz").write_bytes(b"no scan")
    settings = TINY | {"dataset_dir": hospital, "weights": path, "progress": False}
    process = start_bundle("segmentation", "configs/segment.json", **settings)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output
    assert "error: sub-0002: " in output and "Traceback" not in output
    assert "segmented 1 of 2 patients; 1 not segmented" in output
    sidecars = sorted((hospital / "derivatives/lesions" / CASE).rglob("*.json"))
    assert len(sidecars) == 2  # T2 lesions of both visits
    assert all(json.loads(file.read_text())["Manual"] is False for file in sidecars)
    assert not list(hospital.rglob(".*part"))
