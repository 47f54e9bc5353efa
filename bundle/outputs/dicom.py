"""A forecast as DICOM, on the patient's own series: Parametric Map, Segmentation, and the page as a PDF.

The data set knows no patient: names and UIDs are read from the series that the scan was prepared from, which is found
again by the digest that `scripts.prepare` left.
"""

import io
import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform

from bundle import __version__
from bundle.data.estimated import sidecar_of
from bundle.data.preparation.dicom import OWN_NAME
from bundle.data.volumes import read_volume
from bundle.errors import InputError
from bundle.files import not_writable, write_together
from bundle.lesions import Volume

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

FILES = ("probability.dcm", "consensus.dcm", "page.dcm")
_MODEL = "treatment-aware diffusion model"
_FIRST_SERIES_NUMBER = 9001  # of what is written: after those of the scanner
_ALIGNED = 0.01  # voxels
_DESCRIPTION = "Research use only; NET2 forecast"
_OF_IMAGES = ("content_description", "device_serial_number")
_REQUIRED = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
_PDF = "1.2.840.10008.5.1.4.1.1.104.1"  # Encapsulated PDF Storage


class WriteDicomd(MapTransform):
    """Writes the forecast of a case as DICOM beside its other files, if `source` is given.

    Files: <prefix>_probability.dcm (Parametric Map), <prefix>_consensus.dcm (Segmentation), <prefix>_page.dcm
    (Encapsulated PDF), in the study and on the frame of reference of the FLAIR's own series. Adds them to `files`.

    Args:
        keys: heatmap of `RestoreNatived`, after `bundle.outputs.writers.WriteForecastd`.
        source: folder with the DICOM that `scripts.prepare` read; nothing is written if it is not given.

    Raises:
        InputError: there is no such folder, highdicom is not installed, or the case's series is not found.
    """

    def __init__(self, keys: KeysCollection = "pred", *, source: str | Path | None = None) -> None:
        super().__init__(keys)
        self.source = None if source is None else SourceSeries(source)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        output = dict(data)
        if self.source is None:
            return output
        for key in self.key_iterator(output):
            flair = Path(output[key].meta["filename_or_obj"])
            output["files"] = [*output["files"], *write_dicom(output["files"], flair, self.source, output["case"])]
        return output


