"""Files that are either whole or not there."""

import gzip
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np

from bundle.errors import InputError


def nifti_bytes(values: np.ndarray, like: Path, description: str = "") -> bytes:
    """A .nii.gz of (X, Y, Z) values that lies exactly where the file `like` lies; no text of its header is kept.

    `description`, at most 79 ASCII characters, becomes its `descrip`.
    """
    scan = nib.load(like)
    header = scan.header.copy()
    header.set_data_dtype(values.dtype)
    header.extensions.clear()
    for text in ("descrip", "aux_file", "db_name", "intent_name"):  # may name a patient
        header[text] = b""
    header["descrip"] = description.encode()
    header["cal_min"], header["cal_max"], header["intent_code"] = 0, 0, 0
    return gzip.compress(type(scan)(values, scan.affine, header).to_bytes(), compresslevel=4, mtime=0)


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes its place at `path` when the block ends; if the block fails, no file has changed.

    Args:
        path: its folder is made if it is not there.

    Raises:
        OSError: what the system says.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_together(folder: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Writes files so that nobody ever reads half of one; if one fails, none of them stays.

    Args:
        folder: is made if it is not there.
        files: content by name.

    Returns:
        The files' paths, in order.

    Raises:
        OSError: what the system says.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    temporary = {folder / name: folder / f".{name}.{os.getpid()}" for name in files}
    replaced: list[Path] = []
    try:
        for path, content in zip(temporary.values(), files.values()):
            with open(path, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for final, path in temporary.items():
            os.replace(path, final)
            replaced.append(final)
    except BaseException:
        for path in (*temporary.values(), *replaced):
            path.unlink(missing_ok=True)
        if made:
            folder.rmdir()
        raise
    return replaced


def check_writable(folder: Path) -> None:
    """Says early, before any work, that a folder to come cannot be written.

    Raises:
        InputError: it, or the nearest folder above it that exists, may not be written.
    """
    absolute = folder.absolute()
    existing = next(place for place in (absolute, *absolute.parents) if place.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        raise not_writable(folder, f"{existing} is not a folder that you may write to")


def not_writable(folder: Path, reason: str, case: str = "") -> InputError:
    """The error to raise where an output folder cannot be written."""
    return InputError(f"cannot be written: {reason}", "choose another output_dir", case=case, file=folder)
