"""The bundle in MONAI Label: monailabel start_server --app monai_label --studies DATA_SET (docs/how-to/monai-label.md).

MONAI Label's own app `monaibundle` serves the bundle too, but answers every bad input with "Internal Server Error".
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from fastapi import HTTPException
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.activelearning.random import Random
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.tasks.train.bundle import BundleTrainTask

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # the bundle need not be installed

from bundle.data.datalist import labelled_items  # noqa: E402
from bundle.data.studies import link_studies  # noqa: E402
from bundle.errors import InputError, input_error  # noqa: E402

NAME = "ms_net2_forecast"
METADATA = json.loads((ROOT / "configs" / "metadata.json").read_text())
logger = logging.getLogger(__name__)


class ForecastApp(MONAILabelApp):
    """Lists the patients of a BIDS data set, forecasts them, and trains on the labels that clients submit.

    Everything is written to <studies>/derivatives/monai_label, or to `--conf work_dir DIR`: links to the scans that
    are shown, labels, a folder for each forecast, and training runs.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        if "://" in studies:
            raise InputError("studies on a server are not read", "prepare them with scripts.prepare", file=studies)
        self.dataset_dir = Path(studies)
        self.work_dir = Path(conf.get("work_dir") or self.dataset_dir / "derivatives" / "monai_label")
        link_studies(self.dataset_dir, self.work_dir / "studies")
        super().__init__(
            app_dir,
            str(self.work_dir / "studies"),
            conf,
            name=METADATA["name"],
            description=METADATA["description"],
            version=METADATA["version"],
        )

    def init_infers(self) -> dict[str, BundleInferTask]:
        return {NAME: ForecastTask(str(ROOT), self.conf)}

    def init_trainers(self) -> dict[str, BundleTrainTask]:
        return {NAME: TrainingTask(str(ROOT), self.conf, self.dataset_dir, self.work_dir / "training")}

    def init_strategies(self) -> dict[str, Any]:
        return {"first": First(), "random": Random()}

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """The forecast of a patient of the data set, of a patient's folder, or of one uploaded FLAIR."""
        image = request.get("image")
        known = (datastore or self.datastore()).list_images()
        if image not in known and not os.path.exists(image):
            some = ", ".join(sorted(known)[:5]) + (", ..." if len(known) > 5 else "")
            raise HTTPException(404, f"{image}: no such patient; known: {some or 'none'}")
        folder = self.work_dir / "forecasts" / f"{datetime.now():%Y%m%d-%H%M%S}-{uuid4().hex[:6]}"
        with _refusing_in_one_line():
            return super().infer({**request, "output_dir": str(folder)}, datastore)

    def train(self, request: dict[str, Any]) -> dict[str, Any]:
        """Runs in a process of its own, whose last line is shown to clients."""
        try:
            return super().train(request)
        except Exception as error:
            found = input_error(error)
            if found is None:
                raise
            sys.exit(f"error: {found}")


class ForecastTask(BundleInferTask):
    """The bundle's inference; `model_filename`, a file of models/, is the one whose weights make the whole forecast."""

    def __init__(self, path: str, conf: dict[str, str]) -> None:
        super().__init__(path, conf)
        channels = METADATA["network_data_format"]["post_processed_outputs"]["pred"]["channel_def"]
        self.labels = {name: int(channel) + 1 for channel, name in channels.items()}  # 0 is the background
        self.dimension = 3  # the network's own input is a slab whose slices are channels

    def pre_transforms(self, data: dict[str, Any] | None = None) -> Any:
        name = data["model_filename"]
        weights = ROOT / "models" / (name if isinstance(name, str) else name[0])
        if not weights.is_file():
            raise InputError(f"no weights {name}", "choose one of the list model_filename")
        self.bundle_config["weights"] = str(weights)
        return super().pre_transforms(data)


class TrainingTask(BundleTrainTask):
    """The bundle's training on the patients that have a label, continued where it was stopped.

    Stage 2 from the weights `model_filename` (`pretrained`), else all stages from scratch; or another `run_id`.
    """

    def __init__(self, path: str, conf: dict[str, str], dataset_dir: Path, output_dir: Path) -> None:
        super().__init__(path, conf)
        self.dataset_dir, self.output_dir = dataset_dir, output_dir

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        run_id = request.get("run_id") or ("finetuning" if request.get("pretrained", True) else "training")
        self.request = {**request, "run_id": run_id}
        return super().__call__(self.request, datastore)

    def _load_checkpoint(self, model_pytorch: str, pretrained: bool, train_handlers: list[Any]) -> None:
        """The bundle's own handler reads weights and checkpoints."""
        self.weights = model_pytorch if pretrained else None

    def _update_overrides(self, overrides: dict[str, Any]) -> dict[str, Any]:
        """What MONAI Label sets, under the names that the bundle has for it."""
        for split, data in {"training": "train#dataset#data", "validation": "validate#dataset#data"}.items():
            if data not in overrides:  # val_split -1: the data set's own
                continue
            items = labelled_items(overrides.pop(data))
            if not items:
                problem = f"no labelled patients for {split}"
                raise InputError(problem, "submit labels of at least two patients, or change val_split")
            overrides[f"{split}_items"] = items
        overrides.pop("train#handlers")  # unchanged
        overrides["dataset_dir"] = str(self.dataset_dir)
        overrides["output_dir"] = str(self.request.get("output_dir") or self.output_dir)
        if self.weights:
            overrides["start_from"] = self.weights
        overrides |= {name: self.request[name] for name in ("epoch_length", "batch_size") if name in self.request}
        return overrides

    def run_multi_gpu(self, request: dict[str, Any], cmd: list[str], env: dict[str, str]) -> None:
        """As MONAI Label does, but a run that failed is reported as such."""
        code = subprocess.run(cmd, env=env).returncode
        if code:
            sys.exit(code)


@contextmanager
def _refusing_in_one_line() -> Iterator[None]:
    """An input that cannot be used is answered with its one line, not with "Internal Server Error"."""
    try:
        yield
    except Exception as error:
        found = input_error(error)
        if found is None:
            raise
        logger.warning("refused: %s", found)
        raise HTTPException(400, str(found)) from error