class SourceSeries:
    """The series of a folder of DICOM, found by the digest of their files.

    Args:
        folder: what `scripts.prepare` was given, or any folder that holds it.

    Raises:
        InputError: there is no such folder, or highdicom is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(str(folder))
        if not self.folder.is_dir():
            raise InputError("no such folder of DICOM", "correct --write_dicom", file=self.folder)
        try:
            import highdicom  # noqa: F401
        except ImportError as error:
            raise InputError("DICOM output needs highdicom", "pip install highdicom") from error
        self._by_digest: dict[str, tuple[Path, ...]] | None = None

    def of(self, flair: Path, case: str) -> tuple[tuple[Path, ...], np.ndarray]:
        """Files of the series that a prepared FLAIR was made of, and the matrix (4, 4) from the scanner's world to its.

        Raises:
            InputError: the FLAIR was not made of a series in the folder.
        """
        from bundle.data.preparation.dicom import find_series
        from bundle.data.preparation.provenance import scan_digest
        from bundle.data.preparation.sources import Scan

        try:
            about = json.loads(sidecar_of(flair).read_bytes())
            digests, matrix = list(about["Sources"]), np.array(about["MatrixToThatWorld"], float)
            if matrix.shape != (4, 4):
                raise ValueError("not a matrix")
        except (OSError, ValueError, LookupError, TypeError) as error:
            fix = "prepare the scans with scripts.prepare"
            raise InputError("no JSON file beside it that names its series", fix, case=case, file=flair) from error
        if self._by_digest is None:
            series = find_series(sorted(path for path in self.folder.rglob("*") if path.is_file()))
            self._by_digest = {f"sha256:{scan_digest(Scan(one.files, dicom=True))}": one.files for one in series}
        for digest in digests:
            if digest in self._by_digest:
                return self._by_digest[digest], matrix
        problem = f"its series is not in {self.folder}"
        raise InputError(problem, "give the folder that was prepared: --write_dicom", case=case, file=flair)


def write_dicom(files: Sequence[Path], flair: Path, source: SourceSeries, case: str) -> list[Path]:
    """Writes the three objects beside a forecast.

    Args:
        files: of `bundle.outputs.writers.WriteForecastd`.
        flair: the scan on whose grid they are.
        source: series by digest.
        case: participant label.

    Returns:
        Their paths.

    Raises:
        InputError: the series is not found, is not the one that the forecast lies on, or nothing can be written.
    """
    probability, consensus, report, page = files
    series, matrix = source.of(flair, case)
    objects = dicom_objects(
        read_volume(probability, case),
        read_volume(consensus, case),
        report.read_bytes(),
        page.read_bytes(),
        series,
        matrix,
        case,
    )
    prefix = probability.name.removesuffix("probseg.nii.gz")
    contents = {}
    for name, one in zip(FILES, objects):
        stream = io.BytesIO()
        one.save_as(stream, enforce_file_format=True)
        contents[f"{prefix}{name}"] = stream.getvalue()
    try:
        return write_together(probability.parent, contents)
    except OSError as error:
        raise not_writable(probability.parent, error.strerror, case) from error


def dicom_objects(
    probability: Volume,
    consensus: Volume,
    report: bytes,
    page: bytes,
    series: Sequence[Path],
    matrix: np.ndarray,
    case: str,
) -> tuple["Dataset", "Dataset", "Dataset"]:
    """Parametric Map, Segmentation and Encapsulated PDF of a forecast.

    The same forecast gives the same UIDs, so that an archive which has them takes them as the same objects.

    Args:
        probability, consensus: (X, Y, Z) on the grid of the prepared FLAIR.
        report: the forecast's JSON, which tells one forecast from another.
        page: PNG.
        series: files of the FLAIR's series.
        matrix: (4, 4), from the scanner's world to that of the prepared FLAIR, in RAS.
        case: participant label.

    Raises:
        InputError: the maps do not lie on the series.
    """
    import highdicom
    import pydicom
    from highdicom import VOILUTTransformation
    from highdicom.pm import ParametricMap, RealWorldValueMapping
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    from bundle.data.preparation.dicom import sorted_slices

    if len(series) < 2:
        fix = "export it as one file a slice"
        raise InputError("a series in one file cannot carry DICOM results", fix, case=case, file=series[0])
    files, affine = sorted_slices(tuple(series), case)
    images = [_with_required(pydicom.dcmread(path)) for path in files]
    shape = (images[0].Columns, images[0].Rows, len(images))
    frames = [
        np.ascontiguousarray(_on_series(one, matrix, affine, shape, case).transpose(2, 1, 0))
        for one in (probability, consensus)
    ]
    common = {
        "instance_number": 1,
        "manufacturer": OWN_NAME,
        "manufacturer_model_name": _MODEL,
        "software_versions": __version__,
        "device_serial_number": "0",
        "content_description": _DESCRIPTION,
    }

    def uids(number: int) -> dict[str, Any]:
        root = [images[0].SeriesInstanceUID, report.hex(), str(number)]
        return {
            "series_instance_uid": pydicom.uid.generate_uid(entropy_srcs=[*root, "series"]),
            "sop_instance_uid": pydicom.uid.generate_uid(entropy_srcs=[*root, "instance"]),
            "series_number": _FIRST_SERIES_NUMBER + number,
        }

    mapping = RealWorldValueMapping(
        lut_label="NET2",
        lut_explanation="Probability of a new T2 lesion",
        unit=Code("1", "UCUM", "no units"),
        value_range=(0.0, 1.0),
        slope=1.0,
        intercept=0.0,
        quantity_definition=Code("NET2P", "99MSNET2", "Probability of a new or enlarging T2 lesion"),
    )
    parametric_map = ParametricMap(
        images,
        frames[0].astype(np.float32),
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[VOILUTTransformation(0.25, 0.5, voi_lut_function="LINEAR_EXACT")],
        content_label="NET2_PROBABILITY",
        **uids(0),
        **common,
    )
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=OWN_NAME, family=codes.DCM.ArtificialIntelligence, version=__version__
    )
    segment = SegmentDescription(
        segment_number=1,
        segment_label="NET2 consensus",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
    )
    segmentation = Segmentation(
        images,
        (frames[1] >= 0.5).astype(np.uint8),
        "BINARY",
        [segment],
        omit_empty_frames=False,  # an empty mask is a mask
        content_label="NET2_CONSENSUS",
        **uids(1),
        **common,
    )
    for one in (parametric_map, segmentation):
        one.SeriesDescription = _DESCRIPTION
    parametric_map.Laterality = ""  # dciodvfy asks for it here, and only here
    return parametric_map, segmentation, _encapsulated(page, images[0], uids(2), common)


def _with_required(image: "Dataset") -> "Dataset":
    """The image with the attributes that every image must have, empty where an export has left them out."""
    for name in _REQUIRED:
        if name not in image:
            setattr(image, name, "")
    return image


def _on_series(
    volume: Volume, matrix: np.ndarray, affine: np.ndarray, shape: tuple[int, int, int], case: str
) -> np.ndarray:
    """The values on the voxels of the series, which must be those of the volume in some order of axes."""
    from bundle.data.grid import read_nearest

    at = matrix @ affine  # the series in the world of the prepared scan
    index = np.linalg.inv(volume.affine) @ at
    moves = np.round(index)
    is_turn = np.allclose(np.abs(moves[:3, :3]).sum(0), 1) and np.allclose(np.abs(moves[:3, :3]).sum(1), 1)
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij")).reshape(3, -1)
    homogeneous = np.vstack([corners, np.ones(corners.shape[1])])
    off = np.abs((index - moves) @ homogeneous)[:3].max()
    if not is_turn or off > _ALIGNED or sorted(volume.values.shape) != sorted(shape):
        problem = "the forecast does not lie on the voxels of its series"
        raise InputError(problem, "prepare the scans again and repeat the forecast", case=case, file=volume.path)
    return read_nearest(volume.values, volume.affine, volume.affine @ moves, shape)


def _encapsulated(page: bytes, image: "Dataset", uids: Mapping[str, Any], common: Mapping[str, Any]) -> "Dataset":
    """The page as an Encapsulated PDF."""
    from highdicom.base import SOPClass
    from PIL import Image

    stream = io.BytesIO()
    Image.open(io.BytesIO(page)).convert("RGB").save(stream, "pdf", resolution=100)
    document = stream.getvalue()
    about = {
        name: value for name, value in common.items() if name not in ("content_description", "device_serial_number")
    }
    pdf = SOPClass(
        study_instance_uid=image.StudyInstanceUID,
        sop_class_uid=_PDF,
        modality="DOC",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        patient_id=image.get("PatientID"),
        patient_name=image.get("PatientName"),
        patient_birth_date=image.get("PatientBirthDate"),
        patient_sex=image.get("PatientSex"),
        accession_number=image.get("AccessionNumber"),
        study_id=image.get("StudyID"),
        study_date=image.get("StudyDate"),
        study_time=image.get("StudyTime"),
        referring_physician_name=image.get("ReferringPhysicianName"),
        **uids,
        **about,
    )
    pdf.SeriesDescription = pdf.DocumentTitle = _DESCRIPTION
    pdf.BurnedInAnnotation, pdf.ConversionType = "YES", "WSD"
    pdf.AcquisitionDateTime, pdf.ConceptNameCodeSequence = "", []
    pdf.MIMETypeOfEncapsulatedDocument = "application/pdf"
    pdf.EncapsulatedDocumentLength = len(document)
    pdf.EncapsulatedDocument = document + b"\0" * (len(document) % 2)
    return pdf
