"""The networks of `dap.networks.sit`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from dap.backbones.configurations.denoisers import ATTENTION
from dap.backbones.configurations.types import Flag, Table, Whole

INTERPOLANTS: Mapping[str, Table] = {
    "SiTTransformer2DModel": {
        **ATTENTION,
        "sample_size": Whole,
        "in_channels": Whole,
        "out_channels": Whole,
        "hidden_size": Whole,
        "num_classes": Whole,
        "norm": Literal["layer", "rms"],
        "feed_forward": Literal["gelu", "swiglu"],
        "qk_norm": Literal[None, "layer", "rms"],
        "rotary": Flag,
        "shifted": Flag,
        "path": Literal["linear", "gvp", "vp"],
        "data_at": Literal[0, 1],
    },
}
"""By the class of a network its fields."""
