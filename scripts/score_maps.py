"""python -m scripts.score_maps --weights FILE: one-call maps of simulated patients between population map and oracle.

An evaluation (`run evaluating`) scores one outcome per patient. In the simulation a patient's further futures can be
drawn too, and a map is scored against their mean: the same comparison with far less chance in it, without drawing
members. Made for choosing between networks while they are trained.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from tqdm import tqdm

from bundle.arms import ARMS
from bundle.data.grid import SlabGrid, slab_centre, to_slab
from bundle.data.masks import mask_to_slab
from bundle.data.transforms import expand_case
from bundle.diffusion.slabs import NUM_VOLUMES
from bundle.errors import InputError
from bundle.evaluation.bootstrap import interval
from bundle.evaluation.locations import density_of, log_density_ratio
from bundle.networks.prior import PriorAlone, brain_coordinates, brain_of, sample_map
from bundle.networks.weights import same_architecture
from bundle.simulation.anatomy import AFFINE
from bundle.simulation.compact import compact_patient
from bundle.simulation.oracle import oracle_forecast
from bundle.simulation.patient import simulate_patient
from bundle.simulation.protocol import PRESETS
from bundle.training.checkpoints import trained_weights
from scripts.command import read_configs, run

DRAWS = 2000
Forecast = Callable[[torch.Tensor], Mapping[str, np.ndarray]]


def score_maps(
    weights: str = "models/model.pt",
    config_file: str | tuple[str, ...] = "configs/inference.json",
    patients: int = 200,
    seed: int = 101,
    futures: int = 12,
    preset: str = "trial",
) -> str:
    """Table of maps: the network's, the population's map if the network has a prior, and the oracle's.

    Args:
        weights: of the whole network, or of its prior alone (`prior_last.pt`).
        config_file: of inference, with overlays that change the network.
        patients: from the first of the trial on.
        seed: of the trial.
        futures: further outcomes of each patient; maps are scored against the mean of all.
        preset: of the trial.

    Returns:
        Text. "where": mean over lesion voxels of log(density / uniform), in nats, maps scaled to one volume.
        "AUC", "AP": of the map's sum for the activity of the outcome of w096. "loss": log loss, nats per patient.
        "volume": the map's sum / that of the futures. 95 % intervals by bootstrap over patients; differences to the
        oracle in pairs.
    """
    if preset not in PRESETS:
        raise InputError(f"--preset {preset!r} is none of {', '.join(PRESETS)}", "give one of them")
    forecast = network_of(weights, config_file)
    rows = []
    for index in tqdm(range(patients), "patients", unit="patient"):
        rows += patient_rows(forecast, seed, index, preset, futures)
    return summarise(pd.DataFrame(rows)).to_string()


def network_of(weights: str, config_file: str | tuple[str, ...]) -> Forecast:
    """The forecast of these weights: image (8, H, W, S) -> maps by name, (H, W, S) float32 each."""
    config = read_configs(config_file)
    trained, network = trained_weights(weights), config.get_parsed_content("network_def")
    if all(name.startswith("prior.") for name in trained):
        network = network.prior_alone()
    with same_architecture(weights):
        network.load_state_dict(trained)
    inferer = config.get_parsed_content("inferer").with_settings(amp=False)
    prior = getattr(network, "prior", None)

    @torch.inference_mode()
    def forecast(image: torch.Tensor) -> Mapping[str, np.ndarray]:
        name = "prior" if isinstance(network, PriorAlone) else "network"
        maps = {name: inferer.heatmap(image[None], network)[0].numpy()}
        if prior is not None:
            volumes = image[:NUM_VOLUMES].permute(0, 3, 1, 2)[None]
            half = sample_map(prior.population, brain_coordinates(brain_of(volumes)))
            maps["population"] = torch.sigmoid(2 * half[0, 0]).permute(1, 2, 0).numpy()
        return maps

    network.eval()
    return forecast


def patient_rows(forecast: Forecast, seed: int, index: int, preset: str, futures: int) -> list[dict]:
    """Scores of one patient's maps, one dictionary a forecaster."""
    protocol, grid = PRESETS[preset], SlabGrid()
    patient = simulate_patient(seed, index, protocol, futures)
    exact = oracle_forecast(patient, protocol)
    brain = patient.brain["w048"]
    affine = grid.affine(slab_centre(brain, AFFINE, grid))
    inside = to_slab(brain.astype(np.float32), AFFINE, affine, grid) >= 0.5
    compact = compact_patient(patient, f"patient {index}", grid)
    arm = patient.arm if patient.history.sees_arm else len(ARMS)
    maps = dict(forecast(expand_case(compact, arm)["image"]))
    maps["oracle"] = to_slab(exact.heatmap, AFFINE, affine, grid)
    outcomes = [compact["masks"][5].numpy() > 0]
    outcomes += [mask_to_slab(future, AFFINE, affine, grid) for future in patient.futures]
    mean = np.where(inside, np.mean(outcomes, axis=0), 0)
    rows = []
    for name, values in maps.items():
        p = np.clip(np.where(inside, values, 0), 1e-7, 1 - 1e-7)
        gain = log_density_ratio(density_of(np.where(inside, values, 0), inside), inside)
        rows.append(
            {
                "forecaster": name,
                "patient": index,
                "arm": patient.arm,
                "active": patient.history.count(patient.arm, 1) > 0,
                "gain": float((mean * np.where(inside, gain, 0)).sum()),
                "voxels": float(mean.sum()),
                "volume": float(p[inside].sum()),
                "score": exact.p_active if name == "oracle" else float(p[inside].sum()),
                "loss": float(-(mean * np.log(p) + (1 - mean) * np.log1p(-p))[inside].sum()),
            }
        )
    return rows


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """One line a forecaster; see `score_maps`."""
    by_name = dict(list(rows.groupby("forecaster", sort=False)))
    count = len(by_name["oracle"])
    # The first line is the sample itself.
    draws = np.vstack([np.arange(count), np.random.default_rng(0).integers(0, count, (DRAWS, count))])

    def where(name: str) -> np.ndarray:
        gain, voxels = (by_name[name][column].to_numpy()[draws].sum(1) for column in ("gain", "voxels"))
        return np.divide(gain, voxels, out=np.full(len(draws), np.nan), where=voxels > 0)

    table = {}
    for name, group in by_name.items():
        table[name] = {
            "where (nats)": _with_interval(where(name)),
            "less the oracle's": "" if name == "oracle" else _with_interval(where(name) - where("oracle")),
            "AUC": f"{roc_auc_score(group.active, group.score):.3f}" if group.active.nunique() > 1 else "",
            "AP": f"{average_precision_score(group.active, group.score):.3f}" if group.active.any() else "",
            "loss": f"{group.loss.mean():.1f}",
            "volume": f"{group.volume.sum() / group.voxels.sum():.2f}",
            "n": f"{count}, {int(group.active.sum())} active",
        }
    return pd.DataFrame(table).T


def _with_interval(drawn: np.ndarray) -> str:
    low, high = interval(drawn)
    return f"{drawn[0]:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    run(score_maps)
