"""Lesion masks on the slab, where each lesion keeps its volume."""

import numpy as np
from scipy import ndimage

from bundle.data.grid import SlabGrid, fine_points, read_nearest


def mask_to_slab(mask: np.ndarray, affine: np.ndarray, slab_affine: np.ndarray, grid: SlabGrid) -> np.ndarray:
    """A mask on the slab where each lesion keeps its volume: its fullest cells, as many as it fills, at least one.

    A threshold on the covered fraction of a cell loses small lesions where it is high, and enlarges and merges lesions
    where it is low (docs/experiments/2026-11-grid.md). Lesions are components of 26 neighbours. What lies outside the
    slab is lost.

    Args:
        mask: (X, Y, Z), nonzero is lesion.
        affine: (4, 4) of `mask`.
        slab_affine: (4, 4), `grid.affine(...)`.

    Returns:
        (H, W, S) bool.
    """
    marked = np.zeros(grid.shape, dtype=bool)
    boxes = ndimage.find_objects((np.asarray(mask) != 0).astype(np.uint8))
    if not boxes:
        return marked
    lesions = np.zeros(mask.shape, np.int32)
    lesions[boxes[0]], _ = ndimage.label(mask[boxes[0]], structure=np.ones((3, 3, 3)))  # the rest would only cost time
    points, fine = fine_points(affine, slab_affine)
    lesion_at = read_nearest(lesions, affine, fine, tuple(points * grid.shape))
    where = np.argwhere(lesion_at)
    lesion = lesion_at[tuple(where.T)]
    cell = np.ravel_multi_index((where // points).T, grid.shape)
    (owner, cell), held = np.unique(np.stack([lesion, cell]), axis=1, return_counts=True)
    fullest_first = np.lexsort((-held, owner))
    owner, cell = owner[fullest_first], cell[fullest_first]
    rank = np.arange(len(owner)) - np.searchsorted(owner, owner)  # 0 is its lesion's fullest cell
    filled = np.maximum(1, np.round(np.bincount(lesion) / points.prod()))
    marked.flat[cell[rank < filled[owner]]] = True
    return marked
