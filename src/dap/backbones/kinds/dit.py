"""Class-conditional DiT (Peebles & Xie 2023) from any diffusers `DiTPipeline`: the hub's DiT-XL/2 and the starter."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dap.backbones.base import Card
from dap.backbones.cards import Found, check_names, image_size
from dap.backbones.modules import ModuleBackbone
from dap.backbones.schedules import Time, VariancePreserving
from dap.base.errors import DapError

log = logging.getLogger(__name__)


class DiT(ModuleBackbone):
    """A diffusers DiT with its VAE.

    Layers are the block indices "0" … "n−1"; the features are the block's output tokens (B, tokens, width).

    Args:
        transformer: `DiTTransformer2DModel`; the last row of its label table is the null label.
        vae: `AutoencoderKL`.
        schedule: the noise schedule of the training. Default: DiT's, 1000 linear betas from 1e-4 to 0.02.
        kind: diffusers' name of what the transformer predicts, "epsilon" or "v_prediction".
        class_names: the names of the transformer's labels, in label order.
        card: the facts that belong to the weights.

    Raises:
        DapError: there are not as many class names as labels of the transformer.
    """

    def __init__(
        self,
        transformer: Any,
        vae: Any,
        *,
        schedule: VariancePreserving | None = None,
        kind: str = "epsilon",
        class_names: Sequence[str],
        card: Card,
    ) -> None:
        config = transformer.config
        check_names(card, config.num_embeds_ada_norm, class_names)
        channels, side = config.in_channels, config.sample_size
        if config.out_channels not in (None, channels, 2 * channels) or channels != vae.config.latent_channels:
            raise DapError(
                f"The transformer of {card.name} takes {channels} channels and gives {config.out_channels}, its autoencoder "
                f"makes {vae.config.latent_channels}: a DiT gives as many channels as it takes, or twice as many."
            )
        super().__init__(
            transformer,
            vae,
            card=card,
            schedule=schedule or VariancePreserving.from_betas(1e-4, 0.02, 1000),
            latent_shape=(channels, side, side),
            layers=[str(i) for i in range(len(transformer.transformer_blocks))],
            class_names=class_names,
            predicts=kind,
            learned_variance=config.out_channels == 2 * channels,
        )
        self.transformer = transformer
        self._clocks = [block.norm1.emb.time_proj for block in transformer.transformer_blocks]

    @classmethod
    def from_pipeline(cls, pipe: Any, found: Found) -> DiT:
        """The backbone of a `DiTPipeline`.

        Raises:
            DapError: prompts were given, or the schedule is not supported.
        """
        found.without_prompts()
        config = pipe.transformer.config
        # The paper's middle blocks, scaled to the depth: block 8 of 28.
        layer = str(round(config.num_layers * 8 / 28))
        card = found.card("dit", size=image_size(config.sample_size, pipe.vae), layer=layer)
        if card.frequency_shift is None and (config.num_layers, config.num_embeds_ada_norm) == (28, 1000):
            log.warning(
                "%s looks like DiT-XL/2 but is not known by name. If its weights come from the original code, put "
                "'frequency_shift: 0' into card.yaml beside them; for weights trained in diffusers put 1.",
                found.name,
            )
        return cls(
            pipe.transformer,
            pipe.vae,
            schedule=VariancePreserving.from_config(pipe.scheduler.config),
            kind=pipe.scheduler.config.get("prediction_type", "epsilon"),
            class_names=found.names(pipe, config.num_embeds_ada_norm),
            card=card,
        )

    def module(self, layer: str) -> nn.Module:
        return self.transformer.transformer_blocks[int(layer)]

    def run(self, x: Tensor, t: Time | Tensor, condition: Tensor) -> Tensor:
        timestep = torch.as_tensor(t, device=x.device).expand(len(x))
        with self._frequencies():
            x = x.to(self.transformer.dtype)
            return self.transformer(x, timestep=timestep, class_labels=condition).sample.float()

    @contextmanager
    def _frequencies(self) -> Iterator[None]:
        """Use the card's time embedding during one pass. A stock pipeline may share the modules and has its own embedding."""
        before = [clock.downscale_freq_shift for clock in self._clocks]
        for clock, own in zip(self._clocks, before, strict=True):
            clock.downscale_freq_shift = own if self.card.frequency_shift is None else self.card.frequency_shift
        try:
            yield
        finally:
            for clock, own in zip(self._clocks, before, strict=True):
                clock.downscale_freq_shift = own

    def settings(self) -> dict[str, Any]:
        return {
            **super().settings(),
            "frequency_shift": self.card.frequency_shift,
            "labels": list(self.class_names),
        }
