"""Speed and quality of ways to draw an ensemble, side by side in one run.

    python -m scripts.benchmark --patients P --members K --repeats R --out DIR [--dataset_dir DIR] [--split validation]
        [--methods "preview; default; DPM-Solver++ from -4 to 4; ..."] [--against reference]

All methods have the same weights, patients and noise; the name of a curve stands for all its methods. *Speed*: they
take turns on one patient, R times (none with 0); medians. Plain methods draw one member, the others K; all are scaled
to 100. *Quality*: K members of each of P patients, stored in DIR/cases, so that a run that was stopped resumes. 95 %
intervals are over patients (bootstrap); differences from the method named by `against` are paired. Writes
DIR/benchmark.json (rows), DIR/benchmark.md (a table), and of curves DIR/quality.png; with speed DIR/profile.md (the
operations of the default) and DIR/speed.json, from which a later run without (R = 0, by several processes of torchrun)
takes the times into its table.
"""

import importlib.util
import json
import math
import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn
from torch.profiler import ProfilerActivity
from torch.utils.flop_counter import FlopCounterMode

from bundle.data.datalist import load_split, with_outcome
from bundle.diffusion.samplers import AncestralSampler
from bundle.diffusion.schedules import LogSNRUniformGrid, TimeUniformGrid
from bundle.diffusion.slabs import Condition
from bundle.errors import Guard, InputError
from bundle.evaluation.bootstrap import bootstrap_weights, interval
from bundle.evaluation.cases import Evaluation
from bundle.evaluation.metrics import metric_named
from bundle.evaluation.scoring import Scores, Scoring
from bundle.files import check_writable, written_whole
from bundle.forecasters.base import Forecast, Patient, Role, key_of
from bundle.forecasters.cohort import CaseReader
from bundle.forecasters.ensemble import Diffusion, EnsembleInferer
from bundle.runtime import keep_freed_memory, sharing
from scripts import command
from scripts.command import read_configs

Row = dict[str, Any]
REFERENCE, PREVIEW, PEER, DEFAULT, CONVERGED = "reference", "preview", "diffusers", "default", "default in 100 steps"
STEPS = (4, 6, 8, 10, 16, 24)


