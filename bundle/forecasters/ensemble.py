"""From a patient's image tensor to an ensemble of NET2 masks, and the adapter that MONAI calls an inferer."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor, nn
from tqdm import tqdm

from bundle.arms import CLASSES
from bundle.data.tables import TRIAL_MONTHS
from bundle.diffusion.guidance import GuidedDenoiser
from bundle.diffusion.predictions import Prediction
from bundle.diffusion.samplers import AncestralSampler, DenoiseAt, DPMSolverPP2M
from bundle.diffusion.schedules import Grid, Schedule
from bundle.diffusion.slabs import (
    Condition,
    SlabDenoiser,
    VolumeCorrection,
    net2_probability,
    one_call_heatmap,
    outcome_shape,
)
from bundle.errors import InputError, check_count
from bundle.forecasters.base import SCORED_REGIONS, Forecast, Patient, Role, findings_of, key_of, plain
from bundle.forecasters.cohort import HORIZON, INTERVAL
from bundle.forecasters.counts import CountModel
from bundle.lesions import LesionRule, Volume
from bundle.seeding import Streams, digest_of

HORIZON_RANGE = (3, 36)  # months that can be forecast
_BAR = "{l_bar}{bar}| {n:.1f}/{total:.0f} members [{elapsed}<{remaining}]"


@dataclass(frozen=True)
class SamplingSettings:
    """Everything that the members of a patient depend on, beside the patient and the weights.

    Args:
        schedule, grid, sampler, prediction: the reverse process (modules of these names in `bundle.diffusion`).
        foreground_weight: the loss weight of lesion voxels in training, see `bundle.diffusion.slabs.SlabDenoiser`.
        num_members: ensemble size K.
        num_steps: reverse steps, each at most one network call (two with guidance).
        guidance_scale, arm_guidance_scale: of images and arm (the same if not given), see
            `bundle.diffusion.guidance.GuidedDenoiser`; 1 keeps probabilities calibrated, more sharpens samples.
        guidance_interval: log-SNRs between which guidance acts (ibid.).
        reuse_within: rise of log-SNR within which UNet and ControlNet are not called again, see
            `bundle.diffusion.slabs.EncodedDenoiser`.
        seed: seeds each member's noise, together with the case's id and the member's number.
        amp: bf16 autocast in the network.
        volume_correction: see `bundle.diffusion.slabs.VolumeCorrection`; none if not given.
        horizon_months: months from w048 to w096. The network has learnt how many lesions come in `TRIAL_MONTHS`; in
            other times they are in proportion (`bundle.diffusion.slabs.scale_rate`).

    Raises:
        InputError: one of the numbers that a user may set is out of range.
    """

    schedule: Schedule
    grid: Grid
    sampler: AncestralSampler | DPMSolverPP2M
    prediction: Prediction
    foreground_weight: float
    num_members: int = 20
    num_steps: int = 24
    guidance_scale: float = 1.0
    arm_guidance_scale: float | None = None
    guidance_interval: tuple[float, float] | None = None
    reuse_within: float = 1.0
    seed: int = 0
    amp: bool = True
    volume_correction: VolumeCorrection | None = None
    horizon_months: float = TRIAL_MONTHS

    def __post_init__(self) -> None:
        if self.arm_guidance_scale is None:
            object.__setattr__(self, "arm_guidance_scale", self.guidance_scale)
        for name in ("num_members", "num_steps"):
            check_count(name, getattr(self, name))
        if not isinstance(self.seed, Integral):
            raise InputError(f"seed={self.seed} is not a whole number", "correct --seed")
        for name in ("guidance_scale", "arm_guidance_scale"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not math.isfinite(value):
                raise InputError(f"{name}={value} is not a number", f"correct --{name}")
        weight = self.foreground_weight
        if not isinstance(weight, Real) or not 0 < weight < math.inf:
            raise InputError(f"foreground_weight={weight} is not a number above 0", "correct --foreground_weight")
        if not isinstance(self.amp, bool):
            raise InputError(f"amp={self.amp} is neither True nor False", "correct --amp")
        if not isinstance(self.volume_correction, VolumeCorrection | None):
            raise InputError(
                f"volume_correction={self.volume_correction} is not what scripts.correct_volume fits",
                "leave --volume_correction out, or give None for none",
            )
        interval = self.guidance_interval
        if interval is not None and not is_interval(interval):
            raise InputError(f"guidance_interval={interval} is not two rising log-SNRs", "correct --guidance_interval")
        if not isinstance(self.reuse_within, Real) or not self.reuse_within >= 0:
            raise InputError(
                f"reuse_within={self.reuse_within} is not a number of at least 0", "correct --reuse_within"
            )
        if not is_horizon(self.horizon_months):
            low, high = HORIZON_RANGE
            problem = f"horizon_months={self.horizon_months} is not a number between {low} and {high}"
            raise InputError(problem, "correct --horizon_months")

    def as_dict(self) -> dict[str, Any]:
        """The settings in plain JSON types, see `bundle.forecasters.base.plain`."""
        return {field.name: plain(getattr(self, field.name)) for field in fields(self)}


class EnsembleInferer(Inferer):
    """inferer(image, network) -> members: draws an ensemble of outcomes of each patient.

    `heatmap` gives the mean of an infinite ensemble without drawing any member.

    Args:
        schedule, grid, sampler, prediction, foreground_weight, num_members, num_steps, guidance_scale,
            arm_guidance_scale, guidance_interval, reuse_within, seed, amp, volume_correction, horizon_months: see
            `SamplingSettings`.
        member_batch: members in one network call; halved when the device's memory is exceeded. Has no effect on them.
        progress: show a bar over members.

    Attributes:
        settings: `SamplingSettings`.

    Raises:
        InputError: one of the numbers that a user may set is out of range.
    """

    def __init__(
        self,
        schedule: Schedule,
        grid: Grid,
        sampler: AncestralSampler | DPMSolverPP2M,
        prediction: Prediction,
        foreground_weight: float,
        num_members: int = SamplingSettings.num_members,
        num_steps: int = SamplingSettings.num_steps,
        guidance_scale: float = SamplingSettings.guidance_scale,
        arm_guidance_scale: float | None = SamplingSettings.arm_guidance_scale,
        guidance_interval: tuple[float, float] | None = SamplingSettings.guidance_interval,
        reuse_within: float = SamplingSettings.reuse_within,
        seed: int = SamplingSettings.seed,
        amp: bool = SamplingSettings.amp,
        volume_correction: VolumeCorrection | None = SamplingSettings.volume_correction,
        horizon_months: float = SamplingSettings.horizon_months,
        member_batch: int = 10,
        progress: bool = True,
    ) -> None:
        check_count("member_batch", member_batch)
        self.member_batch, self.progress = member_batch, progress
        self.settings = SamplingSettings(
            schedule,
            grid,
            sampler,
            prediction,
            foreground_weight,
            num_members,
            num_steps,
            guidance_scale,
            arm_guidance_scale,
            guidance_interval,
            reuse_within,
            seed,
            amp,
            volume_correction,
            horizon_months,
        )

    def with_settings(self, **changes: Any) -> "EnsembleInferer":
        """The same inferer with other `SamplingSettings`, e.g. num_members; as many members as both have are equal."""
        changed = copy.copy(self)
        changed.settings = replace(self.settings, **changes)
        return changed

    @torch.inference_mode()
    def __call__(self, inputs: Tensor, network: nn.Module) -> Tensor:  # type: ignore[override]  # no other arguments
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
        """P(NET2) of each voxel, (B, H, W, S), by one network call without noise: the same for any seed and case id.

        Args:
            inputs, network: as for `__call__`.
        """
        images = inputs.as_subclass(Tensor).float()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.settings.amp):
            return OneCallHeatmap(network, self)(images)

    def denoise_given(self, network: nn.Module, images: Tensor) -> DenoiseAt:
        """The guided denoiser of these patients' images (B, 8, H, W, S)."""
        s = self.settings
        denoiser = SlabDenoiser(
            network.eval(),
            s.prediction,
            s.foreground_weight,
            volume_correction=s.volume_correction,
            rate=s.horizon_months / TRIAL_MONTHS,
        )
        guided = GuidedDenoiser(denoiser, s.guidance_scale, s.arm_guidance_scale, s.guidance_interval, s.reuse_within)
        return guided.given(Condition.of(images))

    def members(self, network: nn.Module, image: Tensor, case: str) -> Tensor:
        """(K, H, W, S) of one patient's image (1, 8, H, W, S)."""
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.settings.amp):
            denoise = self.denoise_given(network, image)
        done, first, batch, steps = [], 0, self.member_batch, self.settings.num_steps
        with tqdm(
            desc=f"{case}, {CLASSES[int(image[0, -1].amax())]}: sampling",
            total=self.settings.num_members * steps,  # a step of one member; shown as members
            unit_scale=1 / steps,
            bar_format=_BAR,
            disable=not self.progress,
        ) as bar:

            def denoise_and_count(z_t: Tensor, logsnr: Tensor) -> Tensor:
                x0 = denoise(z_t, logsnr)
                bar.update(len(z_t))
                return x0

            while first < self.settings.num_members:
                members = range(first, min(first + batch, self.settings.num_members))
                try:
                    streams = Streams.for_members(self.settings.seed, case, members)
                    done.append(self.sample(denoise_and_count, outcome_shape(image), streams, image.device))
                except torch.OutOfMemoryError:
                    if batch == 1:
                        raise
                    batch = -(-batch // 2)
                    bar.n = first * steps
                    continue
                first = members.stop
        return torch.cat(done)

    def sample(self, denoise: DenoiseAt, shape: tuple[int, int, int], streams: Streams, device: torch.device) -> Tensor:
        """(k, H, W, S), one outcome a stream, from noise of `shape` (30, H, W)."""
        noise = streams.normal(shape, device)
        grid = self.settings.grid(
            self.settings.schedule, self.settings.num_steps
        )  # not on a GPU, which would have to be waited for to read it
        with torch.autocast(device.type, torch.bfloat16, enabled=self.settings.amp):
            x0 = self.settings.sampler(denoise, noise, grid, streams)
        return net2_probability(x0)


class OneCallHeatmap(nn.Module):
    """The one-call heatmap as a network: image tensors (B, 8, H, W, S) -> P(NET2) (B, H, W, S) in [0, 1].

    Args:
        network: with its weights.
        inferer: whose settings are used, `amp` excepted.
    """

    def __init__(self, network: nn.Module, inferer: EnsembleInferer) -> None:
        super().__init__()
        self.network, self.inferer = network, inferer.with_settings(reuse_within=0)  # one call has none before it

    def forward(self, images: Tensor) -> Tensor:
        """The heatmap of plain tensors."""
        shape = (images.shape[0], *outcome_shape(images))  # len() would fix the number of patients in an export
        denoise = self.inferer.denoise_given(self.network, images)
        return one_call_heatmap(denoise, shape, self.inferer.settings.schedule, images.device)


def is_horizon(months: Any) -> bool:
    """Whether it is a number of months that can be forecast."""
    low, high = HORIZON_RANGE
    return isinstance(months, (int, float)) and not isinstance(months, bool) and low <= months <= high


def is_interval(value: Any) -> bool:
    """Whether it is two rising numbers, infinite ones allowed."""
    return (
        isinstance(value, Sequence)
        and len(value) == 2
        and all(isinstance(x, Real) for x in value)
        and value[0] < value[1]
    )


def case_names(inputs: Tensor) -> list[str]:
    """The patients' ids from a batch's metadata; their positions in the batch where it has none."""
    cases = getattr(inputs, "meta", {}).get("case")
    if isinstance(cases, str):
        cases = [cases] * len(inputs)
    return list(cases) if cases else [str(place) for place in range(len(inputs))]


class Diffusion:
    """The diffusion model as a forecaster.

    The horizon of a patient is the time from w048 to w096, where the tables know it: the visit is planned.

    Args:
        network: with its weights.
        inferer: draws members (B, K, H, W, S), given images and network; its horizon is that of other patients.
        rule: what counts as a lesion of a member.
        one_call: the heatmap is the network's one-call heatmap, else the fraction of members.
        counts: P(active) and the count follow from the heatmap by this model; from the members if not given.

    Raises:
        ValueError: `counts` without `one_call`: it is fitted to one-call heatmaps.
    """

    role = Role.MODEL

    def __init__(
        self,
        network: nn.Module,
        inferer: EnsembleInferer,
        rule: LesionRule,
        one_call: bool = True,
        counts: CountModel | None = None,
    ) -> None:
        if counts is not None and not one_call:
            raise ValueError("a count model is fitted to one-call heatmaps")
        self.network, self.inferer, self.rule, self.one_call, self.counts = network, inferer, rule, one_call, counts
        weights = digest_of(*(value.cpu().float().numpy().tobytes() for value in network.state_dict().values()))
        self.key = key_of("diffusion", weights, settings=inferer.settings, rule=rule, one_call=one_call, counts=counts)
        self.device = next(network.parameters()).device

    @property
    def num_members(self) -> int:
        """Ensemble size."""
        return self.inferer.settings.num_members

    def with_members(self, num_members: int) -> "Diffusion":
        """The same model with ensembles of another size; the members that both draw are the same."""
        inferer = self.inferer.with_settings(num_members=num_members)
        return Diffusion(self.network, inferer, self.rule, self.one_call, self.counts)

    def __call__(self, patient: Patient) -> Sequence[Forecast]:
        """
        Raises:
            InputError: the network's output is not finite, or the horizon is one that cannot be forecast.
        """
        members = self._run(self._inferer_of(patient), patient)
        heatmap = self.heatmap(patient) if self.one_call else None
        forecast = ensemble_forecast(members, patient.affine, self.rule, patient.dseg, heatmap)
        if self.counts is None or heatmap is None:
            return [forecast]
        return [with_counts(forecast, self.counts, heatmap, patient, self.horizon_months(patient))]

    def heatmap(self, patient: Patient) -> np.ndarray:
        """The one-call heatmap, (H, W, S) float32, 0 outside the brain."""
        return self._run(self._inferer_of(patient).heatmap, patient)

    def horizon_months(self, patient: Patient) -> float:
        """Months that are forecast of this patient.

        Raises:
            InputError: they cannot be forecast.
        """
        months = patient.covariates.get(HORIZON)
        if months is None:
            return self.inferer.settings.horizon_months
        if not is_horizon(months):
            low, high = HORIZON_RANGE
            problem = f"w096 is {months:g} months after w048; {low} to {high} can be forecast"
            raise InputError(problem, "correct sessions.tsv, or leave the patient out", case=patient.case)
        return months

    def _inferer_of(self, patient: Patient) -> EnsembleInferer:
        return self.inferer.with_settings(horizon_months=self.horizon_months(patient))

    def _run(self, draw: Callable[[torch.Tensor, nn.Module], torch.Tensor], patient: Patient) -> np.ndarray:
        image = MetaTensor(patient.image[None].clone(), meta={"case": patient.case}).to(self.device)
        image[:, -1] = patient.arm
        maps = draw(image, self.network)[0].float().cpu().numpy()
        if not np.isfinite(maps).all():  # NaN would be counted as "no lesion"
            raise InputError("the network's output is not finite", "use other weights", case=patient.case)
        return maps * patient.brain


class OneCall:
    """The same model's heatmap, P(active) and count by one network call: no members, and no regions.

    Args:
        network: with its weights.
        inferer: makes the heatmap.
        counts: fitted for these weights.
    """

    role, num_members = Role.MODEL, None

    def __init__(self, network: nn.Module, inferer: EnsembleInferer, counts: CountModel | None) -> None:
        self.model, self.counts = Diffusion(network, inferer, LesionRule(), counts=counts), counts
        self.key = key_of("one call", self.model.key)

    def __call__(self, patient: Patient) -> Sequence[Forecast]:
        """
        Raises:
            InputError: there is no count model for the weights, or the network's output is not finite.
        """
        if self.counts is None:
            raise InputError("one_call needs a count model of the weights", "fit it with scripts.fit_counts")
        heatmap = self.model.heatmap(patient)
        forecast = Forecast(np.nan, np.empty(0), np.empty(0), heatmap=heatmap)
        return [with_counts(forecast, self.counts, heatmap, patient, self.model.horizon_months(patient))]


def with_counts(
    forecast: Forecast, counts: CountModel, heatmap: np.ndarray, patient: Patient, horizon_months: float
) -> Forecast:
    """The forecast with P(active) and the count that follow from the heatmap (H, W, S) of this horizon."""
    interval_months = patient.covariates.get(INTERVAL)
    probabilities = counts.of_heatmap(patient.image.numpy(), heatmap, patient.affine, horizon_months, interval_months)
    return replace(
        forecast,
        p_active=float(1 - probabilities[0]),
        counts=np.arange(len(probabilities)),
        probabilities=probabilities,
        of_members=False,
    )


def ensemble_forecast(
    members: np.ndarray,
    affine: np.ndarray,
    rule: LesionRule,
    dseg: Volume | None = None,
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
        of_members=True,
    )
