"""What a server answers (MONAI dictionary transform)."""

from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform

_NAMES = {
    "probseg.nii.gz": "heatmap",
    "mask.nii.gz": "mask",
    "forecast.json": "report",
    "forecast.png": "page",
    "forecast.html": "html",
}


class AddReplyd(MapTransform):
    """Adds what MONAI Label's server sends to its client beside the heatmap; other programs may ignore it.

    Args:
        keys: the heatmap, of which `WriteForecastd` has written the files.

    Adds
        result: dict in plain JSON types: forecast (as in the JSON file), warnings (list of lines) and files (path by
            name: heatmap, mask, report, page, html if it was written).
        result_extension: ".nii.gz", the format of the heatmap in the answer, unless the request asks for another one.
            MONAI Label takes that of the input, and a patient's folder has none.
    """

    def __init__(self, keys: KeysCollection = "pred") -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        output = dict(data)
        for _ in self.key_iterator(output):
            forecast = output["forecast"]
            files = {_NAMES.get(path.name.split("_")[-1], path.name): str(path) for path in output["files"]}
            output["result"] = {"forecast": forecast, "warnings": forecast["warnings"], "files": files}
            output.setdefault("result_extension", ".nii.gz")
        return output
