"""Pipelines of class-conditional networks that predict noise in latents: U-ViT, MDTv2, latent diffusion's ImageNet model,
and Latte, which makes clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, VQModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from dap.networks.plain import PlainPipeline


class LabelledPipeline(PlainPipeline):
    """A class-conditional network with its autoencoder and the noise levels of its training.

    Args:
        denoiser: a network of this room that takes latents, a timestep and labels, and has `first_timestep`.
        vae: the autoencoder; latents are multiplied by its scaling factor.
        scheduler: the noise levels.
        id2label: the names of the classes by label.
    """

    model_cpu_offload_seq = "denoiser->vae"

    def __init__(
        self,
        denoiser: Any,
        vae: AutoencoderKL | AutoencoderTiny | VQModel,
        scheduler: DDIMScheduler,
        id2label: Mapping[Any, str] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(denoiser=denoiser, vae=vae, scheduler=scheduler)
        self.take(id2label)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int],
        guidance_scale: float = 1.0,
        num_inference_steps: int = 50,
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """Sample one image for each label, by the scheduler's own steps and classifier-free guidance of all channels.

        Args:
            class_labels: the labels.
            guidance_scale: the scale of classifier-free guidance. 1 switches it off.
            num_inference_steps: the number of steps.
            generator: draws the noise.
            latents: the noise to begin with, (B, C, side, side), of clips (B, C, frames, side, side). Default: drawn.
            output_type: "pil", "pt" (a tensor (B, 3, h, w) in [0, 1], of clips (B, 3, frames, h, w)) or "latent".
        """
        network, config = self.denoiser, self.denoiser.config
        labels = torch.as_tensor(class_labels, device=network.device)
        frames = [config.num_frames] if "num_frames" in config else []
        shape = (len(labels), config.in_channels, *frames, config.sample_size, config.sample_size)
        x = torch.randn(shape, generator=generator) if latents is None else latents
        x = x.to(network.device)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            at = (t + network.first_timestep).to(x.device).expand(len(x))
            eps = network(x.to(network.dtype), at, labels).sample.float()[:, : config.in_channels]
            if guidance_scale != 1:
                null = torch.full_like(labels, config.num_classes)
                free = network(x.to(network.dtype), at, null).sample.float()[:, : config.in_channels]
                eps = free + guidance_scale * (eps - free)
            x = self.scheduler.step(eps, t, x).prev_sample
        return self.finished(x, output_type)


class UViTPipeline(LabelledPipeline):
    """A pipeline of a `UViT2DModel`."""


class MDTPipeline(LabelledPipeline):
    """A pipeline of an `MDTTransformer2DModel`."""


class LatentDiffusionPipeline(LabelledPipeline):
    """A pipeline of a `LabelledUNet2DModel`, with a `VQModel` as its autoencoder."""


class LabelledLattePipeline(LabelledPipeline):
    """A pipeline of a `LabelledLatteTransformer3DModel`, whose autoencoder sees each frame as an image. For "pil" it gives a list
    of frames for each clip."""

    def finished(self, x: Tensor, output_type: str) -> ImagePipelineOutput:
        if output_type == "latent":
            return super().finished(x, output_type)
        made: Any = super().finished(x.transpose(1, 2).flatten(0, 1), output_type).images
        clips = len(x)
        if isinstance(made, Tensor):
            return ImagePipelineOutput(images=made.unflatten(0, (clips, -1)).transpose(1, 2))  # pyright: ignore[reportArgumentType]
        long = len(made) // clips
        return ImagePipelineOutput(images=[made[i * long : (i + 1) * long] for i in range(clips)])  # pyright: ignore[reportArgumentType]
