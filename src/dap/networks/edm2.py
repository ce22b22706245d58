"""The denoiser of EDM2 (Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models").

Its layers keep the magnitude of what goes through them: weights are normalised whenever they are used, sums and concatenations
are balanced, and there are no biases and no norms with weights. Equation numbers are those of the paper. The tensors have the
names of the authors' code, without the `unet.` in front and without the estimate of uncertainty, which only training needs.
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

from dap.networks.edm import one_hot, preconditioned

EPS = 1e-4
LIMIT = 256.0
"""Where the output of a block is cut off."""


def normalised(x: Tensor, dims: Sequence[int]) -> Tensor:
    """x with a mean square of 1 over these dimensions (equation 30)."""
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=torch.float32)
    return x / (EPS + norm * math.sqrt(norm.numel() / x.numel())).to(x.dtype)


def silu(x: Tensor) -> Tensor:
    """SiLU that keeps the magnitude (equation 81)."""
    return F.silu(x) / 0.596


def mixed(a: Tensor, b: Tensor, t: float) -> Tensor:
    """((1 − t) a + t b) / √((1 − t)² + t²) (equation 88)."""
    return a.lerp(b, t) / math.hypot(1 - t, t)


def joined(a: Tensor, b: Tensor, t: float) -> Tensor:
    """a beside b along the channels; t says how much b contributes (equation 103)."""
    n, m = a.shape[1], b.shape[1]
    whole = math.sqrt(n + m) / math.hypot(1 - t, t)
    return torch.cat([whole * (1 - t) / math.sqrt(n) * a, whole * t / math.sqrt(m) * b], dim=1)


class Layer(nn.Module):
    """A convolution, or without a kernel a linear layer, whose weight is normalised (equations 47 and 66).

    Args:
        before, after: channels.
        kernel: the side of the kernel. 0: a linear layer.
    """

    def __init__(self, before: int, after: int, kernel: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before, *(kernel, kernel) * bool(kernel)))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        weight = normalised(self.weight.float(), list(range(1, self.weight.ndim)))
        weight = (weight * (gain / math.sqrt(weight[0].numel()))).to(x.dtype)
        return F.linear(x, weight) if weight.ndim == 2 else F.conv2d(x, weight, padding=weight.shape[-1] // 2)


class Fourier(nn.Module):
    """√2 cos(f x + p) with frequencies and phases that were drawn once and are kept with the weights (equation 75)."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(width))
        self.register_buffer("phases", 2 * math.pi * torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        return (x.float()[:, None] * self.freqs.float() + self.phases.float()).cos() * math.sqrt(2)


class Block(nn.Module):
    """A residual block of the way down or up (figure 21), with attention behind it where there are heads.

    Args:
        before, after: channels.
        embedding: the width of the embedding of noise level and label.
        down: whether the block is of the way down.
        heads: the heads of the attention. 0: none.
        resample: "up" doubles the side first, "down" halves it. None: neither.
    """

    def __init__(
        self, before: int, after: int, embedding: int, *, down: bool, heads: int = 0, resample: str | None = None
    ) -> None:
        super().__init__()
        self.down, self.heads, self.resample = down, heads, resample
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = Layer(after if down else before, after, 3)
        self.emb_linear, self.conv_res1 = Layer(embedding, after), Layer(after, after, 3)
        self.conv_skip = Layer(before, after, 1) if before != after else None
        self.attn_qkv = Layer(after, 3 * after, 1) if heads else None
        self.attn_proj = Layer(after, after, 1) if heads else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        if self.resample == "down":
            x = F.avg_pool2d(x, 2)
        elif self.resample == "up":
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        if self.down:
            x = normalised(x if self.conv_skip is None else self.conv_skip(x), [1])
        told = self.emb_linear(embedding, self.emb_gain) + 1
        h = self.conv_res0(silu(x))
        h = self.conv_res1(silu(h * told[..., None, None].to(h.dtype)))
        if not self.down and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mixed(x, h, 0.3)
        if self.attn_qkv is not None and self.attn_proj is not None:
            qkv = normalised(self.attn_qkv(x).flatten(2).unflatten(1, (self.heads, -1, 3)), [2])
            q, k, v = (part.transpose(-1, -2) for part in qkv.unbind(3))
            found = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(x.shape)
            x = mixed(x, self.attn_proj(found), 0.3)
        return x.clamp(-LIMIT, LIMIT)


class EDM2UNet2DModel(ModelMixin, ConfigMixin):
    """A denoiser of EDM2: the clean image, or its latents, in a noisy one, at any noise level.

    Args: as of an `EDMUNet2DModel`, without what there is one form of here. `model_channels` is 128 … 448 for XS … XXL.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 64,
        in_channels: int = 4,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (16, 8),
        num_class_embeds: int | None = 1000,
        channels_per_head: int = 64,
        sigma_data: float = 0.5,
    ) -> None:
        super().__init__()
        widths = [model_channels * times for times in channel_mult]
        last, wide = len(widths) - 1, max(widths)
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier, self.emb_noise = Fourier(widths[0]), Layer(widths[0], wide)
        self.emb_label = Layer(num_class_embeds, wide) if num_class_embeds is not None else None

        def block(before: int, after: int, down: bool, attention: bool = False, resample: str | None = None) -> Block:
            heads = max(1, after // channels_per_head) if attention else 0
            return Block(before, after, wide, down=down, heads=heads, resample=resample)

        self.enc, self.dec, kept, now = nn.ModuleDict(), nn.ModuleDict(), list[int](), widths[0]
        for level, width in enumerate(widths):
            side = sample_size >> level
            name = f"{side}x{side}"
            if level == 0:
                self.enc[f"{name}_conv"] = Layer(in_channels + 1, now, 3)
            else:
                self.enc[f"{name}_down"] = block(now, now, True, resample="down")
            kept.append(now)
            for i in range(num_blocks):
                self.enc[f"{name}_block{i}"] = block(now, width, True, side in attn_resolutions)
                kept.append(now := width)
        for level, width in reversed(list(enumerate(widths))):
            side = sample_size >> level
            name = f"{side}x{side}"
            if level == last:
                self.dec[f"{name}_in0"], self.dec[f"{name}_in1"] = block(now, now, False, True), block(now, now, False)
            else:
                self.dec[f"{name}_up"] = block(now, now, False, resample="up")
            for i in range(num_blocks + 1):
                self.dec[f"{name}_block{i}"] = block(now + kept.pop(), width, False, side in attn_resolutions)
                now = width
        self.out_conv = Layer(now, in_channels, 3)

    def forward(self, sample: Tensor, sigma: Any, class_labels: Tensor | None = None) -> UNet2DOutput:
        """The denoised image D(x; σ).

        Args:
            sample: x = x_0 + σ eps, (B, C, side, side), with x_0 of the standard deviation `sigma_data`.
            sigma: one number above 0, or (B,).
            class_labels: (B,). None, or a label beyond the last: no class.
        """
        sigma = torch.as_tensor(sigma, device=sample.device).expand(len(sample))
        rows = self.config.num_class_embeds  # pyright: ignore[reportAttributeAccessIssue]

        def network(x: Tensor, noise: Tensor) -> Tensor:
            x = x.to(self.dtype)
            embedding = self.emb_noise(self.emb_fourier(noise).to(self.dtype))
            if self.emb_label is not None:
                told = one_hot(class_labels, rows, x) * math.sqrt(rows)
                embedding = mixed(embedding, self.emb_label(told), 0.5)
            return self._denoised(x, silu(embedding))

        return UNet2DOutput(sample=preconditioned(network, sample, sigma, self.config.sigma_data))  # pyright: ignore[reportAttributeAccessIssue]

    def _denoised(self, x: Tensor, embedding: Tensor) -> Tensor:
        x, skips = torch.cat([x, torch.ones_like(x[:, :1])], dim=1), list[Tensor]()
        for layer in self.enc.values():
            skips.append(x := layer(x, embedding) if isinstance(layer, Block) else layer(x))
        for name, layer in self.dec.items():
            x = layer(joined(x, skips.pop(), 0.5) if "block" in name else x, embedding)
        return self.out_conv(x, self.out_gain)
