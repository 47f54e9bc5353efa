"""The files of a case (MONAI dictionary transforms)."""

import hashlib
import json
import platform
from collections.abc import Hashable, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import monai
import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from bundle import __version__
from bundle.arms import CLASSES
from bundle.data.bids import find_case
from bundle.data.volumes import read_flair, read_mask, read_volume
from bundle.files import check_writable, nifti_bytes, not_writable, write_together
from bundle.lesions import LesionRule, Placed, lesion_table, likely_sites
from bundle.outputs.page import NOTICE, forecast_page

SCHEMA_VERSION = "1.0"


class WriteForecastd(MapTransform):
    """Writes the heatmap, the consensus mask, the report and the page of one case, all four or none.

    Args:
        keys: heatmap (1, X, Y, Z) on the grid of the patient's FLAIR, as `RestoreNatived` leaves it; "consensus" must
            have been restored with it.
        output_dir: gets a folder per case.
        weights: file of the network's weights, told by its sha256.
        seed, num_steps, guidance_scale, arm_guidance_scale, guidance_interval, reuse_within: how the members were sampled, told in the report.

    Files: <output_dir>/<case>/<case>_desc-net2_{probseg.nii.gz,mask.nii.gz,forecast.json,forecast.png}; earlier ones
    are replaced.
    Adds `forecast` as written to JSON and `files`, their paths.

    Raises:
        InputError: the output folder cannot be written.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        *,
        output_dir: str | Path,
        weights: str | Path | None = None,
        seed: int = 0,
        num_steps: int = 0,
        guidance_scale: float = 1.0,
        arm_guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        reuse_within: float = 0.0,
    ) -> None:
        super().__init__(keys)
        self.output_dir = Path(output_dir)
        self.weights = weights
        self.settings = {
            "seed": seed,
            "num_steps": num_steps,
            "guidance_scale": guidance_scale,
            "arm_guidance_scale": arm_guidance_scale,
            "guidance_interval": guidance_interval,
            "reuse_within": reuse_within,
        }
        check_writable(self.output_dir)

    @cached_property
    def weights_sha256(self) -> str | None:
        return None if self.weights is None else hashlib.sha256(Path(self.weights).read_bytes()).hexdigest()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        output = dict(data)
        for key in self.key_iterator(output):
            forecast, files = self._make(output, output[key])
            output |= {"forecast": forecast, "files": _write_case(self.output_dir, output["case"], files)}
        return output

    def _make(self, data: Mapping[Hashable, Any], native: MetaTensor) -> tuple[dict[str, Any], dict[str, bytes]]:
        """The report, and the bytes of the files by the end of their names."""
        path, affine = Path(native.meta["filename_or_obj"]), native.affine.numpy()
        shares = native.numpy()[0].clip(0, 1)
        consensus = data["consensus"].numpy()[0] >= 0.5
        case = find_case(path, arm=int(data["arm"]))
        heatmap, members = (Placed(data[name].numpy(), data["image"].affine.numpy()) for name in ("heatmap", "members"))
        dseg = None
        if case.dseg is not None:
            dseg = read_volume(case.dseg, case.id)
        slices = covered_slices(Placed(shares, affine), members)
        # The rule has been applied on the slab; on this grid the lesions only need to be told apart.
        lesions = Placed(LesionRule().label(consensus, affine), affine)
        forecast = _round_all(
            {
                "schema_version": SCHEMA_VERSION,
                "notice": NOTICE,
                "case": case.id,
                "arm": CLASSES[case.arm],
                **data["forecast"],
                "lesions": [asdict(lesion) for lesion in lesion_table(lesions, dseg=dseg, members=members)],
                "likely_sites": [asdict(site) for site in likely_sites(heatmap, members, dseg=dseg)],
                "field_of_view": _field_of_view(slices, shares.shape, affine),
                **self.settings,
                "weights_sha256": self.weights_sha256,
                "versions": _versions(),
            }
        )
        visit = next(name for name, volume in case.volumes.items() if volume.name == path.name).removeprefix("flair_")
        old = case.volumes.get(f"t2_{visit}")
        page = forecast_page(
            Placed(read_flair(path, case.id).values, affine),
            shares,
            consensus,
            forecast,
            brain=data["native_brain"].numpy()[0] > 0,
            slices=slices,
            old_lesions=None if old is None else read_mask(old, case.id).values,
        )
        return forecast, {
            "net2_probseg.nii.gz": nifti_bytes(shares.astype(np.float32), path),
            "net2_mask.nii.gz": nifti_bytes(consensus.astype(np.uint8), path),
            "net2_forecast.json": json.dumps(forecast, indent=2).encode(),
            "net2_forecast.png": page,
        }


class WritePreviewd(MapTransform):
    """Writes a heatmap alone: <output_dir>/<case>/<case>_desc-preview_probseg.nii.gz.

    Args:
        keys: heatmap (1, X, Y, Z) on the grid of the patient's FLAIR, as `RestoreNatived` leaves it.
        output_dir: gets a folder per case.

    Adds `files`, its path.

    Raises:
        InputError: the output folder cannot be written.
    """

    def __init__(self, keys: KeysCollection = "heatmap", *, output_dir: str | Path) -> None:
        super().__init__(keys)
        self.output_dir = Path(output_dir)
        check_writable(self.output_dir)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        output = dict(data)
        for key in self.key_iterator(output):
            native = nifti_bytes(output[key].numpy()[0].clip(0, 1), Path(output[key].meta["filename_or_obj"]))
            output["files"] = _write_case(self.output_dir, output["case"], {"preview_probseg.nii.gz": native})
        return output


def covered_slices(native: Placed, slab: Placed) -> tuple[int, int]:
    """First and last slice of a scan whose middle lies in the slab, along the axis nearest to inferior-superior."""
    axis = _axial_axis(native.affine)
    size = np.array(slab.values.shape[-3:])
    ends = np.stack([(size - 1) / 2] * 2)
    ends[:, 2] = -0.499, size[2] - 0.501  # its borders, but for the rounding of headers
    index = nib.affines.apply_affine(np.linalg.inv(native.affine) @ slab.affine, ends)[:, axis]
    first, last = np.clip([np.ceil(index.min()), np.floor(index.max())], 0, native.values.shape[axis] - 1)
    return int(first), int(last)


def _write_case(output_dir: Path, case: str, files: Mapping[str, bytes]) -> list[Path]:
    folder = output_dir / case
    try:
        return write_together(folder, {f"{case}_desc-{suffix}": content for suffix, content in files.items()})
    except OSError as error:
        raise not_writable(folder, error.strerror, case) from error


def _axial_axis(affine: np.ndarray) -> int:
    return int(np.flatnonzero(nib.io_orientation(affine)[:, 0] == 2)[0])


def _field_of_view(slices: tuple[int, int], shape: tuple[int, ...], affine: np.ndarray) -> dict[str, Any]:
    axis = _axial_axis(affine)
    first, last = slices
    return {
        "axis": axis,
        "first_slice": first,
        "last_slice": last,
        "num_slices": shape[axis],
        "statement": f"Lesions are forecast in slices {first} to {last} only, of 0 to {shape[axis] - 1} along voxel "
        f"axis {axis}; elsewhere the maps are 0 because nothing is forecast there.",
    }


def _versions() -> dict[str, str]:
    return {
        "bundle": __version__,
        "monai": monai.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _round_all(report: dict[str, Any]) -> dict[str, Any]:
    """The report with plain JSON types, floats to four decimals."""
    return json.loads(json.dumps(report), parse_float=lambda number: round(float(number), 4))
