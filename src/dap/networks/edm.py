"""The denoisers of EDM (Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models").

Two U-Nets: that of Song et al. (2021; DDPM++ and NCSN++), which EDM trained on CIFAR-10, FFHQ and AFHQ, and that of ADM, which it
trained on ImageNet. Around both is EDM's preconditioning (equation 7 and table 1). The tensors have the names of the authors'
code, so a state dict of theirs fits, without what only training needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn
from torch.nn import functional as F

Resample = Literal["up", "down"] | None


class Norm(nn.GroupNorm):
    """A group norm of at most 32 groups, of at least four channels each."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__(min(32, channels // 4), channels, eps)


class Conv(nn.Module):
    """A convolution, with a filter before it that doubles or halves the side.

    Args:
        before, after: channels.
        kernel: the side of the kernel. 0: there is the filter alone.
        resample: "up", "down" or None.
        taps: the filter along one side, such as (1, 1).
        fused: whether the filter comes behind the convolution, so that the convolution sees the border that the filter needs.
    """

    resample_filter: Tensor | None

    def __init__(
        self,
        before: int,
        after: int,
        kernel: int,
        resample: Resample = None,
        taps: Sequence[int] = (1, 1),
        fused: bool = False,
    ) -> None:
        super().__init__()
        self.resample, self.fused = resample, fused
        self.weight = nn.Parameter(torch.empty(after, before, kernel, kernel)) if kernel else None
        self.bias = nn.Parameter(torch.zeros(after)) if kernel else None
        if self.weight is not None:
            nn.init.kaiming_uniform_(self.weight)
        line = torch.tensor(taps, dtype=torch.float32)
        square = line[:, None] * line / line.sum().square()
        self.register_buffer("resample_filter", square[None, None] if resample else None)

    def forward(self, x: Tensor) -> Tensor:
        side = 0 if self.weight is None else self.weight.shape[-1] // 2
        if self.fused and self.resample_filter is not None:
            border = (self.resample_filter.shape[-1] - 1) // 2
            return self._filtered(F.conv2d(x, self.weight, padding=side + border), 0) + self.bias[:, None, None]  # pyright: ignore
        if self.resample_filter is not None:
            x = self._filtered(x, (self.resample_filter.shape[-1] - 1) // 2)
        return x if self.weight is None else F.conv2d(x, self.weight, self.bias, padding=side)

    def _filtered(self, x: Tensor, padding: int) -> Tensor:
        channels = x.shape[1]
        assert self.resample_filter is not None
        taps = self.resample_filter.to(x.dtype).expand(channels, 1, -1, -1)
        if self.resample == "down":
            return F.conv2d(x, taps, stride=2, padding=padding, groups=channels)
        return F.conv_transpose2d(x, 4 * taps, stride=2, padding=padding, groups=channels)


class Block(nn.Module):
    """A residual block, with attention behind it where there are heads.

    Args:
        before, after: channels.
        embedding: the width of the embedding of noise level and label.
        heads: the heads of the attention. 0: none.
        resample: "up", "down" or None.
        taps: the filter of resampling.
        song: whether the block is of Song et al.: the embedding only shifts, and each sum is divided by √2. The block of ADM is
            scaled and shifted.
    """

    def __init__(
        self,
        before: int,
        after: int,
        embedding: int,
        *,
        heads: int = 0,
        resample: Resample = None,
        taps: Sequence[int] = (1, 1),
        song: bool,
    ) -> None:
        super().__init__()
        eps = 1e-6 if song else 1e-5
        self.heads, self.song = heads, song
        self.balance = math.sqrt(0.5) if song else 1.0
        self.norm0, self.conv0 = Norm(before, eps), Conv(before, after, 3, resample, taps)
        self.affine = nn.Linear(embedding, after if song else 2 * after)
        self.norm1, self.conv1 = Norm(after, eps), Conv(after, after, 3)
        self.skip = None
        if before != after or resample:
            self.skip = Conv(before, after, 1 if song or before != after else 0, resample, taps)
        if heads:
            self.norm2, self.qkv, self.proj = Norm(after, eps), Conv(after, 3 * after, 1), Conv(after, after, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        told = self.affine(embedding)[..., None, None].to(h.dtype)
        if self.song:
            h = self.norm1(h + told)
        else:
            scale, shift = told.chunk(2, dim=1)
            h = self.norm1(h) * (scale + 1) + shift
        h = self.conv1(F.silu(h))
        x = ((x if self.skip is None else self.skip(x)) + h) * self.balance
        if not self.heads:
            return x
        qkv = self.qkv(self.norm2(x)).flatten(2).unflatten(1, (self.heads, -1, 3))
        q, k, v = (part.transpose(-1, -2) for part in qkv.unbind(3))
        found = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(x.shape)
        return (x + self.proj(found)) * self.balance


class Sinusoids(nn.Module):
    """(B, width): cosines, then sines, of x at frequencies 10000^(−i / (width / 2)); or of 2πx at frequencies of its own.

    Args:
        width: how many numbers come out.
        fourier: whether the frequencies are drawn and kept with the weights.
        endpoint: whether the last of the frequencies is 1/10000 itself, as in Song et al.
    """

    freqs: Tensor

    def __init__(self, width: int, fourier: bool, endpoint: bool) -> None:
        super().__init__()
        half = width // 2
        self.fourier = fourier
        if fourier:
            self.register_buffer("freqs", 16 * torch.randn(half))
        else:
            even = torch.arange(half, dtype=torch.float32) / (half - endpoint)
            self.register_buffer("freqs", torch.tensor(1 / 10000) ** even, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        angles = x.float()[:, None] * self.freqs * (2 * math.pi if self.fourier else 1)
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


def preconditioned(network: Any, x: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """D(x; σ) = c_skip x + c_out F(c_in x; ln(σ) / 4), the denoised image (Karras et al. 2022, equation 7).

    Args:
        network: F, called with its input and with c_noise (B,).
        x: x_0 plus noise of the standard deviation σ, (B, C, side, side).
        sigma: (B,).
        sigma_data: the standard deviation of the data that the network was made for.
    """
    s = sigma.float()[:, None, None, None]
    total = s.square() + sigma_data**2
    found = network(x / total.sqrt(), sigma.float().log() / 4)
    return sigma_data**2 / total * x + s * sigma_data / total.sqrt() * found.float()


class EDMUNet2DModel(ModelMixin, ConfigMixin):
    """A denoiser of EDM: the clean image in a noisy one, at any noise level.

    Args:
        sample_size: the side of the images in px, or of the latents.
        in_channels: channels of the image or of the latents.
        style: the U-Net, "song" or "adm".
        model_channels: the unit of the widths.
        channel_mult: the width of each level in this unit.
        num_blocks: residual blocks of a level on the way down; on the way up there is one more.
        attn_resolutions: the sides at which there is attention.
        num_class_embeds: how many labels there are. None: the weights know no classes.
        channels_per_head: the width of a head; "song" has one head.
        channel_mult_emb, channel_mult_noise: the widths of the embedding and of its sinusoids in the unit.
        fourier: whether the noise level is embedded by frequencies of the weights' own, as in NCSN++.
        residual: whether the image goes down beside the network and is added at each level, as in NCSN++.
        resample_filter: the filter of resampling along one side.
        sigma_data: the standard deviation of the data that the weights were trained for.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        style: str = "song",
        model_channels: int = 128,
        channel_mult: Sequence[int] = (2, 2, 2),
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        num_class_embeds: int | None = None,
        channels_per_head: int = 64,
        channel_mult_emb: int = 4,
        channel_mult_noise: int = 1,
        fourier: bool = False,
        residual: bool = False,
        resample_filter: Sequence[int] = (1, 1),
        sigma_data: float = 0.5,
    ) -> None:
        super().__init__()
        song, last = style == "song", len(channel_mult) - 1
        wide, noise = model_channels * channel_mult_emb, model_channels * channel_mult_noise
        taps = tuple(resample_filter)
        self.map_noise = Sinusoids(noise, fourier, endpoint=song)
        self.map_label = (
            nn.Linear(num_class_embeds, noise if song else wide, bias=song) if num_class_embeds is not None else None
        )
        self.map_layer0, self.map_layer1 = nn.Linear(noise, wide), nn.Linear(wide, wide)

        def block(before: int, after: int, attention: bool = False, resample: Resample = None) -> Block:
            heads = (1 if song else max(1, after // channels_per_head)) if attention else 0
            return Block(before, after, wide, heads=heads, resample=resample, taps=taps, song=song)

        widths = [model_channels * times for times in channel_mult]
        now = model_channels if song else widths[0]
        self.enc, kept, image = nn.ModuleDict(), list[int](), in_channels
        for level, width in enumerate(widths):
            side = sample_size >> level
            name = f"{side}x{side}"
            if level == 0:
                self.enc[f"{name}_conv"] = Conv(in_channels, now, 3)
            else:
                self.enc[f"{name}_down"] = block(now, now, resample="down")
                if residual:
                    self.enc[f"{name}_aux_residual"] = Conv(image, now, 3, "down", taps, fused=True)
                    image = now
            kept.append(now)
            for i in range(num_blocks):
                self.enc[f"{name}_block{i}"] = block(now, width, side in attn_resolutions)
                kept.append(now := width)
        self.dec = nn.ModuleDict()
        for level, width in reversed(list(enumerate(widths))):
            side = sample_size >> level
            name = f"{side}x{side}"
            if level == last:
                self.dec[f"{name}_in0"], self.dec[f"{name}_in1"] = block(now, now, True), block(now, now)
            else:
                self.dec[f"{name}_up"] = block(now, now, resample="up")
            for i in range(num_blocks + 1):
                attends = side in attn_resolutions and (i == num_blocks or not song)
                self.dec[f"{name}_block{i}"] = block(now + kept.pop(), width, attends)
                now = width
        if song:
            name = f"{sample_size}x{sample_size}"
            self.dec[f"{name}_aux_norm"], self.dec[f"{name}_aux_conv"] = Norm(now, 1e-6), Conv(now, in_channels, 3)
        else:
            self.out_norm, self.out_conv = Norm(now, 1e-5), Conv(now, in_channels, 3)

    def forward(self, sample: Tensor, sigma: Any, class_labels: Tensor | None = None) -> UNet2DOutput:
        """The denoised image D(x; σ).

        Args:
            sample: x = x_0 + σ eps, (B, C, side, side), with x_0 in [−1, 1].
            sigma: one number above 0, or (B,).
            class_labels: (B,). None, or a label beyond the last: no class.
        """
        sigma = torch.as_tensor(sigma, device=sample.device).expand(len(sample))
        rows = self.config.num_class_embeds  # pyright: ignore[reportAttributeAccessIssue]

        def network(x: Tensor, noise: Tensor) -> Tensor:
            x = x.to(self.dtype)
            return self._denoised(x, self._embedding(noise, one_hot(class_labels, rows, x)))

        return UNet2DOutput(sample=preconditioned(network, sample, sigma, self.config.sigma_data))  # pyright: ignore[reportAttributeAccessIssue]

    def _embedding(self, noise: Tensor, labels: Tensor) -> Tensor:
        embedding = self.map_noise(noise).to(self.dtype)
        if self.config.style == "song":  # pyright: ignore[reportAttributeAccessIssue]
            embedding = embedding.unflatten(1, (2, -1)).flip(1).flatten(1)  # sines first
            if self.map_label is not None:
                embedding = embedding + self.map_label(labels * math.sqrt(labels.shape[1]))
            return F.silu(self.map_layer1(F.silu(self.map_layer0(embedding))))
        embedding = self.map_layer1(F.silu(self.map_layer0(embedding)))
        return F.silu(embedding if self.map_label is None else embedding + self.map_label(labels))

    def _denoised(self, x: Tensor, embedding: Tensor) -> Tensor:
        skips, image = list[Tensor](), x
        for name, layer in self.enc.items():
            if name.endswith("aux_residual"):
                x = skips[-1] = image = (x + layer(image)) / math.sqrt(2)
            else:
                skips.append(x := layer(x, embedding) if isinstance(layer, Block) else layer(x))
        for name, layer in self.dec.items():
            if name.endswith("aux_norm"):
                x = F.silu(layer(x))
            elif name.endswith("aux_conv"):
                return layer(x)
            else:
                x = layer(torch.cat([x, skips.pop()], dim=1) if "block" in name else x, embedding)
        return self.out_conv(F.silu(self.out_norm(x)))


def one_hot(labels: Tensor | None, rows: int | None, like: Tensor) -> Tensor:
    """(B, rows) in the number format of `like`: 1 at each label. No labels, and labels beyond the last, are rows of zeros."""
    found = torch.zeros(len(like), rows or 0, dtype=like.dtype, device=like.device)
    if labels is None or not rows:
        return found
    return found.scatter(1, labels.clamp(max=rows - 1)[:, None], (labels < rows)[:, None].to(like))