@dataclass(frozen=True)
class Method:
    """A way to draw an ensemble.

    Attributes:
        changes: to the configuration's inferer.
        two_calls: both calls of guidance are made, though their sum is that of one; speed only.
        plain: the images are read anew in every call, and members drawn one by one; speed only.
        curve: in the figure of quality by number of steps.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    two_calls: bool = False
    plain: bool = False
    curve: str | None = None


ANCESTRAL = {
    "sampler": AncestralSampler(),
    "grid": TimeUniformGrid(),
    "num_steps": 256,
    "reuse_within": 0,
    "amp": False,
}
CURVES: dict[str, Mapping[str, Any]] = {
    "DPM-Solver++ from -4 to 4": {"grid": LogSNRUniformGrid(-4, 4)},
    "DPM-Solver++ from -6 to 4": {"grid": LogSNRUniformGrid(-6, 4)},
    "DPM-Solver++ uniform in logSNR": {"grid": LogSNRUniformGrid()},
    "DPM-Solver++ uniform in time": {"grid": TimeUniformGrid()},
    "DDIM from -4 to 4": {"sampler": AncestralSampler(eta=0), "grid": LogSNRUniformGrid(-4, 4)},
    "ancestral from -4 to 4": {"sampler": AncestralSampler(), "grid": LogSNRUniformGrid(-4, 4)},
    "guided": {"guidance_scale": 1.5, "arm_guidance_scale": 1.5},
    "guided from -2": {"guidance_scale": 1.5, "arm_guidance_scale": 1.5, "guidance_interval": (-2, math.inf)},
    "reusing within 1": {"reuse_within": 1.0},
    "reusing within 1.9": {"reuse_within": 1.9},
    "reusing within 2.7": {"reuse_within": 2.7},
    "reusing within 4.1": {"reuse_within": 4.1},
}
METHODS = {
    # Favero et al. 2025 and its public relatives.
    REFERENCE: Method(ANCESTRAL, two_calls=True, plain=True),
    # What each change is worth: from the reference to the default.
    "in the default's steps": Method({"amp": False}, two_calls=True, plain=True),
    "in one call a step": Method({"amp": False}, plain=True),
    "in bf16": Method(plain=True),
    "members together": Method({"reuse_within": 0}),
    DEFAULT: Method(),
    "default in fp32": Method({"amp": False}),
    # What the default's solver converges to.
    CONVERGED: Method({"grid": LogSNRUniformGrid(), "num_steps": 100, "reuse_within": 0}),
    PREVIEW: Method(),  # the one-call heatmap
    PEER: Method(),  # the same networks and steps by diffusers, if it is installed: speed only
} | {
    f"{curve}, {steps} steps": Method({"reuse_within": 0} | changes | {"num_steps": steps}, curve=curve)
    for curve, changes in CURVES.items()
    for steps in STEPS
}
QUALITY = {  # names of metrics, by column
    "auc": "AUC",
    "average_precision": "average precision",
    "log_count_mse": "mean squared error of log(1 + count)",
    "heatmap_brier": "voxel Brier score (who x where)",
    "heatmap_average_precision": "voxel average precision (who x where)",
    "heatmap_calibration_error": "calibration error of the heatmap",
    "volume_ratio": "forecast / true lesion volume",
    "mean_count": "mean forecast count",
}


def run(
    out: str,
    patients: int = 20,
    members: int = 20,
    repeats: int = 3,
    dataset_dir: str = "data/trial",
    split: str = "validation",
    methods: str = "preview; default",
    against: str = REFERENCE,
    config_file: str = "configs/inference.json",
    seed: int = 0,
) -> None:
    """Time and score each of `methods`; patients are drawn at random from the split; processes of torchrun divide them.

    Raises:
        InputError: an unknown method, or times of several processes, which would slow each other.
    """
    keep_freed_memory()
    names = methods_named(against, *methods.split("; "))
    if repeats and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        problem = "times of several processes side by side are not comparable"
        raise InputError(problem, "give --repeats 0, then time with one process")
    config = read_configs(config_file)
    config.update({"progress": False, "num_members": members})
    network, inferer = config.get_parsed_content("network").eval(), config.get_parsed_content("inferer")
    items = with_outcome(load_split(dataset_dir, split))
    items = [items[index] for index in np.random.default_rng(seed).permutation(len(items))[:patients]]
    read = CaseReader(config.get_parsed_content("grid"), config.get_parsed_content("lesion_rule"))
    check_writable(Path(out))
    rows: dict[str, Row] = {name: {"name": name} for name in names}
    if repeats:
        image = read(items[0]).patient.image
        contestants = {name: Contestant(config, network, inferer, name, image) for name in names}
        for name, figures in speed(contestants, repeats, against).items():
            rows[name] |= figures | {"peak_memory_mb": peak_memory(config_file, name, image)}
        write(Path(out), "speed", list(rows.values()))
        with written_whole(Path(out) / "profile.md") as stream:
            stream.write(profile(Contestant(config, network, inferer, DEFAULT, image)).encode())
    elif (Path(out) / "speed.json").is_file():
        timed = {row["name"]: row for row in json.loads((Path(out) / "speed.json").read_text())}
        rows = {name: timed.get(name, row) for name, row in rows.items()}
    scored = {name: inferer_of(inferer, name) for name in names if name != PEER and not is_for_speed(name, against)}
    models = {name: Diffusion(network, changed, read.rule, one_call=False) for name, changed in scored.items()}
    forecasters = {name: Preview(model) if name == PREVIEW else model for name, model in models.items()}
    evaluation = Evaluation(dataset_dir, items, read, forecasters, Scoring(read.rule), out, Guard())
    with sharing() as (rank, world):
        evaluation.score(rank, world)
    if rank == 0:
        for name, figures in quality(evaluation.scores(), against).items():
            rows[name] |= figures
        write(Path(out), "benchmark", list(rows.values()))
        draw_curves(list(rows.values()), Path(out) / "quality.png")


def methods_named(*names: str) -> list[str]:
    """Names of `METHODS`, with those of a curve in place of its name.

    Raises:
        InputError: an unknown name, or a peer that is not installed.
    """
    found: list[str] = []
    for name in names:
        of_curve = [method for method in METHODS if METHODS[method].curve == name]
        if name not in METHODS and not of_curve:
            raise InputError(f"no method {name!r}", f"choose from {', '.join([*METHODS, *CURVES])}")
        found += of_curve or [name]
    if PEER in found and importlib.util.find_spec(PEER) is None:
        raise InputError(f"{PEER} is not installed", "pip install -c constraints.txt -e '.[benchmark]'")
    return list(dict.fromkeys(found))


def is_for_speed(name: str, against: str) -> bool:
    """Whether its members are those of another method, so that scoring them would add nothing."""
    return name != against and (METHODS[name].plain or METHODS[name].two_calls)


def inferer_of(inferer: EnsembleInferer, name: str) -> EnsembleInferer:
    """The configuration's inferer with what the method changes."""
    return inferer.with_settings(**METHODS[name].changes)


