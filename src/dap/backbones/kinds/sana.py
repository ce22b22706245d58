"""Sana (Xie et al. 2025) from any diffusers `SanaPipeline`: a linear-attention flow on latents that are 32 times smaller."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from dap.backbones.base import Card
from dap.backbones.cards import Found, check_channels, image_size
from dap.backbones.prompts import PromptedBackbone, tokenizers_of
from dap.backbones.schedules import Flow, Time

LONGEST = 300
"""How many tokens of a prompt are kept."""


class Sana(PromptedBackbone):
    """A Sana pipeline as a backbone: velocity prediction on a flow, told text by a language model.

    Layers are the block indices "0" … "n−1". Features are the image tokens of a block, (B, tokens, width).

    As in diffusers' pipeline, an instruction for the language model comes before each prompt, and not before the negative
    prompt. The solver is Euler's ("ddim" with eta 0) by default; the authors' own is DPM-Solver++ ("dpm++2m").

    Args:
        pipe: a `SanaPipeline`.
        card: the facts that belong to the weights.

    Raises:
        DapError: the parts do not fit each other.
    """

    def __init__(self, pipe: Any, *, card: Card) -> None:
        config = pipe.transformer.config
        gives = config.out_channels or config.in_channels
        check_channels(card, config.in_channels, gives, pipe.vae.config.latent_channels)
        default = inspect.signature(type(pipe).__call__).parameters["complex_human_instruction"].default
        self._instruction: list[str] = list(default or [])
        pipe.tokenizer.padding_side = "right"  # the pipeline says so at each prompt, whatever the files say
        super().__init__(
            pipe.transformer,
            pipe.vae,
            card=card,
            schedule=Flow.from_config(pipe.scheduler.config, (config.sample_size // config.patch_size) ** 2),
            latent_shape=(config.in_channels, config.sample_size, config.sample_size),
            layers=[str(i) for i in range(config.num_layers)],
            predicts="velocity",
            tokenizers=tokenizers_of(pipe, {"": LONGEST}, lower=True),
            text_encoder=pipe.text_encoder,
        )
        self._pipe = pipe

    @classmethod
    def from_pipeline(cls, pipe: Any, found: Found) -> Sana:
        """The backbone of a `SanaPipeline`.

        Raises:
            DapError: class names were given, or the class `Sana` does not take the pipeline.
        """
        found.without_class_names()
        config = pipe.transformer.config
        size, layer = image_size(config.sample_size, pipe.vae), str(config.num_layers // 2)
        return cls(pipe, card=found.card("sana", size=size, layer=layer))

    def encode_prompts(self, prompts: list[str]) -> tuple[Tensor, ...]:
        negative = self.card.negative_prompt or ""
        parts = [
            self._pipe.encode_prompt(
                [prompt],
                False,
                device=self.device,
                max_sequence_length=LONGEST,
                complex_human_instruction=None if prompt == negative else self._instruction,
            )[:2]
            for prompt in prompts
        ]
        states, masks = zip(*parts, strict=True)
        return torch.cat(states), torch.cat(masks)

    def module(self, layer: str) -> nn.Module:
        return self.denoiser.transformer_blocks[int(layer)]

    def run(self, x: Tensor, t: Time | Tensor, condition: Tensor) -> Tensor:
        states, mask = self.encodings(condition)
        dtype = self.denoiser.dtype
        time = torch.as_tensor(t, device=x.device, dtype=torch.float32).expand(len(x))
        return self.denoiser(
            x.to(dtype),
            encoder_hidden_states=states.to(dtype),
            encoder_attention_mask=mask,
            timestep=time * self.denoiser.config.timestep_scale,
        ).sample.float()

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "instruction": self._instruction, "tokens": LONGEST}
