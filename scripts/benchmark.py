"""How fast and how good: ways to draw an ensemble, side by side in one run.

    python -m scripts.benchmark --patients P --members K --repeats R --out DIR [--dataset_dir DIR] [--split validation]
        [--methods "reference; default; ..."] [--config_file configs/inference.json]

All methods have the same weights, patients and noise. *Speed*: they take turns on one patient, R times; medians. The
reference draws one member, the others K; all are scaled to 100. *Quality*: K members of each of P patients, kept in
DIR/cases, so that a run that was stopped goes on. 95 % intervals are those of a bootstrap over patients; differences from
the reference are taken in pairs. Writes DIR/benchmark.json (rows) and DIR/benchmark.md (a table).
"""

import copy
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import fire
import numpy as np
import pandas as pd
import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bundle.cohort import CaseReader
from bundle.data.datalist import load_split, with_outcome
from bundle.errors import report_in_one_line
from bundle.evaluation import Evaluation, Scores, Scoring
from bundle.files import written_whole
from bundle.forecasting import EnsembleInferer, condition_of
from bundle.forecasts import Diffusion, Forecast, Patient
from bundle.inference import Guard
from bundle.memory import keep_freed_memory
from bundle.samplers import AncestralSampler
from bundle.schedules import LogSNRUniformGrid, TimeUniformGrid
from bundle.tables import TABLES, bootstrap_weights, ratio

REFERENCE, PREVIEW, PEER = "reference", "preview", "diffusers"
# What a method changes of the configuration's inferer.
METHODS: dict[str, Mapping[str, Any]] = {
    # Favero et al. 2025 and its public relatives: also two network calls a step, images and all (`Plain`).
    REFERENCE: dict(sampler=AncestralSampler(), grid=TimeUniformGrid(), num_steps=256, amp=False, member_batch=1),
    PREVIEW: dict(),  # the one-call heatmap
    PEER: dict(),  # the same networks and steps by diffusers, if it is installed: speed only
    "default": dict(),
} | {
    f"{steps} steps from {low} to {high}": dict(grid=LogSNRUniformGrid(low, high), num_steps=steps)
    for low, high in ((-4, 4), (-6, 4))
    for steps in (4, 6, 8, 10, 12, 16)
}  # fmt: skip
QUALITY = {
    "auc": ("activity", "AUC"),
    "average_precision": ("activity", "average precision"),
    "log_count_mse": ("log_count", "mean squared error of log(1 + count)"),
    "heatmap_brier": ("detection", "voxel Brier score"),
    "heatmap_average_precision": ("detection", "voxel average precision"),
}


def run(
    out: str,
    patients: int = 20,
    members: int = 20,
    repeats: int = 3,
    dataset_dir: str = "data/trial",
    split: str = "validation",
    methods: str = "reference; preview; default",
    config_file: str = "configs/inference.json",
    seed: int = 0,
) -> None:
    """Time and score each of `methods`; patients are drawn at random from the split."""
    keep_freed_memory()
    names = list(dict.fromkeys([REFERENCE, *methods.split("; ")]))
    config = ConfigParser()
    config.read_config(config_file)
    config.update({"progress": False, "num_members": members})
    network, inferer = config.get_parsed_content("network").eval(), config.get_parsed_content("inferer")
    items = with_outcome(load_split(dataset_dir, split))
    items = [items[place] for place in np.random.default_rng(seed).permutation(len(items))[:patients]]
    read = CaseReader(config.get_parsed_content("grid"), config.get_parsed_content("lesion_rule"))
    inferers = {name: inferer_of(inferer, name) for name in names}
    image = read(items[0]).patient.image
    rows = {name: {"name": name} for name in names}
    contestants = {name: Contestant(config, network, changed, name, image) for name, changed in inferers.items()}
    for name, figures in speed(contestants, repeats).items():
        rows[name] |= figures
    for name in names:
        rows[name]["peak_memory_mb"] = peak_memory(config_file, name, image)
    forecasters = {name: Diffusion(network, changed, read.rule) for name, changed in inferers.items()}
    forecasters |= {name: Preview(network, changed) for name, changed in inferers.items() if name == PREVIEW}
    forecasters.pop(PEER, None)
    for changed in inferers.values():
        changed.member_batch = inferer.member_batch  # changes no member, and those of the reference are many
    evaluation = Evaluation(dataset_dir, items, read, forecasters, Scoring(read.rule), out, Guard())
    evaluation.score()
    for name, figures in quality(evaluation.scores()).items():
        rows[name] |= figures
    write(Path(out), list(rows.values()))


def inferer_of(inferer: EnsembleInferer, name: str) -> EnsembleInferer:
    """The configuration's inferer with what the method changes."""
    changed = copy.copy(inferer)
    vars(changed).update(METHODS[name])
    return changed


class Plain(nn.Module):
    """The network without its short cuts: what images say is computed anew in every call."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """As the network's."""
        return self.network(x)


class Preview:
    """The one-call heatmap as a forecaster; it says nothing of counts."""

    def __init__(self, network: nn.Module, inferer: EnsembleInferer) -> None:
        self.network, self.inferer = network, inferer
        self.key = f"preview, {Diffusion(network, inferer, None).key}"

    def __call__(self, patient: Patient) -> Sequence[Forecast]:
        image = patient.image[None].to(next(self.network.parameters()).device)
        heatmap = self.inferer.heatmap(image, self.network)[0].float().cpu().numpy() * patient.brain
        return [Forecast(np.nan, np.full(1, np.nan), np.ones(1), heatmap=heatmap)]


