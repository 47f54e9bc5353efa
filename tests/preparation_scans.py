"""Scans to prepare: moved, coarse, as NIfTI or as DICOM full of names, dates and UIDs."""

from datetime import date
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation

from bundle.lesions import Volume
from bundle.simulation.anatomy import AFFINE

SECRETS = ("Mustermann", "Erika", "MRN-4711", "19640812", "1964-08-12", "1.2.826.0.1.3680043.8.498", "St. Elsewhere")


def coarse(values):
    """A simulated scan (192, 224, 15) in voxels of 2 x 2 x 3 mm."""
    affine = AFFINE @ np.diag([2.0, 2, 1, 1])
    affine[:3, 3] = apply_affine(AFFINE, (0.5, 0.5, 0))
    means = values.astype(np.float32).reshape(96, 2, 112, 2, 15).mean(axis=(1, 3))
    return Volume(means, affine)


def turned(degrees=(6.0, -4.0, 8.0), shift_mm=(7.0, -12.0, 9.0)):
    """A rigid motion (4, 4)."""
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    motion[:3, 3] = shift_mm
    return motion


def save(volume: Volume, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume.values, volume.affine), path)
    return path


def write_dicom(
    volume: Volume, folder: Path, day: date, number=3, description="Ax T2 FLAIR Mustermann", skip=(), **tags
):
    """A series of one file a slice, full of what must not get out."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    lps = np.diag([-1.0, -1, 1, 1]) @ volume.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    axes = lps[:3, :3] / spacing
    series, study, frame = generate_uid(), generate_uid(), generate_uid()
    for k in range(volume.values.shape[2]):
        if k in skip:
            continue
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = MRImageStorage
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = generate_uid()
        image.SeriesInstanceUID, image.StudyInstanceUID = series, study
        image.FrameOfReferenceUID = frame
        image.PatientName, image.PatientID, image.PatientBirthDate = "Mustermann^Erika", "MRN-4711", "19640812"
        image.InstitutionName, image.StudyDate, image.Modality = "St. Elsewhere", day.strftime("%Y%m%d"), "MR"
        image.SeriesDescription, image.SeriesNumber, image.InstanceNumber = description, number, k + 1
        image.ImageOrientationPatient = [f"{x:.8f}" for x in (*axes[:, 0], *axes[:, 1])]
        image.ImagePositionPatient = [f"{x:.5f}" for x in apply_affine(lps, (0, 0, k))]
        image.PixelSpacing = [f"{spacing[1]:.6f}", f"{spacing[0]:.6f}"]
        image.SliceThickness = f"{spacing[2]:.4f}"
        image.Rows, image.Columns = volume.values.shape[1], volume.values.shape[0]
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
        for name, value in tags.items():
            setattr(image, name, value)
        image.PixelData = np.ascontiguousarray(volume.values[:, :, k].T.round().astype(np.uint16)).tobytes()
        image.save_as(folder / f"IM{(k * 7) % 100:04d}", enforce_file_format=True)
