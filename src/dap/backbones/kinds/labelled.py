"""Class-conditional networks that predict noise in latents: U-ViT (Bao et al. 2023), MDTv2 (Gao et al. 2023), and the ImageNet
model of latent diffusion (Rombach et al. 2022)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dap.backbones.base import Card
from dap.backbones.cards import Found, check_names, image_size
from dap.backbones.known import KINDS as PIPELINES
from dap.backbones.modules import ModuleBackbone
from dap.backbones.schedules import Time, VariancePreserving
from dap.base.errors import DapError


class Labelled(ModuleBackbone):
    """A pipeline of `dap.networks.labelled_pipeline` as a backbone.

    Layers are the blocks, by the names of the network's `taps`. Features are the block's tokens of the image, (B, tokens, width).

    Args:
        pipe: the pipeline.
        class_names: the names of the labels, in label order, without the null label.
        card: the facts that belong to the weights. Where it names frames, latents are of clips, (C, frames, side, side).

    Raises:
        DapError: there are not as many class names as labels, or the parts do not fit each other.
    """

    def __init__(self, pipe: Any, *, class_names: list[str], card: Card) -> None:
        network, config, said = pipe.denoiser, pipe.denoiser.config, pipe.scheduler.config
        check_names(card, config.num_classes, class_names)
        if config.in_channels != pipe.vae.config.latent_channels:
            raise DapError(
                f"The network of {card.name} takes {config.in_channels} channels, its autoencoder makes "
                f"{pipe.vae.config.latent_channels}; take parts that were trained together."
            )
        frames = () if card.frames is None else (card.frames,)
        super().__init__(
            network,
            pipe.vae,
            card=card,
            schedule=VariancePreserving.from_config(said),
            latent_shape=(config.in_channels, *frames, config.sample_size, config.sample_size),
            layers=tuple(network.taps),
            class_names=class_names,
            predicts=said.get("prediction_type", "epsilon"),
            learned_variance=network.learned_variance,
        )

    @classmethod
    def from_pipeline(cls, pipe: Any, found: Found) -> Labelled:
        """The backbone of such a pipeline.

        Raises:
            DapError: prompts were given, or the parts do not fit each other.
        """
        found.without_prompts()
        config, layers = pipe.denoiser.config, list(pipe.denoiser.taps)
        kind, middle = PIPELINES[type(pipe).__name__].name, layers[len(layers) // 2]
        card = found.card(kind, size=image_size(config.sample_size, pipe.vae), layer=middle)
        return cls(pipe, class_names=found.names(pipe, config.num_classes), card=card)

    def module(self, layer: str) -> nn.Module:
        return self.denoiser.taps[layer]

    def tokens(self, output: Any) -> Tensor:
        return self.denoiser.image_tokens(super().tokens(output))

    def run(self, x: Tensor, t: Time | Tensor, condition: Tensor) -> Tensor:
        times = (torch.as_tensor(t, device=x.device) + self.denoiser.first_timestep).expand(len(x))
        return self.denoiser(x.to(self.denoiser.dtype), times, condition).sample.float()

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "labels": list(self.class_names)}
