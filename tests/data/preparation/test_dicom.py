from datetime import date

import numpy as np
import pydicom
import pytest
from highdicom.seg import Segmentation, SegmentDescription
from preparation_scans import turned, write_dicom
from pydicom.sr.codedict import codes

from bundle.data.grid import read_nearest
from bundle.data.preparation.dicom import (
    OWN_NAME,
    find_segments,
    find_series,
    read_segment,
    read_series,
    sorted_slices,
)
from bundle.data.preparation.sources import find_subjects
from bundle.errors import InputError
from bundle.lesions import Volume

OBLIQUE = Volume(
    np.random.default_rng(0).integers(0, 4000, (7, 5, 9)).astype(np.float32),
    turned() @ np.array([[-0.7, 0, 0, 90.0], [0, -0.9, 0, 120], [0, 0, 4, -30], [0, 0, 0, 1]]),
)
DAY = date(2020, 1, 2)
# Of the images that a Segmentation refers to.
REQUIRED = {
    "StudyID": "1",
    "AccessionNumber": "",
    "StudyTime": "101010",
    "PatientSex": "",
    "ReferringPhysicianName": "",
}


def test_an_oblique_series_is_read_as_it_was_written(tmp_path):
    write_dicom(OBLIQUE, tmp_path, DAY)
    (series,) = find_series(sorted(tmp_path.iterdir()))
    assert (series.patient, series.day, series.slices, series.flair) == ("MRN-4711", DAY, 9, True)
    volume = read_series(series.files, "sub-1")
    np.testing.assert_allclose(volume.affine, OBLIQUE.affine, atol=1e-4)
    np.testing.assert_array_equal(volume.values, OBLIQUE.values - OBLIQUE.values.min())


def test_rescaled_values_are_read(tmp_path):
    write_dicom(OBLIQUE, tmp_path, DAY, RescaleSlope="2", RescaleIntercept="10")
    volume = read_series(tuple(sorted(tmp_path.iterdir())), "sub-1")
    np.testing.assert_array_equal(volume.values, 2 * (OBLIQUE.values - OBLIQUE.values.min()))


def test_missing_and_doubled_slices_are_refused(tmp_path):
    write_dicom(OBLIQUE, tmp_path / "a", DAY, skip=(4,))
    with pytest.raises(InputError, match="1 slices are missing"):
        read_series(tuple(sorted((tmp_path / "a").iterdir())), "sub-1")
    write_dicom(OBLIQUE, tmp_path / "b", DAY)
    write_dicom(OBLIQUE, tmp_path / "b" / "c", DAY)
    files = tuple(sorted(path for path in (tmp_path / "b").rglob("IM*")))
    with pytest.raises(InputError, match="several at one place"):
        read_series(files, "sub-1")


def test_other_files_and_other_modalities_are_passed_over(tmp_path):
    (tmp_path / "text").write_text("no DICOM")
    (tmp_path / "empty").touch()
    write_dicom(OBLIQUE, tmp_path / "ct", DAY, Modality="CT")
    assert find_series(sorted(path for path in tmp_path.rglob("*") if path.is_file())) == []


def test_a_file_without_pixels_is_refused_in_one_line(tmp_path):
    write_dicom(OBLIQUE, tmp_path, DAY)
    files = tuple(sorted(tmp_path.iterdir()))
    files[3].write_bytes(files[3].read_bytes()[:-60])
    with pytest.raises(InputError, match="DICOM series"):
        read_series(files, "sub-1")


@pytest.mark.parametrize(
    ("description", "tags", "flair", "derived"),
    [
        ("t2_space_dark-fluid_sag", {}, True, False),
        ("TIRM tra", {}, True, False),
        ("Sag CUBE", {"InversionTime": 1650, "EchoTime": 120}, True, False),
        ("T1 MPRAGE", {"InversionTime": 900, "EchoTime": 3}, False, False),
        ("FLAIR_MPR_tra", {}, True, True),
        ("FLAIR", {"ImageType": ["DERIVED", "SECONDARY"]}, True, True),
    ],
)
def test_a_flair_is_known_by_its_name_or_timing(tmp_path, description, tags, flair, derived):
    write_dicom(OBLIQUE, tmp_path, DAY, description=description, **tags)
    (series,) = find_series(sorted(tmp_path.iterdir()))
    assert (series.flair, series.derived) == (flair, derived)


@pytest.fixture
def segmentation(tmp_path):
    """(folder of a series, its mask (X, Y, Z), a DICOM Segmentation of T2 and of new lesions)."""
    write_dicom(OBLIQUE, tmp_path / "series", DAY, **REQUIRED)
    files, _ = sorted_slices(tuple(sorted((tmp_path / "series").iterdir())), "sub-1")
    masks = np.zeros((2, *OBLIQUE.values.shape), np.uint8)
    masks[0, 2:5, 1:3, 3:6] = masks[1, 5, 2, 7] = 1

    def write(manufacturer="ACME", number=0):
        descriptions = [
            SegmentDescription(
                n,
                label,
                codes.SCT.MorphologicallyAbnormalStructure,
                codes.SCT.Lesion,
                "MANUAL",
            )
            for n, label in ((1, "T2 lesions"), (2, "New lesions"))
        ]
        one = Segmentation(
            [pydicom.dcmread(path) for path in files],
            np.moveaxis(masks, 0, -1).transpose(2, 1, 0, 3),
            "BINARY",
            descriptions,
            series_instance_uid=pydicom.uid.generate_uid(),
            series_number=100,
            sop_instance_uid=pydicom.uid.generate_uid(),
            instance_number=1,
            manufacturer=manufacturer,
            manufacturer_model_name="reader",
            software_versions="1",
            device_serial_number="1",
        )
        path = tmp_path / f"seg{number}"
        one.save_as(path)
        return path

    return masks, write


def test_segments_are_found_with_patient_day_and_label(segmentation):
    _, write = segmentation
    found = find_segments([write()])
    assert [(one.segment, one.patient, one.day, one.label) for one in found] == [
        (1, "MRN-4711", DAY, "T2 lesions"),
        (2, "MRN-4711", DAY, "New lesions"),
    ]


def test_a_segment_lies_where_it_was_drawn(segmentation):
    masks, write = segmentation
    path = write()
    for segment, mask in enumerate(masks, start=1):
        volume = read_segment(path, segment, "sub-1")
        found = read_nearest(volume.values, volume.affine, OBLIQUE.affine, OBLIQUE.values.shape)
        np.testing.assert_array_equal(found, mask)


def test_a_forecast_is_no_finding(segmentation):
    _, write = segmentation
    assert find_segments([write(manufacturer=OWN_NAME)]) == []


def test_a_damaged_segmentation_is_one_line(segmentation):
    _, write = segmentation
    path = write()
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="sub-1: .*segment 1 cannot be read"):
        read_segment(path, 1, "sub-1")


def test_segments_become_the_masks_of_their_study(segmentation, tmp_path):
    _, write = segmentation
    write()
    (subject,) = find_subjects(tmp_path)
    (study,) = subject.studies
    assert {kind: scan.segment for kind, scan in study.scans.items()} == {"flair": None, "t2": 1, "net2": 2}
