"""Stable Diffusion 1 and 2 (Rombach et al. 2022) from any diffusers `StableDiffusionPipeline`: a text-conditioned U-Net."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dap.backbones.base import Card
from dap.backbones.cards import Found, image_size
from dap.backbones.prompts import PromptedBackbone, tokenizers_of
from dap.backbones.schedules import Time, VariancePreserving
from dap.base.errors import DapError

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


class UNet(PromptedBackbone):
    """A Stable Diffusion pipeline as a backbone. Classes are prompts, so the backbone knows any class that has a name.

    Layers are "down.0" …, "mid" and "up.0" … in the order in which the U-Net runs them. Features are the output of a block, one
    token for each place of its grid, (B, h·w, channels).

    A U-Net that was distilled to few steps under classifier-free guidance may be told the scale of this guidance as an input
    (Meng et al. 2023; LCM). It is told `guidance` of its card.

    Attributes:
        kind: the name of its defaults in cards.yaml.

    Args:
        pipe: a `StableDiffusionPipeline` or a `LatentConsistencyModelPipeline`; its safety checker is not used.
        schedule: the noise schedule of the training.
        card: the facts that belong to the weights.

    Raises:
        DapError: the U-Net has inputs besides latents, time and prompt, or predicts something unknown.
    """

    kind: ClassVar[str] = "unet"

    def __init__(self, pipe: Any, *, schedule: VariancePreserving, card: Card) -> None:
        unet, kind = pipe.unet, pipe.scheduler.config.get("prediction_type", "epsilon")
        if unet.config.in_channels != pipe.vae.config.latent_channels:
            raise DapError(
                f"The U-Net of {card.name} takes {unet.config.in_channels} channels, its autoencoder makes "
                f"{pipe.vae.config.latent_channels}: an inpainting or editing model cannot sample a class alone."
            )
        if unet.config.out_channels != unet.config.in_channels:
            raise DapError(
                f"The U-Net of {card.name} takes {unet.config.in_channels} channels and gives {unet.config.out_channels}; "
                "dap samples U-Nets that give as many as they take."
            )
        encoders = {name: part for name in TEXT_ENCODERS if (part := getattr(pipe, name, None)) is not None}
        width = sum(part.config.hidden_size for part in encoders.values())
        wanted = unet.config.encoder_hid_dim or unet.config.cross_attention_dim
        if width not in (wanted if isinstance(wanted, (list, tuple)) else [wanted]):
            raise DapError(
                f"The U-Net of {card.name} takes a text of width {wanted}, its text encoder gives {width}; take parts that "
                "were trained together."
            )
        side = unet.config.sample_size
        self._by_layer = {f"down.{i}": block for i, block in enumerate(unet.down_blocks)}
        if unet.mid_block is not None:
            self._by_layer["mid"] = unet.mid_block
        self._by_layer |= {f"up.{i}": block for i, block in enumerate(unet.up_blocks)}
        super().__init__(
            unet,
            pipe.vae,
            card=card if unet.config.time_cond_proj_dim else replace(card, guidance=None),
            schedule=schedule,
            latent_shape=(unet.config.in_channels, *((side, side) if isinstance(side, int) else side)),
            layers=tuple(self._by_layer),
            predicts=kind,
            tokenizers=tokenizers_of(pipe),
            **encoders,
        )
        self.prediction_type, self._pipe = kind, pipe

    @classmethod
    def from_pipeline(cls, pipe: Any, found: Found) -> UNet:
        """The backbone of a pipeline.

        Raises:
            DapError: class names were given, or the class `UNet` does not take the pipeline.
        """
        found.without_class_names()
        side = pipe.unet.config.sample_size
        size = image_size(side if isinstance(side, int) else side[0], pipe.vae)
        schedule = VariancePreserving.from_config(pipe.scheduler.config)
        few = type(pipe.scheduler).__name__ == "LCMScheduler" or pipe.unet.config.time_cond_proj_dim is not None
        card = found.card("lcm" if few else cls.kind, size=size, layer="mid")
        return cls(pipe, schedule=schedule, card=card)

    def encode_prompts(self, prompts: list[str]) -> tuple[Tensor, ...]:
        return (self._pipe.encode_prompt(prompts, self.device, 1, False)[0],)

    def module(self, layer: str) -> nn.Module:
        return self._by_layer[layer]

    def told_guidance(self, x: Tensor) -> Tensor | None:
        """The embedded scale of the guidance that a distilled U-Net is told, (B, width), or None for a U-Net that is not told."""
        width, scale = self.denoiser.config.time_cond_proj_dim, self.card.guidance
        if width is None or scale is None:
            return None
        # The scale of Imagen's formula, which is smaller by one than that of diffusers and of `cfg`. The pipeline embeds it on
        # the CPU, wherever its networks are.
        scales = torch.full((len(x),), scale - 1.0)
        return self._pipe.get_guidance_scale_embedding(scales, embedding_dim=width).to(x.device, self.denoiser.dtype)

    def run(self, x: Tensor, t: Time | Tensor, condition: Tensor) -> Tensor:
        (context,) = self.encodings(condition)
        timestep = torch.as_tensor(t, device=x.device).expand(len(x))
        dtype = self.denoiser.dtype
        told = self.told_guidance(x)
        return self.denoiser(x.to(dtype), timestep, context.to(dtype), timestep_cond=told).sample.float()

    def settings(self) -> dict[str, Any]:
        told = {} if self.card.guidance is None else {"guidance": self.card.guidance}
        return {**super().settings(), "prediction_type": self.prediction_type, **told}
