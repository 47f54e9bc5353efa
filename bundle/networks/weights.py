"""Files of weights: tensors alone, loaded into a network of the same architecture or refused."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bundle.errors import InputError
from bundle.files import written_whole


def bare(network: nn.Module) -> nn.Module:
    """The network without its DistributedDataParallel wrapper."""
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network


def save_atomically(state: Any, path: str | Path) -> None:
    """torch.save that leaves either the old file or the whole new one, even if the machine goes down."""
    with written_whole(Path(path)) as file:
        torch.save(state, file)


def export_weights(network: nn.Module, path: str | Path) -> None:
    """Weights alone, float16, as `models/model.pt` ships them."""
    save_atomically({name: value.half() for name, value in network.state_dict().items()}, path)


def load_weights(network: nn.Module, path: str | Path) -> nn.Module:
    """Load what `export_weights` wrote into a network of the same architecture.

    Raises:
        InputError: no file, not a file of weights, or of another architecture.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError("no weights there", "train some or give their path with --weights", file=path) from None
    except Exception as error:  # unpickling fails in many ways on what is not a file of weights
        raise InputError("not a file of weights", "give a file written by training", file=path) from error
    if not isinstance(state, Mapping):
        raise InputError("not a file of weights", "give a file written by training", file=path)
    with same_architecture(path):
        bare(network).load_state_dict(state)
    return network


@contextmanager
def same_architecture(path: str | Path) -> Iterator[None]:
    """What is loaded inside comes from `path` and must fit.

    Raises:
        InputError: it does not.
    """
    try:
        yield
    except (RuntimeError, KeyError, TypeError, AttributeError, ValueError) as error:  # how torch refuses a state
        raise InputError(
            "weights of another architecture", "run with the configuration they were trained with", file=path
        ) from error
