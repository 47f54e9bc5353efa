"""Files that are either complete or absent."""

import gzip
import hashlib
import os
import platform
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np

from bundle.errors import InputError

_HOST = f"{zlib.crc32(platform.node().encode()):08x}"  # process ids are unique on one host only
_TEMPORARY = re.compile(rf"\..+\.{_HOST}-(\d+)\.part")


def nifti_bytes(values: np.ndarray, like: Path, description: str = "") -> bytes:
    """A .nii.gz of (X, Y, Z) values on exactly the grid of the file `like`; no text of its header is kept.

    Values are probabilities (floats) or a mask (integers): the header says which, and that 1 is the greatest.
    `description`, at most 79 ASCII characters, becomes its `descrip`.
    """
    scan = nib.load(like)
    header = scan.header.copy()
    header.set_data_dtype(values.dtype)
    header.extensions.clear()
    for text in ("descrip", "aux_file", "db_name", "intent_name"):  # may name a patient
        if text in header.keys():  # NIfTI-2 has no db_name
            header[text] = b""
    header["descrip"] = description.encode()
    header["cal_min"], header["cal_max"] = 0, 1
    header.set_intent("estimate" if np.issubdtype(values.dtype, np.floating) else "label")
    return gzip.compress(type(scan)(values, scan.affine, header).to_bytes(), compresslevel=4, mtime=0)


def sha256_of(path: Path) -> str:
    """Checksum of a file, computed again only if its time or size has changed."""
    status = path.stat()
    return _sha256_at(path, status.st_mtime_ns, status.st_size)


@cache
def _sha256_at(path: Path, *_: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write that appears at `path` when the block ends; if the block fails, no file has changed.

    Args:
        path: its folder is made if it is not there.

    Raises:
        OSError: from the operating system.
    """
    with _replacing([path]) as (file,):
        yield file


def write_together(folder: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Writes files so that no reader sees a part of one; if one fails, none of them stays.

    Args:
        folder: made if it is not there.
        files: content by name.

    Returns:
        The files' paths, in order.

    Raises:
        OSError: from the operating system.
    """
    paths = [folder / name for name in files]
    with _replacing(paths) as streams:
        for stream, content in zip(streams, files.values()):
            stream.write(content)
    return paths


@contextmanager
def _replacing(paths: Sequence[Path]) -> Iterator[list[BinaryIO]]:
    """Temporary files beside `paths`, all of one folder, that are flushed to disk and renamed when the block ends."""
    folder = paths[0].parent
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    temporary = [folder / f".{path.name}.{_HOST}-{os.getpid()}.part" for path in paths]
    replaced: list[Path] = []
    try:
        with ExitStack() as stack:
            streams = [stack.enter_context(path.open("wb")) for path in temporary]
            yield streams
            for stream in streams:
                stream.flush()
                os.fsync(stream.fileno())
        for source, path in zip(temporary, paths):
            os.replace(source, path)
            replaced.append(path)
    except BaseException:
        for path in (*temporary, *replaced):
            path.unlink(missing_ok=True)
        if made:
            with suppress(OSError):  # another process has written into it
                folder.rmdir()
        raise


@cache
def _remove_leftovers(folder: Path) -> None:
    """Removes temporary files of processes of this host that were killed while writing; once a folder and process."""
    for path in folder.iterdir():
        found = _TEMPORARY.fullmatch(path.name)
        if found and not _is_alive(int(found[1])):
            path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to someone else
        return True
    return True


def write_arrays(file: Path, key: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Store arrays as .npz under a key that says what they were made from; the file appears whole or not at all."""
    with written_whole(file) as stream:
        np.savez_compressed(stream, key=key, **arrays)


def read_arrays(file: Path, key: str) -> dict[str, np.ndarray] | None:
    """The arrays of `write_arrays`; None if there is no such file, or it is damaged or has another key."""
    try:
        with np.load(file) as content:
            if str(content["key"]) == key:
                return {name: content[name] for name in content.files if name != "key"}
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, NotImplementedError):
        pass  # what numpy raises depends on where the file is cut
    except (zipfile.BadZipFile, zlib.error):
        pass
    return None


def check_writable(folder: Path) -> None:
    """Refuses, before any work, a folder that cannot be written.

    Raises:
        InputError: it, or the nearest existing folder above it, cannot be written.
    """
    absolute = folder.absolute()
    try:
        existing = next(path for path in (absolute, *absolute.parents) if path.exists())
        for name in absolute.relative_to(existing).parts:
            (existing / name).exists()  # below a folder that is not there yet no name is too long for the system
    except (OSError, ValueError) as error:  # e.g. a name that is too long
        raise not_writable(folder, getattr(error, "strerror", None) or str(error)) from error
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        raise not_writable(folder, f"{existing} is not a folder that you may write to")


def not_writable(folder: Path, reason: str, case: str = "") -> InputError:
    """The error to raise where an output folder cannot be written."""
    return InputError(f"cannot be written: {reason}", "choose another output_dir", case=case, file=folder)
