"""Diffusion As Priors: distil a small training set from a pre-trained diffusion model, and judge it.

`dap` samples a small training set from a pre-trained diffusion **backbone**, while a **guidance** pulls every image towards
real images in the backbone's own features under a **kernel** distance; the **distilled set** on disk is then judged by a
**protocol** and summed up in a **report**.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Backbone": "dap.backbones",
    "DAPDiTPipeline": "dap.pipelines",
    "DAPStableDiffusionPipeline": "dap.pipelines",
    "DapError": "dap.errors",
    "DistilledSet": "dap.data.distilled",
    "Recipe": "dap.recipe",
    "Workshop": "dap.engine",
    "distill": "dap.engine",
    "evaluate": "dap.evaluation.training",
    "export": "dap.data.export",
    "import_set": "dap.data.imports",
    "load_protocol": "dap.evaluation.protocol",
    "open_source": "dap.data.sources",
    "write_report": "dap.evaluation.report",
}

__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dap' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
