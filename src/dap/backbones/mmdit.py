"""Stable Diffusion 3's flow-matching transformer (Esser et al. 2024) from any diffusers `StableDiffusion3Pipeline`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dap.backbones.base import Card, Prediction
from dap.backbones.modules import ModuleBackbone
from dap.backbones.prompts import Prompts
from dap.backbones.schedules import Flow, Time


class MMDiT(ModuleBackbone):
    """A Stable Diffusion 3 pipeline as a backbone: velocity prediction on a flow, text and image tokens in one transformer.

    Layers are the block indices "0" … "n−1"; features are the image stream of a block, (B, tokens, width).

    Args:
        pipe: a `StableDiffusion3Pipeline`; text encoders it lacks are zeros, as in diffusers.
        card: what belongs to the weights.
    """

    def __init__(self, pipe: Any, *, card: Card) -> None:
        named = {name: getattr(pipe, name) for name in ("text_encoder", "text_encoder_2", "text_encoder_3")}
        super().__init__(pipe.transformer, pipe.vae, **{name: part for name, part in named.items() if part is not None})
        config, scheduler = pipe.transformer.config, pipe.scheduler.config
        self.card = card
        self.schedule = self._flow = Flow(scheduler["num_train_timesteps"], scheduler["shift"])
        self.latent_shape = (config.in_channels, config.sample_size, config.sample_size)
        self.layers = tuple(str(i) for i in range(len(pipe.transformer.transformer_blocks)))
        self.class_names = ()
        self.learned_variance = False
        self._prompts = Prompts(self._encode_prompts, card)
        self._pipe = pipe

    def _encode_prompts(self, prompts: list[str]) -> tuple[Tensor, ...]:
        states, _, pooled, _ = self._pipe.encode_prompt(
            prompts, prompts, prompts, device=self.device, do_classifier_free_guidance=False
        )
        return states, pooled

    def condition(self, class_names: Sequence[str]) -> Tensor:
        return self._prompts.condition(class_names)

    def prompt(self, texts: Sequence[str]) -> Tensor:
        return self._prompts.texts(texts)

    def null(self, n: int) -> Tensor:
        return self._prompts.null(n)

    def module(self, layer: str) -> nn.Module:
        return self.denoiser.transformer_blocks[int(layer)]

    def run(self, x: Tensor, t: Time | Tensor, condition: Tensor) -> Tensor:
        states, pooled = self._prompts.rows(condition)
        dtype = self.denoiser.dtype
        return self.denoiser(
            hidden_states=x.to(dtype),
            timestep=torch.as_tensor(t, device=x.device, dtype=torch.float32).expand(len(x)),
            encoder_hidden_states=states.to(dtype),
            pooled_projections=pooled.to(dtype),
        ).sample.float()

    def read(self, x: Tensor, t: Time, output: Tensor) -> Prediction:
        eps, x0 = self._flow.velocity_to_eps(x, t, output), self._flow.velocity_to_x0(x, t, output)
        return Prediction(eps, None, None, x0)
