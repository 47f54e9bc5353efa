"""From a patient's scans to the tensors the networks see, and from the slab back to the scan (MONAI transforms)."""

from collections.abc import Hashable, Iterable, Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from bundle.brightness import compress_bright
from bundle.data.bids import CONDITION, OUTCOME, VISITS, Case, find_case, ignored_files, left_behind, session_labels
from bundle.data.brain import brain_of
from bundle.data.estimated import estimation
from bundle.data.grid import SlabGrid, is_too_fine, read_linearly, slab_centre, to_slab
from bundle.data.masks import mask_to_slab
from bundle.data.plausibility import Plausibility
from bundle.data.tables import visit_months
from bundle.data.volumes import check_same_grid, has_orientation, read_flair, read_mask
from bundle.errors import InputError
from bundle.lesions import Volume, voxel_volume_mm3

_RANGE = (1.0, 99.5)  # percentiles of the brain of w000 that become -1 and 1 before bright values are compressed
_TESTED_MM = 6.0  # two slices: by so much estimated brain masks move the slab
_QUARTILES = (25.0, 75.0)


class LoadCased(MapTransform):
    """Reads a patient's scans onto the slab.

    The slab is placed by the brain of w048 (w000 without it); all visits must be co-registered.
    Scanner gain differs between visits: with w000's range alone, tissue that did not change differs by .28
    in real patients and .44 in simulated ones. So each visit's FLAIR is first mapped linearly to w000's quartiles
    (.01 and .02 remain; percentiles of each visit's own leave .07 and .05 and change with the lesion load). Then w000's
    brain percentiles 1 and 99.5 become -1 and 1, and bright values are compressed (`bundle.brightness`); outside the
    brain FLAIR is -1. Masks: each lesion keeps its volume (`bundle.data.masks`).

    Args:
        keys: holds the patient's folder or a file in it.
        grid: the slab.
        with_outcome: also reads the two-year visit.
        drop_visits: visits to ignore, e.g. ("w048",) for a forecast from the pre-treatment scans alone.
        visits: session label by visit, see `bundle.data.bids.find_case`; the dictionary's "visits" takes precedence.
        plausibility: limits outside which an input is refused or carries a warning.
        slab_centre_mm: height of the slab's middle in world mm; where it holds most brain if not given.

    The dictionary's "dataset_dir", "visits" and "outcome" go to `find_case`; its "arm" (anything
    `bundle.arms.requested_arm` takes) takes precedence over participants.tsv. Adds or replaces
        image: (8, H, W, S) float32 MetaTensor in the slab's RAS affine: flair_w000, t2_w000, gd_w000, flair_w048,
            t2_w048, gd_w048, net2_w048, and the arm's class index. FLAIR in [-1, 1], masks -1 / 1, a missing volume 0.
        brain: (1, H, W, S) bool MetaTensor.
        target: (2, H, W, S) float32 MetaTensor, flair_w096 in [-1, 1] and net2_w096 -1 / 1 (only `with_outcome`).
        native_brain: (1, X, Y, Z) uint8 MetaTensor, the brain on the FLAIR that the forecast is returned on (w048's),
            in that file's own axes; its meta names the file. `RestoreNatived` needs it.
        case, arm: participant label and class index.
        inputs: dict of what was read: used and missing (names of volumes), estimated (those that a program made), brain
            ("given" or "estimated"), alignment (correlation of the two FLAIR), slab_centre_mm (its height), months and
            session (by visit). NaN where unknown, so that a DataLoader can collate it; `plain_inputs` makes it fit for
            JSON.
        warnings: list of what is doubtful, one line each.

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
        visits: Mapping[str, str] | None = None,
        plausibility: Plausibility | None = None,
        slab_centre_mm: float | None = None,
    ) -> None:
        super().__init__(keys)
        if not isinstance(drop_visits, (list, tuple, set)) or not {*map(str, drop_visits)} < {"w000", "w048"}:
            raise InputError(f"drop_visits={drop_visits!r} is not a list of w000 or w048", "give e.g. \"['w048']\"")
        session_labels(visits)  # raises early
        self.grid = grid or SlabGrid()
        self.with_outcome = with_outcome
        self.drop_visits = tuple(drop_visits)
        self.visits = visits
        self.plausibility = plausibility or Plausibility()
        if slab_centre_mm is not None and (isinstance(slab_centre_mm, bool) or not isinstance(slab_centre_mm, Real)):
            raise InputError(f"slab_centre_mm={slab_centre_mm!r} is not a number", "correct --slab_centre_mm")
        self.slab_centre_mm = slab_centre_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        output = dict(data)
        for key in self.key_iterator(output):
            visits = output.get("visits") or self.visits
            case = find_case(output[key], output.get("dataset_dir"), output.get("arm"), visits, output.get("outcome"))
            try:
                output |= self._load(case, key, output.get("outcome") is not None)
                if output.get("dataset_dir") is None:
                    output["warnings"] += left_behind(case)
            except MemoryError as error:
                raise InputError("too large for the memory", "crop or resample it", case=case.id) from error
        return output

    def _load(self, case: Case, key: Hashable, outcome_is_given: bool) -> dict[Hashable, Any]:
        drop_visits = ("w048",) if case.is_single_scan else self.drop_visits
        read = [name for name in CONDITION if name.split("_")[1] not in drop_visits]
        wanted = read + list(OUTCOME if self.with_outcome else ())
        _check_required(case, wanted)
        flairs = {name: self._read_flair(case, name) for name in wanted if name.startswith("flair")}
        latest = max(name for name in flairs if name in read)
        brain, brain_source = brain_of(case, {name: flair for name, flair in flairs.items() if name in read})
        self.plausibility.check_brain(brain, case.id)
        centre, moved = self._slab_centre(brain)
        affine = self.grid.affine(centre)
        self._check_resolution(brain, affine, case)
        inside = to_slab(brain.values, brain.affine, affine, self.grid) >= 0.5
        if not inside.any():
            fix = "check the mask" if self.slab_centre_mm is None else "correct --slab_centre_mm"
            raise InputError("the brain fills no cell of the slab", fix, case=case.id, file=brain.path)
        raw = {}
        for name, flair in flairs.items():
            self._check_resolution(flair, affine, case)
            raw[name] = to_slab(flair.values, flair.affine, affine, self.grid)
            # Only its grid is needed from here on: a patient's scans may be large.
            flairs[name] = flair._replace(values=np.broadcast_to(np.float32(0), flair.values.shape))
        slabs = normalised(raw, inside, case.id, case.volumes)
        alignment, warnings = self._check_flairs(case, raw, slabs, inside)
        for name in wanted:
            if name not in slabs and name in case.volumes:
                mask = read_mask(case.volumes[name], case.id)
                drawn_on = latest if outcome_is_given and name in OUTCOME else f"flair_{name.split('_')[1]}"
                check_same_grid(mask, flairs[drawn_on], case.id)
                warnings += self.plausibility.check_lesion_volume(mask, case.id, name)
                marked = mask_to_slab(mask.values, mask.affine, affine, self.grid)
                cell_ml = voxel_volume_mm3(affine) / 1000
                warnings += self.plausibility.check_lesion_places(
                    marked, inside, cell_ml, case.id, name, case.volumes[name]
                )
                slabs[name] = np.where(marked, 1, -1)
        estimated = [name for name in CONDITION if name in slabs and estimation(case.volumes[name])]
        warnings += [f"marked by a program, not by a reader: {', '.join(estimated)}"] if estimated else []
        unknown = np.zeros(self.grid.shape)
        stack = [slabs.get(name, unknown) for name in CONDITION]
        flair = flairs[latest]
        meta = {"filename_or_obj": str(flair.path), "case": case.id}
        native = read_linearly(brain.values, brain.affine, flair.affine, flair.values.shape) >= 0.5
        months = visit_months(case.dataset_dir, case.id, {visit: case.sessions[visit] for visit in VISITS[:2]})
        loaded = {
            key: _tensor(np.stack([*stack, np.full(self.grid.shape, case.arm)]), affine, meta),
            "brain": MetaTensor(torch.from_numpy(inside[None]), affine=torch.from_numpy(affine)),
            "native_brain": MetaTensor(
                torch.from_numpy(native[None].astype(np.uint8)), affine=torch.from_numpy(flair.affine), meta=dict(meta)
            ),
            "case": case.id,
            "arm": case.arm,
            "inputs": {
                "used": [name for name in CONDITION if name in slabs],
                "missing": [name for name in CONDITION if name not in slabs],
                "estimated": [*estimated, *(["brain"] if brain_source == "estimated" else [])],
                "brain": brain_source,
                "alignment": alignment,
                "months": {visit: np.nan if since is None else since for visit, since in months.items()},
                "slab_centre_mm": float(centre[2]),
                "session": {visit: case.sessions[visit] for visit in VISITS[:2] if visit not in drop_visits},
            },
            "warnings": [
                *case.warnings,
                *ignored_files(case),
                *moved,
                *warnings,
                *(self.plausibility.check_interval(months["w048"]) if not drop_visits else ()),
            ],
        }
        if self.with_outcome:
            loaded["target"] = _tensor(np.stack([slabs[name] for name in OUTCOME]), affine, meta)
        return loaded

    def _slab_centre(self, brain: Volume) -> tuple[np.ndarray, list[str]]:
        """Centre of the slab in world mm, and a warning if it lies where the model was never tested."""
        centre = slab_centre(brain.values, brain.affine, self.grid)
        if self.slab_centre_mm is None:
            return centre, []
        moved = self.slab_centre_mm - centre[2]
        centre[2] = self.slab_centre_mm
        if abs(moved) <= _TESTED_MM:
            return centre, []
        side = "above" if moved > 0 else "below"
        text = f"the slab lies {abs(moved):.0f} mm {side} the level with the most brain, where the model was not tested"
        return centre, [text]

    def _read_flair(self, case: Case, name: str) -> Volume:
        flair = read_flair(case.volumes[name], case.id)
        self.plausibility.check_extent(flair, case.id)
        return flair

    def _check_resolution(self, volume: Volume, affine: np.ndarray, case: Case) -> None:
        if is_too_fine(volume.affine, affine, self.grid):
            raise InputError("its voxels are too small", "resample it", case=case.id, file=volume.path)

    def _check_flairs(
        self, case: Case, raw: Mapping[str, np.ndarray], slabs: Mapping[str, np.ndarray], brain: np.ndarray
    ) -> tuple[float, list[str]]:
        """Alignment of the second visit with the first, NaN without two, and warnings on all FLAIR."""
        alignment, warnings = np.nan, []
        first, *later = raw
        latest = max(name for name in raw if name in CONDITION)

        def check(name: str) -> list[str]:
            return self.plausibility.check_contrast(raw[name], brain, case.id, name.split("_")[1], case.volumes[name])

        warnings += check(latest)  # the brain is this scan's: it can be judged before they are known to be aligned
        for name in later:
            visits = [first.split("_")[1], name.split("_")[1]]
            covered = brain & (raw[first] > 0) & (raw[name] > 0)
            correlation, doubts = self.plausibility.check_alignment(
                [slabs[first], slabs[name]], covered, brain, case.id, visits, case.volumes[name]
            )
            warnings += doubts
            if name in CONDITION:
                alignment = round(correlation, 4)
        for name in raw:
            if name != latest:
                warnings += check(name)
            if not has_orientation(case.volumes[name]):
                file = case.volumes[name].name
                warnings.append(f"the orientation of {file} is unknown (sform and qform codes are 0)")
        return alignment, warnings


def plain_inputs(data: Mapping[Hashable, Any]) -> tuple[dict[str, Any], list[str]]:
    """The inputs and warnings of `LoadCased` in plain JSON types, null where unknown.

    They may have gone through a DataLoader and been decollated, which turns an empty list into None.
    """
    inputs = dict(data["inputs"])
    for name in ("used", "missing", "estimated"):
        inputs[name] = list(inputs[name] or ())
    inputs["alignment"] = _known(inputs["alignment"])
    inputs["months"] = {visit: _known(months) for visit, months in inputs["months"].items()}
    return inputs, list(data["warnings"] or ())


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
    """The part of a loaded patient that is cached on disk: plain tensors, FLAIR float16, masks int8, no arm plane.

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


