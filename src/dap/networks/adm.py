"""The U-Net of ADM (Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis").

diffusers' `UNet2DModel` can hold some of the published weights, but not those with four heads at every width (128 px) and not
those whose first level is narrower than their time embedding (512 px). The tensors here have the names of the authors' files, so
a file of theirs fits without a change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = 32
"""The groups of every norm."""


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels)


class ResBlock(nn.Module):
    """Norm, SiLU, convolution; then norm, scale and shift by time and label, SiLU, convolution; beside a shortcut.

    Args:
        before, after: channels.
        embedding: the width of the embedding of time and label.
        resample: "up" doubles the side after the first activation and in the shortcut, "down" halves it. None: neither.
    """

    def __init__(self, before: int, after: int, embedding: int, resample: str | None = None) -> None:
        super().__init__()
        self.resample = resample
        self.in_layers = nn.Sequential(_norm(before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * after))
        self.out_layers = nn.Sequential(
            _norm(after), nn.SiLU(), nn.Identity(), nn.Conv2d(after, after, 3, padding=1)
        )  # the identity stands for the dropout of training
        self.skip_connection = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        norm, activation, convolution = self.in_layers
        h = convolution(self._resampled(activation(norm(x))))
        scale, shift = self.emb_layers(embedding)[..., None, None].chunk(2, dim=1)
        h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        return self.skip_connection(self._resampled(x)) + h

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.resample == "up" else x


class AttentionBlock(nn.Module):
    """Self-attention over the places of the grid, added to its input.

    Args:
        channels: of the input.
        heads: how many heads.
        by_head: whether the three of a head lie beside each other (q₁ k₁ v₁ q₂ …), the order of all published weights but those
            of 64 px. Otherwise all q come first, then all k, then all v.
    """

    def __init__(self, channels: int, heads: int, by_head: bool) -> None:
        super().__init__()
        self.heads, self.by_head = heads, by_head
        self.norm, self.qkv = _norm(channels), nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        flat = x.flatten(2)
        qkv = self.qkv(self.norm(flat))
        if self.by_head:
            parts = qkv.unflatten(1, (self.heads, 3, -1)).unbind(2)
        else:
            parts = qkv.unflatten(1, (3, self.heads, -1)).unbind(1)
        q, k, v = (part.transpose(-1, -2) for part in parts)
        found = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).flatten(1, 2)
        return (flat + self.proj_out(found)).view_as(x)


class Steps(nn.Sequential):
    """Layers one after another; those that want it are told the embedding of time and label."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        for layer in self:
            x = layer(x) if isinstance(layer, nn.Conv2d) else layer(x, embedding)
        return x


class ADMUNet2DModel(ModelMixin, ConfigMixin):
    """ADM's U-Net. It predicts noise, and behind it, along the channels, the raw learned-range variance.

    Args:
        sample_size: the side of the images in px.
        in_channels, out_channels: channels of the image, and of the output: 3, or 6 with a variance.
        model_channels: the width of the time embedding's sinusoids, and the unit of the widths of the levels.
        channel_mult: the width of each level in this unit.
        num_res_blocks: residual blocks of a level on the way down; on the way up there is one more.
        attention_levels: the levels, counted from 0, that have attention. The middle always has it.
        num_class_embeds: how many labels there are. None: the weights know no classes.
        num_heads: the heads of each attention, or
        num_head_channels: the width of a head, which decides how many there are.
        heads_together: the order of the tensors of attention; see `AttentionBlock.by_head`.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 64,
        in_channels: int = 3,
        out_channels: int = 6,
        model_channels: int = 192,
        channel_mult: Sequence[float] = (1, 2, 3, 4),
        num_res_blocks: int = 3,
        attention_levels: Sequence[int] = (1, 2, 3),
        num_class_embeds: int | None = None,
        num_heads: int | None = None,
        num_head_channels: int | None = 64,
        heads_together: bool = True,
    ) -> None:
        super().__init__()
        width = 4 * model_channels
        self.time_embed = nn.Sequential(nn.Linear(model_channels, width), nn.SiLU(), nn.Linear(width, width))
        self.label_emb = None if num_class_embeds is None else nn.Embedding(num_class_embeds, width)

        def attention(channels: int) -> AttentionBlock:
            heads = num_heads if num_heads is not None else channels // (num_head_channels or channels)
            return AttentionBlock(channels, heads, heads_together)

        levels = [int(times * model_channels) for times in channel_mult]
        last, now = len(levels) - 1, levels[0]
        blocks, kept = [Steps(nn.Conv2d(in_channels, now, 3, padding=1))], [now]
        for level, channels in enumerate(levels):
            for _ in range(num_res_blocks):
                layers: list[Any] = [ResBlock(now, channels, width)]
                layers += [attention(channels)] * (level in attention_levels)
                blocks.append(Steps(*layers))
                kept.append(now := channels)
            if level < last:
                blocks.append(Steps(ResBlock(now, now, width, "down")))
                kept.append(now)
        self.input_blocks = nn.ModuleList(blocks)
        self.middle_block = Steps(ResBlock(now, now, width), attention(now), ResBlock(now, now, width))
        blocks = []
        for level, channels in reversed(list(enumerate(levels))):
            for i in range(num_res_blocks + 1):
                layers = [ResBlock(now + kept.pop(), channels, width)]
                layers += [attention(channels)] * (level in attention_levels)
                if level and i == num_res_blocks:
                    layers.append(ResBlock(channels, channels, width, "up"))
                blocks.append(Steps(*layers))
                now = channels
        self.output_blocks = nn.ModuleList(blocks)
        self.out = nn.Sequential(_norm(now), nn.SiLU(), nn.Conv2d(now, out_channels, 3, padding=1))

    @property
    def down_blocks(self) -> nn.ModuleList:
        """The blocks on the way down, by the name that diffusers' U-Nets give them."""
        return self.input_blocks

    @property
    def mid_block(self) -> nn.Module:
        """The middle, by diffusers' name."""
        return self.middle_block

    @property
    def up_blocks(self) -> nn.ModuleList:
        """The blocks on the way up, by diffusers' name."""
        return self.output_blocks

    @property
    def class_embedding(self) -> nn.Embedding | None:
        """The table of labels, by diffusers' name."""
        return self.label_emb

    def forward(self, sample: Tensor, timestep: Any, class_labels: Tensor | None = None) -> UNet2DOutput:
        """The noise in `sample`, and its raw variance.

        Args:
            sample: x_t, (B, 3, side, side), in [−1, 1] at t = 0.
            timestep: one number or (B,).
            class_labels: (B,), for weights that know classes.
        """
        t = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        embedding = self.time_embed(sinusoids(t, self.config.model_channels).to(self.dtype))  # pyright: ignore[reportAttributeAccessIssue]
        if self.label_emb is not None:
            if class_labels is None:
                raise ValueError("class_labels should be provided: these weights know classes")
            embedding = embedding + self.label_emb(class_labels)
        x, skips = sample.to(self.dtype), list[Tensor]()
        for block in self.input_blocks:
            skips.append(x := block(x, embedding))
        x = self.middle_block(x, embedding)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), embedding)
        return UNet2DOutput(sample=self.out(x))


def sinusoids(t: Tensor, width: int) -> Tensor:
    """(B, width): the cosines and then the sines of t · 10000^(−i / (width / 2)), i = 0 … width / 2 − 1."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
