"""The files of a case (MONAI dictionary transforms)."""

import json
import platform
from collections.abc import Hashable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from bundle import __version__
from bundle.arms import CLASSES
from bundle.data.bids import find_case
from bundle.data.transforms import plain_inputs
from bundle.data.volumes import read_flair, read_mask, read_volume
from bundle.files import check_writable, nifti_bytes, not_writable, sha256_of, write_together
from bundle.forecasters.ensemble import EnsembleInferer
from bundle.lesions import LesionRule, Volume, lesion_table, voxel_volume_mm3
from bundle.outputs.coverage import axial_axis, covered_fractions, covered_voxels, field_of_view
from bundle.outputs.notes import NOTICE
from bundle.outputs.page import forecast_page
from bundle.outputs.sites import likely_sites
from bundle.outputs.summary import differences

SCHEMA_VERSION = "3.0"
DESCRIPTION = "Research use only; forecast of NET2 lesions"  # at most 79 characters: `descrip` of NIfTI
INTERVAL_COVERS = "the sampling error of this number of members only, not the model's own error"


class _WriteCased(MapTransform):
    """Writes the files of a case, <output_dir>/<case>/<case>_desc-<description>_..., all or none.

    Args:
        keys: map (1, X, Y, Z) on the grid of the patient's FLAIR, as `RestoreNatived` leaves it; by default `key`.
        output_dir: gets a folder per case; the dictionary's "output_dir" takes precedence.
        inferer: that made the map; its settings are written into the report.
        weights: file of the network's weights, identified in the report by its sha256.

    Raises:
        InputError: the output folder cannot be written.
    """

    key: str
    description: str

    def __init__(
        self,
        keys: KeysCollection | None = None,
        *,
        output_dir: str | Path,
        inferer: EnsembleInferer,
        weights: str | Path | None = None,
    ) -> None:
        super().__init__(self.key if keys is None else keys)
        self.output_dir = writable_folder(output_dir)
        self.inferer, self.weights = inferer, weights

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        output = dict(data)
        for key in self.key_iterator(output):
            forecast, files = self.make(output, output[key])
            prefix = f"{case_prefix(output)}_desc-{self.description}"
            files = {f"{prefix}_{suffix}": content for suffix, content in files.items()}
            output |= {"forecast": forecast, "files": write_case(self.output_dir, output, files)}
        return output

    def make(self, data: Mapping[Hashable, Any], native: MetaTensor) -> tuple[dict[str, Any], dict[str, bytes]]:
        """The report, and the bytes of the files by the end of their names."""
        raise NotImplementedError


class WriteForecastd(_WriteCased):
    """Writes the heatmap, the consensus mask, the report and the page of one case; arguments as of `_WriteCased`.

    "consensus" must have been restored with the heatmap.

    Files: <output_dir>/<case>/<case>_desc-net2_{probseg.nii.gz,mask.nii.gz,forecast.json,forecast.png}, where the arms
    are compared <case>_arm-<arm>_desc-net2_...; earlier ones are replaced.
    Adds `forecast` as written to JSON (docs/reference/forecast.md) and `files`, their paths.
    """

    key, description = "pred", "net2"

    def make(self, data: Mapping[Hashable, Any], native: MetaTensor) -> tuple[dict[str, Any], dict[str, bytes]]:
        path, affine = Path(native.meta["filename_or_obj"]), native.affine.numpy()
        heatmap = native.numpy()[0].clip(0, 1)
        consensus = data["consensus"].numpy()[0] >= 0.5
        brain = data["native_brain"].numpy()[0] > 0
        case = find_case(path, data.get("dataset_dir"), CLASSES[int(data["arm"])], data["inputs"]["session"])
        slab, members = (Volume(data[name].numpy(), data["image"].affine.numpy()) for name in ("heatmap", "members"))
        dseg = None
        if case.dseg is not None:
            dseg = read_volume(case.dseg, case.id)
        covered, axis = covered_voxels(Volume(heatmap, affine), slab), axial_axis(affine)
        # The rule has been applied on the slab; on this grid the lesions only need to be separated.
        lesions = Volume(LesionRule().label(consensus, affine), affine)
        summary = data["forecast"]
        distribution = np.arange(len(data["distribution"])), np.asarray(data["distribution"])
        volume_ml = float(heatmap.sum(dtype=np.float64) * voxel_volume_mm3(affine) / 1000)
        forecast = _heading(data) | _rounded(
            {
                **summary,
                "p_active_interval_covers": INTERVAL_COVERS,
                "volume_ml": {"mean": volume_ml} | summary["volume_ml"],
                "differences": differences(summary, volume_ml, float(slab.values.max(initial=0))),
                "lesions": [asdict(lesion) for lesion in lesion_table(lesions, dseg=dseg, members=members)],
                "likely_sites": [asdict(site) for site in likely_sites(slab, *distribution, dseg=dseg)],
                "field_of_view": field_of_view(covered_fractions(covered, brain, axis), axis),
            }
        )
        forecast |= _provenance(data, self.inferer, self.weights)
        visit = next(name for name, volume in case.volumes.items() if volume.name == path.name).removeprefix("flair_")
        old = case.volumes.get(f"t2_{visit}")
        page = forecast_page(
            read_flair(path, case.id),
            heatmap,
            consensus,
            forecast,
            brain=brain,
            covered=covered,
            old_lesions=None if old is None else read_mask(old, case.id).values,
        )
        return forecast, {
            "probseg.nii.gz": nifti_bytes(heatmap.astype(np.float32), path, DESCRIPTION),
            "mask.nii.gz": nifti_bytes(consensus.astype(np.uint8), path, DESCRIPTION),
            "forecast.json": json_bytes(forecast),
            "forecast.png": page,
        }


