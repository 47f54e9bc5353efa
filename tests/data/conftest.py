"""A coarse patient: an elliptic cylinder for a brain, dark ventricles, a few boxes for lesions, at 3 x 3 x 3 mm."""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

SHAPE = (48, 56, 15)
AFFINE = np.array([[3.0, 0, 0, -70.5], [0, 3, 0, -82.5], [0, 0, 3, -14], [0, 0, 0, 1]])
GAIN = {"w000": 1.0, "w048": 1.7, "w096": 0.6}
LESIONS = {  # (x, y, z) ranges of voxels, each on even borders
    "t2_w000": (slice(20, 24), slice(20, 26), slice(6, 8)),
    "gd_w000": (slice(20, 22), slice(20, 22), slice(6, 7)),
    "t2_w048": (slice(20, 24), slice(20, 26), slice(6, 9)),
    "gd_w048": (slice(30, 32), slice(20, 22), slice(5, 6)),
    "net2_w048": (slice(20, 24), slice(20, 26), slice(8, 9)),
    "net2_w096": (slice(28, 32), slice(30, 34), slice(10, 12)),
}
NAMES = [*LESIONS, *(f"{kind}_{visit}" for kind in ("flair", "brain") for visit in GAIN)]
LABELS = {"t2": "T2lesion", "gd": "Gdlesion", "net2": "NET2"}


@dataclass(frozen=True)
class Patient:
    """One patient's folder and the files in it by volume name."""

    folder: Path
    affine = AFFINE

    @property
    def id(self) -> str:
        return self.folder.name

    def path(self, name: str) -> Path:
        kind, visit = name.split("_")
        root, stem = self.folder.parent, f"{self.id}_ses-{visit}"
        anat = Path(self.id, f"ses-{visit}", "anat")
        if kind == "flair":
            return root / anat / f"{stem}_FLAIR.nii.gz"
        if kind == "brain":
            return root / "derivatives/brain" / anat / f"{stem}_desc-brain_mask.nii.gz"
        return root / "derivatives/lesions" / anat / f"{stem}_label-{LABELS[kind]}_mask.nii.gz"

    def read(self, name: str) -> np.ndarray:
        return np.asanyarray(nib.load(self.path(name)).dataobj)

    def write(self, name: str, data: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(data, affine), path)
        return path

    def move(self, affine: np.ndarray, change=lambda data: data) -> None:
        """Writes every volume again, changed, in another affine."""
        for name in NAMES:
            self.write(name, change(self.read(name)), affine)


def brain() -> np.ndarray:
    x, y, _ = np.indices(SHAPE)
    return ((x - 23.5) / 20) ** 2 + ((y - 27.5) / 24) ** 2 < 1


def flair(visit: str) -> np.ndarray:
    """Tissue 400 to 600 rising to the right, ventricles 60, lesions 900, times the visit's gain."""
    x, y, _ = np.indices(SHAPE)
    image = 400 + 200 * x / SHAPE[0]
    image[((x - 23.5) / 5) ** 2 + ((y - 27.5) / 10) ** 2 < 1] = 60
    for name, box in LESIONS.items():
        if name.startswith("t2") and name.endswith(visit) or (name, visit) == ("net2_w096", "w096"):
            image[box] = 900
    return (image * brain() * GAIN[visit]).astype(np.int16)


def mask(name: str) -> np.ndarray:
    data = np.zeros(SHAPE, np.uint8)
    data[LESIONS[name]] = 1
    return data


@pytest.fixture
def make_patient(tmp_path):
    """Writes a complete patient into tmp_path / "trial"."""

    def make(case: str = "sub-0001") -> Patient:
        patient = Patient(tmp_path / "trial" / case)
        for visit in GAIN:
            patient.write(f"flair_{visit}", flair(visit))
            patient.write(f"brain_{visit}", brain().astype(np.uint8))
        for name in LESIONS:
            patient.write(name, mask(name))
        return patient

    return make


@pytest.fixture
def patient(make_patient):
    return make_patient()
