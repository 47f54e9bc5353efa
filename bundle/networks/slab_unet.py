"""Slab UNet and ControlNet over MONAI's nets: the only module that knows their argument names."""

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
from monai.networks.blocks import SpatialAttentionBlock
from monai.networks.nets import ControlNet, DiffusionModelUNet
from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bundle.arms import CLASSES
from bundle.diffusion.schedules import alpha_sigma, expand_to
from bundle.errors import InputError
from bundle.networks.loads import ArmAndLoads, lesion_loads
from bundle.networks.local_path import LocalPath, logsnr_to_timestep
from bundle.networks.prior import PriorAlone, PriorNetwork, known_arm, linear_flair

# What z_t tells of the mask is added to the prior in full from log-SNR -2.7 on, and in proportion to alpha below.
_GATE = 4.0


class ForecastNetwork(nn.Module):
    """UNet over a slab with slices as channels, steered by a ControlNet that reads the patient's images.

    One tensor in, one out: (B, O + I + 2, H, W) -> (B, O, H, W), where the input is
    [z_t (O = 2 contrasts x S) | image slab (I = 7 volumes x S) | log-SNR plane | arm plane], both planes constant.
    The arm's class embedding is summed with that of log-SNR. Without its ControlNet (stage 1) the images are not read.

    The defaults are those of the shipped weights; configs/paper.json has the paper's.

    Args:
        num_slices: S.
        outcome_contrasts, image_contrasts: contrasts denoised (FLAIR, NET2) and read (FLAIR, T2, Gd twice, NET2).
        channels: width of each level.
        attention_levels: whether a level has self-attention.
        num_res_blocks: residual blocks a level.
        num_head_channels: channels an attention head.
        norm_num_groups: groups of the group norms.
        patch_size: p x p pixels of a slice are folded into channels too, so that the first level sees S * C * p^2
            channels at 1/p of the resolution: a wide first level at little cost. 1 in the paper.
        conditioning_channels: width of the ControlNet's image embedding; one number, since every further one
            would halve the resolution.
        local_channels: width of the `LocalPath` around the UNet; 0 for none, as in the paper.
        with_loads: give the networks the lesion load of each mask as a number too, beside the arm (`ArmAndLoads`). Not
            in the paper.
        prior_channels: width of each level of the `PriorNetwork`, whose log-odds the others add to; empty for none. Not
            in the paper.
        with_control: build the ControlNet.
        gradient_checkpointing: keep only the inputs of residual and attention blocks for the backward pass and compute
            the rest again (Chen et al. 2016, arXiv 1604.06174): the same gradients for less memory, at the cost of
            nearly a second forward pass.
    """

    def __init__(
        self,
        num_slices: int = 15,
        outcome_contrasts: int = 2,
        image_contrasts: int = 7,
        channels: Sequence[int] = (64, 96, 160),
        attention_levels: Sequence[bool] = (False, False, True),
        num_res_blocks: int = 1,
        num_head_channels: int = 32,
        norm_num_groups: int = 32,
        patch_size: int = 2,
        conditioning_channels: int = 96,
        local_channels: int = 16,
        with_loads: bool = True,
        prior_channels: Sequence[int] = (32, 64, 96),
        with_control: bool = True,
        gradient_checkpointing: bool = False,
    ) -> None:
        self.arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.outcome_channels = outcome_contrasts * num_slices
        self.image_channels = image_contrasts * num_slices
        self.num_slices = num_slices
        self.image_contrasts = image_contrasts
        self.with_loads = with_loads
        self.patch_size = patch_size
        self.stride = patch_size * 2 ** (len(channels) - 1)
        shared = dict(
            spatial_dims=2,
            in_channels=self.outcome_channels * patch_size**2,
            num_res_blocks=num_res_blocks,
            channels=tuple(channels),
            attention_levels=tuple(attention_levels),
            norm_num_groups=norm_num_groups,
            resblock_updown=True,
            num_head_channels=num_head_channels,
            num_class_embeds=len(CLASSES),
            use_flash_attention=True,
        )
        try:
            self.unet = DiffusionModelUNet(out_channels=self.outcome_channels * patch_size**2, **shared)
        except ValueError as error:
            raise InputError(f"no such network: {error}", "correct its settings, --network_def#...") from error
        if with_loads:
            self.unet.class_embedding = ArmAndLoads(image_contrasts, self.unet.class_embedding)
        self.prior = None
        if prior_channels:
            self.prior = PriorNetwork(prior_channels)
            self.prior.requires_grad_(False)  # trained before, alone: see `prior_alone`
        self.local = None
        if local_channels:
            self.local = LocalPath(outcome_contrasts, image_contrasts, local_channels)
        self.controlnet = None
        if with_control:
            self.controlnet = ControlNet(
                conditioning_embedding_in_channels=self.image_channels * patch_size**2,
                conditioning_embedding_num_channels=(conditioning_channels,),
                **shared,
            )
            # A module of its own, so that a patient's images are embedded once for all members and steps.
            self.image_embedding = self.controlnet.controlnet_cond_embedding
            self.controlnet.controlnet_cond_embedding = nn.Identity()
            if with_loads:
                self.controlnet.class_embedding = ArmAndLoads(image_contrasts, self.controlnet.class_embedding)
            self.start_control_from_unet()
        if gradient_checkpointing:
            checkpoint_blocks(self)

    def without_control(self) -> "ForecastNetwork":
        """A new network with a copy of all weights but the ControlNet's: what stage 1 trains."""
        alone = ForecastNetwork(**self.arguments | {"with_control": False})
        own = alone.state_dict()
        alone.load_state_dict({name: value for name, value in self.state_dict().items() if name in own})
        return alone

    def prior_alone(self) -> PriorAlone:
        """A copy of the prior as a network of its own, to be trained before the others.

        Raises:
            InputError: there is none.
        """
        if self.prior is None:
            raise InputError("the network has no prior", "give it prior_channels, or train the other stages only")
        return PriorAlone(copy.deepcopy(self.prior).requires_grad_(True), self.num_slices)

    def start_control_from_unet(self) -> None:
        """Give the ControlNet, if there is one, a copy of the UNet's encoder (Zhang et al. 2023, section 3.1)."""
        if self.controlnet is None:
            return
        own = self.controlnet.state_dict()
        self.controlnet.load_state_dict(own | {k: v for k, v in self.unet.state_dict().items() if k in own})

    def forward(self, x: Tensor) -> Tensor:
        z_t, images, planes = x.split([self.outcome_channels, self.image_channels, 2], dim=1)
        logsnr, arm = planes[:, :, 0, 0].unbind(1)  # (B,) each
        arm = arm.round().long()
        encoded = self.encode(images, arm)
        return self.add_local(self.backbone(z_t, logsnr, arm, encoded), z_t, logsnr, encoded)

    def encode(self, images: Tensor, arm: Tensor) -> dict[str, Tensor]:
        """Features of the image slabs (B, I, H, W) under arms (B,), the same at all noise levels: computed once."""
        if self.controlnet is None:
            images = torch.zeros_like(images)
        volumes, encoded = images.unflatten(1, (self.image_contrasts, -1)), {}
        if self.prior is not None:
            encoded["prior"] = self.prior(volumes, known_arm(arm))
        if self.with_loads:
            encoded["loads"] = lesion_loads(volumes)
        if self.controlnet is not None or self.local is not None:
            volumes = linear_flair(volumes)
        if self.controlnet is not None:
            encoded["embedding"] = self.image_embedding(F.pixel_unshuffle(volumes.flatten(1, 2), self.patch_size))
        if self.local is not None:
            encoded["local"] = self.local.encode(volumes)
        return encoded

    def backbone(self, z_t: Tensor, logsnr: Tensor, arm: Tensor, encoded: dict[str, Tensor]) -> Tensor:
        """The output of UNet and ControlNet, (B, O, H, W) for z_t (B, O, H, W).

        logsnr, arm (class indices) and `encoded` are of B samples or of one for all; B encoded need B arms.
        """
        timestep = logsnr_to_timestep(logsnr)
        labels = arm = known_arm(arm)
        if self.with_loads:
            labels = torch.cat([arm[:, None], encoded["loads"].expand(arm.shape[0], -1)], dim=1)
        patches = F.pixel_unshuffle(z_t, self.patch_size)
        down, mid = None, None
        if self.controlnet is not None:
            down, mid = self.controlnet(patches, timestep, encoded["embedding"], class_labels=labels)
        output = self.unet(
            patches,
            timestep,
            class_labels=labels,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        )
        return F.pixel_shuffle(output, self.patch_size)

    def add_local(self, backbone: Tensor, z_t: Tensor, logsnr: Tensor, encoded: dict[str, Tensor]) -> Tensor:
        """The output, (B, O, H, W): `backbone`, which may be of a slightly noisier z_t, plus local path and prior.

        Of the mask, the last contrast, backbone and local path only add to the prior what z_t tells, and so vanish
        with it: at the noisiest level the output is the prior.
        """
        z_t, volumes = (x.unflatten(1, (-1, self.num_slices)) for x in (z_t, backbone))
        if self.prior is None:
            return (volumes + self._local(z_t, volumes, encoded, logsnr)).flatten(1, 2)
        gate = expand_to((_GATE * alpha_sigma(logsnr.float())[0]).clamp(max=1), volumes).to(volumes.dtype)
        prior = encoded["prior"].to(volumes.dtype)[:, None]
        *others, mask = volumes.split([volumes.shape[1] - 1, 1], dim=1)
        volumes = torch.cat([*others, gate * mask + prior], dim=1)
        *others, mask = self._local(z_t, volumes, encoded, logsnr).split([volumes.shape[1] - 1, 1], dim=1)
        return (volumes + torch.cat([*others, gate * mask], dim=1)).flatten(1, 2)

    def _local(self, z_t: Tensor, volumes: Tensor, encoded: dict[str, Tensor], logsnr: Tensor) -> Tensor:
        """What the local path adds to `volumes` (B, outcome_contrasts, S, H, W)."""
        if self.local is None:
            return torch.zeros_like(volumes)
        return self.local(z_t, volumes, encoded["local"], logsnr)

    def __prepare_scriptable__(self) -> nn.Module:
        """MONAI's two nets cannot be scripted: `torch.jit.script` of this network yields a trace."""
        side = 4 * self.stride
        example = torch.zeros(2, self.outcome_channels + self.image_channels + 2, side, side)
        example = example.to(next(self.parameters()).device)
        return _Traced(torch.jit.trace(self.eval(), example, check_trace=False))


def checkpoint_blocks(network: nn.Module) -> None:
    """Make residual and attention blocks keep only their input while training; see `ForecastNetwork`."""
    for block in network.modules():
        if isinstance(block, (DiffusionUNetResnetBlock, SpatialAttentionBlock)):
            block.forward = partial(_recomputed, block.forward)  # a module around it would rename its weights


def _recomputed(forward: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False)  # nothing in it is random
    return forward(*inputs)


class _Traced(nn.Module):
    """Scripting takes a module that calls a trace, not the trace itself."""

    def __init__(self, trace: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.trace = trace

    def forward(self, x: Tensor) -> Tensor:
        return self.trace(x)
