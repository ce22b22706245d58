"""U-ViT (Bao et al. 2023): a transformer whose tokens are the patches, the time and the label, with skips across its middle.

The tensors have the names of the authors' files, so a file of theirs fits without a change.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn
from torch.nn import functional as F

from dap.networks.patches import FeedForward, Patches, unpatched, waves

TOLD = 2
"""The tokens before those of the image: the label, and the time."""


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    """Attention and a feed-forward network on normed tokens. After the middle it first mixes in the tokens of its twin."""

    def __init__(self, width: int, heads: int, hidden: int, bias: bool, skip: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = Attention(width, heads, bias), FeedForward(width, hidden, "none")
        self.skip_linear = nn.Linear(2 * width, width) if skip else None

    def forward(self, x: Tensor, twin: Tensor | None = None) -> Tensor:
        if self.skip_linear is not None and twin is not None:
            x = self.skip_linear(torch.cat([x, twin], dim=-1))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class UViT2DModel(ModelMixin, ConfigMixin):
    """A class-conditional U-ViT that predicts the noise.

    Args:
        sample_size: the side of a latent.
        patch_size: the side of a patch. A patch is a token.
        in_channels: the channels of a latent.
        hidden_size: the width of a token.
        num_layers: the number of blocks besides the one in the middle; even.
        num_attention_heads: the number of heads.
        intermediate_size: the width inside the feed-forward networks.
        num_classes: the number of labels. The table of labels has one row more, the null label.
        qkv_bias: whether queries, keys and values have a bias.
        time_mlp: whether the time goes through a network of its own before it becomes a token.
        conv: whether a convolution ends the network.
        continuous: whether the network was trained on all times in [0, 1] of the variance-preserving SDE (Song et al. 2021) and
            not on 1000 noise levels. It is told 999 times the time.
    """

    first_timestep = 1
    """The authors count the noise levels from 1, so the first of them is time 1 for the network."""
    learned_variance = False

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        num_layers: int = 28,
        num_attention_heads: int = 16,
        intermediate_size: int = 4608,
        num_classes: int = 1000,
        qkv_bias: bool = False,
        time_mlp: bool = False,
        conv: bool = False,
        continuous: bool = False,
    ) -> None:
        super().__init__()
        self.pace = 0.999 if continuous else 1.0
        width, shape = hidden_size, (hidden_size, num_attention_heads, intermediate_size, qkv_bias)
        self.patch_embed = Patches(in_channels, width, patch_size)
        time = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))
        self.time_embed = time if time_mlp else nn.Identity()
        self.label_emb = nn.Embedding(num_classes + 1, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, TOLD + (sample_size // patch_size) ** 2, width))
        self.in_blocks = nn.ModuleList(Block(*shape, skip=False) for _ in range(num_layers // 2))
        self.mid_block = Block(*shape, skip=False)
        self.out_blocks = nn.ModuleList(Block(*shape, skip=True) for _ in range(num_layers // 2))
        self.norm, self.decoder_pred = nn.LayerNorm(width), nn.Linear(width, patch_size**2 * in_channels)
        self.final_layer = nn.Conv2d(in_channels, in_channels, 3, padding=1) if conv else nn.Identity()

    @property
    def taps(self) -> dict[str, nn.Module]:
        """The blocks by the names of layers: "in.0" …, "mid", "out.0" …"""
        found: dict[str, nn.Module] = {f"in.{i}": block for i, block in enumerate(self.in_blocks)}
        return found | {"mid": self.mid_block} | {f"out.{i}": block for i, block in enumerate(self.out_blocks)}

    def image_tokens(self, tokens: Tensor) -> Tensor:
        """The tokens of the image among all tokens of a block, (B, patches, width)."""
        return tokens[:, TOLD:]

    def forward(self, hidden_states: Tensor, timestep: Tensor, class_labels: Tensor) -> Transformer2DModelOutput:
        """The noise.

        Args:
            hidden_states: latents, (B, C, side, side).
            timestep: 1 to the number of noise levels, (B,). If `continuous`, there are 1000 of them, at the times 0.001 to 1.
            class_labels: (B,); `num_classes` is the null label.

        Returns:
            `sample`: the noise, (B, C, side, side).
        """
        config: Any = self.config
        patches = self.patch_embed(hidden_states)
        time = self.time_embed(waves(timestep * self.pace, config.hidden_size).to(patches.dtype))
        x = torch.cat([self.label_emb(class_labels)[:, None], time[:, None], patches], dim=1) + self.pos_embed
        twins = list[Tensor]()
        for block in self.in_blocks:
            x = block(x)
            twins.append(x)
        x = self.mid_block(x)
        for block in self.out_blocks:
            x = block(x, twins.pop())
        x = self.decoder_pred(self.norm(x))[:, TOLD:]
        x = self.final_layer(unpatched(x, config.in_channels, config.patch_size))
        return Transformer2DModelOutput(sample=x)  # pyright: ignore[reportArgumentType]
