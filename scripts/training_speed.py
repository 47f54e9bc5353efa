"""How fast training is and what it needs: ours and a plain fp32 loop in turns, and the memory of the paper's model.

    python -m scripts.training_speed --out DIR [--dataset_dir DIR] [--iterations 20] [--repeats 3]

*Speed*: iterations of both stages of configs/train.json, each in a process of its own, after a first round that fills
the cache of prepared patients; medians, with the fraction of the time in which an iteration waits for its data.
*Memory* of a step of configs/paper.json, computed: the network runs on tensors without data, and the bytes that are
alive are added up after every operation. It does not include what a GPU's libraries need for themselves.
Writes DIR/training.json (rows) and DIR/training.md (tables).
"""

import multiprocessing
import statistics
import tempfile
import weakref
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from ignite.handlers.time_profilers import BasicTimeProfiler
from monai.bundle import ConfigParser
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from bundle.diffusion.slabs import Condition, SlabDenoiser
from bundle.runtime import keep_freed_memory
from bundle.training.stage import freeze_unet
from scripts import command
from scripts.benchmark import Row, write
from scripts.command import read_configs

STAGES = {"stage 1": "pretrain", "stage 2": "train"}
OURS, PLAIN = "ours", "plain fp32 loop"
WARM_UP = 3  # iterations that do not count


def run(
    out: str,
    dataset_dir: str = "data/trial",
    cache_dir: str = "runs/lite/cache",
    iterations: int = 20,
    repeats: int = 3,
) -> None:
    """Time both stages, `repeats` processes each, and compute the paper's memory."""
    speed = training_speed(dataset_dir, cache_dir, iterations, repeats)
    write(Path(out), "training", speed, paper_memory())


def training_speed(
    dataset_dir: str, cache_dir: str, iterations: int, repeats: int, config_file: str = "configs/train.json"
) -> list[Row]:
    """Rows by stage and way."""

    context = multiprocessing.get_context("forkserver")  # its processes are new, but need not import everything again
    context.set_forkserver_preload(["monai.bundle", "monai.engines", "bundle.training.stage"])

    def figures_of(stage: str, way: str) -> tuple[float, float]:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(_time_training, config_file, stage, way, dataset_dir, cache_dir, iterations).result()

    for stage in STAGES:
        figures_of(stage, OURS)  # fills the cache
    measured: dict[tuple[str, str], list[tuple[float, float]]] = {(s, w): [] for s in STAGES for w in (OURS, PLAIN)}
    for _ in range(repeats):
        for stage, way in measured:
            measured[stage, way].append(figures_of(stage, way))
    rows = []
    for (stage, way), figures in measured.items():
        speeds, waits = zip(*figures)
        speedups = [ours / plain for ours, (plain, _) in zip(speeds, measured[stage, PLAIN])]
        row = {
            "stage": stage,
            "name": way,
            "samples_per_second": statistics.median(speeds),
            "samples_per_second_low": min(speeds),
            "samples_per_second_high": max(speeds),
            "speedup_over_plain": statistics.median(speedups),
            "fraction_waiting_for_data": statistics.median(waits),
            "iterations": iterations,
            "repeats": repeats,
        }
        rows.append(row)
    return rows


def _time_training(
    config_file: str, stage: str, way: str, dataset_dir: str, cache_dir: str, iterations: int
) -> tuple[float, float]:
    """Samples a second, and the fraction of the time in which the network waits for them."""
    config, block = read_configs(config_file), STAGES[stage]
    with tempfile.TemporaryDirectory() as folder:
        config.update({"dataset_dir": dataset_dir, "cache_dir": cache_dir, "output_dir": folder})
        config.update({"epoch_length": iterations + WARM_UP, "finetuning_epochs": 1, "pretraining_epochs": 1})
        config.update({f"{block}#handlers": [], "amp": way == OURS})
        if way == OURS:
            keep_freed_memory()
        trainer = config.get_parsed_content(f"{block}#trainer")
        return _profile(trainer, config["batch_size"])


def _profile(trainer: Engine, batch_size: int) -> tuple[float, float]:
    profiler = BasicTimeProfiler()
    profiler.attach(trainer)
    trainer.run()
    computing, waiting = (x[WARM_UP:].median().item() for x in (profiler.processing_times, profiler.dataflow_times))
    return batch_size / (computing + waiting), waiting / (computing + waiting)


class PeakMemory(TorchDispatchMode):
    """Adds up the bytes of all tensors made inside it that are alive.

    Attributes:
        now, peak: bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        tree_map_only(Tensor, self._count, result)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place, size = id(storage), storage.nbytes()
        if place in self._alive and self._alive[place]() is storage:
            return

        def forget(_: weakref.ref) -> None:
            self.now -= size
            self._alive.pop(place, None)

        self._alive[place] = weakref.ref(storage, forget)
        self.now += size
        self.peak = max(self.peak, self.now)


def paper_memory(batch_size: int = 16) -> list[Row]:
    """Rows of one step of configs/paper.json, bf16, by stage, samples a pass and gradient checkpointing."""
    return [
        {
            "stage": stage,
            "batch_size": batch_size,
            "micro_batch_size": size,
            "gradient_checkpointing": checkpointing,
            "memory_gib": step_memory(stage, size, checkpointing) / 2**30,
        }
        for stage in STAGES
        for checkpointing in (False, True)
        for size in (batch_size, batch_size // 4, 1)
    ]


def step_memory(stage: str, micro_batch_size: int, checkpointing: bool, overlay: str = "configs/paper.json") -> int:
    """Most bytes alive in a step: weights, their average, gradients, AdamW's moments, activations of one pass."""
    config = read_configs(["configs/train.json", overlay])
    config.update({"network_def#gradient_checkpointing": checkpointing, "network_def#with_control": stage != "stage 1"})
    *plane, slices = config.get_parsed_content("grid").shape
    with FakeTensorMode(), PeakMemory() as memory:
        network, average = (network_of(config) for _ in range(2))
        if stage != "stage 1":
            freeze_unet(network)
        optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad])
        prediction, weight = (config.get_parsed_content(name) for name in ("prediction", "foreground_weight"))
        denoiser = SlabDenoiser(network, prediction, weight)
        z_t, logsnr = torch.zeros(micro_batch_size, 2 * slices, *plane), torch.zeros(micro_batch_size)
        condition = Condition.of(torch.zeros(micro_batch_size, 8, *plane, slices))
        for _ in range(2):  # gradients of the first pass are kept while the second adds to them
            with torch.autocast("cpu", torch.bfloat16):
                output = denoiser.output(z_t, logsnr, condition)
            output.square().mean().backward()
        optimizer.step()
        del average
    return memory.peak


def network_of(config: ConfigParser) -> nn.Module:
    """A new one each time."""
    return ConfigParser({"network_def": config["network_def"]}).get_parsed_content("network_def")


if __name__ == "__main__":
    command.run(run)
