"""DICOM series: finding them in a tree of files by their headers, and reading one as a volume."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from bundle.errors import InputError
from bundle.lesions import Volume

_TAGS = (
    "SOPClassUID",
    "Modality",
    "PatientID",
    "PatientName",
    "StudyDate",
    "SeriesDate",
    "AcquisitionDate",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "ProtocolName",
    "SequenceName",
    "ImageType",
    "EchoNumbers",
    "EchoTime",
    "InversionTime",
    "ContrastBolusAgent",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "InstanceNumber",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "PixelSpacing",
)
OWN_NAME = "ms-net2-forecast"  # Manufacturer of what this software writes
_UNEVEN = 0.1  # of the slice distance: larger differences are missing slices
_DERIVED = re.compile(r"\b(mpr|mip|minip|reformat|sub|subtraction|fused|screen|localizer|scout|map)\b", re.IGNORECASE)
_FLAIR = re.compile(r"flair|dark.?fl|tirm", re.IGNORECASE)
_FLAIR_TI_MS, _FLAIR_TE_MS = (1500.0, 3000.0), 60.0


@dataclass(frozen=True)
class Series:
    """One DICOM series of one orientation and echo.

    Attributes:
        files: its slices, as they lie in the folder.
        patient: PatientID, or the name where there is none; never written or printed.
        day: of the study, None if unknown.
        number: SeriesNumber, 0 if unknown.
        description: SeriesDescription, else protocol or sequence; shown on the console only.
        flair: whether it looks like a FLAIR.
        derived: whether it was computed from another series.
        contrast: whether a contrast agent is named.
        slices: how many images.
    """

    files: tuple[Path, ...]
    patient: str
    day: date | None
    number: int
    description: str
    flair: bool
    derived: bool
    contrast: bool
    slices: int


@dataclass(frozen=True)
class Segment:
    """One segment of a DICOM Segmentation.

    Attributes:
        file: the object.
        segment: its number.
        patient, day, number: as those of `Series`.
        label: SegmentLabel and SeriesDescription; shown on the console only.
    """

    file: Path
    segment: int
    patient: str
    day: date | None
    number: int
    label: str


def find_segments(files: Iterable[Path]) -> list[Segment]:
    """The segments of all DICOM Segmentations among files. Other files are passed over."""
    from pydicom.uid import SegmentationStorage

    found = []
    for path in files:
        header = _header(path, "SegmentSequence", "Manufacturer")
        if header is None or _text(header, "Manufacturer") == OWN_NAME:  # a forecast is no finding
            continue
        if header.get("SOPClassUID") == SegmentationStorage:
            description = _text(header, "SeriesDescription")
            for one in header.get("SegmentSequence") or ():
                label = " ".join(filter(None, [_text(one, "SegmentLabel"), description]))
                patient, number = _patient(header, path), int(header.get("SeriesNumber") or 0)
                found.append(Segment(path, int(one.SegmentNumber), patient, _day(header), number, label))
    return found


def read_segment(path: Path, segment: int, case: str) -> Volume:
    """The mask (X, Y, Z) uint8 of one segment of a DICOM Segmentation, in RAS.

    Raises:
        InputError: highdicom is not installed, or the object is no volume.
    """
    try:
        from highdicom.seg import segread
    except ImportError as error:
        fix = "pip install highdicom, or give the masks as NIfTI"
        raise InputError("a mask in DICOM needs highdicom", fix, case=case, file=path) from error
    try:
        volume = segread(path).get_volume(segment_numbers=[segment])
    except Exception as error:  # what a damaged or irregular object raises depends on where
        problem = f"segment {segment} cannot be read as a volume"
        raise InputError(problem, "export it again, or give the mask as NIfTI", case=case, file=path) from error
    values = (volume.array[..., 0] > 0).astype(np.uint8).transpose(2, 1, 0)  # from slice, row, column
    return Volume(values, np.diag([-1.0, -1, 1, 1]) @ volume.affine[:, [2, 1, 0, 3]], path)


def find_series(files: Iterable[Path]) -> list[Series]:
    """The MR series among files, in order of patient, day and number. Other files and modalities are passed over."""
    groups: dict[tuple, list[tuple[Path, Any]]] = {}
    for path in files:
        header = _header(path)
        if header is not None and _text(header, "Modality") == "MR" and "Rows" in header:
            groups.setdefault(_group(header, path), []).append((path, header))
    found = [_series(members) for members in groups.values()]
    return sorted(found, key=lambda series: (series.patient, series.day or date.min, series.number, series.files[0]))


def read_series(files: tuple[Path, ...], case: str) -> Volume:
    """A DICOM series as a volume (X, Y, Z) float32 in RAS, slices sorted by position.

    Raises:
        InputError: unreadable, slices missing or several at one place.
    """
    import SimpleITK as sitk

    from bundle.data.preparation.images import from_itk

    folder = files[0].parent
    try:
        if len(files) == 1:
            image = sitk.ReadImage(str(files[0]), sitk.sitkFloat32)
            values, affine = from_itk(image)
        else:
            files, affine = sorted_slices(files, case)
            reader = sitk.ImageSeriesReader()
            reader.SetFileNames([str(path) for path in files])
            reader.SetOutputPixelType(sitk.sitkFloat32)
            values, _ = from_itk(reader.Execute())
    except RuntimeError as error:
        raise InputError("a DICOM series that cannot be read", "export it again", case=case, file=folder) from error
    if values.ndim != 3 or min(values.shape) < 2:
        raise InputError("a DICOM series that is not a volume", "export it again", case=case, file=folder)
    if not np.isfinite(values).all() or values.max() == values.min():
        raise InputError("a DICOM series without an image", "export it again", case=case, file=folder)
    return Volume(values - values.min(), affine, folder)


def sorted_slices(files: tuple[Path, ...], case: str) -> tuple[list[Path], np.ndarray]:
    """Slices from one end to the other, and the affine (4, 4) in RAS."""
    import pydicom

    tags = ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"]
    headers = [pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags) for path in files]
    try:
        row, column = np.reshape(headers[0].ImageOrientationPatient, (2, 3)).astype(float)
        positions = np.array([header.ImagePositionPatient for header in headers], float)
        spacing = np.array(headers[0].PixelSpacing, float)
    except (AttributeError, TypeError, ValueError) as error:
        problem = "a DICOM series without positions of its slices"
        raise InputError(problem, "export it again", case=case, file=files[0].parent) from error
    heights = positions @ np.cross(row, column)
    order = np.argsort(heights, kind="stable")
    gaps = np.diff(heights[order])
    step = float(np.median(gaps))
    if step <= 0 or (gaps < 0.5 * step).any():
        problem = f"series of {len(files)} images has several at one place"
        raise InputError(
            problem, "name the right series in --table, or export it alone", case=case, file=files[0].parent
        )
    if (np.abs(gaps - step) > _UNEVEN * step).any():
        missing = int(round((heights.max() - heights.min()) / step)) + 1 - len(files)
        problem = f"{max(missing, 1)} slices are missing" if missing > 0 else "slices at uneven distances"
        raise InputError(problem, "export the whole series", case=case, file=files[0].parent)
    ends = positions[order[[0, -1]]]
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * spacing[1], column * spacing[0]  # PixelSpacing is between rows, then columns
    affine[:3, 2] = (ends[1] - ends[0]) / (len(files) - 1)
    affine[:3, 3] = ends[0]
    return [files[i] for i in order], np.diag([-1.0, -1, 1, 1]) @ affine


def _group(header: Any, path: Path) -> tuple:
    """What the images of one volume have in common."""
    orientation = tuple(round(float(x), 2) for x in header.get("ImageOrientationPatient") or ())
    uid = _text(header, "SeriesInstanceUID") or str(path.parent)
    single = str(path) if int(header.get("NumberOfFrames") or 1) > 1 else ""
    return uid, header.Rows, header.Columns, orientation, _text(header, "EchoNumbers"), single


def _series(members: list[tuple[Path, Any]]) -> Series:
    path, header = members[0]
    names = [_text(header, name) for name in ("SeriesDescription", "ProtocolName", "SequenceName")]
    image_type = _text(header, "ImageType").upper()
    return Series(
        files=tuple(sorted(path for path, _ in members)),
        patient=_patient(header, path),
        day=_day(header),
        number=int(header.get("SeriesNumber") or 0),
        description=next((name for name in names if name), ""),
        flair=any(_FLAIR.search(name) for name in names) or _flair_by_timing(header),
        derived="DERIVED" in image_type or bool(_DERIVED.search(names[0].replace("_", " "))),
        contrast=bool(_text(header, "ContrastBolusAgent")),
        slices=max(len(members), int(header.get("NumberOfFrames") or 1)),
    )


def _flair_by_timing(header: Mapping[str, Any]) -> bool:
    """Whether fluid is nulled and the weighting is T2."""
    try:
        inversion, echo = float(header.get("InversionTime") or 0), float(header.get("EchoTime") or 0)
    except (TypeError, ValueError):
        return False
    return _FLAIR_TI_MS[0] <= inversion <= _FLAIR_TI_MS[1] and echo >= _FLAIR_TE_MS


def _header(path: Path, *more: str) -> Any:
    """The header of a DICOM file, of `_TAGS` and `more`; None of another file."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[*_TAGS, *more])
    except (InvalidDicomError, OSError, EOFError, ValueError, KeyError, AttributeError, NotImplementedError):
        return None


def _patient(header: Any, path: Path) -> str:
    return _text(header, "PatientID") or _text(header, "PatientName") or path.parent.as_posix()


def _day(header: Any) -> date | None:
    for name in ("StudyDate", "SeriesDate", "AcquisitionDate"):
        if found := re.fullmatch(r"(\d{4})[.]?(\d\d)[.]?(\d\d)", _text(header, name)):
            try:
                return date(*map(int, found.groups()))
            except ValueError:
                continue
    return None


def _text(header: Any, name: str) -> str:
    value = header.get(name)
    return "" if value is None else str(value).strip()
