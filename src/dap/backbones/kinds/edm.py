"""EDM and EDM2 (Karras et al. 2022, 2024): denoisers of pixels or latents at any noise level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dap.backbones.base import Card
from dap.backbones.cards import Found, check_names, image_size
from dap.backbones.modules import ModuleBackbone
from dap.backbones.schedules import Time, VariancePreserving
from dap.base.errors import DapError
from dap.networks.edm_pipeline import noise_levels


class EDM(ModuleBackbone):
    """An `EDMPipeline` as a backbone.

    EDM writes x = x_0 + σ eps. The rest of dap writes x_t = alpha x_0 + sigma eps with alpha² + sigma² = 1. Both are the same up
    to a factor: alpha = 1 / √(1 + σ²), and x_t = alpha x. So the schedule is variance-preserving. Its T times are the noise
    levels of EDM's own grid (equation 5), and every solver, guidance and bank works as with betas: "ddim" takes Euler's steps on
    EDM's ordinary differential equation.

    Layers are the blocks by the authors' names, such as "enc.32x32_block0" and "dec.16x16_in0". Features are the output of a
    block, one token for each place of its grid, (B, h·w, channels).

    Args:
        pipe: an `EDMPipeline`.
        class_names: the names of the labels, in label order; empty for weights that know no classes.
        card: the facts that belong to the weights.

    Raises:
        DapError: there are not as many class names as labels, the autoencoder does not fit, or the scheduler is of other data.
    """

    def __init__(self, pipe: Any, *, class_names: Sequence[str] = (), card: Card) -> None:
        unet, config, noise = pipe.unet, pipe.unet.config, pipe.scheduler.config
        rows, channels = config.num_class_embeds or 0, config.in_channels
        check_names(card, rows, class_names)
        made = 3 if pipe.vae is None else pipe.vae.config.latent_channels
        if channels != made:
            what = "pixels without an autoencoder" if pipe.vae is None else "its autoencoder"
            raise DapError(
                f"The network of {card.name} takes {channels} channels, {what} has {made}; add its own autoencoder."
            )
        if noise.sigma_data != config.sigma_data:
            raise DapError(
                f"The scheduler of {card.name} says sigma_data {noise.sigma_data}, its network {config.sigma_data}; set the "
                "network's number in scheduler_config.json."
            )
        sigmas = torch.tensor(noise_levels(noise, noise.num_train_timesteps)[::-1], dtype=torch.float64)
        super().__init__(
            unet,
            pipe.vae,
            card=card,
            schedule=VariancePreserving((1 / (1 + sigmas.square())).float()),
            latent_shape=(channels, config.sample_size, config.sample_size),
            layers=[f"enc.{n}" for n in unet.enc if blocks(n)] + [f"dec.{n}" for n in unet.dec if blocks(n)],
            class_names=class_names,
            predicts="x0",
        )
        self.unconditional = not rows
        self.classifier_free = False

    @classmethod
    def from_pipeline(cls, pipe: Any, found: Found) -> EDM:
        """The backbone of an `EDMPipeline`.

        Raises:
            DapError: prompts were given, class names for weights that know no classes, or the class `EDM` does not take it.
        """
        found.without_prompts()
        config = pipe.unet.config
        side, levels = config.sample_size, len(config.channel_mult)
        lowest = side >> (levels - 1)
        size = side if pipe.vae is None else image_size(side, pipe.vae)
        names = found.names(pipe, config.num_class_embeds) if config.num_class_embeds else found.without_classes()
        card = found.card("edm", size=size, layer=f"dec.{lowest}x{lowest}_in0")
        return cls(pipe, class_names=names, card=card)

    def run(self, x: Tensor, t: Time | Tensor, condition: Tensor) -> Tensor:
        times = torch.as_tensor(t, device=x.device).expand(len(x)).long()
        abar = self.schedule.alphas_cumprod.to(x.device)[times]  # pyright: ignore[reportAttributeAccessIssue]
        sigma, alpha = ((1 - abar) / abar).sqrt(), abar.sqrt()
        return self.denoiser(x / alpha[:, None, None, None], sigma, condition).sample.float()


def blocks(name: str) -> bool:
    """Whether this is the name of a block, and not of a convolution or a norm beside the blocks."""
    return not name.endswith("_conv") and "_aux_" not in name