class Plain(nn.Module):
    """The network without its short cuts: the images are encoded anew in every call."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """As the network's."""
        return self.network(x)


class Preview:
    """The model's one-call heatmap as a forecaster; it forecasts no counts."""

    role, num_members = Role.MODEL, None

    def __init__(self, model: Diffusion) -> None:
        self.model, self.key = model, key_of("preview", model.key)

    def __call__(self, patient: Patient) -> Sequence[Forecast]:
        return [Forecast(np.nan, np.full(1, np.nan), np.ones(1), heatmap=self.model.heatmap(patient))]


class Contestant:
    """Draws an ensemble of one patient in the way of a method.

    Args:
        config: of which `network` and `inferer` are made.
        name: of `METHODS`.
        image: the patient's, (8, H, W, S).

    Attributes:
        unet: its calls are counted.
        device, amp: what it runs on and in.
        members: drawn by one call of `once`.
        once: draws them.
    """

    def __init__(
        self, config: ConfigParser, network: nn.Module, inferer: EnsembleInferer, name: str, image: Tensor
    ) -> None:
        method, inferer = METHODS[name], inferer_of(inferer, name)
        if method.plain:
            network, inferer = Plain(network), inferer.with_settings(num_members=1)
        if method.two_calls:
            inferer = inferer.with_settings(guidance_scale=1.5, arm_guidance_scale=1.5)  # at 1 one call has no weight
        bare = network.network if method.plain else network
        self.unet, self.device, self.amp = bare.unet, next(network.parameters()).device, inferer.settings.amp
        self.members = inferer.settings.num_members
        image = image[None].to(self.device)
        self.once = partial(inferer, image, network)
        if name == PREVIEW:
            self.members = 100  # one call stands for the heatmap of any number of members
            self.once = partial(inferer.heatmap, image, network)
        elif name == PEER:
            from scripts.peers import DiffusersEnsemble

            architecture = config["network_def"]
            settings = inferer.settings
            peer = DiffusersEnsemble(network, architecture, settings.num_steps, settings.amp, inferer.member_batch)
            self.unet, self.once = peer.unet, partial(peer, Condition.of(image).images, self.members)

    def seconds(self) -> float:
        """Time that 100 members take."""
        started = time.perf_counter()
        self.once()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) * 100 / self.members

    def costs(self) -> dict[str, float]:
        """Network calls and operations per member, counted while drawing."""
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


def speed(contestants: Mapping[str, Contestant], repeats: int, against: str = REFERENCE) -> dict[str, Row]:
    """Costs and seconds of each; they take turns, after a first round that warms up and counts."""
    figures: dict[str, Row] = {name: contestant.costs() for name, contestant in contestants.items()}
    rounds = [{name: contestant.seconds() for name, contestant in contestants.items()} for _ in range(repeats)]
    device = contestants[against].device
    peaks = {amp: matmul_peak(device, amp) for amp in (False, True)}
    for name, contestant in contestants.items():
        seconds = [taken[name] for taken in rounds]
        median = statistics.median(seconds)
        flops = figures[name]["flops_per_member"] * 100 / median
        figures[name] |= {
            "seconds_per_100_members": median,
            "seconds_low": min(seconds),
            "seconds_high": max(seconds),
            "speedup_over_reference": statistics.median(taken[against] / taken[name] for taken in rounds),
            "flops_per_second": flops,
            "fraction_of_matmul_peak": flops / peaks[contestant.amp],
            "matmul_peak_flops": peaks[contestant.amp],
            "repeats": repeats,
        }
    return figures


def profile(contestant: Contestant, rows: int = 12) -> str:
    """The operations that take longest, as a Markdown table."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (contestant.device.type == "cuda")
    # Warmed up under the profiler: what it allocates lies in the way of large tensors, which at first are given fresh
    # pages.
    turns = torch.profiler.schedule(wait=0, warmup=2, active=1)
    with torch.profiler.profile(activities=activities, schedule=turns, acc_events=True) as measured:
        for _ in range(3):
            contestant.once()
            measured.step()
    time_of = "self_device_time_total" if contestant.device.type == "cuda" else "self_cpu_time_total"
    events = [event for event in measured.key_averages() if not event.key.startswith("ProfilerStep")]
    events.sort(key=lambda event: -getattr(event, time_of))
    total = sum(getattr(event, time_of) for event in events)
    fractions = [(event.key, event.count, getattr(event, time_of) / total) for event in events]
    others = ("all others", sum(x[1] for x in fractions[rows:]), sum(x[2] for x in fractions[rows:]))
    columns = ("operation", "calls", "fraction of the time")
    return table([dict(zip(columns, row)) for row in (*fractions[:rows], others)])


def matmul_peak(device: torch.device, amp: bool, side: int = 2048, times: int = 7) -> float:
    """FLOP/s of the fastest of some square matrix products: the most that this machine reaches."""
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
    """Peak memory in MB: of the GPU, or (on Linux) of a process of its own that draws one batch."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_memory, config_file, name, image.numpy()).result()


