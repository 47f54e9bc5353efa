from datetime import date

import numpy as np
import pytest
from preparation_scans import turned, write_dicom

from bundle.data.preparation.dicom import find_series, read_series
from bundle.errors import InputError
from bundle.lesions import Volume

OBLIQUE = Volume(
    np.random.default_rng(0).integers(0, 4000, (7, 5, 9)).astype(np.float32),
    turned() @ np.array([[-0.7, 0, 0, 90.0], [0, -0.9, 0, 120], [0, 0, 4, -30], [0, 0, 0, 1]]),
)
DAY = date(2020, 1, 2)


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
