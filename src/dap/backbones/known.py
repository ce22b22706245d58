"""The kinds of pipelines that have a backbone: one line each; and what the shipped cards.yaml says of kinds and weights."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml


@cache
def known_cards() -> Mapping[str, Mapping[str, Any]]:
    """What cards.yaml says, by the name of a kind or by a hub id. It is read once a process; copy an entry to change it."""
    return yaml.safe_load((files("dap.backbones") / "cards.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Kind:
    """A kind of pipeline.

    Attributes:
        name: the key of its defaults in cards.yaml.
        home: the place of its backbone, as "package.module:Class". The class has a class method `from_pipeline(pipe, found)`.
        title: the name in messages.
        flow: whether its weights are trained on a flow. Others are trained with betas.
        few: whether there are weights of this kind that were distilled to a consistency model, with an `LCMScheduler`.
        levels: whether its scheduler says noise levels (EDM) in place of betas.
        pixels: whether it makes pixels. Then its scheduler may clip x_0, have cosine betas, and read a prediction of x_0.
        shifted: whether its scheduler shifts the ratio of signal to noise, and ends at noise alone (CogVideoX).
        standardised: whether it follows `latents_mean` and `latents_std` of its autoencoder.
    """

    name: str
    home: str
    title: str
    flow: bool = False
    few: bool = False
    pixels: bool = False
    levels: bool = False
    shifted: bool = False
    standardised: bool = False

    def backbone(self) -> Any:
        """The class of the backbone."""
        module, _, name = self.home.partition(":")
        return getattr(importlib.import_module(module), name)


_PIXELS = Kind("pixels", "dap.backbones.kinds.pixels:Pixels", "a pixel-space U-Net", pixels=True)

KINDS: Mapping[str, Kind] = {
    "DDPMPipeline": _PIXELS,
    "DDIMPipeline": _PIXELS,
    "EDMPipeline": Kind("edm", "dap.backbones.kinds.edm:EDM", "EDM", levels=True, standardised=True),
    "DiTPipeline": Kind("dit", "dap.backbones.kinds.dit:DiT", "DiT"),
    "LabelledLattePipeline": Kind("latte", "dap.backbones.kinds.latte:Latte", "a class-conditional Latte"),
    "LatentDiffusionPipeline": Kind("ldm", "dap.backbones.kinds.labelled:Labelled", "latent diffusion of ImageNet"),
    "MDTPipeline": Kind("mdt", "dap.backbones.kinds.labelled:Labelled", "MDT"),
    "UViTPipeline": Kind("uvit", "dap.backbones.kinds.labelled:Labelled", "U-ViT"),
    "StableDiffusionPipeline": Kind("unet", "dap.backbones.kinds.unet:UNet", "Stable Diffusion", few=True),
    "LatentConsistencyModelPipeline": Kind("lcm", "dap.backbones.kinds.unet:UNet", "LCM", few=True),
    "StableDiffusionXLPipeline": Kind("sdxl", "dap.backbones.kinds.sdxl:SDXL", "SDXL", few=True),
    "StableDiffusion3Pipeline": Kind("mmdit", "dap.backbones.kinds.mmdit:MMDiT", "Stable Diffusion 3", flow=True),
    "WanPipeline": Kind("wan", "dap.backbones.kinds.wan:Wan", "Wan", flow=True, standardised=True),
    "CogVideoXPipeline": Kind("cogvideox", "dap.backbones.kinds.cogvideox:CogVideoX", "CogVideoX", shifted=True),
    "LTXPipeline": Kind("ltx", "dap.backbones.kinds.ltx:LTX", "LTX-Video", flow=True),
    "PixArtAlphaPipeline": Kind("pixart", "dap.backbones.kinds.pixart:PixArt", "PixArt-α", few=True),
    "PixArtSigmaPipeline": Kind("pixart", "dap.backbones.kinds.pixart:PixArt", "PixArt-Σ", few=True),
    "FluxPipeline": Kind("flux", "dap.backbones.kinds.flux:Flux", "Flux", flow=True),
    "SanaPipeline": Kind("sana", "dap.backbones.kinds.sana:Sana", "Sana", flow=True),
    "REGPipeline": Kind("reg", "dap.backbones.kinds.reg:REG", "REG", flow=True, standardised=True),
    "SiTPipeline": Kind("sit", "dap.backbones.kinds.sit:SiT", "SiT", flow=True, standardised=True),
}
"""Kinds by the name of the pipeline's class in diffusers, or in `dap.networks` where diffusers has none."""