def _peak_memory(config_file: str, name: str, image: np.ndarray) -> float:
    keep_freed_memory()
    config = read_configs(config_file)
    config.update({"progress": False})
    inferer = config.get_parsed_content("inferer")
    inferer = inferer.with_settings(num_members=inferer.member_batch)
    contestant = Contestant(config, config.get_parsed_content("network").eval(), inferer, name, torch.from_numpy(image))
    contestant.once()
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    # Of this process alone: getrusage also counts the one it was forked from.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e6


def quality(scores: Mapping[str, Scores], against: str = REFERENCE, draws: int = 1000) -> dict[str, Row]:
    """By method: `QUALITY` with 95 % intervals, paired differences, and the relative excess of volume.

    The heatmap of members is the fraction of members; that of the preview the one-call heatmap.
    """
    reference = scores[against]
    weights = bootstrap_weights(reference["arm"], draws)
    rows: dict[str, Row] = {name: {"patients": len(reference.cases)} for name in scores}
    for name, s in scores.items():
        for column, metric in ((column, metric_named(metric)) for column, metric in QUALITY.items()):
            if metric.score in s:
                values, others = metric.compute(s, weights), metric.compute(reference, weights)
                rows[name] |= _columns(column, values) | _columns(f"{column}_difference", values - others)
        volume, other = (metric_named(QUALITY["volume_ratio"]).compute(x, weights) for x in (s, reference))
        rows[name] |= _columns("foreground_bias", volume / other - 1)
    return rows


def _columns(column: str, values: np.ndarray) -> dict[str, float]:
    low, high = interval(values)
    return {column: float(values[0]), f"{column}_low": low, f"{column}_high": high}


def write(out: Path, name: str, *tables: Sequence[Row]) -> None:
    """`name`.json with all rows and columns, `name`.md with the main columns of each table; prints the latter."""
    text = "\n".join(table(rows) for rows in tables)
    rows = [row for rows in tables for row in rows]
    for file, content in ((f"{name}.json", json.dumps(rows, indent=1)), (f"{name}.md", text)):
        with written_whole(out / file) as stream:
            stream.write(content.encode())
    print(text)


def table(rows: Sequence[Row]) -> str:
    """A Markdown table, without the ends of intervals and differences."""
    frame = pd.DataFrame(rows)
    frame = frame[[name for name in frame.columns if not name.endswith(("_low", "_high", "_difference"))]]
    lines = [[str(column) for column in frame.columns], ["---"] * len(frame.columns)]
    lines += [[x if isinstance(x, str) else f"{x:.3g}" for x in row] for row in frame.itertuples(index=False)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def draw_curves(rows: Sequence[Row], file: Path) -> None:
    """Quality by number of steps, a line for each curve; dashed the first row, the reference, with its interval.

    Intervals of the others are not drawn, as differences between them are paired. Draws nothing without curves.
    """
    columns = {
        "auc": "AUC of activity",
        "average_precision": "average precision",
        "log_count_mse": "MSE of log(1 + count)",
        "volume_ratio": "volume, forecast / true",
    }
    curves: dict[str, list[Row]] = {}
    for row in rows:
        if METHODS[row["name"]].curve:
            curves.setdefault(METHODS[row["name"]].curve, []).append(row)
    if not curves:
        return
    figure, axes = plt.subplots(1, len(columns), figsize=(15, 4.2), layout="constrained")
    for (column, label), ax in zip(columns.items(), axes):
        for index, (curve, points) in enumerate(curves.items()):
            steps = np.array([METHODS[row["name"]].changes["num_steps"] for row in points]) * 1.015**index
            ax.plot(steps, [row[column] for row in points], marker="o", ms=4, lw=1.2, label=curve)
        ax.axhline(rows[0][column], color="0.4", lw=1, ls="--", zorder=0, label=rows[0]["name"])
        ax.set_ylim(ax.get_ylim())
        low, high = rows[0][column + "_low"], rows[0][column + "_high"]
        ax.axhspan(low, high, color="0.93", zorder=-1, label="its 95 % interval")
        ax.set(xscale="log", xticks=STEPS, xticklabels=STEPS, xlim=(STEPS[0] * 0.9, STEPS[-1] * 1.15))
        ax.set(xlabel="steps", title=label)
        ax.minorticks_off()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    command.run(run)
