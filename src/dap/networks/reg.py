"""REG (Wu et al. 2025, "Representation Entanglement for Generation"): a SiT that denoises one more token beside the latent.

The token is the class token of DINOv2, noised along the same path as the latent. It stands before the tokens of the patches, and
the network predicts the velocity of both. The tensors have the names of the authors' files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from dap.networks.patches import Labels, Patches, Time, unpatched
from dap.networks.sit import EPS, Block, Last, sinusoids


@dataclass
class REGOutput(BaseOutput):
    """The velocities of a latent and of its class token.

    Attributes:
        sample: of the latents, (B, C, side, side).
        class_token: of the class tokens, (B, class_token_size).
    """

    sample: Tensor
    class_token: Tensor


class _Last(Last):
    """The first token gives the class token's velocity, by a layer of its own, and the others those of the patches."""

    def __init__(self, width: int, outputs: int, token: int) -> None:
        super().__init__(width, outputs, "layer")
        self.linear_cls = nn.Linear(width, token)

    def both(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        x = self.normed(x, condition)
        return self.linear(x[:, 1:]), self.linear_cls(x[:, 0])


class REGTransformer2DModel(ModelMixin, ConfigMixin):
    """A class-conditional transformer that predicts the velocities of a latent and of a class token.

    Args:
        sample_size: the side of a latent.
        patch_size: the side of a patch. A patch is a token.
        in_channels: the channels of a latent.
        out_channels: `in_channels`, or twice as many. Then the second half is thrown away.
        num_layers: the number of blocks.
        num_attention_heads, attention_head_dim: their product is the width of a token.
        hidden_size: the width inside the feed-forward networks.
        num_classes: the number of labels. The table of labels has one row more, the null label.
        class_token_size: how many numbers a class token has, 768 for DINOv2-B.
        qk_norm: the norm of queries and keys, None or "layer".
        path: the path of the flow, see `dap.backbones.schedules.Interpolant`.
        data_at: the network's own time at the data, 0 as in REPA.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        out_channels: int = 4,
        num_layers: int = 28,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        hidden_size: int = 4608,
        num_classes: int = 1000,
        class_token_size: int = 768,
        qk_norm: Literal["layer"] | None = None,
        path: Literal["linear", "gvp", "vp"] = "linear",
        data_at: Literal[0] = 0,
    ) -> None:
        super().__init__()
        del path, data_at  # the backbone reads these from the configuration
        width, grid = num_attention_heads * attention_head_dim, sample_size // patch_size
        self.x_embedder = Patches(in_channels, width, patch_size)
        self.t_embedder, self.y_embedder = Time(width), Labels(num_classes, width)
        self.cls_projectors2, self.wg_norm = nn.Linear(class_token_size, width), nn.LayerNorm(width, EPS)
        places = torch.cat([torch.zeros(1, 1, width), sinusoids(grid, width)], dim=1)
        self.pos_embed = nn.Parameter(places, requires_grad=False)
        self.blocks = nn.ModuleList(
            Block(width, num_attention_heads, hidden_size, "layer", "gelu", qk_norm, True) for _ in range(num_layers)
        )
        self.final_layer = _Last(width, patch_size**2 * out_channels, class_token_size)

    def forward(self, hidden_states: Tensor, timestep: Tensor, class_labels: Tensor, class_token: Tensor) -> REGOutput:
        """The velocities.

        Args:
            hidden_states: latents, (B, C, side, side).
            timestep: the network's own time, (B,), in [0, 1].
            class_labels: (B,); `num_classes` is the null label.
            class_token: the noised class tokens, (B, class_token_size).
        """
        config: Any = self.config
        condition = self.t_embedder(timestep) + self.y_embedder.embedding_table(class_labels)
        token = self.wg_norm(self.cls_projectors2(class_token))
        x = torch.cat([token[:, None], self.x_embedder(hidden_states)], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x, condition, None)
        patches, token = self.final_layer.both(x, condition)
        x = unpatched(patches, config.out_channels, config.patch_size)
        return REGOutput(sample=x[:, : config.in_channels], class_token=token)
