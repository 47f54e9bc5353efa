"""python -m scripts.correct_volume --dataset_dir DIR --weights FILE: members that hold as much volume as the heatmap.

Draws members of the patients and fits `bundle.diffusion.slabs.VolumeCorrection` so that the expected volume stays the
same along the walk. Outcomes are not read: it can be fitted on any patients like those to be forecast. Writes the
correction beside the weights, where inference finds it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from bundle.diffusion.slabs import VolumeCorrection, net2_probability, outcome_shape
from bundle.errors import InputError, check_count
from bundle.files import sha256_of
from bundle.forecasters.ensemble import EnsembleInferer
from bundle.networks.weights import write_fitted
from bundle.runtime import keep_freed_memory
from bundle.seeding import Streams
from scripts.command import read_configs, run

FIRST, COUNT = -4.0, 6  # log-SNR at which lesions form: -4 to 1
DAMPING = 0.7  # what is added at one level is kept at the next ones, so that a full correction would be too much
LEAST = 1.0  # voxels in the heatmap; members of patients with fewer are nearly all empty
MIN_PATIENTS = 10  # with that many voxels; about 50 make a good fit


@dataclass(frozen=True)
class Walks:
    """Volumes of the walks of all members of all patients, relative to that of the patients' heatmaps.

    Attributes:
        levels: log-SNR, (N,).
        expected: of x0 at these levels, (N,).
        members: of the finished members, cut at one half.
    """

    levels: np.ndarray
    expected: np.ndarray
    members: float


def correct_volume(
    dataset_dir: str,
    weights: str,
    split: str | None = None,
    members: int = 4,
    rounds: int = 3,
    drop_visits: Sequence[str] = (),
    config_file: str | tuple[str, ...] = "configs/inference.json",
) -> str:
    """Fits the correction of these weights and writes it beside them.

    Args:
        dataset_dir: a BIDS data set of the patients to fit on; about 50 with lesions to come suffice.
        weights: of the network; a correction beside them is replaced.
        split: fit on this one of its datalist only.
        members: drawn of each patient in each round.
        rounds: the first is without a correction, each further one improves on the last.
        drop_visits: visits to ignore, as the weights were trained.
        config_file: of inference, with overlays that change the network.

    Returns:
        What was reached.
    """
    check_count("members", members)
    check_count("rounds", rounds)
    checksum = sha256_of(Path(str(weights))) if Path(str(weights)).is_file() else ""
    config = read_configs(config_file)
    config.update({"dataset_dir": dataset_dir, "split": split, "weights": weights, "volume_correction": None})
    config.update({"preprocessing#transforms#0#drop_visits": list(drop_visits)})
    network, inferer = (config.get_parsed_content(name) for name in ("network", "inferer"))
    device = config.get_parsed_content("device")
    images = [item["image"].as_subclass(Tensor)[None] for item in config.get_parsed_content("dataset")]
    heatmaps = [float(inferer.heatmap(image.to(device), network).sum()) for image in tqdm(images, "heatmaps")]
    kept = [(image, volume) for image, volume in zip(images, heatmaps) if volume >= LEAST]
    if len(kept) < MIN_PATIENTS:
        raise InputError(
            f"{len(kept)} patients with a lesion to come; {MIN_PATIENTS} are needed, about 50 make a good fit",
            "give more patients",
            file=dataset_dir,
        )
    log_odds, tried = np.zeros(COUNT), []
    for number in range(rounds + 1):  # the last one shows what was reached
        correction = VolumeCorrection(FIRST, tuple(np.round(log_odds, 3).tolist()))
        walks = walk(inferer.with_settings(volume_correction=correction, num_members=members), network, kept, device)
        tqdm.write(f"round {number}: members hold {walks.members:.3f} of the heatmaps' volume, {correction.log_odds}")
        tried.append((abs(np.log(walks.members)), walks.members, correction))
        log_odds = next_log_odds(log_odds, walks)
    _, reached, best = min(tried, key=lambda trial: trial[0])
    fitted: dict[str, Any] = {"patients": len(kept), "members": members}
    fitted |= {"steps": inferer.settings.num_steps, "amp": inferer.settings.amp, "drop_visits": list(drop_visits)}
    fitted |= {"volume_before": round(tried[0][1], 3), "volume_after": round(reached, 3)}
    file = write_fitted(weights, "volume_correction", best, fitted, checksum)
    return f"{file}: members hold {reached:.3f} of the heatmaps' volume, {tried[0][1]:.3f} without the correction"


def walk(
    inferer: EnsembleInferer, network: nn.Module, patients: Sequence[tuple[Tensor, float]], device: torch.device
) -> Walks:
    """Draws members of every patient with the same noise in every round.

    Args:
        inferer, network: as for a forecast.
        patients: image (1, 8, H, W, S) and the heatmap's sum of each.
        device: of the network.
    """
    count, total = inferer.settings.num_members, sum(volume for _, volume in patients)
    expected, marked = {}, 0.0
    for number, (image, _) in enumerate(tqdm(patients, "patients", leave=False)):
        streams = Streams.for_members(inferer.settings.seed, str(number), range(count))
        volumes, members = walk_patient(inferer, network, image.to(device), streams)
        marked += members
        for level, volume in volumes.items():
            expected[level] = expected.get(level, 0.0) + volume
    levels = np.array(sorted(expected))
    return Walks(levels, np.array([expected[level] for level in levels]) / total, marked / total)


@torch.inference_mode()
def walk_patient(
    inferer: EnsembleInferer, network: nn.Module, image: Tensor, streams: Streams
) -> tuple[dict[float, float], float]:
    """Mean volume in voxels of one patient's members: expected at each log-SNR, and marked at the end."""
    expected = {}
    with torch.autocast(image.device.type, torch.bfloat16, enabled=inferer.settings.amp):  # as in a forecast
        denoise = inferer.denoise_given(network, image)

    def denoise_and_add(z_t: Tensor, logsnr: Tensor) -> Tensor:
        x0 = denoise(z_t, logsnr)
        expected[float(logsnr[0])] = float(net2_probability(x0).sum()) / len(z_t)
        return x0

    drawn = inferer.sample(denoise_and_add, outcome_shape(image), streams, image.device)
    return expected, float((drawn > 0.5).sum()) / len(drawn)


def next_log_odds(log_odds: np.ndarray, walks: Walks) -> np.ndarray:
    """Better log-odds (COUNT,) than those with which these walks were made."""
    knots = FIRST + np.arange(COUNT)
    return log_odds - DAMPING * np.interp(knots, walks.levels, np.log(np.maximum(walks.expected, 1e-3)))


if __name__ == "__main__":
    keep_freed_memory()
    run(correct_volume)
