"""What the transformers of this room share: an image as tokens, a time and a label as numbers, and tokens as an image again.

The modules keep the names that the authors' files give to their tensors.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WAVES = 256
"""How many numbers stand for a time before they go through a network."""


def waves(t: Tensor, width: int) -> Tensor:
    """Cosines, then sines, of t · 10000^(−i / (width/2)) for i = 0 … width/2 − 1; (B, width)."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=t.device).float() / half)
    angle = t.float()[:, None] * frequencies
    return F.pad(torch.cat([angle.cos(), angle.sin()], dim=1), (0, width % 2))


class Patches(nn.Module):
    """An image (B, C, side, side) as tokens (B, patches, width), row after row."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


def unpatched(tokens: Tensor, channels: int, patch: int) -> Tensor:
    """Tokens (B, patches, patch² · channels) of a square image as the image, (B, channels, side, side)."""
    grid = math.isqrt(tokens.shape[1])
    x = tokens.view(len(tokens), grid, grid, patch, patch, channels).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(len(tokens), channels, grid * patch, grid * patch)


class Time(nn.Module):
    """A time (B,) as (B, width): its waves through two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(WAVES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(waves(t, WAVES).to(next(self.mlp.parameters()).dtype))


class Labels(nn.Module):
    """A row for each label, and the last one for the null label."""

    def __init__(self, labels: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(labels + 1, width)


class FeedForward(nn.Module):
    """Two linear layers with GELU between them, as it is ("none") or in its tanh form."""

    def __init__(self, width: int, hidden: int, approximate: Literal["none", "tanh"]) -> None:
        super().__init__()
        self.fc1, self.fc2, self.approximate = nn.Linear(width, hidden), nn.Linear(hidden, width), approximate

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))