def expand_case(
    compact: Mapping[str, torch.Tensor], arm: int, expected_outcome: bool = False
) -> dict[str, torch.Tensor]:
    """The output of `CompactCased` as image (8, H, W, S) and, if there was an outcome, target (2, H, W, S), float32.

    Args:
        compact: of `CompactCased` or `bundle.data.slab_file.load_slab`.
        arm: class index.
        expected_outcome: NET2 of the target is its expected value, where it is known (a simulated patient's may be).
    """
    flair, masks = compact["flair"].float(), compact["masks"].float()
    plane = torch.full_like(flair[:1], arm)
    expanded = {"image": torch.cat([flair[:1], masks[:2], flair[1:2], masks[2:5], plane])}
    if len(flair) > 2:
        net2 = masks[5:]
        if expected_outcome and "expected" in compact:
            net2 = 2 * compact["expected"].float()[None] - 1
        expanded["target"] = torch.cat([flair[2:], net2])
    return expanded


def _check_required(case: Case, names: Iterable[str]) -> None:
    for name in names:
        kind, visit = name.split("_")
        if name in case.volumes or not (kind == "flair" or name in OUTCOME):
            continue
        session, existing = case.sessions[visit], case.existing_sessions()
        if kind == "flair" and existing and session not in existing:
            problem = f"no session {session}, only {', '.join(existing)}"
            raise InputError(problem, "add it, or map the names with --visits", case=case.id, file=case.dataset_dir)
        missing = "FLAIR" if kind == "flair" else "outcome mask"
        fix = "; ".join(["put it there", *ignored_files(case)])  # may be there under another name
        raise InputError(f"no {missing} of {visit}", fix, case=case.id, file=case.expected_path(name))


