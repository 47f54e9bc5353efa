"""What can be seen of a simulated patient up to w048: in perfect reading, or as the written masks show it."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from bundle.errors import InputError
from bundle.simulation.anatomy import SHAPE, Anatomy
from bundle.simulation.covariates import Covariates
from bundle.simulation.disease import patient_anatomy
from bundle.simulation.drawing import ENHANCING, QUIET, RECENT
from bundle.simulation.events import History
from bundle.simulation.protocol import PRESETS, Protocol
from bundle.simulation.territories import NUM_TERRITORIES, TERRITORIES

_NEIGHBOURS_26 = np.ones((3, 3, 3), bool)


@dataclass(frozen=True)
class Observation:
    """What images and tables of a patient up to w048 show; None is not seen.

    Attributes:
        num_gd: gadolinium-enhancing lesions at w000.
        num_t2: T2 lesions at w000 other than these and the smouldering ones, or, where these are not
            distinguished, with them.
        num_smouldering: old lesions visibly active at w000.
        num_active: how many of these are active still at w048.
        num_net2: new or enlarging lesions between w000 and w048.
        num_enhancing: how many of these enhance at w048.
        diffuse: FLAIR signal of diffusely abnormal white matter, relative to normal white matter.
        growth_mm: how far the ventricles' borders moved between w000 and w048.
        covariates: the covariates in participants.tsv.
        months: lengths of the intervals from w000 to w048 and from there to w096.
        territories: (territories,) lesions by territory: all of w000 and the new ones, not the enlarging, of w048.
        anatomy, status: the brain, and its lesions at the last visit (`bundle.simulation.drawing`); only the heatmap
            needs them.

    These suffice: volumes, shapes, places within a territory, texture and atrophy after w048 are independent of
    frailty, response, spatial law and outcome given them. Old lesions that have merged are counted as they formed, a
    little more than an eye sees.

    Raises:
        ValueError: a count is negative or greater than what it is part of, or of anatomy and status only one is given.
    """

    num_gd: int | None = None
    num_t2: int | None = None
    num_smouldering: int | None = None
    num_active: int | None = None
    num_net2: int | None = None
    num_enhancing: int | None = None
    diffuse: float | None = None
    growth_mm: float | None = None
    covariates: Covariates = Covariates()
    months: tuple[float, float] | None = None
    territories: np.ndarray | None = None
    anatomy: Anatomy | None = None
    status: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("num_gd", "num_t2", "num_smouldering", "num_active", "num_net2", "num_enhancing"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} is negative: {getattr(self, name)}")
        for part, whole in (("num_active", "num_smouldering"), ("num_enhancing", "num_net2")):
            if getattr(self, part) is not None and getattr(self, part) > (getattr(self, whole) or 0):
                raise ValueError(f"{part} {getattr(self, part)} is greater than {whole} {getattr(self, whole)}")
        if (self.anatomy is None) != (self.status is None):
            raise ValueError("a heatmap needs both anatomy and status")


def observe(history: History, arm: int, protocol: Protocol) -> Observation:
    """Perfect reading of everything up to w048 but voxels, for a history that need not have images."""
    old = np.concatenate([history.quiet, history.gd, history.smouldering]).astype(int)
    count = history.count(arm, 0)
    new = [history.events[0][j].territory for j in range(count) if not history.enlarges(arm, 0, j)]
    return Observation(
        num_gd=len(history.gd),
        num_t2=len(history.quiet),
        num_smouldering=len(history.smouldering),
        num_active=int(history.active(arm, protocol).sum()),
        num_net2=count,
        num_enhancing=history.num_enhancing(arm, protocol),
        diffuse=history.diffuse,
        growth_mm=history.growth_mm[0],
        covariates=history.seen_covariates,
        months=history.months if history.sees_months else None,
        territories=np.bincount(np.concatenate([old, np.array(new, int)]), minlength=NUM_TERRITORIES),
    )


def read_truth(dataset_dir: str | Path, case: str) -> dict:
    """The sidecar of one simulated patient.

    Raises:
        InputError: the data set has no truth for this case.
    """
    file = Path(dataset_dir) / "derivatives" / "truth" / case / f"{case}_truth.json"
    try:
        return json.loads(file.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(
            "no readable truth", "the oracle needs a data set of scripts.simulate_trial", case=case, file=file
        ) from error


def read_protocol(dataset_dir: str | Path) -> Protocol:
    """The protocol of a simulated trial.

    Raises:
        InputError: the data set does not name one.
    """
    file = Path(dataset_dir) / "dataset_description.json"
    try:
        return PRESETS[json.loads(file.read_text())["GeneratedBy"][0]["Preset"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            "names no preset of the simulator", "the oracle needs a data set of scripts.simulate_trial", file=file
        ) from error


def read_counts(dataset_dir: str | Path, case: str, visit: str = "w048") -> Observation:
    """Perfect reading of a simulated patient up to a visit, all but voxels: quick.

    Args:
        visit: the last one seen, w048 or w000.
    """
    truth = read_truth(dataset_dir, case)
    outcome = truth["arms"][truth["arm"]]
    territories = np.array([truth["territories_w000"][name] for name in TERRITORIES])
    seen = Observation(
        num_gd=truth["num_gd_w000"],
        num_t2=truth["num_t2_w000"] - truth["num_gd_w000"] - truth["num_smouldering_w000"],
        num_smouldering=truth["num_smouldering_w000"],
        diffuse=truth["diffuse"],
        covariates=Covariates.of(truth["seen_covariates"]),
        months=tuple(truth["months"]) if truth["sees_months"] else None,
        territories=territories,
    )
    if visit != "w048":
        return seen
    new = [TERRITORIES.index(e["territory"]) for e in outcome["net2_w048"] if e["territory"] is not None]
    return replace(
        seen,
        num_active=outcome["active_smouldering_w048"],
        num_net2=len(outcome["net2_w048"]),
        num_enhancing=outcome["num_gd_w048"],
        growth_mm=truth["ventricle_growth_mm"][0],
        territories=territories + np.bincount(np.array(new, int), minlength=NUM_TERRITORIES),
    )


def read_observation(dataset_dir: str | Path, case: str, visit: str = "w048") -> Observation:
    """`read_counts` with the brain, which is drawn again from the seed, and the true lesions.

    Args:
        visit: the last one seen. From w000 alone the heatmap is near the best: first-year lesions, unseen, matter too.

    Raises:
        InputError: the case has no truth.
    """
    truth = read_truth(dataset_dir, case)
    status = _read_array(_status_file(dataset_dir, case, visit), case)
    if status is None:
        raise InputError("no map of the true lesions", "simulate the data set again", case=case, file=dataset_dir)
    anatomy = patient_anatomy(truth["seed"], truth["index"])
    return replace(read_counts(dataset_dir, case, visit), anatomy=anatomy, status=status)


def read_masks(dataset_dir: str | Path, case: str, *, flair_signs: bool = True) -> Observation:
    """What the written masks show up to w048: their components, with a reader's errors; a missing mask shows nothing.

    The forecast from it is no exact one: the oracle takes these components for lesions. It is what a reader of masks
    with an oracle's knowledge of the disease could say.

    Args:
        flair_signs: also read, perfectly, what only FLAIR shows: diffuse signal and smouldering lesions.
    """
    perfect = read_observation(dataset_dir, case)
    masks = {
        (visit, label): _read_array(_mask_file(dataset_dir, case, visit, label), case)
        for visit, label in (
            ("w000", "T2lesion"),
            ("w000", "Gdlesion"),
            ("w048", "T2lesion"),
            ("w048", "Gdlesion"),
            ("w048", "NET2"),
        )
    }
    t2, gd, net2 = masks["w000", "T2lesion"], masks["w000", "Gdlesion"], masks["w048", "NET2"]
    num_t2, num_gd, num_net2 = (None if m is None else int(ndimage.label(m, _NEIGHBOURS_26)[1]) for m in (t2, gd, net2))
    enhancing = masks["w048", "Gdlesion"]
    num_enhancing = None
    if enhancing is not None and num_net2 is not None:
        num_enhancing = min(int(ndimage.label(enhancing, _NEIGHBOURS_26)[1]), num_net2)
    smouldering = perfect.num_smouldering if flair_signs else None
    if num_t2 is not None:
        num_t2 = max(num_t2 - (num_gd or 0) - (smouldering or 0), 0)
    territories = sum(_territories(perfect.anatomy, m, t2) for m in (t2, net2) if m is not None)
    return replace(
        perfect,
        num_gd=num_gd,
        num_t2=num_t2,
        num_smouldering=smouldering,
        num_active=perfect.num_active if flair_signs else None,
        num_net2=num_net2,
        num_enhancing=num_enhancing,
        diffuse=perfect.diffuse if flair_signs else None,
        growth_mm=None,
        territories=None if isinstance(territories, int) else territories,
        status=_status_of(masks, perfect.status if flair_signs else None),
    )


def _territories(anatomy: Anatomy, mask: np.ndarray, old: np.ndarray | None) -> np.ndarray:
    """(territories,) components of a mask, each in the territory that holds most of it; without those that touch `old`
    unless the mask is `old` itself.
    """
    lesions, count = ndimage.label(mask, _NEIGHBOURS_26)
    votes = np.zeros((count + 1, NUM_TERRITORIES + 1), int)
    where = lesions > 0
    np.add.at(votes, (lesions[where], anatomy.territory[where]), 1)
    votes[:, 0] = 0
    counted = votes.any(1)
    if old is not None and old is not mask:
        counted[np.unique(lesions[ndimage.binary_dilation(old, _NEIGHBOURS_26)])] = False
    return np.bincount(votes[counted].argmax(1) - 1, minlength=NUM_TERRITORIES)


def _status_of(masks: dict, perfect: np.ndarray | None) -> np.ndarray | None:
    """Lesions as the masks of w048 show them; how active they are by the masks and, if given, by perfect reading."""
    shape = next((mask.shape for mask in masks.values() if mask is not None), None)
    if shape is None:
        return np.zeros(SHAPE, np.uint8) if perfect is None else perfect
    status = np.zeros(shape, np.uint8)
    for value, key in (
        (QUIET, ("w000", "T2lesion")),
        (QUIET, ("w048", "T2lesion")),
        (RECENT, ("w048", "NET2")),
        (ENHANCING, ("w048", "Gdlesion")),
    ):
        if masks[key] is not None:
            status[masks[key] > 0] = value
    return status if perfect is None else np.where(status > 0, np.maximum(status, perfect), 0).astype(np.uint8)


def _mask_file(dataset_dir: str | Path, case: str, visit: str, label: str) -> Path:
    return (
        Path(dataset_dir) / f"derivatives/lesions/{case}/ses-{visit}/anat/{case}_ses-{visit}_label-{label}_mask.nii.gz"
    )


def _status_file(dataset_dir: str | Path, case: str, visit: str) -> Path:
    return Path(dataset_dir) / f"derivatives/truth/{case}/{case}_ses-{visit}_desc-status_dseg.nii.gz"


def _read_array(file: Path, case: str) -> np.ndarray | None:
    if not file.exists():
        return None
    try:
        return np.asarray(nib.load(file).dataobj)
    except (OSError, EOFError, nib.filebasedimages.ImageFileError) as error:
        raise InputError("unreadable or truncated", "simulate the data set again", case=case, file=file) from error
