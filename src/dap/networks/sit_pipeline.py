"""The plain pipeline of SiT and its descendants: classifier-free guidance and Euler's method, as their authors sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from dap.networks.plain import PlainPipeline
from dap.networks.sit import SiTTransformer2DModel


class SiTPipeline(PlainPipeline):
    """A transformer of SiT's kind with its autoencoder.

    Args:
        transformer: the transformer.
        vae: the autoencoder. Its configuration says how latents are standardised: (z − latents_mean) / latents_std ·
            scaling_factor, with the mean 0 and the deviation 1 where it names none.
        scheduler: says how many units of time the flow has, and the shift of the grid of times.
        id2label: the names of the classes by label.
    """

    model_cpu_offload_seq = "transformer->vae"

    def __init__(
        self,
        transformer: SiTTransformer2DModel,
        vae: AutoencoderKL,
        scheduler: FlowMatchEulerDiscreteScheduler,
        id2label: Mapping[Any, str] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler)
        self.take(id2label)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int],
        guidance_scale: float = 1.0,
        guided_channels: int | None = None,
        num_inference_steps: int = 50,
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """Sample one image for each label, by Euler's method in the network's own time.

        Args:
            class_labels: the labels.
            guidance_scale: the scale of classifier-free guidance. 1 switches it off.
            guided_channels: how many channels are guided. None: all.
            num_inference_steps: the number of steps, evenly spaced before the shift.
            generator: draws the noise.
            latents: the noise to begin with, (B, C, side, side). Default: drawn.
            output_type: "pil", "pt" (a tensor (B, 3, h, w) in [0, 1]) or "latent".
        """
        network, config = self.transformer, self.transformer.config
        labels = torch.as_tensor(class_labels, device=network.device)
        shape = (len(labels), config.in_channels, config.sample_size, config.sample_size)
        x = (
            torch.randn(shape, generator=generator).to(network.device)
            if latents is None
            else latents.to(network.device)
        )
        noise = torch.linspace(1, 0, num_inference_steps + 1, dtype=torch.float64)
        shift = self.scheduler.config.shift
        noise = shift * noise / (1 + (shift - 1) * noise)
        times = 1 - noise if config.data_at else noise
        mixed = guided_channels or config.in_channels
        for now, after in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
            t = torch.full((len(labels),), now, device=x.device)
            velocity = network(x.to(network.dtype), t, labels).sample.float()
            if guidance_scale != 1:
                null = network(x.to(network.dtype), t, torch.full_like(labels, config.num_classes)).sample.float()
                guided = null + guidance_scale * (velocity - null)
                velocity = torch.cat([guided[:, :mixed], velocity[:, mixed:]], dim=1)
            x = x + (after - now) * velocity
        return self.finished(x, output_type)
