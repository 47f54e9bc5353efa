"""What the segmenter is trained on: slices of patients whose lesions are marked, as scanners and readers vary them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, Sampler

from bundle.data.bids import Case, find_case
from bundle.data.masks import mask_to_slab
from bundle.data.volumes import read_mask
from bundle.errors import InputError
from bundle.seeding import seed_of
from bundle.segmentation.scans import Scans, cropped, read_scans, to_slices
from bundle.training.batches import IterationBatches


@dataclass(frozen=True)
class Variation:
    """Changes of the slices of a scan: what the simulator's scanners do not vary, or other scans have.

    Args:
        flip: probability of swapping left and right.
        rotation: largest rotation in plane, radians.
        zoom: largest change of size, as a logarithm.
        gain, offset: standard deviations of the logarithm of a factor on brightness, and of what is added to it.
        gamma: standard deviation of the logarithm of an exponent of brightness.
    """

    flip: float = 0.5
    rotation: float = 0.2
    zoom: float = 0.15
    gain: float = 0.1
    offset: float = 0.05
    gamma: float = 0.15

    def __call__(self, slices: Tensor, target: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """New (N, 3, H, W) and (N, 1, H, W)."""
        slices = ((slices + 1) / 2).pow(math.exp(rng.normal(0, self.gamma))) * 2 - 1
        slices = (slices * math.exp(rng.normal(0, self.gain)) + rng.normal(0, self.offset)).clamp(-1, 3)
        angle, scale = rng.uniform(-self.rotation, self.rotation), math.exp(rng.uniform(-self.zoom, self.zoom))
        mirror = -1.0 if rng.random() < self.flip else 1.0
        (c, s), (h, w) = (math.cos(angle) / scale, math.sin(angle) / scale), slices.shape[2:]
        matrix = torch.tensor([[c, -s * h / w, 0], [s * w / h * mirror, c * mirror, 0]], dtype=torch.float32)
        where = F.affine_grid(matrix.expand(len(slices), 2, 3), list(slices.shape), align_corners=False)
        slices = F.grid_sample(slices + 1, where, align_corners=False) - 1  # nothing lies outside: -1
        return slices, F.grid_sample(target, where, mode="nearest", align_corners=False)


class LesionSlices(Dataset):
    """Slices of patients with masks of T2 lesions; item (n, draw) is `slices_each` slices of a visit of patient n.

    Args:
        items: of `bundle.data.datalist.load_split`.
        seed: of what is drawn.
        slices_each: slices of one item; half of them are drawn from those with lesions.
        window: H and W of an item.
        variation: none for validation.
        visits: see `bundle.data.bids.find_case`.

    Each item has
        image: (N, 3, H, W), see `bundle.segmentation.scans.to_slices`.
        label: (N, 1, H, W), 1 in T2 lesions, else 0.
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
        visit = sorted(masks)[rng.integers(len(masks))]
        label = torch.from_numpy(masks[visit]).float().movedim(-1, 0)[:, None]
        image = to_slices(torch.from_numpy(scans.flair[visit]))
        corner = [(size - part) // 2 for size, part in zip(image.shape[2:], self.window)]
        if self.variation:
            corner = [middle + int(rng.integers(-8, 9)) for middle in corner]
        slices = self._slices(label, rng)
        image = cropped(image[slices] + 1, self.window, corner) - 1
        label = cropped(label[slices], self.window, corner)
        if self.variation:
            image, label = self.variation(image, label, rng)
        return {"image": image, "label": label}

    def _slices(self, label: Tensor, rng: np.random.Generator) -> np.ndarray:
        marked = label.flatten(1).any(1).numpy().astype(float)
        likely = marked / marked.sum() if marked.any() else np.full(len(marked), 1 / len(marked))
        size = min(self.slices_each, len(marked))
        return rng.choice(len(marked), size, replace=False, p=(likely + 1 / len(marked)) / 2)


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
    """The scans of a patient, and the mask of T2 lesions of each visit that has one."""
    case = find_case(image, dataset_dir, "unknown", dict(visits) if visits else None)
    scans = read_scans(case)
    masks = {}
    for visit in scans.flair:
        if f"t2_{visit}" in case.volumes:
            masks[visit] = _on_grid(case, f"t2_{visit}", scans)
    if "w096" in scans.flair and "w048" in masks and "net2_w096" in case.volumes:
        masks["w096"] = masks["w048"] | _on_grid(case, "net2_w096", scans)
    if not masks:
        raise InputError("no mask of T2 lesions to train on", "leave the patient out", case=case.id)
    return scans, masks


def _on_grid(case: Case, name: str, scans: Scans) -> np.ndarray:
    mask = read_mask(case.volumes[name], case.id)
    return mask_to_slab(mask.values, mask.affine, scans.affine, scans.grid)


def _hashable(visits: Mapping[str, str] | None) -> tuple | None:
    return tuple(sorted(visits.items())) if visits else None
