"""What the plain pipelines of this room share: the names of the classes, and what is given back at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor


class PlainPipeline(DiffusionPipeline):
    """A pipeline whose network takes labels. A subclass calls `take` once its parts are registered.

    Attributes:
        labels: the label of each class by name.
    """

    vae: Any
    labels: dict[str, int]

    def take(self, id2label: Mapping[Any, str] | None) -> None:
        """Keep the names of the classes by label, also in the configuration."""
        self.register_to_config(id2label=None if id2label is None else dict(id2label))
        self.labels = {name: int(label) for label, name in (id2label or {}).items()}

    def finished(self, x: Tensor, output_type: str) -> ImagePipelineOutput:
        """What a call gives for finished latents: "pil", "pt" (a tensor (B, 3, h, w) in [0, 1]) or "latent"."""
        if output_type == "latent":
            return ImagePipelineOutput(images=x)  # pyright: ignore[reportArgumentType]
        images = (self._decoded(x) / 2 + 0.5).clamp(0, 1)
        if output_type == "pil":
            images = self.numpy_to_pil(images.cpu().permute(0, 2, 3, 1).numpy())
        return ImagePipelineOutput(images=images)  # pyright: ignore[reportArgumentType]

    def _decoded(self, x: Tensor) -> Tensor:
        """The pixels in [−1, 1]. Latents are (z − latents_mean) / latents_std · scaling_factor, where there is an autoencoder."""
        if self.vae is None:
            return x
        config: Mapping[str, Any] = self.vae.config
        z = x / config["scaling_factor"] + (config.get("shift_factor") or 0.0)
        if config.get("latents_std") is not None:
            z = z * torch.tensor(config["latents_std"], device=z.device).view(1, -1, 1, 1)
        if config.get("latents_mean") is not None:
            z = z + torch.tensor(config["latents_mean"], device=z.device).view(1, -1, 1, 1)
        return self.vae.decode(z.to(self.vae.dtype)).sample.float()
