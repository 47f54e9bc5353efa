"""Masks that a program made: each has a JSON file beside it that says so, as BIDS derivatives have it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bundle.files import write_together

_CHECKSUM = "MaskSHA256"


def write_estimated(path: Path, mask: bytes, about: Mapping[str, Any]) -> list[Path]:
    """Writes a mask and its sidecar, both or neither.

    Args:
        path: of the mask, .nii.gz.
        mask: content of the file.
        about: how it was made, for the sidecar.

    Returns:
        The files' paths.

    Raises:
        OSError: from the operating system.
    """
    content = {"Manual": False, **about, _CHECKSUM: hashlib.sha256(mask).hexdigest()}
    sidecar = (json.dumps(content, indent=1) + "\n").encode()
    return write_together(path.parent, {sidecar_of(path).name: sidecar, path.name: mask})


def estimation(path: Path) -> dict[str, Any] | None:
    """What the sidecar says of a mask that a program made; None for any other mask.

    A mask that has taken the place of an estimated one is another: the checksum tells.
    """
    try:
        about = json.loads(sidecar_of(path).read_bytes())
        if about["Manual"] is False and about[_CHECKSUM] == hashlib.sha256(path.read_bytes()).hexdigest():
            return about
    except (OSError, ValueError, LookupError, TypeError):
        pass
    return None


def sidecar_of(path: Path) -> Path:
    """The JSON file of a mask: for x_mask.nii.gz, x_mask.json."""
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")
