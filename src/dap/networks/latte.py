"""Latte (Ma et al. 2024, arXiv 2401.03048), variant 1 with labels: a transformer of clips whose blocks attend within frames and
across frames in turn.

A block is that of DiT (Peebles & Xie 2023, adaLN-Zero). Even blocks attend among the tokens of each frame, odd blocks among the
tokens of all frames at each place. Places have DiT's table of sinusoids from the first block on; frames have a table of their own
from the first odd block on. The tensors have the names of the authors' files, so a file of theirs fits without a change. The
order of the parts follows Vchitect/Latte, models/latte.py, at commit 5e6a6b1. diffusers' `LatteTransformer3DModel` is another
network, which takes text.
"""

from __future__ import annotations

from typing import Any

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from dap.networks.patches import Labels, Patches, Time, unpatched
from dap.networks.sit import Attention, Block, Last, line, sinusoids


class FrameAttention(Attention):
    """Attention among the tokens of each frame, or with `across` among the tokens of all frames at each place."""

    def __init__(self, width: int, heads: int, frames: int, across: bool) -> None:
        super().__init__(width, heads, None)
        self.frames, self.across = frames, across

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor] | None) -> Tensor:
        batch, _, width = x.shape
        clip = x.view(batch, self.frames, -1, width)
        clip = clip.transpose(1, 2) if self.across else clip
        mixed = super().forward(clip.flatten(0, 1), turn).view(clip.shape)
        return (mixed.transpose(1, 2) if self.across else mixed).reshape(x.shape)


class FrameBlock(Block):
    """A block of DiT whose attention is a `FrameAttention`. It takes and gives all tokens of a clip, frame after frame."""

    def __init__(self, width: int, heads: int, hidden: int, frames: int, across: bool) -> None:
        super().__init__(width, heads, hidden, "layer", "gelu", None, shifted=True)
        self.attn = FrameAttention(width, heads, frames, across)


class LabelledLatteTransformer3DModel(ModelMixin, ConfigMixin):
    """A class-conditional Latte that predicts the noise of a clip and its variance.

    Args:
        sample_size: the side of a frame's latent.
        num_frames: the number of frames.
        patch_size: the side of a patch of a frame. A patch is a token.
        in_channels: the channels of a latent.
        out_channels: twice as many: the noise, then the raw variance. Or as many, for the noise alone.
        hidden_size: the width of a token.
        num_layers: the number of blocks, of both kinds together.
        num_attention_heads: the number of heads.
        intermediate_size: the width inside the feed-forward networks.
        num_classes: the number of labels. The table of labels has one row more, the null label.
    """

    first_timestep = 0

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        num_frames: int = 16,
        patch_size: int = 2,
        in_channels: int = 4,
        out_channels: int = 8,
        hidden_size: int = 1152,
        num_layers: int = 28,
        num_attention_heads: int = 16,
        intermediate_size: int = 4608,
        num_classes: int = 101,
    ) -> None:
        super().__init__()
        width, grid, heads = hidden_size, sample_size // patch_size, num_attention_heads
        self.x_embedder, self.t_embedder = Patches(in_channels, width, patch_size), Time(width)
        self.y_embedder = Labels(num_classes, width)
        self.pos_embed = nn.Parameter(sinusoids(grid, width), requires_grad=False)
        self.temp_embed = nn.Parameter(line(num_frames, width)[None].float(), requires_grad=False)
        self.blocks = nn.ModuleList(
            FrameBlock(width, heads, intermediate_size, num_frames, across=i % 2 == 1) for i in range(num_layers)
        )
        self.final_layer = Last(width, patch_size**2 * out_channels, "layer")

    def zero(self) -> None:
        """Begin as the paper's network does before training: no block adds anything, and the output is zero (adaLN-Zero)."""
        parts: list[Any] = [*self.blocks, self.final_layer]
        for layer in (*(part.adaLN_modulation[-1] for part in parts), self.final_layer.linear):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @property
    def learned_variance(self) -> bool:
        """Whether the output holds the raw variance behind the noise."""
        config: Any = self.config
        return config.out_channels == 2 * config.in_channels

    @property
    def taps(self) -> dict[str, nn.Module]:
        """The blocks by the names of layers, "0" …"""
        return {str(i): block for i, block in enumerate(self.blocks)}

    def image_tokens(self, tokens: Tensor) -> Tensor:
        """The tokens of the clip among all tokens of a block: all."""
        return tokens

    def forward(self, hidden_states: Tensor, timestep: Tensor, class_labels: Tensor) -> Transformer2DModelOutput:
        """The noise and its raw variance.

        Args:
            hidden_states: latents, (B, C, frames, side, side).
            timestep: 0 to the number of noise levels less one, (B,).
            class_labels: (B,); `num_classes` is the null label.

        Returns:
            `sample`: (B, out_channels, frames, side, side).
        """
        config: Any = self.config
        batch, frames = len(hidden_states), config.num_frames
        condition = self.t_embedder(timestep) + self.y_embedder.embedding_table(class_labels)
        x = self.x_embedder(hidden_states.transpose(1, 2).flatten(0, 1)) + self.pos_embed
        x = x.reshape(batch, -1, config.hidden_size)
        for i, block in enumerate(self.blocks):
            if i == 1:  # as the authors do, frames are told apart when they meet first
                x = (x.view(batch, frames, -1, config.hidden_size) + self.temp_embed[:, :, None]).view(x.shape)
            x = block(x, condition, None)
        out = self.final_layer(x, condition)
        out = unpatched(out.view(batch * frames, -1, out.shape[-1]), config.out_channels, config.patch_size)
        out = out.unflatten(0, (batch, frames)).transpose(1, 2)
        return Transformer2DModelOutput(sample=out)  # pyright: ignore[reportArgumentType]
