"""Backbones: frozen diffusion weights behind one interface.

The names below are imported when they are first asked for, so that `import dap.backbones.base` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors; at run time `__getattr__` imports a name when it is first asked for
    from dap.backbones.base import Backbone as Backbone
    from dap.backbones.base import Card as Card
    from dap.backbones.base import Prediction as Prediction
    from dap.backbones.guided import ClassifierFree as ClassifierFree
    from dap.backbones.mixture import Mixture as Mixture
    from dap.backbones.modules import ModuleBackbone as ModuleBackbone
    from dap.backbones.opening import device_of as device_of
    from dap.backbones.opening import from_pipeline as from_pipeline
    from dap.backbones.opening import load as load
    from dap.backbones.opening import own as own
    from dap.backbones.opening import source_of as source_of
    from dap.backbones.schedules import Flow as Flow
    from dap.backbones.schedules import Schedule as Schedule
    from dap.backbones.schedules import VariancePreserving as VariancePreserving

_HOMES = {
    "Backbone": "base",
    "Card": "base",
    "ClassifierFree": "guided",
    "Flow": "schedules",
    "Mixture": "mixture",
    "ModuleBackbone": "modules",
    "Prediction": "base",
    "Schedule": "schedules",
    "VariancePreserving": "schedules",
    "device_of": "opening",
    "from_pipeline": "opening",
    "load": "opening",
    "own": "opening",
    "source_of": "opening",
}
"""The module of this folder in which each public name lives."""

__all__ = [
    "Backbone",
    "Card",
    "ClassifierFree",
    "Flow",
    "Mixture",
    "ModuleBackbone",
    "Prediction",
    "Schedule",
    "VariancePreserving",
    "device_of",
    "from_pipeline",
    "load",
    "own",
    "source_of",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
