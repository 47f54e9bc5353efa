"""From a patient's image tensor to an ensemble of NET2 masks, and the adapter that MONAI calls an inferer."""

import copy
import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor, nn
from tqdm import tqdm

from bundle.diffusion.denoiser import Denoiser
from bundle.diffusion.guidance import GuidedDenoiser
from bundle.diffusion.predictions import Prediction
from bundle.diffusion.samplers import AncestralSampler, DenoiseAt, DPMSolverPP2M
from bundle.diffusion.schedules import Grid, Schedule
from bundle.diffusion.slabs import condition_of, net2_probability, one_call_heatmap, shape_of_outcome
from bundle.errors import InputError
from bundle.forecasters.base import SCORED_REGIONS, Forecast, Patient, Role, findings_of, key_of
from bundle.lesions import LesionRule, Placed
from bundle.seeding import Streams, digest_of


class EnsembleInferer(Inferer):
    """inferer(image, network) -> members: draws an ensemble of outcomes a patient. `heatmap` tells their mean without drawing any.

    Args:
        schedule, grid, sampler, prediction: the reverse process (see the modules of these names).
        num_members: ensemble size K.
        num_steps: reverse steps, each one network call (two with guidance) at the most.
        guidance_scale, arm_guidance_scale: of images and arm (by default the same), see
            `bundle.diffusion.guidance.GuidedDenoiser`; 1 keeps probabilities calibrated, more sharpens samples.
        guidance_interval: log-SNRs between which they act (ibid.).
        reuse_within: log-SNR within which UNet and ControlNet are not called again, see `bundle.diffusion.denoiser.Denoiser.given`.
        foreground_weight: the loss weight of lesion voxels in training, see `bundle.diffusion.denoiser.Denoiser`.
        seed: with the case's id and the member's number it makes the member's noise.
        member_batch: members a network call; halved when the device's memory is exceeded.
        amp: bf16 autocast in the network.
        progress: show a bar over members.

    Raises:
        InputError: one of the numbers that a user may set is out of range.
    """

    def __init__(
        self,
        schedule: Schedule,
        grid: Grid,
        sampler: AncestralSampler | DPMSolverPP2M,
        prediction: Prediction,
        num_members: int = 20,
        num_steps: int = 20,
        guidance_scale: float = 1.0,
        arm_guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        reuse_within: float = 0.0,
        foreground_weight: float = 10.0,
        seed: int = 0,
        member_batch: int = 10,
        amp: bool = True,
        progress: bool = True,
    ) -> None:
        for name, value in dict(num_members=num_members, num_steps=num_steps, member_batch=member_batch).items():
            if not isinstance(value, Integral) or value < 1:
                raise InputError(f"{name}={value} is not a whole number of at least 1", f"correct --{name}")
        if not isinstance(seed, Integral):
            raise InputError(f"seed={seed} is not a whole number", "correct --seed")
        arm_guidance_scale = guidance_scale if arm_guidance_scale is None else arm_guidance_scale
        for name, value in dict(guidance_scale=guidance_scale, arm_guidance_scale=arm_guidance_scale).items():
            if not isinstance(value, Real) or not math.isfinite(value):
                raise InputError(f"{name}={value} is not a number", f"correct --{name}")
        if guidance_interval is not None and not is_interval(guidance_interval):
            raise InputError(f"guidance_interval={guidance_interval} is not two rising log-SNRs", "correct --guidance_interval")
        if not isinstance(reuse_within, Real) or not reuse_within >= 0:
            raise InputError(f"reuse_within={reuse_within} is not a number of at least 0", "correct --reuse_within")
        self.schedule, self.grid, self.sampler, self.prediction = schedule, grid, sampler, prediction
        self.num_members, self.num_steps = num_members, num_steps
        self.guidance_scale, self.arm_guidance_scale = guidance_scale, arm_guidance_scale
        self.guidance_interval, self.reuse_within = guidance_interval, reuse_within
        self.foreground_weight, self.seed, self.member_batch = foreground_weight, seed, member_batch
        self.amp, self.progress = amp, progress

    @property
    def settings(self) -> dict[str, Any]:
        """All that is set and that members depend on, beside patient and weights."""
        without_effect = ("member_batch", "progress")
        return {name: value for name, value in vars(self).items() if name not in without_effect and value is not None}

    @torch.inference_mode()
    def __call__(self, inputs: Tensor, network: nn.Module) -> Tensor:
        """Members of each patient.

        Args:
            inputs: (B, 8, H, W, S); a MetaTensor's `meta["case"]` names the patients for the seeds.
            network: one tensor in, one out, see `bundle.networks.slab_unet.ForecastNetwork`.

        Returns:
            (B, K, H, W, S), P(NET2) in [0, 1] (close to 0 or 1 in a finished sample).
        """
        cases, images = case_names(inputs), inputs.as_subclass(Tensor).float()  # a MetaTensor slows every operation
        return torch.stack([self.members(network, image[None], case) for image, case in zip(images, cases)])

    @torch.inference_mode()
    def heatmap(self, inputs: Tensor, network: nn.Module) -> Tensor:
        """P(NET2) a voxel, (B, H, W, S), which members drawn without end would agree on: one network call.

        Args:
            inputs, network: as for `__call__`.
        """
        cases, images = case_names(inputs), inputs.as_subclass(Tensor).float()
        noise = torch.cat([Streams.for_members(self.seed, case, range(1)).normal(shape_of_outcome(images)) for case in cases])
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.amp):
            return one_call_heatmap(self.denoise_given(network, images), noise.to(images.device), self.schedule)

    def denoise_given(self, network: nn.Module, images: Tensor) -> DenoiseAt:
        """The guided denoiser of these patients' images (B, 8, H, W, S)."""
        denoiser = Denoiser(network.eval(), self.prediction, self.foreground_weight)
        guided = GuidedDenoiser(
            denoiser, self.guidance_scale, self.arm_guidance_scale, self.guidance_interval, self.reuse_within
        )
        return guided.given(condition_of(images))

    def members(self, network: nn.Module, image: Tensor, case: str) -> Tensor:
        """(K, H, W, S) of one patient's image (1, 8, H, W, S)."""
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.amp):
            denoise = self.denoise_given(network, image)
        done, first, batch = [], 0, self.member_batch
        with tqdm(total=self.num_members, desc=case, unit="member", disable=not self.progress) as bar:
            while first < self.num_members:
                members = range(first, min(first + batch, self.num_members))
                try:
                    streams = Streams.for_members(self.seed, case, members)
                    done.append(self.sample(denoise, shape_of_outcome(image), streams, image.device))
                except torch.OutOfMemoryError:
                    if batch == 1:
                        raise
                    batch = -(-batch // 2)
                    continue
                first = members.stop
                bar.update(len(members))
        return torch.cat(done)

    def sample(self, denoise: DenoiseAt, shape: tuple[int, int, int], streams: Streams, device: torch.device) -> Tensor:
        """(k, H, W, S), one outcome a stream, from noise of `shape` (30, H, W)."""
        noise = streams.normal(shape, device)
        grid = self.grid(self.schedule, self.num_steps)  # not on a GPU, which would have to be waited for to read it
        with torch.autocast(device.type, torch.bfloat16, enabled=self.amp):
            x0 = self.sampler(denoise, noise, grid, streams)
        return net2_probability(x0)


def is_interval(value: Any) -> bool:
    """Whether it is two rising numbers, infinite ones allowed."""
    return isinstance(value, Sequence) and len(value) == 2 and all(isinstance(x, Real) for x in value) and value[0] < value[1]


def case_names(inputs: Tensor) -> list[str]:
    """The patients' ids a batch carries in its metadata; their places in the batch where it has none."""
    cases = getattr(inputs, "meta", {}).get("case")
    if isinstance(cases, str):
        cases = [cases] * len(inputs)
    return list(cases) if cases else [str(place) for place in range(len(inputs))]


class Diffusion:
    """The diffusion model as a forecaster.

    Args:
        network: with its weights.
        inferer: draws members (B, K, H, W, S), given images and network.
        rule: what counts as a lesion of a member.
        one_call: the heatmap is the network's one-call heatmap, else the fraction of members.
    """

    role = Role.MODEL

    def __init__(self, network: nn.Module, inferer: EnsembleInferer, rule: LesionRule, one_call: bool = True) -> None:
        self.network, self.inferer, self.rule, self.one_call = network, inferer, rule, one_call
        weights = digest_of(*(value.cpu().float().numpy().tobytes() for value in network.state_dict().values()))
        self.key = key_of("diffusion", weights, settings=inferer.settings, rule=rule, one_call=one_call)
        self.device = next(network.parameters()).device

    @property
    def num_members(self) -> int:
        """Ensemble size."""
        return self.inferer.num_members

    def with_members(self, num_members: int) -> "Diffusion":
        """The same model with ensembles of another size; the members that both draw are the same."""
        inferer = copy.copy(self.inferer)
        inferer.num_members = num_members
        return Diffusion(self.network, inferer, self.rule, self.one_call)

    def __call__(self, patient: Patient) -> Sequence[Forecast]:
        """
        Raises:
            InputError: the network's output is not finite.
        """
        members = self._run(self.inferer, patient)
        heatmap = self.heatmap(patient) if self.one_call else None
        return [ensemble_forecast(members, patient.affine, self.rule, patient.dseg, heatmap)]

    def heatmap(self, patient: Patient) -> np.ndarray:
        """The one-call heatmap, (H, W, S) float32, 0 outside the brain."""
        return self._run(self.inferer.heatmap, patient)

    def _run(self, draw: Callable[[torch.Tensor, nn.Module], torch.Tensor], patient: Patient) -> np.ndarray:
        image = MetaTensor(patient.image[None].clone(), meta={"case": patient.case}).to(self.device)
        image[:, -1] = patient.arm
        maps = draw(image, self.network)[0].float().cpu().numpy()
        if not np.isfinite(maps).all():  # NaN would be counted as "no lesion"
            raise InputError("the network's output is not finite", "use other weights", case=patient.case)
        return maps * patient.brain


def ensemble_forecast(
    members: np.ndarray,
    affine: np.ndarray,
    rule: LesionRule,
    dseg: Placed | None = None,
    heatmap: np.ndarray | None = None,
) -> Forecast:
    """The forecast of an ensemble.

    Args:
        members: (K, H, W, S) in [0, 1].
        affine: (4, 4) of the slab.
        rule: what counts as a lesion; its lesions are counted in each member.
        dseg: FreeSurfer labels; without them no region is forecast.
        heatmap: (H, W, S) in [0, 1]; the fraction of members if not given.
    """
    marks = np.stack([rule.label(member, affine) > 0 for member in members])
    findings = [findings_of(mark, affine, LesionRule(), dseg) for mark in marks]
    member_counts = np.array([found.count for found in findings])
    counts, occurrences = np.unique(member_counts, return_counts=True)
    regions = SCORED_REGIONS if dseg is not None else ()
    return Forecast(
        p_active=float(np.mean(member_counts > 0)),
        counts=counts,
        probabilities=occurrences / len(marks),
        presence={region: float(np.mean([found.presence[region] for found in findings])) for region in regions},
        heatmap=marks.mean(axis=0, dtype=np.float32) if heatmap is None else heatmap,
        members=marks,
        member_counts=member_counts,
    )
