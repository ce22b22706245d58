"""The networks of `dap.networks.sit` and `dap.networks.reg`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from dap.backbones.configurations.denoisers import ATTENTION
from dap.backbones.configurations.types import Flag, Table, Whole

_COMMON: Table = {
    **ATTENTION,
    "sample_size": Whole,
    "in_channels": Whole,
    "out_channels": Whole,
    "hidden_size": Whole,
    "num_classes": Whole,
    "path": Literal["linear", "gvp", "vp"],
}

INTERPOLANTS: Mapping[str, Table] = {
    "REGTransformer2DModel": {
        **_COMMON,
        "class_token_size": Whole,
        "qk_norm": Literal[None, "layer"],
        "data_at": Literal[0],
    },
    "SiTTransformer2DModel": {
        **_COMMON,
        "norm": Literal["layer", "rms"],
        "feed_forward": Literal["gelu", "swiglu"],
        "qk_norm": Literal[None, "layer", "rms"],
        "rotary": Flag,
        "shifted": Flag,
        "data_at": Literal[0, 1],
    },
}
"""By the class of a network its fields."""
