"""From a recipe to a distilled set on disk: load, resolve, do the missing units, close."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

from dap.base.errors import DapError
from dap.base.files import check_folder, locked
from dap.base.store import Store
from dap.cost import Meter
from dap.data.sets.cards import cell, size_category
from dap.data.sets.distilled import DistilledSet
from dap.methods import Task, plan
from dap.recipe import Recipe, said
from dap.workshop import Workshop

WORK = ".work"
"""Folder of a set for what is made once and for checkpoints; gone when the set is finished."""

Progress = Callable[[int, int, str], None]
"""Called with (done, all, what) after every unit, in images."""


def distill(
    recipe: Recipe,
    out: str | Path,
    workshop: Workshop | None = None,
    *,
    progress: Progress | None = None,
    tell: Callable[[str, int, int], object] | None = None,
    command: str | None = None,
) -> DistilledSet:
    """Make a distilled set, or go on with one that was interrupted.

    Args:
        recipe: what to make.
        out: the folder; empty, new, or a set of the same recipe.
        workshop: loaded backbones and data, shared over several calls.
        progress: told after every unit.
        tell: told of long work before the first image: what, how much is done, and of how much.
        command: the shell command to record.

    Raises:
        DapError: a mistake in what was given; what was made before stays.
        OSError: disk full or no permission; what was made before stays.
    """
    check_folder(Path(out))
    workshop = workshop or Workshop()
    method, task = workshop.task(recipe)
    work = Path(out) / WORK
    # A set's recipe has the prompts. What several sets share does not know it, and text decides it as weights do.
    inputs, prompts = task.store.inputs, task.backbone.card.prompts if task.backbone else {}
    every = float(os.environ.get("DAP_CHECKPOINT_SECONDS", 60))
    store = Store(workshop.cache or work, {**inputs, **prompts}, every=every)
    task = replace(task, store=store, tell=tell or task.tell)
    make = method.prepare(task)
    recipe, names = task.recipe, task.source.class_names
    assert recipe.block is not None
    with locked(Path(out)):
        made = DistilledSet.create(out, names, recipe.ipc, said(recipe), inputs)
        _describe(made, task, command)
        units = plan(len(names), recipe.ipc, recipe.block)
        meter = Meter(made, method.needs, store, task.backbone.device if task.backbone else task.device)
        if progress is not None:
            progress(0, len(names) * recipe.ipc, "")
        for unit in units:
            if not all(made.has(unit.label, slot) for slot in unit.slots):
                result = make(unit)
                for row, slot in enumerate(unit.slots):
                    made.add(unit.label, slot, result.images[row], **result.records[row])
                meter.add(len(unit.slots))
            if progress is not None:
                progress(unit.slots[-1] + 1 + unit.label * recipe.ipc, len(names) * recipe.ipc, names[unit.label])
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
