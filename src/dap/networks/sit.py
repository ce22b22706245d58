"""The flow transformers SiT (Ma et al. 2024), REPA (Yu et al. 2025) and LightningDiT (Yao et al. 2025).

All three are the transformer of DiT (Peebles & Xie 2023) and predict the velocity of a flow. LightningDiT has other norms and
another feed-forward network, and rotary positions besides. The tensors have the names of the authors' files, so a file of theirs
fits without a change.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn
from torch.nn import functional as F

from dap.networks.patches import FeedForward, Labels, Patches, Time, unpatched

EPS = 1e-6
"""What all norms outside attention add to a variance."""


class RMSNorm(nn.Module):
    """x / √(mean of x² + eps), times a weight, over the last dimension; computed in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)).type_as(x) * self.weight


class SwigluFeedForward(nn.Module):
    """w3(SiLU(a) · b), where a and b are the two halves of w12(x) (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12, self.w3 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(a) * b)


class Attention(nn.Module):
    """Multi-head self-attention; queries and keys may be normed for each head, and turned by their positions."""

    def __init__(self, width: int, heads: int, qk_norm: str | None) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        kinds: dict[str | None, Any] = {None: nn.Identity, "layer": nn.LayerNorm, "rms": RMSNorm}
        self.q_norm, self.k_norm = (kinds[qk_norm](width // heads) for _ in range(2))

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor] | None) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if turn is not None:
            q, k = turned(q, *turn).type_as(v), turned(k, *turn).type_as(v)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


def turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021): each pair of neighbouring numbers of x is turned by an angle.

    Args:
        x: (…, tokens, width of a head).
        cosine, sine: of the angle of each number, (tokens, width of a head). Both numbers of a pair have the same angle.
    """
    even, odd = x[..., 0::2], x[..., 1::2]
    return x * cosine + torch.stack([-odd, even], dim=-1).flatten(-2) * sine


def angles(grid: int, width: int) -> Tensor:
    """The angles of two-dimensional rotary positions, (grid², width).

    The first half of the numbers is turned by the row, the second half by the column. With d = width/2 the i-th pair of a half is
    turned by position · 10000^(−2i/d).
    """
    half = width // 2
    frequencies = 10000.0 ** (-torch.arange(0, half, 2).float() / half)
    one = (torch.arange(grid).float()[:, None] * frequencies).repeat_interleave(2, dim=1)
    rows, columns = one[:, None].expand(grid, grid, half), one[None].expand(grid, grid, half)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


def sinusoids(grid: int, width: int, scale: float = 1.0) -> Tensor:
    """The table of positions of DiT, (1, grid², width): sine and cosine of the column, then of the row. Neighbours are 1 / scale
    apart."""
    quarter = width // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    one = torch.arange(grid, dtype=torch.float64)[:, None] / scale * frequencies
    one = torch.cat([one.sin(), one.cos()], dim=1)
    rows, columns = one[:, None].expand(grid, grid, -1), one[None].expand(grid, grid, -1)
    return torch.cat([columns, rows], dim=-1).flatten(0, 1)[None].float()


