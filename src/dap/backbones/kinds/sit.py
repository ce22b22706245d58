"""SiT (Ma et al. 2024) and its descendants REPA and LightningDiT: class-conditional transformers on a flow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dap.backbones.base import Card
from dap.backbones.cards import Found, check_names, image_size
from dap.backbones.modules import ModuleBackbone
from dap.backbones.schedules import Interpolant, Time
from dap.base.errors import DapError


class SiT(ModuleBackbone):
    """A `SiTPipeline` as a backbone: velocity prediction on a linear, cosine or variance-preserving path.

    Layers are the block indices "0" … "n−1"; the features are the block's output tokens (B, tokens, width).

    Args:
        pipe: a `SiTPipeline`.
        class_names: the names of the transformer's labels, in label order.
        card: the facts that belong to the weights.

    Raises:
        DapError: there are not as many class names as labels, or the parts do not fit each other.
    """

    kind = "sit"
    """The key of the defaults in cards.yaml."""

    def __init__(self, pipe: Any, *, class_names: list[str], card: Card) -> None:
        network, vae, scheduler = pipe.transformer, pipe.vae, pipe.scheduler.config
        config = network.config
        check_names(card, config.num_classes, class_names)
        if config.in_channels != vae.config.latent_channels:
            raise DapError(
                f"The transformer of {card.name} takes {config.in_channels} channels, its autoencoder makes "
                f"{vae.config.latent_channels}; take parts that were trained together."
            )
        super().__init__(
            network,
            vae,
            card=card,
            schedule=Interpolant(scheduler["num_train_timesteps"], scheduler.get("shift", 1.0), path=config.path),
            latent_shape=(config.in_channels, config.sample_size, config.sample_size),
            layers=[str(i) for i in range(len(network.blocks))],
            class_names=class_names,
            predicts="velocity",
        )

    @classmethod
    def from_pipeline(cls, pipe: Any, found: Found) -> SiT:
        """The backbone of a `SiTPipeline`, or of a subclass's own pipeline.

        Raises:
            DapError: prompts were given, or the parts do not fit each other.
        """
        found.without_prompts()
        config = pipe.transformer.config
        layer = str(round(config.num_layers * 8 / 28))  # as of a DiT of this depth
        card = found.card(cls.kind, size=image_size(config.sample_size, pipe.vae), layer=layer)
        return cls(pipe, class_names=found.names(pipe, config.num_classes), card=card)

    def module(self, layer: str) -> nn.Module:
        return self.denoiser.blocks[int(layer)]

    def run(self, x: Tensor, t: Time | Tensor, condition: Tensor) -> Tensor:
        assert isinstance(self.schedule, Interpolant)
        tau = torch.as_tensor(t, device=x.device, dtype=torch.float32).expand(len(x)) / self.schedule.steps
        if self.denoiser.config.data_at == 0:
            return self.denoiser(x.to(self.denoiser.dtype), tau, condition).sample.float()
        # The network counts its time from the noise to the data, so its velocity points the other way.
        return -self.denoiser(x.to(self.denoiser.dtype), 1 - tau, condition).sample.float()

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "labels": list(self.class_names)}
