"""The plain pipeline of EDM and EDM2: Heun's method on the noise levels of the paper (Karras et al. 2022, algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from diffusers import AutoencoderKL, EDMEulerScheduler
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from dap.networks.plain import PlainPipeline


class EDMPipeline(PlainPipeline):
    """A denoiser of EDM or EDM2, with an autoencoder if the denoiser works on latents.

    Args:
        unet: an `EDMUNet2DModel` or `EDM2UNet2DModel`.
        scheduler: says the noise levels: sigma_max, sigma_min, and ρ, which spaces them.
        vae: the autoencoder. Latents are (z − latents_mean) / latents_std · scaling_factor. None: the denoiser works on pixels.
        id2label: the names of the classes by label.
    """

    model_cpu_offload_seq = "unet->vae"
    _optional_components = ["vae"]

    def __init__(
        self,
        unet: Any,
        scheduler: EDMEulerScheduler,
        vae: AutoencoderKL | None = None,
        id2label: Mapping[Any, str] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae)
        self.take(id2label)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int] | None = None,
        batch_size: int = 1,
        num_inference_steps: int = 18,
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """Sample images without any noise besides that of the start.

        Args:
            class_labels: one label for each image. None: no class.
            batch_size: how many images, if there are no labels.
            num_inference_steps: the number of noise levels. Each but the last costs two passes.
            generator: draws the noise.
            latents: noise of the standard deviation 1 to begin with, (B, C, side, side). Default: drawn.
            output_type: "pil", "pt" (a tensor (B, 3, h, w) in [0, 1]) or "latent".
        """
        config = self.unet.config
        labels = None if class_labels is None else torch.as_tensor(class_labels, device=self.unet.device)
        shape = (
            batch_size if labels is None else len(labels),
            config.in_channels,
            config.sample_size,
            config.sample_size,
        )
        noise = torch.randn(shape, generator=generator) if latents is None else latents
        sigmas = [*noise_levels(self.scheduler.config, num_inference_steps), 0.0]
        x = noise.to(self.unet.device) * sigmas[0]
        for now, after in pairwise(sigmas):
            slope = (x - self.unet(x, now, labels).sample) / now
            ahead = x + (after - now) * slope
            if after > 0:
                slope = (slope + (ahead - self.unet(ahead, after, labels).sample) / after) / 2
            x = x + (after - now) * slope
        return self.finished(x, output_type)


def noise_levels(config: Mapping[str, Any], steps: int) -> list[float]:
    """σ of `steps` noise levels from sigma_max down to sigma_min, evenly spaced in σ^(1/ρ) (Karras et al. 2022, equation 5).

    Args:
        config: the configuration of an `EDMEulerScheduler`.
        steps: how many, at least 2.
    """
    most, least = (config[name] ** (1 / config["rho"]) for name in ("sigma_max", "sigma_min"))
    return [(most + i / (steps - 1) * (least - most)) ** config["rho"] for i in range(steps)]
