"""Can the network learn at all, and in which form? Overfit a few patients, per prediction type and width.

    python -m scripts.learnability --dataset_dir DIR --out DIR [--patients 8] [--iterations 400] [--spacing 4]
        [--variants "x0; v"]

UNet and ControlNet are trained together on the same few active patients, unaugmented. Then, for each variant: the x0
error on NET2 foreground and background per log-SNR beside the best constant's, the FLAIR error, and the Dice of sampled
members with the patients' own masks. `--spacing 4` (mm in plane) is four times quicker than the lite grid's 2, with as
many channels to carry. Written to `learnability.csv` (long form) as each variant ends.
"""

import csv
import time
from pathlib import Path

import torch
from tqdm import trange

from bundle.data.cache import cached_dataset
from bundle.data.datalist import load_split
from bundle.data.grid import SlabGrid
from bundle.diffusion.losses import DenoisingLoss, MinSNR
from bundle.diffusion.predictions import (
    BinaryPrediction,
    ContrastwisePrediction,
    EpsPrediction,
    PreconditionedPrediction,
    VPrediction,
    X0Prediction,
)
from bundle.diffusion.samplers import DPMSolverPP2M
from bundle.diffusion.schedules import InterpolatedCosine, LogSNRUniformGrid, alpha_sigma
from bundle.diffusion.slabs import Condition, SlabDenoiser, fold_slices
from bundle.forecasters.ensemble import EnsembleInferer
from bundle.networks.slab_unet import ForecastNetwork
from bundle.seeding import Streams
from bundle.training.stage import parameter_groups, warmup_cosine
from scripts import command

WIDE = dict(
    channels=(64, 96, 160),
    attention_levels=(False, False, True),
    num_res_blocks=1,
    num_head_channels=32,
    patch_size=2,
    conditioning_channels=96,
    local_channels=0,
    with_loads=False,
)
NARROW = WIDE | dict(
    channels=(32, 64, 96, 128), attention_levels=(False, False, False, True), patch_size=1, conditioning_channels=32
)
SHIPPED = WIDE | dict(local_channels=16, with_loads=True)
X0, EPS, V = X0Prediction(), EpsPrediction(), VPrediction()
BLEND, BINARY = PreconditionedPrediction(), BinaryPrediction()
TENFOLD = dict(weighting=MinSNR(floor=0.2), foreground_weight=10.0, contrast_weights=(1, 1))
# name: network, prediction of FLAIR and NET2, loss
VARIANTS = {
    "shipped": (
        SHIPPED,
        (BLEND, BINARY),
        dict(weighting=MinSNR(floor=1), foreground_weight=1.0, contrast_weights=(1, 300)),
    ),
    "blend+binary": (WIDE, (BLEND, BINARY), TENFOLD),
    "x0+binary": (WIDE, (X0, BINARY), TENFOLD),
    "x0": (WIDE, (X0, X0), TENFOLD),
    "v": (WIDE, (V, V), TENFOLD),
    "eps": (WIDE, (EPS, EPS), TENFOLD),
    "v+binary": (WIDE, (V, BINARY), TENFOLD),
    "x0+binary, no floor": (WIDE, (X0, BINARY), TENFOLD | dict(weighting=MinSNR(floor=0))),
    "x0+binary, narrow": (NARROW, (X0, BINARY), TENFOLD),
    "x0, narrow": (NARROW, (X0, X0), TENFOLD),
    "v, narrow": (NARROW, (V, V), TENFOLD),
}
LEVELS = (-12.0, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)


