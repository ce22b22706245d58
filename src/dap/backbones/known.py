"""The kinds of pipelines that have a backbone: one line each."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """A kind of pipeline.

    Attributes:
        name: the key of its defaults in cards.yaml.
        home: the place of its backbone, as "package.module:Class". The class has a class method `from_pipeline(pipe, found)`.
        title: the name in messages.
        flow: whether its weights are trained on a flow. Others are trained with betas.
        few: whether there are weights of this kind that were distilled to a consistency model, with an `LCMScheduler`.
    """

    name: str
    home: str
    title: str
    flow: bool = False
    few: bool = False

    def backbone(self) -> Any:
        """The class of the backbone."""
        module, _, name = self.home.partition(":")
        return getattr(importlib.import_module(module), name)


KINDS: Mapping[str, Kind] = {
    "DiTPipeline": Kind("dit", "dap.backbones.kinds.dit:DiT", "DiT"),
    "StableDiffusionPipeline": Kind("unet", "dap.backbones.kinds.unet:UNet", "Stable Diffusion", few=True),
    "LatentConsistencyModelPipeline": Kind("lcm", "dap.backbones.kinds.unet:UNet", "LCM", few=True),
    "StableDiffusionXLPipeline": Kind("sdxl", "dap.backbones.kinds.sdxl:SDXL", "SDXL", few=True),
    "StableDiffusion3Pipeline": Kind("mmdit", "dap.backbones.kinds.mmdit:MMDiT", "Stable Diffusion 3", flow=True),
    "PixArtAlphaPipeline": Kind("pixart", "dap.backbones.kinds.pixart:PixArt", "PixArt-α", few=True),
    "PixArtSigmaPipeline": Kind("pixart", "dap.backbones.kinds.pixart:PixArt", "PixArt-Σ", few=True),
    "FluxPipeline": Kind("flux", "dap.backbones.kinds.flux:Flux", "Flux", flow=True),
    "SanaPipeline": Kind("sana", "dap.backbones.kinds.sana:Sana", "Sana", flow=True),
}
"""Kinds by the name of the pipeline's class in diffusers, or in `dap.pipelines` where diffusers has none."""
