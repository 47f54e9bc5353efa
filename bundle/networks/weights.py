"""Files of weights: tensors alone, loaded into a network of the same architecture or refused."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bundle.diffusion.slabs import VolumeCorrection
from bundle.errors import InputError
from bundle.files import not_writable, sha256_of, written_whole

T = TypeVar("T")
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


def read_state(path: str | Path, fix: str = "give a file written by training") -> dict[str, Any]:
    """What torch.save has written: tensors and plain values by name; nothing in the file is run as code.

    Args:
        path: the file.
        fix: what to do if it is not such a file.

    Raises:
        InputError: no file, or not such a file.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(
            "weights file not found", "train a model, or give another file with --weights", file=path
        ) from None
    except Exception as error:  # unpickling fails in many ways on what is not a file of weights
        raise InputError("not a file of weights, or damaged", fix, file=path) from error
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise InputError("not a file of weights", fix, file=path)
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


def fitted_file(weights: str | Path, kind: str) -> Path:
    """The file beside the weights with what was fitted for them: for model.pt, model_<kind>.json."""
    weights = Path(str(weights))
    return weights.with_name(f"{weights.stem}_{kind}.json")


def write_fitted(
    weights: str | Path, kind: str, value: Any, fitted: Mapping[str, Any], checksum: str | None = None
) -> Path:
    """Writes what was fitted for these weights beside them, with their checksum.

    Args:
        weights: their file.
        kind: names the file and the entry in it.
        value: a dataclass of numbers.
        fitted: on what, and with which result; for the reader.
        checksum: of the weights for which it was fitted, if the file may have changed since.

    Raises:
        InputError: the file cannot be written.
    """
    content = {"weights_sha256": checksum or sha256_of(Path(weights)), kind: asdict(value), "fitted": fitted}
    file = fitted_file(weights, kind)
    try:
        with written_whole(file) as stream:
            stream.write((json.dumps(content, indent=2) + "\n").encode())
    except OSError as error:
        raise not_writable(file, error.strerror or str(error)) from error
    return file


def read_fitted(weights: str | Path, kind: str, build: Callable[[Any], T], script: str) -> T | None:
    """What `write_fitted` wrote for these weights; None if there is no such file.

    Args:
        weights, kind: as for `write_fitted`.
        build: makes the value of what the file holds; raises ValueError, TypeError or LookupError where that is wrong.
        script: that fits it.

    Raises:
        InputError: the file is damaged, or was fitted for other weights.
    """
    file, fix = fitted_file(weights, kind), f"fit it again with {script}, or delete it"
    if not file.is_file() or not Path(str(weights)).is_file():
        return None
    try:
        content = json.loads(file.read_bytes())
        fitted_for, value = content["weights_sha256"], build(content[kind])
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise InputError(f"not a file of {script}, or damaged", fix, file=file) from error
    if fitted_for != sha256_of(Path(str(weights))):
        raise InputError(f"fitted for weights other than {Path(str(weights)).name}", fix, file=file)
    return value


def numbers_of(values: Any, least: int, largest: float) -> tuple[float, ...]:
    """A list of at least so many numbers, none of greater size, as a tuple.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(values, list) or len(values) < least:
        raise ValueError(f"not a list of {least} or more numbers")
    numbers = tuple(map(float, values))
    if not all(abs(number) <= largest for number in numbers):  # NaN is not
        raise ValueError(f"numbers beyond {largest}")
    return numbers


def volume_correction(weights: str | Path) -> VolumeCorrection | None:
    """The correction that `scripts.correct_volume` fitted for these weights; None if it has not been run for them.

    Raises:
        InputError: see `read_fitted`.
    """

    def build(found: Any) -> VolumeCorrection:
        (first,) = numbers_of([found["first"]], 1, _LARGEST)
        return VolumeCorrection(first, numbers_of(found["log_odds"], 1, _LARGEST))

    return read_fitted(weights, "volume_correction", build, "scripts.correct_volume")


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
