"""Networks and pipelines that diffusers does not have, written as classes of diffusers so that their folders are as any other.

A folder of a pipeline names the class of each part and the module of the class. `CLASSES` and `PIPELINES` are closed lists: of
this package, only what they name may be opened from a folder.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

CLASSES: Mapping[str, str] = {
    "ADMUNet2DModel": "dap.networks.adm",
    "EDM2UNet2DModel": "dap.networks.edm2",
    "EDMUNet2DModel": "dap.networks.edm",
    "LabelledUNet2DModel": "dap.networks.labelled_unet",
    "MDTTransformer2DModel": "dap.networks.mdt",
    "REGTransformer2DModel": "dap.networks.reg",
    "SiTTransformer2DModel": "dap.networks.sit",
    "UViT2DModel": "dap.networks.uvit",
}
"""Networks of this room: the class -> the module, as a `model_index.json` names them."""

PIPELINES: Mapping[str, str] = {
    "EDMPipeline": "dap.networks.edm_pipeline",
    "LatentDiffusionPipeline": "dap.networks.labelled_pipeline",
    "MDTPipeline": "dap.networks.labelled_pipeline",
    "REGPipeline": "dap.networks.reg_pipeline",
    "SiTPipeline": "dap.networks.sit_pipeline",
    "UViTPipeline": "dap.networks.labelled_pipeline",
}
"""Pipelines of this room: the class, as a `model_index.json` names it -> the module."""


def find(name: str) -> Any:
    """The class of a network or of a pipeline of this room by its name, or None if there is none."""
    home = {**CLASSES, **PIPELINES}.get(name)
    return None if home is None else getattr(importlib.import_module(home), name)
