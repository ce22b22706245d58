"""From a recipe to a distilled set on disk: load, resolve, do the missing units, close."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dap.backbones.base import Backbone
from dap.base.errors import DapError
from dap.base.files import check_folder, locked
from dap.base.store import Store
from dap.base.watch import Watcher
from dap.cost import Meter
from dap.data.real.sources import Source
from dap.data.sets.cards import cell, size_category
from dap.data.sets.distilled import DistilledSet
from dap.guidance.base import Energy, Guidance
from dap.methods.base import Method, Task, plan
from dap.recipe import Recipe, said
from dap.verbs.options import Machine
from dap.workshop import Workshop

WORK = ".work"
"""Folder of a set for what is made once and for checkpoints; gone when the set is finished."""


def distill(
    recipe: Recipe | Mapping[str, Any] | str | Path | None = None,
    out: str | Path | None = None,
    *,
    method: Method | None = None,
    backbone: Backbone | None = None,
    guidance: Guidance | Energy | None = None,
    source: Source | str | Path | None = None,
    machine: Machine | None = None,
    workshop: Workshop | None = None,
    watcher: Watcher | None = None,
    name: str | None = None,
    command: str | None = None,
    **fields: Any,
) -> DistilledSet:
    """Make a distilled set, or go on with one that was interrupted.

    Args:
        recipe: what to make.
        out: the folder; empty, new, or a set of the same recipe.
        machine: where the work runs; it decides no byte of the recipe. Default: `Machine()`.
        workshop: loaded backbones and data, shared over several calls, in place of `machine`.
        watcher: is told how the work goes on.
        name: what the watcher is told as the set's name; default: the name of the folder.
        command: the shell command to record.

    Raises:
        DapError: a mistake in what was given; what was made before stays.
        OSError: disk full or no permission; what was made before stays.
    """
    if out is None or not isinstance(recipe, Recipe):
        raise DapError("Give a recipe and the folder of the set.")
    del method, backbone, guidance, source, fields
    machine, watcher, name = machine or Machine(), watcher or Watcher(), name or Path(out).name
    check_folder(Path(out))
    workshop = workshop or Workshop(machine.device, machine.offline, machine.cache)
    maker, task = workshop.task(recipe)
    work = Path(out) / WORK
    # A set's recipe has the prompts. What several sets share does not know it, and text decides it as weights do.
    inputs, prompts = task.store.inputs, task.backbone.card.prompts if task.backbone else {}
    every = float(os.environ.get("DAP_CHECKPOINT_SECONDS", 60))
    store = Store(workshop.cache or work, {**inputs, **prompts}, every=every)
    task = replace(task, store=store, tell=watcher.work)
    make = maker.prepare(task)
    recipe, names = task.recipe, task.source.class_names
    assert recipe.block is not None
    with locked(Path(out)):
        made = DistilledSet.create(out, names, recipe.ipc, said(recipe), inputs)
        _describe(made, task, command)
        units = plan(len(names), recipe.ipc, recipe.block)
        meter = Meter(made, maker.needs, store, task.backbone.device if task.backbone else task.device)
        total = len(names) * recipe.ipc
        watcher.images(name, 0, total)
        for unit in units:
            if not all(made.has(unit.label, slot) for slot in unit.slots):
                result = make(unit)
                for row, slot in enumerate(unit.slots):
                    made.add(unit.label, slot, result.images[row], **result.records[row])
                meter.add(len(unit.slots))
            watcher.images(name, unit.slots[-1] + 1 + unit.label * recipe.ipc, total, names[unit.label])
        meter.write()
    if made.missing():
        raise DapError(f"{out} still lacks {len(made.missing())} images.")
    shutil.rmtree(work, ignore_errors=True)
    return made


def versions() -> dict[str, str]:
    """Python, platform and the packages that decide the bytes."""
    packages = ("diffusion-as-priors", "torch", "torchvision", "diffusers", "transformers", "numpy", "pillow")
    found = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": str(torch.get_num_threads()),
    }
    return found | {name: version(name) for name in packages}


def _describe(made: DistilledSet, task: Task, command: str | None) -> None:
    backbone, recipe = task.backbone, task.recipe
    if made.noted("env.json") is None:
        device = str(backbone.device) if backbone else None
        made.note("env.json", {"versions": versions(), "device": device, **(made.noted("inputs.json") or {})})
    if command and not (made.path / "command.txt").exists():
        made.note("command.txt", command + "\n")
    data_licence = task.source.licence or "unknown; ask whoever gave you the data"
    weights = f"{backbone.card.name} ({backbone.card.licence})" if backbone else "none; these are real images"
    classes = ", ".join(map(cell, made.class_names[:50]))
    made.note(
        "README.md",
        f"""---
task_categories: [image-classification]
size_categories: ["{size_category(len(made.class_names) * recipe.ipc)}"]
tags: [dataset-distillation, synthetic]
---

# Distilled {Path(recipe.data.path).name}, {recipe.ipc} images per class, by `{recipe.method}`

Made by diffusion-as-priors {version("diffusion-as-priors")}; `recipe.json` is what made it, `manifest.jsonl` holds the seed
and sha256 of every image, `env.json` the versions and the hash of the weights.

| | |
|---|---|
| classes, in label order | {classes} |
| real data | {task.source.name} |
| licence of the data | {data_licence} |
| backbone and its licence | {weights} |

What may be done with these images follows from both licences. Synthetic images can resemble real ones of the training
data; look before you publish a set made from private images.
""",
    )
