"""What the segmenter is trained on: slices of patients whose lesions are marked, as scanners and readers vary them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, Sampler

from bundle.data.bids import VISITS, find_case
from bundle.data.masks import mask_to_slab
from bundle.data.volumes import read_mask
from bundle.errors import InputError
from bundle.seeding import seed_of
from bundle.segmentation.scans import Scans, cropped, read_scans, to_slices
from bundle.training.batches import IterationBatches

_PAIRS = ((0, None), (1, None), (2, None), (1, 0), (2, 1), (2, 0))  # visit and the earlier one it is compared with
_UNKNOWN = -1.0  # of a target


@dataclass(frozen=True)
class Variation:
    """Changes of the slices of one visit, or of both: what the simulator's scanners do not vary, or other scans have.

    Args:
        flip: probability of swapping left and right.
        rotation: largest rotation in plane, radians.
        zoom: largest change of size, as a logarithm.
        gain, offset: standard deviations of the logarithm of a factor on brightness, and of what is added to it, of
            each visit by itself.
        gamma: standard deviation of the logarithm of an exponent of brightness, the same for a patient's visits.
    """

    flip: float = 0.5
    rotation: float = 0.2
    zoom: float = 0.15
    gain: float = 0.1
    offset: float = 0.05
    gamma: float = 0.15

    def __call__(self, slices: Tensor, target: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """New (N, 6, H, W) and (N, 2, H, W)."""
        known = slices.flatten(2).any(-1)[:, :, None, None]
        current, previous = slices.clone().chunk(2, dim=1)
        exponent = math.exp(rng.normal(0, self.gamma))
        for visit in (current, previous):
            visit.copy_(((visit + 1) / 2).pow(exponent) * 2 - 1)
            visit.mul_(math.exp(rng.normal(0, self.gain))).add_(rng.normal(0, self.offset))
        slices = torch.cat([current, previous], dim=1).clamp(-1, 3) * known
        angle, scale = rng.uniform(-self.rotation, self.rotation), math.exp(rng.uniform(-self.zoom, self.zoom))
        mirror = -1.0 if rng.random() < self.flip else 1.0
        (c, s), (h, w) = (math.cos(angle) / scale, math.sin(angle) / scale), slices.shape[2:]
        matrix = torch.tensor([[c, -s * h / w, 0], [s * w / h * mirror, c * mirror, 0]], dtype=torch.float32)
        where = F.affine_grid(matrix.expand(len(slices), 2, 3), list(slices.shape), align_corners=False)
        slices = (F.grid_sample(slices + 1, where, align_corners=False) - 1) * known  # nothing lies outside: -1
        return slices, F.grid_sample(target, where, mode="nearest", padding_mode="border", align_corners=False)


class LesionSlices(Dataset):
    """Slices of patients with lesion masks; item (n, draw) is `slices_each` slices of patient n.

    Args:
        items: of `bundle.data.datalist.load_split`.
        seed: of what is drawn.
        slices_each: slices of one item; half of them are drawn from those with lesions.
        window: H and W of an item.
        variation: none for validation.
        visits: see `bundle.data.bids.find_case`.

    Each item has
        image: (N, 6, H, W), a visit and an earlier one or 0, see `bundle.segmentation.scans.to_slices`.
        target: (N, 2, H, W), T2 and NET2 lesions, 0 or 1; -1 where there is no mask.
    """

    def __init__(
        self,
        items: Sequence[Mapping[str, Any]],
        seed: int = 0,
        slices_each: int = 6,
        window: Sequence[int] = (160, 192),
        variation: Variation | None = None,
        visits: Mapping[str, str] | None = None,
    ) -> None:
        self.items, self.seed, self.slices_each = items, seed, slices_each
        self.window, self.variation, self.visits = (int(window[0]), int(window[1])), variation, visits

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: tuple[int, int]) -> dict[str, Tensor]:
        number, draw = index
        rng = np.random.default_rng(seed_of("segmentation", self.seed, number, draw))
        item = self.items[number]
        scans, masks = _read(str(item["image"]), str(item["dataset_dir"]), _hashable(self.visits))
        choices = [pair for pair in _PAIRS if all(v is None or VISITS[v] in scans.flair for v in pair)]
        # Those with an earlier visit, if there are any, twice as often: only they have new lesions.
        weights = np.array([1.0 if earlier is None else 2.0 for _, earlier in choices])
        now, earlier = choices[rng.choice(len(choices), p=weights / weights.sum())]
        target = torch.from_numpy(lesion_target(masks, now, earlier, scans.grid.shape)).movedim(-1, 0)
        image = to_slices(*(None if v is None else torch.from_numpy(scans.flair[VISITS[v]]) for v in (now, earlier)))
        chosen = self._slices(target, rng)
        corner = [(size - part) // 2 for size, part in zip(image.shape[2:], self.window)]
        if self.variation:
            corner = [middle + int(rng.integers(-8, 9)) for middle in corner]
        image = cropped(image[chosen] + 1, self.window, corner) - 1
        if earlier is None:
            image[:, image.shape[1] // 2 :] = 0
        target = cropped(target[chosen], self.window, corner, mode="replicate")
        if self.variation:
            image, target = self.variation(image, target, rng)
        return {"image": image, "target": target}

    def _slices(self, target: Tensor, rng: np.random.Generator) -> np.ndarray:
        marked = (target > 0).flatten(2).sum(-1)  # (S, 2)
        # New lesions are rare: of the slices with lesions those with new ones come first.
        weight = (marked > 0).numpy() @ np.array([1.0, 4.0])
        size = min(self.slices_each, len(target))
        likely = weight / weight.sum() if weight.sum() else np.full(len(weight), 1 / len(weight))
        return rng.choice(len(target), size, replace=False, p=(likely + 1 / len(weight)) / 2)


def lesion_target(
    masks: Mapping[str, np.ndarray], now: int, earlier: int | None, shape: tuple[int, int, int]
) -> np.ndarray:
    """(2, H, W, S) float32: T2 lesions of a visit, and NET2 since an earlier one; -1 where it is unknown.

    Args:
        masks: "t2_w000", "net2_w048", ... -> (H, W, S) bool.
        now, earlier: visits, as positions in `VISITS`.
        shape: (H, W, S).
    """
    new = {v: masks.get(f"net2_{VISITS[v]}") for v in range(1, len(VISITS))}
    t2 = masks.get(f"t2_{VISITS[now]}")
    if t2 is None and now == 2 and "t2_w048" in masks and new[2] is not None:
        t2 = masks["t2_w048"] | new[2]
    net2 = None
    if earlier is not None and all(new[v] is not None for v in range(earlier + 1, now + 1)):
        net2 = np.logical_or.reduce([new[v] for v in range(earlier + 1, now + 1)])
    unknown = np.full(shape, _UNKNOWN, np.float32)
    return np.stack([unknown if mask is None else mask.astype(np.float32) for mask in (t2, net2)])


class DrawBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (patient, draw) as a function of the iteration alone; see `IterationBatches`."""

    def __init__(self, num_items: int, batch_size: int, num_iterations: int, seed: int = 0) -> None:
        self.batches = IterationBatches(num_items, batch_size, num_iterations, seed)
        self.start = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        self.batches.start = self.start
        for iteration, batch in enumerate(self.batches, self.start):
            yield [(index, iteration) for index in batch]


@lru_cache(maxsize=64)
def _read(image: str, dataset_dir: str, visits: tuple | None) -> tuple[Scans, dict[str, np.ndarray]]:
    """The scans and masks of a patient."""
    case = find_case(image, dataset_dir, "unknown", dict(visits) if visits else None)
    scans = read_scans(case)
    masks = {}
    for name, path in case.volumes.items():
        if name.split("_")[0] in ("t2", "net2"):
            mask = read_mask(Path(path), case.id)
            masks[name] = mask_to_slab(mask.values, mask.affine, scans.affine, scans.grid)
    if not masks:
        raise InputError("no lesion mask to train on", "leave the patient out", case=case.id)
    return scans, masks


def _hashable(visits: Mapping[str, str] | None) -> tuple | None:
    return tuple(sorted(visits.items())) if visits else None
