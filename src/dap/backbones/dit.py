"""Class-conditional DiT (Peebles & Xie 2023) from any diffusers `DiTPipeline`: the hub's DiT-XL/2 and the starter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dap import imagenet
from dap.backbones.base import Card, Prediction
from dap.backbones.modules import ModuleBackbone
from dap.backbones.schedules import Time, VariancePreserving
from dap.base.errors import DapError


class DiT(ModuleBackbone):
    """A diffusers DiT with its VAE.

    Layers are the block indices "0" … "n−1"; the features are the block's output tokens (B, tokens, width).

    Args:
        transformer: `DiTTransformer2DModel`; its last embedding row is the null label.
        vae: `AutoencoderKL`.
        schedule: of training; DiT's by default, 1000 linear betas from 1e-4 to 0.02.
        class_names: the labels of the transformer, in order.
        card: what belongs to the weights.

    Raises:
        DapError: not one class name for each label of the transformer.
    """

    def __init__(
        self,
        transformer: Any,
        vae: Any,
        *,
        schedule: VariancePreserving | None = None,
        class_names: Sequence[str],
        card: Card,
    ) -> None:
        config = transformer.config
        if len(class_names) != config.num_embeds_ada_norm:
            raise DapError(
                f"{card.name} has {config.num_embeds_ada_norm} labels but {len(class_names)} class names; "
                "put the right list into classes.json beside the weights."
            )
        super().__init__(transformer, vae)
        self.transformer = transformer
        self.card = card
        self.latent_shape = (config.in_channels, config.sample_size, config.sample_size)
        self.layers = tuple(str(i) for i in range(len(transformer.transformer_blocks)))
        self.class_names = tuple(class_names)
        self.schedule = schedule or VariancePreserving.from_betas(1e-4, 0.02, 1000)
        self.learned_variance = config.out_channels == 2 * config.in_channels
        self._labels = imagenet.lookup(self.class_names)
        self._clocks = [block.norm1.emb.time_proj for block in transformer.transformer_blocks]

    def condition(self, class_names: Sequence[str]) -> Tensor:
        labels = {name: imagenet.find(name, self._labels) for name in class_names}
        unknown = [name for name, found in labels.items() if not found]
        if unknown:
            known = ", ".join(self.class_names[:10]) + (", …" if len(self.class_names) > 10 else "")
            data = ", ".join(dict.fromkeys(class_names[:10])) + (", …" if len(class_names) > 10 else "")
            raise DapError(
                f"{self.card.name} was not trained on {', '.join(map(repr, unknown[:5]))}. The data's classes: {data}. "
                f"The backbone's {len(self.class_names)}: {known}. Rename the class folders to the backbone's names, or "
                "choose classes with --classes."
            )
        for name, found in labels.items():
            if len(found) > 1:
                raise DapError(
                    f"{name!r} is the name of several labels of {self.card.name}: {found}. "
                    "Tell them apart in classes.json beside the weights, or name ImageNet's folders by WordNet id."
                )
        return torch.tensor([labels[name][0] for name in class_names], device=self.device)

    def null(self, n: int) -> Tensor:
        return torch.full((n,), self.transformer.config.num_embeds_ada_norm, device=self.device)

    def module(self, layer: str) -> nn.Module:
        return self.transformer.transformer_blocks[int(layer)]

    def run(self, x: Tensor, t: Time | Tensor, condition: Tensor) -> Tensor:
        timestep = torch.as_tensor(t, device=x.device).expand(len(x))
        with self._frequencies():
            x = x.to(self.transformer.dtype)
            return self.transformer(x, timestep=timestep, class_labels=condition).sample.float()

    @contextmanager
    def _frequencies(self) -> Iterator[None]:
        """The card's time embedding for the length of a pass: the modules may be shared with a stock pipeline."""
        before = [clock.downscale_freq_shift for clock in self._clocks]
        for clock, own in zip(self._clocks, before, strict=True):
            clock.downscale_freq_shift = own if self.card.frequency_shift is None else self.card.frequency_shift
        try:
            yield
        finally:
            for clock, own in zip(self._clocks, before, strict=True):
                clock.downscale_freq_shift = own

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "frequency_shift": self.card.frequency_shift}

    def read(self, x: Tensor, t: Time, output: Tensor) -> Prediction:
        eps, variance = output.chunk(2, dim=1) if self.learned_variance else (output, None)
        return Prediction(eps, variance, None)