class WritePreviewd(_WriteCased):
    """Writes a heatmap alone, with its notice; arguments as of `_WriteCased`.

    Files: <output_dir>/<case>/<case>_desc-preview_probseg.{nii.gz,json}.
    Adds `forecast` as written to JSON and `files`, their paths.
    """

    key, description = "heatmap", "preview"

    def make(self, data: Mapping[Hashable, Any], native: MetaTensor) -> tuple[dict[str, Any], dict[str, bytes]]:
        heatmap, path = native.numpy()[0].clip(0, 1), Path(native.meta["filename_or_obj"])
        volume_ml = float(heatmap.sum(dtype=np.float64) * voxel_volume_mm3(native.affine.numpy()) / 1000)
        report = _heading(data) | _rounded({"volume_ml": {"mean": volume_ml}})
        report |= _provenance(data, self.inferer, self.weights)
        return report, {"probseg.nii.gz": nifti_bytes(heatmap, path, DESCRIPTION), "probseg.json": json_bytes(report)}


def case_prefix(data: Mapping[Hashable, Any]) -> str:
    """How the names of a case's files begin; where arms are compared with the arm in it."""
    arm = f"_arm-{arm_entity(CLASSES[int(data['arm'])])}" if "reference_arm" in data else ""
    return f"{data['case']}{arm}"


def arm_entity(arm: str) -> str:
    """The arm as a BIDS entity may hold it, letters and digits only: "interferon_beta_1a" -> "interferonbeta1a"."""
    return arm.replace("_", "")


def writable_folder(output_dir: str | Path) -> Path:
    """The output folder, refused before any work if it cannot be written.

    Raises:
        InputError: it cannot be written.
    """
    folder = Path(str(output_dir))  # the command line reads --output_dir 123 as a number
    check_writable(folder)
    return folder


def write_case(output_dir: Path, data: Mapping[Hashable, Any], files: Mapping[str, bytes]) -> list[Path]:
    """Writes files of a case, content by name, all or none; returns their paths.

    Args:
        output_dir: gets a folder per case.
        data: names the case, and the folder to use instead of `output_dir` if it has an "output_dir".
        files: content by name.

    Raises:
        InputError: they cannot be written.
    """
    case = data["case"]
    folder = Path(data.get("output_dir") or output_dir) / case
    try:
        return write_together(folder, files)
    except OSError as error:
        raise not_writable(folder, error.strerror, case) from error


def json_bytes(report: Mapping[str, Any]) -> bytes:
    """A report as an indented JSON file."""
    return (json.dumps(report, indent=2) + "\n").encode()


def _heading(data: Mapping[Hashable, Any]) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "notice": NOTICE,
        "case": data["case"],
        "arm": CLASSES[int(data["arm"])],
    }


def _provenance(data: Mapping[Hashable, Any], inferer: EnsembleInferer, weights: str | Path | None) -> dict[str, Any]:
    """What a map was made of, and how."""
    inputs, warnings = plain_inputs(data)
    return {
        "inputs": inputs,
        "warnings": warnings,
        "sampling": inferer.settings.as_dict(),
        "weights_sha256": None if weights is None else sha256_of(Path(weights)),
        "versions": {
            "bundle": __version__,
            "monai": monai.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def _rounded(report: dict[str, Any]) -> dict[str, Any]:
    """The report with plain JSON types, floats to four decimals."""
    return json.loads(json.dumps(report), parse_float=lambda number: round(float(number), 4))
