"""From a patient's scans to the tensors the networks see, and from the slab back to the scan (MONAI transforms)."""

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from bundle.data.bids import CONDITION, OUTCOME, Case, find_case
from bundle.data.brain import estimate_brain
from bundle.data.grid import SlabGrid, read_linearly, slab_centre, to_slab
from bundle.data.masks import mask_to_slab
from bundle.data.volumes import Volume, check_same_grid, read_flair, read_mask
from bundle.errors import InputError

_RANGE = (1.0, 99.5)  # percentiles of the brain of w000 that become -1 and 1
_QUARTILES = (25.0, 75.0)


class LoadCased(MapTransform):
    """Reads a patient's scans onto the slab.

    The slab lies where the brain of w048 (w000 without it) is; all visits must be co-registered.
    Scanner gain differs between visits: with w000's range alone, tissue that did not change differs by .28
    in real patients and .44 in simulated ones. So each visit's FLAIR is first brought linearly to w000's quartiles
    (.01 and .02 remain; percentiles of each visit's own leave .07 and .05 and move with the lesion load). Then w000's
    brain percentiles 1 and 99.5 become -1 and 1; beyond is clipped, outside the brain is -1. Masks: each lesion keeps
    its volume (`bundle.data.masks`).

    Args:
        keys: holds the patient's folder or a file in it.
        grid: the slab.
        with_outcome: also reads the two-year visit.
        drop_visits: visits to treat as not there, e.g. ("w048",) for a forecast from the pre-treatment scans alone.

    The dictionary's "arm" (anything `bundle.arms.arm_index` takes) goes before participants.tsv. Adds or replaces
        image: (8, H, W, S) float32 MetaTensor in the slab's RAS affine: flair_w000, t2_w000, gd_w000, flair_w048,
            t2_w048, gd_w048, net2_w048, and the arm's class index. FLAIR in [-1, 1], masks -1 / 1, a missing volume 0.
        brain: (1, H, W, S) bool MetaTensor.
        target: (2, H, W, S) float32 MetaTensor, flair_w096 in [-1, 1] and net2_w096 -1 / 1 (only `with_outcome`).
        native_brain: (1, X, Y, Z) uint8 MetaTensor, the brain on the FLAIR that the forecast is returned on (w048's),
            in that file's own axes; its meta names the file. `RestoreNatived` needs it.
        case, arm: participant label and class index.

    Raises:
        InputError: for whatever is wrong with the scans.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        grid: SlabGrid | None = None,
        *,
        with_outcome: bool = False,
        drop_visits: Iterable[str] = (),
    ) -> None:
        super().__init__(keys)
        if not set(drop_visits) < {"w000", "w048"}:
            raise InputError(f"drop_visits={drop_visits!r} is not a list of w000 or w048", "give e.g. \"['w048']\"")
        self.grid = grid or SlabGrid()
        self.with_outcome = with_outcome
        self.drop_visits = tuple(drop_visits)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        output = dict(data)
        for key in self.key_iterator(output):
            case = find_case(output[key], output.get("dataset_dir"), output.get("arm"))
            output |= self._load(case, key)
        return output

    def _load(self, case: Case, key: Hashable) -> dict[Hashable, Any]:
        names = [name for name in CONDITION if name.split("_")[1] not in self.drop_visits]
        volumes = self._read(case, names + list(OUTCOME if self.with_outcome else ()))
        latest = max(name for name in names if name.startswith("flair"))
        brain = _brain(case, {name: volume for name, volume in volumes.items() if name in names})
        affine = self.grid.affine(slab_centre(brain.data > 0, brain.affine, self.grid))
        inside = to_slab(brain.data, brain.affine, affine, self.grid) >= 0.5
        flairs = {
            name: to_slab(volume.data, volume.affine, affine, self.grid)
            for name, volume in volumes.items()
            if name.startswith("flair")
        }
        masks = {
            name: np.where(mask_to_slab(volume.data, volume.affine, affine, self.grid), 1, -1)
            for name, volume in volumes.items()
            if name not in flairs
        }
        flairs = _normalised(flairs, inside, case)
        unknown = np.zeros(self.grid.shape)
        stack = [(flairs | masks).get(name, unknown) for name in CONDITION]
        meta = {"filename_or_obj": str(volumes[latest].path), "case": case.id}
        flair = volumes[latest]
        native = read_linearly(brain.data, brain.affine, flair.affine, flair.data.shape) >= 0.5
        loaded = {
            key: _tensor(np.stack([*stack, np.full(self.grid.shape, case.arm)]), affine, meta),
            "brain": MetaTensor(torch.from_numpy(inside[None]), affine=torch.from_numpy(affine)),
            "native_brain": MetaTensor(
                torch.from_numpy(native[None].astype(np.uint8)), affine=torch.from_numpy(flair.affine), meta=dict(meta)
            ),
            "case": case.id,
            "arm": case.arm,
        }
        if self.with_outcome:
            loaded["target"] = _tensor(np.stack([(flairs | masks)[name] for name in OUTCOME]), affine, meta)
        return loaded

    def _read(self, case: Case, names: list[str]) -> dict[str, Volume]:
        volumes: dict[str, Volume] = {}
        for name in names:
            kind, visit = name.split("_")
            path = case.volumes.get(name)
            if path is None and (kind == "flair" or name in OUTCOME):
                missing = "FLAIR" if kind == "flair" else "outcome mask"
                raise InputError(f"no {missing} of {visit}", "put it there", case=case.id, file=case.place(name))
            if kind == "flair":
                volumes[name] = read_flair(path, case.id)
            elif path is not None:
                volumes[name] = read_mask(path, case.id)
                check_same_grid(volumes[name], volumes[f"flair_{visit}"], case.id)
        return volumes


class RestoreNatived(MapTransform):
    """A map on the slab, back on the grid of the patient's own FLAIR: linear in the slab and the brain, 0 outside.

    Args:
        keys: (C, H, W, S) maps on the slab, tensor or MetaTensor.
        image_key: the slab's image of `LoadCased`, whose affine the maps share.
        native_key: `LoadCased`'s native_brain.

    Each map becomes a (C, X, Y, Z) float32 MetaTensor with the shape, axes and affine of the file that
    `meta["filename_or_obj"]` names.
    """

    def __init__(
        self, keys: KeysCollection = "pred", image_key: str = "image", native_key: str = "native_brain"
    ) -> None:
        super().__init__(keys)
        self.image_key = image_key
        self.native_key = native_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        output = dict(data)
        slab_affine = output[self.image_key].affine.numpy()
        native = output[self.native_key]
        brain, affine = native.cpu().numpy()[0] > 0, native.affine.numpy()
        for key in self.key_iterator(output):
            maps = np.asarray(output[key].cpu(), np.float32)
            restored = np.stack([read_linearly(x, slab_affine, affine, brain.shape) * brain for x in maps])
            output[key] = _tensor(restored, affine, {"filename_or_obj": native.meta["filename_or_obj"]})
        return output


class CompactCased(MapTransform):
    """What of a loaded patient is worth keeping on disk: plain tensors, FLAIR float16, masks int8, no arm plane.

    Args:
        keys: the image of `LoadCased`.

    Returns only
        flair: (2 or 3, H, W, S) float16, w000, w048 and, with an outcome, w096.
        masks: (5 or 6, H, W, S) int8 in {-1, 0, 1}, in the order of `CONDITION` and `OUTCOME`.
    """

    def __init__(self, keys: KeysCollection = "image") -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        volumes = torch.cat([data[key].as_tensor()[: len(CONDITION)] for key in self.keys])
        if "target" in data:
            volumes = torch.cat([volumes, data["target"].as_tensor()])
        flair = torch.tensor([name.startswith("flair") for name in (CONDITION + OUTCOME)[: len(volumes)]])
        return {"flair": volumes[flair].half(), "masks": volumes[~flair].to(torch.int8)}


def expand_case(compact: Mapping[str, torch.Tensor], arm: int) -> dict[str, torch.Tensor]:
    """What `CompactCased` kept, as image (8, H, W, S) and, if there was an outcome, target (2, H, W, S), float32."""
    flair, masks = compact["flair"].float(), compact["masks"].float()
    plane = torch.full_like(flair[:1], arm)
    expanded = {"image": torch.cat([flair[:1], masks[:2], flair[1:2], masks[2:5], plane])}
    if len(flair) > 2:
        expanded["target"] = torch.cat([flair[2:], masks[5:]])
    return expanded


def _brain(case: Case, volumes: Mapping[str, Volume]) -> Volume:
    """Brain mask of the latest visit that has one, else an estimate from the latest FLAIR."""
    flairs = sorted((name for name in volumes if name.startswith("flair")), reverse=True)
    for name in flairs:
        visit = name.split("_")[1]
        if visit in case.brain:
            brain = read_mask(case.brain[visit], case.id)
            check_same_grid(brain, volumes[name], case.id)
            if not brain.data.any():
                raise InputError("the brain mask is empty", "redo it or take it away", case=case.id, file=brain.path)
            return brain
    flair = volumes[flairs[0]]
    found = estimate_brain(flair.data, flair.affine)
    if not found.any():
        raise InputError("no brain found", "add a mask in derivatives/brain", case=case.id, file=flair.path)
    return Volume(found.astype(np.float32), flair.affine, flair.path)


def _normalised(flairs: Mapping[str, np.ndarray], brain: np.ndarray, case: Case) -> dict[str, np.ndarray]:
    """FLAIR slabs in [-1, 1], -1 outside the brain; the first visit sets the range."""
    tissue = {name: flair[brain & (flair > 0)] for name, flair in flairs.items()}
    quartiles = {name: np.percentile(x, _QUARTILES) if x.size else (0, 0) for name, x in tissue.items()}
    for name, (q1, q3) in quartiles.items():
        if not q3 > q1:
            problem = "nothing of the brain is in it"
            raise InputError(problem, "co-register the visits", case=case.id, file=case.volumes[name])
    first = next(iter(flairs))
    low, high = np.percentile(tissue[first], _RANGE)
    (first_q1, first_q3) = quartiles[first]
    scaled = {}
    for name, flair in flairs.items():
        q1, q3 = quartiles[name]
        as_first = first_q1 + (flair - q1) * (first_q3 - first_q1) / (q3 - q1)
        scaled[name] = np.where(brain, np.clip((as_first - low) / (high - low) * 2 - 1, -1, 1), -1)
    return scaled


def _tensor(array: np.ndarray, affine: np.ndarray, meta: Mapping[str, Any]) -> MetaTensor:
    return MetaTensor(torch.from_numpy(array.astype(np.float32)), affine=torch.from_numpy(affine), meta=dict(meta))