class Contestant:
    """Draws an ensemble of one patient in the way of a method.

    Args:
        config: of which `network` is made.
        inferer: of the method.
        name: of `METHODS`.
        image: the patient's, (8, H, W, S).

    Attributes:
        unet: whose calls are those of the method.
        device, amp: what it runs on and in.
    """

    def __init__(self, config: ConfigParser, network: nn.Module, inferer: EnsembleInferer, name: str, image: Tensor) -> None:
        self.unet, self.device, self.amp = network.unet, next(network.parameters()).device, inferer.amp
        self.members = inferer.num_members
        image = image[None].to(self.device)
        if name == PREVIEW:
            self.members = 100  # of a right network no ensemble of 100 has a better heatmap
            self.once = partial(inferer.heatmap, image, network)
        elif name == PEER:
            from scripts.peers import DiffusersEnsemble

            architecture = config["network_def"]
            peer = DiffusersEnsemble(network, architecture, inferer.num_steps, inferer.amp, inferer.member_batch)
            self.unet, self.once = peer.unet, partial(peer, condition_of(image).images, self.members)
        elif name == REFERENCE:
            inferer = copy.copy(inferer)
            inferer.num_members = self.members = 1
            inferer.guidance_scale = inferer.arm_guidance_scale = 1.5  # asks for both calls; at 1 one has no weight
            self.once = partial(inferer, image, Plain(network))
        else:
            self.once = partial(inferer, image, network)

    def seconds(self) -> float:
        """That 100 members take."""
        started = time.perf_counter()
        self.once()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) * 100 / self.members

    def costs(self) -> dict[str, float]:
        """Network calls and operations of a member, counted as it is drawn."""
        samples = 0

        def count(unet: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            nonlocal samples
            samples += len(inputs[0])

        hook = self.unet.register_forward_pre_hook(count)
        with FlopCounterMode(display=False) as operations:
            self.once()
        hook.remove()
        return {
            "calls_per_member": samples / self.members,
            "flops_per_member": operations.get_total_flops() / self.members,
            "members_timed": self.members,
        }


def speed(contestants: Mapping[str, Contestant], repeats: int) -> dict[str, dict[str, float]]:
    """Costs and seconds of each; they take turns, after a first round that warms up and counts."""
    figures = {name: contestant.costs() for name, contestant in contestants.items()}
    rounds = [{name: contestant.seconds() for name, contestant in contestants.items()} for _ in range(repeats)]
    device = contestants[REFERENCE].device
    peaks = {amp: matmul_peak(device, amp) for amp in (False, True)}
    for name, contestant in contestants.items():
        seconds = [taken[name] for taken in rounds]
        median = statistics.median(seconds)
        flops = figures[name]["flops_per_member"] * 100 / median
        figures[name] |= {
            "seconds_per_100_members": median,
            "seconds_low": min(seconds),
            "seconds_high": max(seconds),
            "speedup_over_reference": statistics.median(taken[REFERENCE] / taken[name] for taken in rounds),
            "flops_per_second": flops,
            "share_of_matmul_peak": flops / peaks[contestant.amp],
            "repeats": repeats,
        }
    return figures


def matmul_peak(device: torch.device, amp: bool, side: int = 2048, times: int = 7) -> float:
    """FLOP/s of the best of some square matrix products: what this machine can reach at all."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16 if amp else torch.float32) for _ in range(2))
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / min(seconds)


def peak_memory(config_file: str, name: str, image: Tensor) -> float:
    """MB: of the GPU, or the resident set of a process of its own that draws one batch with the shipped network."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_memory, config_file, name, image.numpy()).result()


def _peak_memory(config_file: str, name: str, image: np.ndarray) -> float:
    keep_freed_memory()
    config = ConfigParser()
    config.read_config(config_file)
    config.update({"progress": False, "num_steps": 2})
    inferer = inferer_of(config.get_parsed_content("inferer"), name)
    inferer.num_members, inferer.num_steps = inferer.member_batch, 2
    Contestant(config, config.get_parsed_content("network").eval(), inferer, name, torch.from_numpy(image)).once()
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def quality(scores: Mapping[str, Scores], draws: int = 1000) -> dict[str, dict[str, float]]:
    """By method, of `QUALITY` and of the volume marked beside the reference's: value, 95 % interval, difference in pairs."""
    reference = scores[REFERENCE]
    weights = bootstrap_weights(reference["arm"], draws)
    measures = {
        column: next(metric for metric in TABLES[table] if metric.name == name) for column, (table, name) in QUALITY.items()
    }
    volume = ratio("forecast_voxels", "lesion_voxels")
    rows: dict[str, dict[str, float]] = {name: {"patients": len(reference.cases)} for name in scores}
    for name, s in scores.items():
        for column, metric in measures.items():
            if metric.of in s:
                value = metric.measure(s, weights)
                rows[name] |= _told(column, value) | _told(f"{column}_difference", value - metric.measure(reference, weights))
        rows[name] |= _told("foreground_bias", volume(s, weights) / volume(reference, weights) - 1)
    return rows


def _told(column: str, values: np.ndarray) -> dict[str, float]:
    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
    return {column: float(values[0]), f"{column}_low": float(low), f"{column}_high": float(high)}


def write(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """benchmark.json with all columns, benchmark.md with the main ones."""
    told = pd.DataFrame(rows)
    main = [name for name in told.columns if not name.endswith(("_low", "_high", "_difference"))]
    for file, text in (("benchmark.json", json.dumps(rows, indent=1)), ("benchmark.md", table(told[main]))):
        with written_whole(out / file) as stream:
            stream.write(text.encode())
    print(table(told[main]))


def table(frame: pd.DataFrame) -> str:
    """A Markdown table."""
    lines = [[str(column) for column in frame.columns], ["---"] * len(frame.columns)]
    lines += [[x if isinstance(x, str) else f"{x:.3g}" for x in row] for row in frame.itertuples(index=False)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    report_in_one_line()
    fire.Fire(run)
