"""The plain pipeline of REG: classifier-free guidance and Euler's method on a latent and its class token together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor
from transformers import Dinov2Model

from dap.networks.plain import PlainPipeline
from dap.networks.reg import REGTransformer2DModel


class REGPipeline(PlainPipeline):
    """A transformer of REG with its autoencoder, and the encoder that gives the class tokens of real images.

    Args:
        transformer: the transformer.
        vae: the autoencoder; see `SiTPipeline`.
        class_encoder: the DINOv2 whose class token the transformer denoises. Sampling does not need it.
        scheduler: says how many units of time the flow has, and the shift of the grid of times.
        id2label: the names of the classes by label.
    """

    model_cpu_offload_seq = "class_encoder->transformer->vae"

    def __init__(
        self,
        transformer: REGTransformer2DModel,
        vae: AutoencoderKL,
        class_encoder: Dinov2Model,
        scheduler: FlowMatchEulerDiscreteScheduler,
        id2label: Mapping[Any, str] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, class_encoder=class_encoder, scheduler=scheduler)
        self.take(id2label)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int],
        guidance_scale: float = 1.0,
        token_guidance_scale: float | None = None,
        num_inference_steps: int = 50,
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
        class_tokens: Tensor | None = None,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """Sample one image for each label, by Euler's method in the network's own time.

        Args:
            class_labels: the labels.
            guidance_scale: the scale of classifier-free guidance. 1 switches it off.
            token_guidance_scale: that of the class token. None: the same.
            num_inference_steps: the number of steps, evenly spaced before the shift.
            generator: draws the noise.
            latents: the noise to begin with, (B, C, side, side). Default: drawn.
            class_tokens: the noise of the class tokens, (B, class_token_size). Default: drawn.
            output_type: "pil", "pt" (a tensor (B, 3, h, w) in [0, 1]) or "latent".
        """
        network, config = self.transformer, self.transformer.config
        labels = torch.as_tensor(class_labels, device=network.device)
        null, n = torch.full_like(labels, config.num_classes), len(labels)
        shape = (n, config.in_channels, config.sample_size, config.sample_size)
        x = torch.randn(shape, generator=generator) if latents is None else latents
        token = torch.randn(n, config.class_token_size, generator=generator) if class_tokens is None else class_tokens
        x, token = x.to(network.device), token.to(network.device)
        scales = guidance_scale, guidance_scale if token_guidance_scale is None else token_guidance_scale
        times = torch.linspace(1, 0, num_inference_steps + 1, dtype=torch.float64)
        shift = self.scheduler.config.shift
        times = shift * times / (1 + (shift - 1) * times)
        for now, after in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
            t = torch.full((n,), now, device=x.device)
            given = x.to(network.dtype), token.to(network.dtype)
            told = network(given[0], t, labels, given[1])
            moved = [told.sample.float(), told.class_token.float()]
            if scales != (1, 1):
                free = network(given[0], t, null, given[1])
                others = free.sample.float(), free.class_token.float()
                moved = [b + scale * (a - b) for a, b, scale in zip(moved, others, scales, strict=True)]
            x, token = x + (after - now) * moved[0], token + (after - now) * moved[1]
        return self.finished(x, output_type)
