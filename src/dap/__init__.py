"""Diffusion As Priors: distil a small training set from a pre-trained diffusion model, and judge it.

`dap` samples a small training set from a pre-trained diffusion **backbone**, while a **guidance** pulls every image towards
real images in the backbone's own features under a **kernel** distance; the **distilled set** on disk is then judged by a
**protocol** and summed up in a **report**.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors; at run time `__getattr__` imports a name when it is first asked for
    from dap.backbones import load as load_backbone
    from dap.backbones.base import Backbone as Backbone
    from dap.base.errors import DapError as DapError
    from dap.base.permission import allow_code as allow_code
    from dap.base.watch import Watcher as Watcher
    from dap.data.real.sources import open_source as open_source
    from dap.data.sets.distilled import DistilledSet as DistilledSet
    from dap.data.sets.export import export as export
    from dap.data.sets.imports import import_set as import_set
    from dap.evaluation.report.page import write_report as write_report
    from dap.evaluation.training.protocol import load_protocol as load_protocol
    from dap.pipelines import DAPDiTPipeline as DAPDiTPipeline
    from dap.pipelines import DAPStableDiffusionPipeline as DAPStableDiffusionPipeline
    from dap.recipe import Recipe as Recipe
    from dap.verbs.classify import classify as classify
    from dap.verbs.compare import compare as compare
    from dap.verbs.compare import sweep as sweep
    from dap.verbs.distill import distill as distill
    from dap.verbs.evaluate import evaluate as evaluate
    from dap.verbs.exchange.push import push as push
    from dap.verbs.looking.look import look as look
    from dap.verbs.options import Engine as Engine
    from dap.verbs.options import Judging as Judging
    from dap.verbs.options import Machine as Machine
    from dap.verbs.report import Results as Results
    from dap.verbs.report import Unfinished as Unfinished
    from dap.verbs.report import report as report
    from dap.verbs.training.backbone import train_backbone as train_backbone
    from dap.verbs.training.teacher import train_teacher as train_teacher
    from dap.verbs.training.tuning import tune_backbone as tune_backbone
    from dap.workshop import Workshop as Workshop

__version__ = "0.1.0"

_HOMES = {
    "Backbone": "dap.backbones.base",
    "DAPDiTPipeline": "dap.pipelines",
    "DAPStableDiffusionPipeline": "dap.pipelines",
    "DapError": "dap.base.errors",
    "DistilledSet": "dap.data.sets.distilled",
    "Engine": "dap.verbs.options",
    "Judging": "dap.verbs.options",
    "Machine": "dap.verbs.options",
    "Recipe": "dap.recipe",
    "Results": "dap.verbs.report",
    "Unfinished": "dap.verbs.report",
    "Watcher": "dap.base.watch",
    "Workshop": "dap.workshop",
    "allow_code": "dap.base.permission",
    "classify": "dap.verbs.classify",
    "compare": "dap.verbs.compare",
    "distill": "dap.verbs.distill",
    "evaluate": "dap.verbs.evaluate",
    "export": "dap.data.sets.export",
    "import_set": "dap.data.sets.imports",
    "load_backbone": "dap.backbones:load",
    "load_protocol": "dap.evaluation.training.protocol",
    "look": "dap.verbs.looking.look",
    "open_source": "dap.data.real.sources",
    "push": "dap.verbs.exchange.push",
    "report": "dap.verbs.report",
    "sweep": "dap.verbs.compare",
    "train_backbone": "dap.verbs.training.backbone",
    "train_teacher": "dap.verbs.training.teacher",
    "tune_backbone": "dap.verbs.training.tuning",
    "write_report": "dap.evaluation.report.page",
}
"""Where each public name lives: a module, or module:name where the name is another one there."""

__all__ = [
    "Backbone",
    "DAPDiTPipeline",
    "DAPStableDiffusionPipeline",
    "DapError",
    "DistilledSet",
    "Engine",
    "Judging",
    "Machine",
    "Recipe",
    "Results",
    "Unfinished",
    "Watcher",
    "Workshop",
    "allow_code",
    "classify",
    "compare",
    "distill",
    "evaluate",
    "export",
    "import_set",
    "load_backbone",
    "load_protocol",
    "look",
    "open_source",
    "push",
    "report",
    "sweep",
    "train_backbone",
    "train_teacher",
    "tune_backbone",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dap' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    found = globals()[name] = getattr(importlib.import_module(module), attribute or name)
    return found


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