def normalised(
    flairs: Mapping[str, np.ndarray], brain: np.ndarray, case: str, files: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """FLAIR slabs in [-1, 1], -1 outside the brain; the first visit sets the range.

    Args:
        flairs: (H, W, S) by name, in any unit.
        brain: (H, W, S) bool.
        files: by name, for error messages.
    """
    tissue = {name: flair[brain & (flair > 0)] for name, flair in flairs.items()}
    quartiles = {name: np.percentile(x, _QUARTILES) if x.size else (0, 0) for name, x in tissue.items()}
    for name, (q1, q3) in quartiles.items():
        if not q3 > q1:
            problem = "it does not cover the brain"
            raise InputError(problem, "co-register the visits", case=case, file=files[name])
    first = next(iter(flairs))
    low, high = np.percentile(tissue[first], _RANGE)
    (first_q1, first_q3) = quartiles[first]
    scaled = {}
    for name, flair in flairs.items():
        q1, q3 = quartiles[name]
        as_first = first_q1 + (flair - q1) * (first_q3 - first_q1) / (q3 - q1)
        scaled[name] = np.where(brain, compress_bright((as_first - low) / (high - low) * 2 - 1), -1)
    return scaled


def _known(number: Any) -> float | None:
    return None if np.isnan(number) else float(number)


def _tensor(array: np.ndarray, affine: np.ndarray, meta: Mapping[str, Any]) -> MetaTensor:
    return MetaTensor(torch.from_numpy(array.astype(np.float32)), affine=torch.from_numpy(affine), meta=dict(meta))
