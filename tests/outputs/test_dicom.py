"""Forecasts as DICOM, read back with pydicom and highdicom, and judged by dciodvfy."""

import io
import json
import shutil
import subprocess
from datetime import date
from pathlib import Path

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
from conftest import TINY, inference_config
from PIL import Image
from preparation_scans import coarse, turned, write_dicom

from bundle.data.preparation.cohort import prepare_dataset
from bundle.data.preparation.dicom import read_series
from bundle.errors import InputError, input_error
from bundle.lesions import Volume
from bundle.outputs.dicom import SourceSeries
from bundle.outputs.dicom import write_dicom as write_results
from bundle.simulation.patient import simulate_patient

CASE = "sub-001"
MOTION = turned()  # of w048
KINDS = ("probability", "consensus", "page")


@pytest.fixture(scope="module")
def prepared_dicom(tmp_path_factory):
    """(folder of DICOM, prepared data set) of a patient whose second visit lies elsewhere."""
    folder = tmp_path_factory.mktemp("dicom")
    scans = simulate_patient(25, 0).flair
    for visit, day, motion in (("w000", date(2020, 1, 2), np.eye(4)), ("w048", date(2020, 12, 1), MOTION)):
        volume = coarse(scans[visit])
        volume = Volume(volume.values, motion @ volume.affine)
        write_dicom(volume, folder / "scans" / visit, day, StudyID="1", AccessionNumber="", StudyTime="101010")
    prepare_dataset(folder / "scans", folder / "data", workers=1)
    return folder / "scans", folder / "data"


@pytest.fixture(scope="module")
def flair(prepared_dicom):
    return prepared_dicom[1] / CASE / "ses-w048" / "anat" / f"{CASE}_ses-w048_FLAIR.nii.gz"


@pytest.fixture
def forecast(flair, tmp_path):
    """The four files of a forecast on the grid of w048."""
    scan = nib.load(flair)
    probability = np.random.default_rng(0).random(scan.shape, np.float32)
    consensus = np.zeros(scan.shape, np.uint8)
    consensus[30:34, 40:45, 5:7] = 1
    page = io.BytesIO()
    Image.fromarray(np.full((60, 80, 3), 200, np.uint8)).save(page, "png")
    names = [
        f"{CASE}_desc-net2_{ending}" for ending in ("probseg.nii.gz", "mask.nii.gz", "forecast.json", "forecast.png")
    ]
    files = [tmp_path / name for name in names]
    nib.save(nib.Nifti1Image(probability, scan.affine), files[0])
    nib.save(nib.Nifti1Image(consensus, scan.affine), files[1])
    files[2].write_text(json.dumps({"case": CASE}))
    files[3].write_bytes(page.getvalue())
    return files


@pytest.fixture
def written(prepared_dicom, flair, forecast):
    return write_results(forecast, flair, SourceSeries(prepared_dicom[0]), CASE)


def series_of(prepared_dicom, visit="w048"):
    return tuple(sorted((prepared_dicom[0] / visit).iterdir()))


def voxels(one, series):
    """Column, row and slice (3, F) of the series at which the first pixel of each frame of an object lies, and at which
    the last does, from the object's own functional groups.
    """
    shared = one.SharedFunctionalGroupsSequence[0]
    row, column = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3)).astype(float)
    between_rows, between_columns = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    frames = one.PerFrameFunctionalGroupsSequence
    first = np.array([frame.PlanePositionSequence[0].ImagePositionPatient for frame in frames], float)
    last = first + row * between_columns * (one.Columns - 1) + column * between_rows * (one.Rows - 1)
    to_index = np.linalg.inv(np.diag([-1.0, -1, 1, 1]) @ series.affine)
    return [(to_index @ np.vstack([points.T, np.ones(len(points))]))[:3] for points in (first, last)]


def test_values_and_geometry_are_those_of_the_series(prepared_dicom, forecast, written):
    series = read_series(series_of(prepared_dicom), CASE)
    parametric_map, segmentation = (pydicom.dcmread(path) for path in written[:2])
    expected = [np.asanyarray(nib.load(path).dataobj) for path in forecast[:2]]
    frames = np.frombuffer(parametric_map.FloatPixelData, np.float32).reshape(-1, *expected[0].shape[1::-1])
    # A prepared_dicom scan keeps the voxels of its series, so voxel (i, j, k) is column i, row j of slice k.
    for one, found, values in zip((parametric_map, segmentation), (frames, segmentation.pixel_array), expected):
        first, last = voxels(one, series)
        slices = np.round(first[2]).astype(int)
        assert sorted(slices) == list(range(values.shape[2]))
        in_voxels = 0.01 / max(np.linalg.norm(series.affine[:3, :3], axis=0))  # .01 mm
        zeros = np.zeros_like(first[0])
        np.testing.assert_allclose(first, [zeros, zeros, slices], atol=in_voxels)
        np.testing.assert_allclose(last, [zeros + one.Columns - 1, zeros + one.Rows - 1, slices], atol=in_voxels)
        for frame, slice_ in zip(found, slices):
            np.testing.assert_array_equal(frame, values[:, :, slice_].T)
    assert highdicom.seg.segread(written[1]).number_of_segments == 1


