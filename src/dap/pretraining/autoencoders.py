"""The first stage: an autoencoder, whose latents have mean 0 and variance 1 in each channel when it is done."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dap.pretraining.pictures import Latents, Pictures, in_order

KL = 1e-4
"""The weight of the divergence of the latents' distributions from a normal one."""

ABSOLUTE = 0.02
"""The weight of the mean absolute error beside the mean squared one. It makes edges sharper."""

DECAY = 0.995
"""The decay of the averaged weights."""


def peak_of(batch: int) -> float:
    """The largest learning rate for a number of images in a step."""
    return 1e-3 if batch < 32 else 2e-3


def loss_of(vae: Any, pictures: Pictures, batch: int, device: torch.device) -> Callable[[torch.Generator], Tensor]:
    """The loss of a step: ||x − x̂||² + 0.02 |x − x̂| + 1e-4 KL, with latents drawn from their distributions."""

    def loss(generator: torch.Generator) -> Tensor:
        x = shown(pictures, batch, generator, device)
        posterior = vae.encode(x).latent_dist
        z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean)
        error = vae.decode(z).sample.float() - x
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).float().mean()
        return error.square().mean() + ABSOLUTE * error.abs().mean() + KL * kl

    return loss


def decoder_loss_of(
    vae: Any, pictures: Pictures, batch: int, device: torch.device
) -> Callable[[torch.Generator], Tensor]:
    """The loss of a step that trains the decoder alone, ||x − x̂||². Latents stay as they are."""
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)

    def loss(generator: torch.Generator) -> Tensor:
        x = shown(pictures, batch, generator, device)
        with torch.no_grad():
            z = vae.encode(x).latent_dist.mean
        return (vae.decode(z).sample.float() - x).square().mean()

    return loss


def shown(pictures: Pictures, batch: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """A batch of images (batch, 3, side, side) in [-1, 1], moved as `Pictures.moved` says. Of a clip it has one frame."""
    rows = torch.randint(len(pictures), (batch,), generator=generator)
    images = pictures.moved(pictures.one_still(pictures.take(rows, device), generator), generator)
    return images.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def error_of(vae: Any, pictures: Pictures, device: torch.device, limit: int | None = None) -> float:
    """The mean squared error of reconstructions from the means of the latents, for images in [0, 1], over `limit` images
    or clips that are drawn, or all."""
    errors = []
    for rows in in_order(pictures, limit):
        x = pictures.stills(pictures.take(rows, device))
        again = vae.decode(vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist.mean).sample
        errors.append((again.float().clamp(-1, 1) - x).div(2).square().mean(dim=(1, 2, 3)).cpu())
    return torch.cat(errors).mean().item()


def decibels(error: float) -> float:
    """The peak signal to noise ratio of a mean squared error, 10 log10(1 / error), in dB."""
    return 10 * math.log10(1 / max(error, 1e-12))


@torch.no_grad()
def standardise(vae: Any, latents: Latents) -> Latents:
    """Let the latents have mean 0 and variance 1 in each channel, by other weights of the two 1×1 convolutions around them.

    The first one gives the mean m and the log-variance v of a latent. Afterwards it gives (m − μ) / σ and v − 2 log σ, and the
    second one takes σ z + μ. Reconstructions stay as they are.

    Args:
        vae: the autoencoder, which is changed.
        latents: the latents that it gives now. They become those that it gives afterwards, in their place.

    Returns:
        The same latents.
    """
    axes = [axis for axis in range(latents.mean.ndim) if axis != 2]
    mean = latents.mean.mean(axes)
    scale = (latents.mean.var(axes, correction=0) + latents.std.square().mean(axes)).sqrt().clamp_min(1e-6)
    before, after, channels = vae.quant_conv, vae.post_quant_conv, len(mean)
    after.bias += after.weight.flatten(1) @ mean
    after.weight *= scale.view(1, -1, 1, 1)
    before.weight[:channels] /= scale.view(-1, 1, 1, 1)
    before.bias[:channels] = (before.bias[:channels] - mean) / scale
    before.bias[channels:] -= 2 * scale.log()
    wide = (channels, *[1] * (latents.mean.ndim - 3))
    latents.mean.sub_(mean.view(wide)).div_(scale.view(wide))
    latents.std.div_(scale.view(wide))
    return latents