def run(
    dataset_dir: str,
    out: str,
    patients: int = 8,
    iterations: int = 400,
    spacing: int = 2,
    variants: str = "",
    seed: int = 0,
) -> None:
    """Train and measure each variant (all, or those named, separated by "; ")."""
    items = [item for item in load_split(dataset_dir, "training") if item["active"]][:patients]
    grid = SlabGrid((spacing, spacing, 3), (160 // spacing, 192 // spacing, 15))
    cases = cached_dataset(items, grid, Path(out) / "cache")
    image, target = (torch.stack([case[key] for case in cases]) for key in ("image", "target"))
    schedule = InterpolatedCosine(image_size=192 // spacing, low_size=32, high_size=192 // spacing)
    rows = Path(out) / "learnability.csv"
    fresh = not rows.exists()
    with rows.open("a", newline="") as file:
        writer = csv.writer(file)
        if fresh:
            writer.writerow(
                ["variant", "measure", "logsnr", "value", "best_constant", "patients", "iterations", "spacing"]
            )
        for name in variants.split("; ") if variants else VARIANTS:
            for row in measure(*VARIANTS[name], schedule, image, target, iterations, seed, name):
                writer.writerow([name, *row, patients, iterations, spacing])
            file.flush()


def measure(architecture, predictions, loss_settings, schedule, image, target, iterations, seed, name):
    """Rows (measure, logsnr, value, best_constant) of one variant."""
    torch.manual_seed(seed)
    network = ForecastNetwork(**architecture)
    loss = DenoisingLoss(schedule, **loss_settings)
    denoiser = SlabDenoiser(network, ContrastwisePrediction(predictions), loss.foreground_weight)
    x0, condition = fold_slices(target), Condition.of(image)
    optimizer = torch.optim.AdamW(parameter_groups(network, local_learning_rate=4e-3), 5e-4)
    lr_schedule = warmup_cosine(optimizer, 50, iterations)
    started = time.perf_counter()
    for iteration in trange(iterations, desc=name):
        with torch.autocast("cpu", torch.bfloat16):
            losses = loss(denoiser, x0, condition, Streams.for_batch(seed, iteration, range(len(x0)), len(x0)))
        optimizer.zero_grad()
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        lr_schedule.step()
    yield "seconds_per_iteration", "", (time.perf_counter() - started) / iterations, ""
    yield from denoising_errors(denoiser.eval(), x0, condition, seed)
    yield "dice_of_members", "", member_dice(denoiser, schedule, image, target, seed), ""


@torch.inference_mode()
def denoising_errors(denoiser: SlabDenoiser, x0, condition: Condition, seed: int):
    """Mean square of x0's error by log-SNR: FLAIR, NET2 foreground, NET2 background."""
    flair, net2 = x0.chunk(2, dim=1)
    lesion = net2 > 0
    fraction = lesion.float().mean()
    constants = {
        "flair": flair.var(),
        "net2_foreground": (2 - 2 * fraction) ** 2,
        "net2_background": (2 * fraction) ** 2,
    }
    for logsnr in LEVELS:
        level = torch.full((len(x0),), logsnr)
        alpha, sigma = alpha_sigma(torch.tensor(logsnr))
        z_t = alpha * x0 + sigma * Streams.for_members(seed, "noise", range(len(x0))).normal(x0.shape[1:])
        with torch.autocast("cpu", torch.bfloat16):
            square = (denoiser(z_t, level, condition) - x0).square()
        flair_error, net2_error = square.chunk(2, dim=1)
        values = {
            "flair": flair_error.mean(),
            "net2_foreground": net2_error[lesion].mean(),
            "net2_background": net2_error[~lesion].mean(),
        }
        for measure_name, value in values.items():
            yield measure_name, logsnr, value.item(), constants[measure_name].item()


def member_dice(denoiser: SlabDenoiser, schedule, image, target, seed: int, num_members: int = 4) -> float:
    """Dice of members with their patient's outcome, mean over members and patients."""
    inferer = EnsembleInferer(
        schedule,
        LogSNRUniformGrid(-12, 10),
        DPMSolverPP2M(),
        denoiser.prediction,
        denoiser.foreground_weight,
        num_members,
        reuse_within=0,
        seed=seed,
        progress=False,
    )
    members = inferer(image, denoiser.network) > 0.5  # (B, K, H, W, S)
    truth = (target[:, -1:] > 0).expand_as(members)
    overlap = (members & truth).flatten(2).sum(2)
    return (2 * overlap / (members.flatten(2).sum(2) + truth.flatten(2).sum(2))).mean().item()


if __name__ == "__main__":
    command.run(run)
