"""python -m scripts.export_onnx WEIGHTS --out FILE: the one-call heatmap as one ONNX graph."""

import importlib.util
import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bundle.arms import CLASSES
from bundle.errors import InputError
from bundle.files import check_writable, not_writable, written_whole
from bundle.forecasters.ensemble import OneCallHeatmap
from bundle.networks.prior import NUM_VOLUMES
from scripts.command import read_configs, run

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # of probabilities


def main(
    weights: str, out: str, horizon_months: float = 11, config_file: str | tuple[str, ...] = "configs/inference.json"
) -> str:
    """Writes an ONNX graph from image tensors (B, 8, H, W, S) to P(NET2) (B, H, W, S), float32.

    The image is what `bundle.data.transforms.LoadCased` makes. Before the file appears, the graph is checked and
    computed by onnxruntime: no probability may differ by more than 1e-4 from the network's.

    Args:
        weights: of the network; the volume correction beside them, if there is one, becomes part of the graph.
        out: the file.
        horizon_months: months from the second visit that are forecast.
        config_file: of inference, with overlays that change the network, its grid or guidance.

    Returns:
        The file, its size and the largest difference.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"{', '.join(missing)} not installed", "pip install -c constraints.txt -e '.[onnx]'")
    path = Path(str(out))
    check_writable(path.parent)
    config = read_configs(config_file)
    config.update({"weights": weights, "horizon_months": horizon_months, "device": "cpu", "amp": False})
    heatmap = OneCallHeatmap(*(config.get_parsed_content(name) for name in ("network", "inferer"))).eval()
    images = example(config.get_parsed_content("grid").shape)
    content = onnx_bytes(heatmap, images)
    difference = largest_difference(heatmap, content, images[:1])
    if not difference <= TOLERANCE:  # NaN is not
        raise InputError(
            f"probabilities of the graph differ by {difference:.1e} from the network's", "use other versions of onnx"
        )
    try:
        with written_whole(path) as file:
            file.write(content)
    except OSError as error:
        raise not_writable(path, error.strerror or str(error)) from error
    return f"{path}: {len(content) / 1e6:.0f} MB, opset {opset_of(content)}, differs by {difference:.1e} at most"


def example(shape: tuple[int, int, int]) -> Tensor:
    """Image tensors of two imagined patients, (2, 8, *shape): noise for FLAIR, rare boxes for lesions, an arm each."""
    random = torch.Generator().manual_seed(0)
    images = torch.full((2, NUM_VOLUMES + 1, *shape), -1.0)
    inside = tuple(slice(size // 8, size - size // 8) for size in shape)
    for image in images:
        for volume in range(NUM_VOLUMES):
            if volume in (0, 3):
                image[volume][inside] = 0.4 * torch.randn(image[volume][inside].shape, generator=random).clamp(-2, 2)
                continue
            for _ in range(4):
                corner = [int(torch.randint(part.start, part.stop, (), generator=random)) for part in inside]
                image[volume][tuple(slice(first, first + 3) for first in corner)] = 1
    images[:, NUM_VOLUMES] = torch.tensor([0.0, len(CLASSES) - 1]).reshape(2, 1, 1, 1)
    return images


def onnx_bytes(network: nn.Module, images: Tensor) -> bytes:
    """The graph of a network that takes images (2, ...), for any number of them; checked as ONNX requires.

    Raises:
        InputError: the graph is not valid ONNX.
    """
    import onnx

    for name in ("torch.onnx", "onnxscript"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = Path(folder) / "heatmap.onnx"
        torch.onnx.export(
            network,
            (images,),
            file,
            dynamo=True,
            external_data=False,
            input_names=["image"],
            output_names=["heatmap"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
        try:
            onnx.checker.check_model(file, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise InputError(f"the graph is not valid: {error}", "use other versions of onnx and onnxscript") from error
        return file.read_bytes()


def largest_difference(network: nn.Module, content: bytes, images: Tensor) -> float:
    """The largest difference between the outputs of network and graph; NaN if one of them is."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (computed,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.inference_mode():
        return float(np.abs(computed - network(images).numpy()).max())


def opset_of(content: bytes) -> int:
    """The version of ONNX's operators that a graph uses."""
    import onnx

    return next(entry.version for entry in onnx.load_from_string(content).opset_import if entry.domain == "")


if __name__ == "__main__":
    run(main)
