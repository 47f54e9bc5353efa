"""Networks of the same shape built with diffusers, to be timed beside ours; they come with `.[benchmark]`.

Their weights are random: only their speed is comparable, not their quality.
"""

import torch
from diffusers import ControlNetModel, DPMSolverMultistepScheduler, UNet2DConditionModel
from torch import Tensor, nn

from bundle.networks.slab_unet import ForecastNetwork

ARM_WIDTH = 64  # of the treatment's embedding, which diffusers' networks attend to


class DiffusersEnsemble:
    """UNet2DConditionModel, ControlNetModel and DPMSolverMultistepScheduler (DPM-Solver++ 2M), otherwise at defaults.

    Args:
        network: ours, whose channels, patches and device these take.
        architecture: the arguments of `bundle.networks.slab_unet.ForecastNetwork`; what diffusers has no counterpart
            of (the local path, the lesion loads) is left out.
        num_steps, amp, member_batch: as ours.
    """

    def __init__(
        self, network: ForecastNetwork, architecture: dict, num_steps: int, amp: bool, member_batch: int
    ) -> None:
        self.num_steps, self.amp, self.member_batch = num_steps, amp, member_batch
        self.patch_size = network.patch_size
        self.device = next(network.parameters()).device
        with_attention = architecture["attention_levels"]
        folded = network.patch_size**2
        self.unet = UNet2DConditionModel(
            in_channels=network.outcome_channels * folded,
            out_channels=network.outcome_channels * folded,
            down_block_types=tuple("CrossAttnDownBlock2D" if wanted else "DownBlock2D" for wanted in with_attention),
            up_block_types=tuple(
                "CrossAttnUpBlock2D" if wanted else "UpBlock2D" for wanted in reversed(with_attention)
            ),
            mid_block_type="UNetMidBlock2DCrossAttn",
            block_out_channels=tuple(architecture["channels"]),
            layers_per_block=architecture["num_res_blocks"],
            attention_head_dim=architecture["num_head_channels"],
            cross_attention_dim=ARM_WIDTH,
        )
        self.controlnet = ControlNetModel.from_unet(
            self.unet,
            conditioning_channels=network.image_channels * folded,
            conditioning_embedding_out_channels=(architecture["conditioning_channels"],),
        )
        for part in (self.unet, self.controlnet):
            part.to(self.device).eval()

    @torch.inference_mode()
    def __call__(self, images: Tensor, num_members: int) -> Tensor:
        """(K, O, H, W), members of one patient's folded images (1, I, H, W)."""
        done = []
        for first in range(0, num_members, self.member_batch):
            done.append(self._sample(images, min(self.member_batch, num_members - first)))
        return torch.cat(done)

    def _sample(self, images: Tensor, count: int) -> Tensor:
        scheduler = DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2)
        scheduler.set_timesteps(self.num_steps, device=self.device)
        images = nn.functional.pixel_unshuffle(images.to(self.device), self.patch_size).expand(count, -1, -1, -1)
        arm = torch.zeros(count, 1, ARM_WIDTH, device=self.device)
        z = torch.randn(count, self.unet.config.in_channels, *images.shape[2:], device=self.device)
        for t in scheduler.timesteps:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
                down, mid = self.controlnet(z, t, arm, images, return_dict=False)
                output = self.unet(
                    z, t, arm, down_block_additional_residuals=down, mid_block_additional_residual=mid
                ).sample
            z = scheduler.step(output.float(), t, z).prev_sample
        return nn.functional.pixel_shuffle(z, self.patch_size)
