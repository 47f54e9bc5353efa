"""Files of weights: tensors alone, loaded into a network of the same architecture or refused."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bundle.diffusion.slabs import VolumeCorrection
from bundle.errors import InputError
from bundle.files import not_writable, sha256_of, written_whole

_LARGEST = 20  # log-odds and log-SNR; what is beyond was not fitted


def bare(network: nn.Module) -> nn.Module:
    """The network without its DistributedDataParallel wrapper."""
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network


def all_finite(state: Any) -> bool:
    """Whether no tensor of a nested state holds NaN or infinity."""
    if isinstance(state, Tensor):
        return bool(state.isfinite().all())
    if isinstance(state, Mapping):
        return all(all_finite(value) for value in state.values())
    return all(all_finite(value) for value in state) if isinstance(state, list | tuple) else True


def save_atomically(state: Any, path: str | Path) -> None:
    """torch.save that leaves either the old file or the complete new one, even if the machine goes down.

    Raises:
        InputError: the file cannot be written, e.g. because the disk is full.
    """
    try:
        with written_whole(Path(path)) as file:
            torch.save(state, file)
    except OSError as error:
        raise not_writable(Path(path), error.strerror or str(error)) from error


def export_weights(network: nn.Module, path: str | Path) -> None:
    """Weights alone, float16, as `models/model.pt` ships them."""
    save_atomically({name: value.half() for name, value in network.state_dict().items()}, path)


def read_state(path: str | Path) -> dict[str, Any]:
    """What torch.save has written: tensors and plain values by name; nothing in the file is run as code.

    Raises:
        InputError: no file, or not such a file.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError("no weights there", "train some or give their path with --weights", file=path) from None
    except Exception as error:  # unpickling fails in many ways on what is not a file of weights
        raise InputError("not a file of weights, or damaged", "give a file written by training", file=path) from error
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise InputError("not a file of weights", "give a file written by training", file=path)
    return state


def load_weights(network: nn.Module, path: str | Path) -> nn.Module:
    """Load what `export_weights` wrote into a network of the same architecture.

    Raises:
        InputError: no file, not a file of weights, of another architecture, or with values that are not finite.
    """
    state = read_state(path)
    with same_architecture(path):
        bare(network).load_state_dict(state)
    if not all_finite(state):
        raise InputError("weights that are not finite", "give a file written by training", file=path)
    return network


def correction_file(weights: str | Path) -> Path:
    """The file beside the weights with their `VolumeCorrection`: for model.pt, model_volume_correction.json."""
    weights = Path(str(weights))
    return weights.with_name(f"{weights.stem}_volume_correction.json")


def write_volume_correction(
    weights: str | Path, correction: VolumeCorrection, fitted: Mapping[str, Any], checksum: str | None = None
) -> Path:
    """Writes the correction beside the weights for which it was fitted, with their checksum.

    Args:
        weights: their file.
        correction: for them.
        fitted: on what, and with which result; for the reader.
        checksum: of the weights for which it was fitted, if the file may have changed since.

    Raises:
        InputError: the file cannot be written.
    """
    checksum = checksum or sha256_of(Path(weights))
    content = {"weights_sha256": checksum, "volume_correction": asdict(correction), "fitted": fitted}
    file = correction_file(weights)
    try:
        with written_whole(file) as stream:
            stream.write((json.dumps(content, indent=2) + "\n").encode())
    except OSError as error:
        raise not_writable(file, error.strerror or str(error)) from error
    return file


def volume_correction(weights: str | Path) -> VolumeCorrection | None:
    """The correction that `scripts.correct_volume` fitted for these weights; None if it has not been run for them.

    Raises:
        InputError: the file is damaged, or was fitted for other weights.
    """
    file, fix = correction_file(weights), "fit it again with scripts.correct_volume, or delete it"
    if not file.is_file() or not Path(str(weights)).is_file():
        return None
    try:
        content = json.loads(file.read_bytes())
        fitted_for, found = content["weights_sha256"], content["volume_correction"]
        if not isinstance(found["log_odds"], list):
            raise TypeError
        correction = VolumeCorrection(float(found["first"]), tuple(map(float, found["log_odds"])))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError("not a correction of volumes, or damaged", fix, file=file) from error
    if fitted_for != sha256_of(Path(str(weights))):
        raise InputError(f"fitted for weights other than {Path(str(weights)).name}", fix, file=file)
    numbers = (correction.first, *correction.log_odds)
    if not correction.log_odds or not all(abs(value) <= _LARGEST for value in numbers):  # NaN is no such number either
        raise InputError(f"not one or more log-odds of at most {_LARGEST}", fix, file=file)
    return correction


@contextmanager
def same_architecture(path: str | Path) -> Iterator[None]:
    """A state from `path` is loaded in this block.

    Raises:
        InputError: it does not fit.
    """
    try:
        yield
    except Exception as error:  # torch refuses a state in many ways
        raise InputError(
            "weights of another architecture", "run with the configuration they were trained with", file=path
        ) from error