class _Modulation(nn.Sequential):
    """Numbers for each image that scale and shift normed tokens, and gate what a part adds."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__(nn.SiLU(), nn.Linear(width, count * width))
        self.count = count

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        return super().forward(condition)[:, None].chunk(self.count, dim=-1)


def _norm(kind: str, width: int) -> nn.Module:
    return RMSNorm(width) if kind == "rms" else nn.LayerNorm(width, elementwise_affine=False, eps=EPS)


class Block(nn.Module):
    """A block of the transformer: attention and a feed-forward network, both modulated by time and label (adaLN-Zero)."""

    def __init__(
        self, width: int, heads: int, hidden: int, norm: str, feed: str, qk_norm: str | None, shifted: bool
    ) -> None:
        super().__init__()
        self.norm1, self.attn = _norm(norm, width), Attention(width, heads, qk_norm)
        self.norm2 = _norm(norm, width)
        swiglu = feed == "swiglu"
        self.mlp = SwigluFeedForward(width, hidden) if swiglu else FeedForward(width, hidden, "tanh")
        self.adaLN_modulation = _Modulation(width, 6 if shifted else 4)

    def forward(self, x: Tensor, condition: Tensor, turn: tuple[Tensor, Tensor] | None) -> Tensor:
        parts = self.adaLN_modulation(condition)
        if len(parts) == 4:  # LightningDiT's form without shifts
            scale, gate, scale2, gate2 = parts
            shift = shift2 = 0.0
        else:
            shift, scale, gate, shift2, scale2, gate2 = parts
        x = x + gate * self.attn(self.norm1(x) * (1 + scale) + shift, turn)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class Last(nn.Module):
    """Tokens as the numbers of their patches: a norm that the condition scales and shifts, and a linear layer."""

    def __init__(self, width: int, outputs: int, norm: str) -> None:
        super().__init__()
        self.norm_final, self.linear = _norm(norm, width), nn.Linear(width, outputs)
        self.adaLN_modulation = _Modulation(width, 2)

    def normed(self, x: Tensor, condition: Tensor) -> Tensor:
        """The tokens before the linear layer."""
        shift, scale = self.adaLN_modulation(condition)
        return self.norm_final(x) * (1 + scale) + shift

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.linear(self.normed(x, condition))


class SiTTransformer2DModel(ModelMixin, ConfigMixin):
    """A class-conditional transformer that predicts the velocity of a flow.

    Args:
        sample_size: the side of a latent.
        patch_size: the side of a patch. A patch is a token.
        in_channels: the channels of a latent.
        out_channels: `in_channels`, or twice as many. Then the second half is thrown away; SiT keeps it from DiT, where it is
            the variance.
        num_layers: the number of blocks.
        num_attention_heads, attention_head_dim: their product is the width of a token.
        hidden_size: the width inside the feed-forward networks.
        num_classes: the number of labels. The table of labels has one row more, the null label.
        norm: "layer", or LightningDiT's "rms".
        feed_forward: "gelu", or LightningDiT's "swiglu".
        qk_norm: the norm of queries and keys: None, "layer" (REPA's option) or "rms" (LightningDiT's).
        rotary: whether queries and keys are turned by their positions, besides the table of positions.
        shifted: whether blocks shift normed tokens. LightningDiT has a form without.
        path: the path of the flow in time τ from the data to the noise, see `dap.backbones.schedules.Interpolant`.
        data_at: the network's own time at the data, 1 (SiT, LightningDiT) or 0 (REPA). At the noise it is 1 − data_at. The
            predicted velocity is the derivative by this time.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        out_channels: int = 8,
        num_layers: int = 28,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        hidden_size: int = 4608,
        num_classes: int = 1000,
        norm: Literal["layer", "rms"] = "layer",
        feed_forward: Literal["gelu", "swiglu"] = "gelu",
        qk_norm: Literal["layer", "rms"] | None = None,
        rotary: bool = False,
        shifted: bool = True,
        path: Literal["linear", "gvp", "vp"] = "linear",
        data_at: Literal[0, 1] = 1,
    ) -> None:
        super().__init__()
        del path, data_at  # the backbone reads these from the configuration
        width, self.grid = num_attention_heads * attention_head_dim, sample_size // patch_size
        self.x_embedder = Patches(in_channels, width, patch_size)
        self.t_embedder, self.y_embedder = Time(width), Labels(num_classes, width)
        self.pos_embed = nn.Parameter(sinusoids(self.grid, width), requires_grad=False)
        self.blocks = nn.ModuleList(
            Block(width, num_attention_heads, hidden_size, norm, feed_forward, qk_norm, shifted)
            for _ in range(num_layers)
        )
        self.final_layer = Last(width, patch_size**2 * out_channels, norm)

    def forward(self, hidden_states: Tensor, timestep: Tensor, class_labels: Tensor) -> Transformer2DModelOutput:
        """The velocity.

        Args:
            hidden_states: latents, (B, C, side, side).
            timestep: the network's own time, (B,), in [0, 1].
            class_labels: (B,); `num_classes` is the null label.

        Returns:
            `sample`: the velocity, (B, C, side, side).
        """
        config: Any = self.config
        condition = self.t_embedder(timestep) + self.y_embedder.embedding_table(class_labels)
        x = self.x_embedder(hidden_states) + self.pos_embed
        turn = None
        if config.rotary:
            angle = angles(self.grid, config.attention_head_dim).to(x.device)
            turn = angle.cos(), angle.sin()
        for block in self.blocks:
            x = block(x, condition, turn)
        x = unpatched(self.final_layer(x, condition), config.out_channels, config.patch_size)
        return Transformer2DModelOutput(sample=x[:, : config.in_channels])  # pyright: ignore[reportArgumentType]