def test_they_belong_to_the_study_and_say_what_they_are(prepared_dicom, written):
    image = pydicom.dcmread(series_of(prepared_dicom)[0])
    objects = [pydicom.dcmread(path) for path in written]
    for one in objects:
        assert (one.StudyInstanceUID, one.PatientID) == (image.StudyInstanceUID, image.PatientID)
        assert one.SeriesInstanceUID != image.SeriesInstanceUID
        assert one.SeriesDescription.startswith("Research use only")
    assert len({one.SeriesInstanceUID for one in objects}) == 3
    assert all(one.FrameOfReferenceUID == image.FrameOfReferenceUID for one in objects[:2])
    assert objects[0].ContentQualification == "RESEARCH"
    assert objects[2].EncapsulatedDocument.startswith(b"%PDF")
    assert objects[2].BurnedInAnnotation == "YES"  # the notice stands on the page


def test_the_same_forecast_is_the_same_object(prepared_dicom, flair, forecast, written):
    before = [pydicom.dcmread(path).SOPInstanceUID for path in written]
    again = write_results(forecast, flair, SourceSeries(prepared_dicom[0]), CASE)
    assert [pydicom.dcmread(path).SOPInstanceUID for path in again] == before
    forecast[2].write_text(json.dumps({"case": CASE, "arm": "placebo"}))
    other = write_results(forecast, flair, SourceSeries(prepared_dicom[0]), CASE)
    assert not {pydicom.dcmread(path).SOPInstanceUID for path in other} & set(before)


def test_an_empty_consensus_is_written(prepared_dicom, flair, forecast):
    mask = nib.load(forecast[1])
    nib.save(nib.Nifti1Image(np.zeros(mask.shape, np.uint8), mask.affine), forecast[1])
    _, segmentation, _ = write_results(forecast, flair, SourceSeries(prepared_dicom[0]), CASE)
    assert not pydicom.dcmread(segmentation).pixel_array.any()


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian's dicom3tools) is not installed")
def test_dciodvfy_finds_no_error(written):
    for path in written:
        judged = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True)
        assert "Error" not in judged.stdout + judged.stderr, judged.stderr


def test_the_data_set_alone_does_not_give_the_patient_away(prepared_dicom):
    image = pydicom.dcmread(series_of(prepared_dicom)[0])
    for path in prepared_dicom[1].rglob("*.json"):
        assert image.SeriesInstanceUID not in path.read_text() and image.PatientID not in path.read_text()


def test_a_series_that_is_not_there_is_one_line(prepared_dicom, flair, forecast, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(InputError, match=f"{CASE}: .*its series is not in"):
        write_results(forecast, flair, SourceSeries(other), CASE)
    with pytest.raises(InputError, match="no such folder of DICOM"):
        SourceSeries(tmp_path / "nowhere")
    alone = tmp_path / flair.name
    shutil.copy(flair, alone)
    with pytest.raises(InputError, match="no JSON file beside it"):
        write_results(forecast, alone, SourceSeries(prepared_dicom[0]), CASE)


def test_a_map_that_lies_elsewhere_is_refused(prepared_dicom, flair, forecast):
    scan = nib.load(forecast[0])
    affine = scan.affine.copy()
    affine[:3, 3] += 0.4
    nib.save(nib.Nifti1Image(scan.get_fdata(dtype=np.float32), affine), forecast[0])
    with pytest.raises(InputError, match="does not lie on the voxels"):
        write_results(forecast, flair, SourceSeries(prepared_dicom[0]), CASE)


@pytest.mark.slow
def test_inference_writes_them_with_its_other_files(prepared_dicom, tiny_weights, tmp_path):
    few = {"num_members": 2, "num_steps": 2, "progress": False, "weights": str(tiny_weights)}
    places = {"dataset_dir": str(prepared_dicom[1]), "output_dir": str(tmp_path), "write_dicom": str(prepared_dicom[0])}
    inference_config(**TINY | few | places).get_parsed_content("inference")
    assert {path.name for path in (tmp_path / CASE).glob("*.dcm")} == {f"{CASE}_desc-net2_{kind}.dcm" for kind in KINDS}
    with pytest.raises(Exception) as caught:
        inference_config(**TINY | few | places | {"write_dicom": str(Path("nowhere"))}).get_parsed_content("inference")
    assert "no such folder of DICOM" in str(input_error(caught.value))
