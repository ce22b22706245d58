"""The class-conditional U-Net of latent diffusion (Rombach et al. 2022): diffusers' U-Net, told a label as a text of one word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers import ConfigMixin, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn


class LabelledUNet2DModel(ModelMixin, ConfigMixin):
    """A class-conditional U-Net that predicts the noise.

    Args:
        sample_size: the side of a latent.
        in_channels, out_channels: the channels of a latent.
        down_block_types, up_block_types, block_out_channels, layers_per_block, attention_head_dim: as of diffusers'
            `UNet2DConditionModel`, where the last one is the number of heads.
        cross_attention_dim: the width of an embedded label.
        num_classes: the number of labels. The table of labels has one row more, the null label.
    """

    first_timestep = 0
    learned_variance = False

    @register_to_config
    def __init__(
        self,
        sample_size: int = 64,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: Sequence[str] = ("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
        up_block_types: Sequence[str] = (*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
        block_out_channels: Sequence[int] = (192, 384, 576, 960),
        layers_per_block: int = 2,
        attention_head_dim: int = 1,
        cross_attention_dim: int = 512,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=tuple(down_block_types),
            up_block_types=tuple(up_block_types),
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            attention_head_dim=attention_head_dim,
            cross_attention_dim=cross_attention_dim,
        )
        self.embedding = nn.Embedding(num_classes + 1, cross_attention_dim)

    @property
    def taps(self) -> dict[str, nn.Module]:
        """The blocks by the names of layers: "down.0" …, "mid", "up.0" …"""
        unet: Any = self.unet
        found: dict[str, nn.Module] = {f"down.{i}": block for i, block in enumerate(unet.down_blocks)}
        return found | {"mid": unet.mid_block} | {f"up.{i}": block for i, block in enumerate(unet.up_blocks)}

    def image_tokens(self, tokens: Tensor) -> Tensor:
        """The tokens of the image among all tokens of a block: all places of its grid."""
        return tokens

    def forward(self, hidden_states: Tensor, timestep: Tensor, class_labels: Tensor) -> Transformer2DModelOutput:
        """The noise.

        Args:
            hidden_states: latents, (B, C, side, side).
            timestep: 0 to the number of noise levels less one, (B,).
            class_labels: (B,); `num_classes` is the null label.

        Returns:
            `sample`: the noise, (B, C, side, side).
        """
        sample = self.unet(hidden_states, timestep, self.embedding(class_labels)[:, None]).sample
        return Transformer2DModelOutput(sample=sample)
