"""`dap distill`: from a recipe to a distilled set on disk. Load, resolve the recipe, make the missing units, check the set."""

from __future__ import annotations

import math
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dap.backbones import device_of
from dap.backbones.base import Backbone
from dap.base.errors import DapError
from dap.base.files import check_folder, locked
from dap.base.store import Store, checkpoint_seconds
from dap.base.watch import Watcher
from dap.cost import Meter
from dap.data.sets.cards import cell, size_category
from dap.data.sets.distilled import WORK, DistilledSet
from dap.guidance.base import Energy, Guidance
from dap.methods.base import Method, Task, plan
from dap.objects import Objects
from dap.recipe import Recipe, keywords, overlaid
from dap.verbs.looking import check_still_there, looked_at, told_doubts
from dap.verbs.options import Machine, images_budget, permitted
from dap.verbs.settling import NOTE as CHOSEN
from dap.verbs.settling import settled
from dap.verbs.understood import check_out, tell_of
from dap.workshop import Workshop


def open_workshop(machine: Machine, objects: Objects | None = None, watcher: Watcher | None = None) -> Workshop:
    """A new workshop on this machine. It loads nothing until something is asked of it.

    Args:
        machine: where the work runs.
        objects: the objects that were given in place of names; None: everything is named.
        watcher: is told what was understood of the data. None: nobody is told.

    Raises:
        DapError: there is no such device, the number of threads is none that this machine can run, or a budget is not above 0.
    """
    device_of(machine.device)
    images_budget(machine)
    if machine.threads is not None:
        processors = os.cpu_count() or 1
        most = max(256, 4 * processors)  # far above this, the threads of torch end the process without a word
        if not 1 <= machine.threads <= most:
            raise DapError(
                f"torch cannot run in {machine.threads} threads; this machine has {processors} processors. Give --threads a "
                f"number from 1 to {most}, or leave it out."
            )
        torch.set_num_threads(machine.threads)
    workshop = Workshop(machine.device, machine.offline, machine.cache, objects or Objects())
    if watcher is not None:
        workshop.tell = watcher.note
    return workshop


@permitted
def distill(
    recipe: Recipe | Mapping[str, Any] | str | Path | None = None,
    out: str | Path | None = None,
    *,
    method: str | Method | type[Method] | None = None,
    backbone: str | Backbone | None = None,
    guidance: str | Guidance | Energy | None = None,
    source: Any = None,
    machine: Machine | None = None,
    workshop: Workshop | None = None,
    watcher: Watcher | None = None,
    name: str | None = None,
    command: str | None = None,
    grid: Path | None = None,
    **fields: Any,
) -> DistilledSet:
    """Make a distilled set, or go on with one that was interrupted.

    Give a recipe, keywords, or a recipe with keywords that replace some of its values. Four parts of a recipe may be
    objects in place of names: method, backbone, guidance and source. The set then keeps the names and the code hashes
    of the objects' classes, and the objects' plain values (see `dap.objects.describe`). The set goes on only if these
    are the same.

        dap.distill(out="runs/first", method="dap", ipc=1, scale=0.05)
        dap.distill("imagenette-dit-ipc10", "runs/second", backbone=dap.load_backbone("my/folder"), seed=1)

    Args:
        recipe: a `Recipe`, its nested values, the path of a YAML file, or the name of a shipped recipe. Default: an empty
            recipe, in which every choice has its default.
        out: the folder of the set. The folder may be new, empty, or hold a set of the same recipe. It must be given.
        method: a name, `file.py:Name`, a `Method` or its class.
        backbone: a name, a folder, a hub id, `file.py:Name`, or a `Backbone`.
        guidance: `file.py:Name`, a `Guidance` or an `Energy` of your own, added to the guidance of the method.
        source: a folder or another place of real images, a `Source`, or images in memory: a mapping from class name to images,
            a pair of images and labels, or a collection of (image, label) pairs. Images are pictures, or tensors (3, h, w)
            or (1, h, w) of floats in [0, 1] or bytes.
        machine: where the work runs. The machine changes nothing in the recipe. Default: `Machine()`.
        workshop: loaded backbones and data that several calls share. It takes the place of `machine` and of objects.
        watcher: is told how the work goes on. Default: nobody is told.
        name: the name of the set that the watcher is told. Default: the name of the folder.
        command: the shell command to record in the set.
        grid: the folder of the grid that the set is a part of, whose sets share what they leave to `auto`.
        fields: any other fields of the recipe by their keywords, which are the flags of `dap distill` with underscores:
            ipc, seed, steps, scale, reals, guidance_scale, ... The keyword `options` takes the method's own options.

    Returns:
        The finished set.

    Raises:
        DapError: an argument is wrong. Images that were made before stay.
        OSError: the disk is full, or there is no permission. Images that were made before stay.
    """
    if out is None:
        raise DapError("The folder of the set is missing; give out, such as out='runs/first'.")
    check_folder(Path(out))
    method = method() if isinstance(method, type) else method
    named = {"method": method, "backbone": backbone, "guidance": guidance, "data": source}
    fields |= {key: str(value) for key, value in named.items() if isinstance(value, (str, Path))}
    given = {
        "method": None if isinstance(method, str) else method,
        "backbone": None if isinstance(backbone, (str, Path)) else backbone,
        "guidance": None if isinstance(guidance, str) else guidance,
        "source": None if isinstance(source, (str, Path)) else source,
    }
    if workshop is not None and any(value is not None for value in given.values()):
        raise DapError("Give objects, or a workshop that has them (Workshop(objects=Objects(...))), but not both.")
    objects = workshop.objects if workshop else Objects(**given)
    recipe = _asked(recipe, objects, fields)
    if workshop is None:
        workshop = open_workshop(machine or Machine(), objects, watcher)
    return _make(recipe, Path(out), workshop, watcher or Watcher(), name or Path(out).name, command, grid)


