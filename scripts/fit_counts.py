"""python -m scripts.fit_counts --dataset_dir DIR --weights FILE: the number of lesions, from the heatmap.

Fits `bundle.forecasters.counts.CountModel` to heatmaps and observed counts of patients that training has not seen, each
with all volumes and with volumes left out as in training, and writes it beside the weights, where inference finds it.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser
from sklearn.metrics import roc_auc_score
from torch import Tensor
from tqdm import tqdm

from bundle.data.bids import find_case
from bundle.data.cache import CachedCases
from bundle.data.datalist import load_split, with_outcome
from bundle.data.tables import TRIAL_MONTHS
from bundle.data.transforms import LoadCased
from bundle.errors import check_count
from bundle.files import sha256_of
from bundle.forecasters.cohort import HORIZON, INTERVAL, read_tabled
from bundle.forecasters.counts import KIND, count_features, fit_counts
from bundle.networks.prior import NUM_VOLUMES, brain_of
from bundle.networks.weights import write_fitted
from bundle.runtime import keep_freed_memory
from bundle.seeding import Streams
from bundle.training.step import Augmentation
from scripts.command import read_configs, run


def main(
    dataset_dir: str | tuple[str, ...],
    weights: str,
    split: str = "validation",
    states: int = 3,
    seed: int = 0,
    config_file: str | tuple[str, ...] = "configs/inference.json",
) -> str:
    """Fits the count model of these weights and writes it beside them.

    Args:
        dataset_dir: a BIDS or compact data set of patients whose outcome is known, or several; some hundreds of
            patients. Each patient counts with the months between its own visits, `TRIAL_MONTHS` where unknown.
        weights: of the network; a count model beside them is replaced.
        split: of its datalist, to fit on; "all" takes all patients. None of them may be of the network's training.
        states: heatmaps of each patient: one with all volumes, the others with volumes left out at random.
        seed: of what is left out.
        config_file: of inference, with overlays that change the network.

    Returns:
        What was fitted.
    """
    check_count("states", states)
    checksum = sha256_of(Path(str(weights))) if Path(str(weights)).is_file() else ""
    config = read_configs(config_file)
    config.update({"weights": weights, "progress": False, "guidance_scale": 1, "arm_guidance_scale": 1})
    config.update({"horizon_months": TRIAL_MONTHS})
    folders = [str(dataset_dir)] if isinstance(dataset_dir, str | Path) else [str(folder) for folder in dataset_dir]
    read = [features_and_counts(config, folder, split, states, seed) for folder in folders]
    features, counts, longer = (np.concatenate(parts) for parts in zip(*read))
    model = fit_counts(features, counts, longer)
    mean = model.mean_and_size(features)[0] * longer
    fitted = {
        "data_set": ", ".join(Path(folder).name for folder in folders),
        "split": split,
        "patients": len(counts) // states,
        "states": states,
        "seed": seed,
        "count_observed": round(float(counts.mean()), 3),
        "count_fitted": round(float(mean.mean()), 3),
        "auc": round(float(roc_auc_score(counts > 0, mean)), 3),
    }
    file = write_fitted(weights, KIND, model, fitted, checksum)
    return f"{file}: fitted to {fitted}"


@torch.inference_mode()
def features_and_counts(
    config: ConfigParser, dataset_dir: str, split: str, states: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every patient in every state: `count_features` (N, 5), the lesions at w096 (N,), and the months until then as
    multiples of `TRIAL_MONTHS` (N,).
    """
    network, inferer, grid, rule, device = (
        config.get_parsed_content(name) for name in ("network", "inferer", "grid", "lesion_rule", "device")
    )
    affine = grid.affine(np.zeros(3))
    leave_out, features, counts, longer = Augmentation(flip=0, drop_arm=0), [], [], []
    with tempfile.TemporaryDirectory() as cache_dir:
        items = with_outcome(load_split(dataset_dir, split))
        cases = CachedCases(items, LoadCased(grid=grid, with_outcome=True), cache_dir)
        for index in tqdm(range(len(cases)), "patients"):
            case = cases[index]
            months = read_tabled(find_case(items[index]["image"]))
            image, target = (case[name].as_subclass(Tensor)[None] for name in ("image", "target"))
            count = rule.count(target[0, -1].numpy() > 0, affine)
            inside = brain_of(image[:, :NUM_VOLUMES].permute(0, 1, 4, 2, 3))[0, 0].permute(1, 2, 0)
            for state in range(states):
                streams = Streams.for_members(seed, case["case"], [state])
                shown = leave_out(image, target, streams)[0] if state else image
                heatmap = inferer.heatmap(shown.to(device), network)[0].cpu()
                features.append(count_features(shown[0].numpy(), (heatmap * inside).numpy(), affine, months[INTERVAL]))
                counts.append(count)
                longer.append((months[HORIZON] or TRIAL_MONTHS) / TRIAL_MONTHS)
    return np.array(features), np.array(counts), np.array(longer)


if __name__ == "__main__":
    keep_freed_memory()
    run(main)
