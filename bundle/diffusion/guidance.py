"""Classifier-free guidance: a denoiser made of a conditional one."""

from dataclasses import dataclass

from torch import Tensor

from bundle.diffusion.denoiser import Denoiser
from bundle.diffusion.samplers import DenoiseAt
from bundle.diffusion.slabs import Condition


@dataclass(frozen=True)
class GuidedDenoiser:
    """Classifier-free guidance with a scale for the images and one for the arm.

    x0 = null + w_i (images - null) + w_a (both - images): the arm's effect is taken given the images (Brooks et al.
    2023, InstructPix2Pix, eq. 3). With both scales w it is the joint guidance null + w (both - null) of Ho & Salimans
    2022, with w = 1 for none. Terms of weight 0 are not computed: one call without guidance, two with joint guidance
    or with one scale at 1, else three.

    Args:
        denoiser: the conditional denoiser; its `given` takes a condition that has `null(images=..., arm=...)`.
        guidance_scale: w_i.
        arm_guidance_scale: w_a; equal to w_i if not given.
        guidance_interval: log-SNRs between which guidance acts, with one call outside; everywhere if not given
            (Kynkaanniemi et al. 2024, arXiv 2404.07724).
        reuse_within: see `bundle.diffusion.slabs.EncodedDenoiser`.
    """

    denoiser: Denoiser
    guidance_scale: float = 1.0
    arm_guidance_scale: float | None = None
    guidance_interval: tuple[float, float] | None = None
    reuse_within: float = 0.0

    def given(self, condition: Condition) -> DenoiseAt:
        """(z_t, logsnr) -> guided x0 under this condition."""
        of_images = self.guidance_scale
        of_arm = of_images if self.arm_guidance_scale is None else self.arm_guidance_scale
        plain = self.denoiser.given(condition, self.reuse_within)
        nulls = [(of_images - of_arm, condition.null(images=False)), (1 - of_images, condition.null())]
        parts = [(of_arm, plain)] if of_arm else []
        parts += [(weight, self.denoiser.given(null, self.reuse_within)) for weight, null in nulls if weight]

        def guided(z_t: Tensor, logsnr: Tensor) -> Tensor:
            return sum(weight * denoise(z_t, logsnr) for weight, denoise in parts)

        if self.guidance_interval is None:
            return guided
        low, high = self.guidance_interval
        return lambda z_t, logsnr: (guided if low <= logsnr[0] <= high else plain)(z_t, logsnr)