def _asked(
    recipe: Recipe | Mapping[str, Any] | str | Path | None, objects: Objects, fields: Mapping[str, Any]
) -> Recipe:
    """The recipe, in which the keywords and the names of the objects replace its own values."""
    where = "the recipe"
    if isinstance(recipe, (str, Path)):
        known = keywords()
        where, recipe = str(recipe), Recipe.load(recipe, [known[name][0] for name in fields if name in known])
    if isinstance(recipe, Recipe):
        recipe = recipe.model_dump(exclude_unset=True)
    values = overlaid(recipe or {}, fields)
    return Recipe.parse(overlaid(values, objects.named()), where)


def _make(
    recipe: Recipe, out: Path, workshop: Workshop, watcher: Watcher, name: str, command: str | None, grid: Path | None
) -> DistilledSet:
    workshop.asked(recipe)
    tell_of(workshop, recipe.data)
    check_out(workshop, recipe.data, out)
    chosen = settled(recipe, workshop, out, watcher, grid)
    method, task = workshop.task(chosen.recipe)
    # Several sets may share the store, and the store does not know their recipes, which hold the prompts. The prompts decide
    # what the store keeps as much as the weights do. So the prompts are among the inputs of the store.
    inputs, prompts = task.store.inputs, task.given.backbone.card.prompts if task.given.backbone else {}
    store = Store(workshop.cache or out / WORK, {**inputs, **prompts}, every=checkpoint_seconds(), cache=workshop.cache)
    task = replace(task, store=store, tell=watcher.work)
    make = method.prepare(task)
    resolved, names = task.recipe, task.source.class_names
    total = len(names) * resolved.ipc
    DistilledSet.check_begun(out, names, resolved.values(), inputs)  # before anything is written
    with locked(out):
        made = DistilledSet.create(out, names, resolved.ipc, resolved.values(), inputs)
        _describe(made, task, command, workshop.strangeness(task))
        if chosen.choices:
            made.note(CHOSEN, {"choices": chosen.choices})
        store.used |= chosen.used
        device = task.given.backbone.device if task.given.backbone else task.device
        meter = Meter(made, method.needs, store, device)
        watcher.images(name, 0, total)
        for unit in plan(len(names), resolved.ipc, resolved.block):
            if not all(made.has(unit.label, slot) for slot in unit.slots):
                result = looked_at(make(unit), unit, task)
                check_still_there(out)
                for row, slot in enumerate(unit.slots):
                    made.add(unit.label, slot, result.images[row], **result.records[row])
                meter.add(len(unit.slots))
            watcher.images(name, unit.slots[-1] + 1 + unit.label * resolved.ipc, total, names[unit.label])
        meter.write()
        check_still_there(out)
        if missing := DistilledSet.open(out).missing():  # what is on disk counts, not what was written
            raise DapError(
                f"{out} lacks {len(missing)} of {total} images, because something removed or changed them meanwhile. Run the "
                "same command again, and it makes them."
            )
    if doubtful := told_doubts(made):
        watcher.note(doubtful)
    shutil.rmtree(out / WORK, ignore_errors=True)
    return made


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide the bytes, the platform, and the number of CPU threads."""
    packages = ("diffusion-as-priors", "torch", "torchvision", "diffusers", "transformers", "numpy", "pillow")
    found = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": str(torch.get_num_threads()),
    }
    return found | {name: version(name) for name in packages}


def _describe(made: DistilledSet, task: Task, command: str | None, strangeness: float | None) -> None:
    backbone, recipe = task.given.backbone, task.recipe
    if made.noted("env.json") is None:
        device = str(backbone.device) if backbone else None
        said: dict[str, float] = {}  # most sets have nothing to say here
        if strangeness is not None and math.isfinite(strangeness):
            said["strangeness"] = round(strangeness, 3)
        made.note("env.json", {"versions": versions(), "device": device, **(made.noted("inputs.json") or {}), **said})
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
