"""MDTv2, the masked diffusion transformer (Gao et al. 2023), as it samples: without masks.

It is the transformer of DiT (Peebles & Xie 2023) with a bias for each relative position in attention, with tables of positions
that are trained, and with skips: across the middle of its encoder, and from its first tokens to each block of its decoder. The
tensors have the names of the authors' files. The two parts that only training with masks uses, `mask_token` and `sideblocks`,
are left out.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn
from torch.nn import functional as F

from dap.networks.patches import FeedForward, Labels, Patches, Time, unpatched


def places(grid: int) -> Tensor:
    """For each pair of tokens the row of the table of biases, (grid², grid²).

    It is (Δrow + grid − 1) · (2 grid − 1) + Δcolumn + grid − 1.
    """
    rows, columns = (part.flatten() for part in torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij"))
    row, column = (part[:, None] - part[None] + grid - 1 for part in (rows, columns))
    return row * (2 * grid - 1) + column


class _Bias(nn.Module):
    """A bias of attention for each relative position and head. The table has three rows that no pair of patches uses."""

    def __init__(self, grid: int, heads: int) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * grid - 1) ** 2 + 3, heads))
        self.register_buffer("relative_position_index", places(grid), persistent=False)
        self.relative_position_index: Tensor

    def forward(self) -> Tensor:
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, grid: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj, self.rel_pos_bias = (
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
            _Bias(grid, heads),
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=self.rel_pos_bias()[None])
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)


class Block(nn.Module):
    """A block of DiT (adaLN-Zero). With `skip` it first mixes in earlier tokens."""

    def __init__(self, width: int, heads: int, hidden: int, grid: int, skip: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(width), _norm(width)
        self.attn, self.mlp = _Attention(width, heads, grid), FeedForward(width, hidden, "tanh")
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.skip_linear = nn.Linear(2 * width, width) if skip else None

    def forward(self, x: Tensor, condition: Tensor, earlier: Tensor | None = None) -> Tensor:
        if self.skip_linear is not None and earlier is not None:
            x = self.skip_linear(torch.cat([x, earlier], dim=-1))
        shift, scale, gate, shift2, scale2, gate2 = self.adaLN_modulation(condition)[:, None].chunk(6, dim=-1)
        x = x + gate * self.attn(self.norm1(x) * (1 + scale) + shift)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class _Last(nn.Module):
    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm_final, self.linear = _norm(width), nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition)[:, None].chunk(2, dim=-1)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


class MDTTransformer2DModel(ModelMixin, ConfigMixin):
    """A class-conditional MDTv2 that predicts the noise and its variance.

    Args:
        sample_size: the side of a latent.
        patch_size: the side of a patch. A patch is a token.
        in_channels: the channels of a latent.
        out_channels: twice as many: the noise, then the raw variance. Or as many, for the noise alone.
        hidden_size: the width of a token.
        num_layers: the number of blocks, those of the decoder among them.
        decoder_layers: the number of blocks of the decoder.
        num_attention_heads: the number of heads.
        intermediate_size: the width inside the feed-forward networks.
        num_classes: the number of labels. The table of labels has one row more, the null label.
    """

    first_timestep = 0

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        out_channels: int = 8,
        hidden_size: int = 1152,
        num_layers: int = 28,
        decoder_layers: int = 4,
        num_attention_heads: int = 16,
        intermediate_size: int = 4608,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        width, grid, half = hidden_size, sample_size // patch_size, (num_layers - decoder_layers) // 2
        shape = (width, num_attention_heads, intermediate_size, grid)
        self.x_embedder, self.t_embedder = Patches(in_channels, width, patch_size), Time(width)
        self.y_embedder = Labels(num_classes, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid**2, width))
        self.en_inblocks = nn.ModuleList(Block(*shape) for _ in range(half))
        self.en_outblocks = nn.ModuleList(Block(*shape, skip=True) for _ in range(half))
        self.de_blocks = nn.ModuleList(Block(*shape, skip=True) for _ in range(decoder_layers))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, grid**2, width))
        self.final_layer = _Last(width, patch_size**2 * out_channels)

    @property
    def learned_variance(self) -> bool:
        """Whether the output holds the raw variance behind the noise."""
        config: Any = self.config
        return config.out_channels == 2 * config.in_channels

    @property
    def taps(self) -> dict[str, nn.Module]:
        """The blocks by the names of layers: "in.0" …, "out.0" …, "de.0" …"""
        ways = {"in": self.en_inblocks, "out": self.en_outblocks, "de": self.de_blocks}
        return {f"{name}.{i}": block for name, blocks in ways.items() for i, block in enumerate(blocks)}

    def image_tokens(self, tokens: Tensor) -> Tensor:
        """The tokens of the image among all tokens of a block: all."""
        return tokens

    def forward(self, hidden_states: Tensor, timestep: Tensor, class_labels: Tensor) -> Transformer2DModelOutput:
        """The noise and its raw variance.

        Args:
            hidden_states: latents, (B, C, side, side).
            timestep: 0 to the number of noise levels less one, (B,).
            class_labels: (B,); `num_classes` is the null label.

        Returns:
            `sample`: (B, out_channels, side, side).
        """
        config: Any = self.config
        first = x = self.x_embedder(hidden_states) + self.pos_embed
        condition = self.t_embedder(timestep) + self.y_embedder.embedding_table(class_labels)
        twins = list[Tensor]()
        for block in self.en_inblocks:
            x = block(x, condition)
            twins.append(x)
        for block in self.en_outblocks:
            x = block(x, condition, twins.pop())
        x = x + self.decoder_pos_embed
        for block in self.de_blocks:
            x = block(x, condition, first)
        x = unpatched(self.final_layer(x, condition), config.out_channels, config.patch_size)
        return Transformer2DModelOutput(sample=x)  # pyright: ignore[reportArgumentType]
