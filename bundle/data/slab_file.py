"""A patient on the model's grid as one small file, `sub-X/sub-X_slab.npz`, in place of the NIfTI volumes."""

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bundle.data.bids import CONDITION, OUTCOME
from bundle.data.grid import SlabGrid
from bundle.errors import InputError

_KINDS, _OPTIONAL = ("flair", "masks"), ("expected",)


def slab_bytes(compact: Mapping[str, Tensor], grid: SlabGrid) -> bytes:
    """What `bundle.data.transforms.CompactCased` returns, with outcome, as a compressed .npz that names its grid."""
    content = io.BytesIO()
    np.savez_compressed(content, spacing_mm=grid.spacing_mm, **{kind: value.numpy() for kind, value in compact.items()})
    return content.getvalue()


def is_active(file: Path) -> bool:
    """Whether NET2 at w096 has a voxel in the slab.

    Raises:
        InputError: no slab that can be read.
    """
    return bool((_read(file)[0]["masks"][-1] > 0).any())


def load_slab(file: Path, grid: SlabGrid, drop_visits: Sequence[str] = ()) -> dict[str, Tensor]:
    """Likewise, for `bundle.data.transforms.expand_case`.

    Args:
        file: of `slab_bytes`.
        grid: the grid that is wanted.
        drop_visits: visits whose volumes are unknown (0). The slab stays where the brain of w048 has placed it. The
            range of w000 scales all FLAIR, so w000 cannot be dropped.

    Returns:
        flair: (3, H, W, S) float16; masks: (6, H, W, S) int8; where the file has it, expected: (H, W, S) float16 in
        [0, 1], the probability of NET2 at each voxel for a forecaster that knows the simulation.

    Raises:
        InputError: no slab that can be read, one of another grid, or w000 is to be dropped.
    """
    case = file.parent.name
    if "w000" in drop_visits:
        raise InputError(
            "w000 is required in a compact data set", "use a data set of NIfTI files", case=case, file=file
        )
    compact, spacing_mm = _read(file)
    shapes = {kind: tuple(values.shape) for kind, values in compact.items()}
    wanted = {"flair": (3, *grid.shape), "masks": (6, *grid.shape), "expected": tuple(grid.shape)}
    if spacing_mm != tuple(grid.spacing_mm) or any(shape != wanted[kind] for kind, shape in shapes.items()):
        problem = f"its grid is {shapes['flair'][1:]} of {spacing_mm} mm, not {grid.shape} of {grid.spacing_mm} mm"
        raise InputError(problem, "use its grid, or a data set of NIfTI files", case=case, file=file)
    volumes = CONDITION + OUTCOME
    for kind in _KINDS:
        values = compact[kind]
        names = [name for name in volumes if name.startswith("flair") == (kind == "flair")]
        for index, name in enumerate(names):
            if name.split("_")[1] in drop_visits:
                values[index] = 0
    return compact


def _read(file: Path) -> tuple[dict[str, Tensor], tuple[float, ...]]:
    """Content and spacing of the grid."""
    try:
        with np.load(file) as content:
            kinds = _KINDS + tuple(kind for kind in _OPTIONAL if kind in content)
            compact = {kind: torch.from_numpy(content[kind]) for kind in kinds}
            return compact, tuple(content["spacing_mm"].tolist())
    except (OSError, EOFError, ValueError, LookupError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        problem = "unreadable or truncated"
        raise InputError(problem, "simulate the data set again", case=file.parent.name, file=file) from error
