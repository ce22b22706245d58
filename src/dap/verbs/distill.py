"""From a recipe to a distilled set on disk: load, resolve, do the missing units, close."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from dap import backbones
from dap.backbones.base import Backbone
from dap.cost import Meter
from dap.data.captions import check_captions, read_captions
from dap.data.cards import cell, size_category
from dap.data.decode import Fit
from dap.data.distilled import DistilledSet
from dap.data.held import Part
from dap.data.sources import Source, check_path, open_source
from dap.errors import DapError
from dap.evaluation.teacher import Teacher, check_teacher, load_teacher
from dap.files import check_folder, locked, sha256_of
from dap.methods import Method, Options, Task, find, plan
from dap.recipe import BackboneChoice, Data, Recipe, said
from dap.starter import REFERENCE
from dap.store import Store

STARTER = "starter"
"""Name of the network that ships with the embedded data."""

WORK = ".work"
"""Folder of a set for what is made once and for checkpoints; gone when the set is finished."""

Progress = Callable[[int, int, str], None]
"""Called with (done, all, what) after every unit, in images."""


@dataclass
class Workshop:
    """Loads sources and backbones once, for as many recipes as are run with it.

    Args:
        device: "auto", "cpu", "cuda", …
        offline: never ask the network.
        cache: folder in which runs share their real features, or None.
    """

    device: str = "auto"
    offline: bool = False
    cache: Path | None = None

    def __post_init__(self) -> None:
        self._backbones: dict[BackboneChoice, Backbone] = {}
        self._sources: dict[tuple[Data, str, Fit], Source] = {}
        self._hashes: dict[int, str] = {}
        self._classifiers: dict[tuple[str, tuple[str, ...]], Teacher] = {}

    def backbone(self, choice: BackboneChoice) -> Backbone:
        if choice not in self._backbones:
            self._backbones[choice] = backbones.load(
                choice.path,
                revision=choice.revision,
                dtype=choice.dtype,
                device=self.device,
                offline=self.offline,
                template=choice.template,
                negative_prompt=choice.negative_prompt,
            )
        return self._backbones[choice]

    def source(self, data: Data, split: Literal["train", "validation", "test"] = "train", fit: Fit = "crop") -> Source:
        """The real images of a recipe whose size is set.

        Args:
            data: what and how large.
            split: `validation` is the part of the training images that is held out, `train` the others.
            fit: see `data.decode.square`.

        Raises:
            DapError: nothing is held out for a validation, or as `open_source`.
        """
        assert data.size is not None
        if (data, split, fit) not in self._sources:
            if split == "validation" and not data.held_out:
                raise DapError("No images are held out for validation; give --held-out, such as 0.1, when distilling.")
            options: dict[str, Any] = {
                "size": data.size,
                "classes": data.classes,
                "max_bad_fraction": data.max_bad_fraction,
            }
            source = open_source(data.path, "test" if split == "test" else "train", fit=fit, **options)
            if data.held_out and split != "test":
                source = Part(source, split, data.held_out)
            self._sources[data, split, fit] = source
        return self._sources[data, split, fit]

    def weights_hash(self, backbone: Backbone | None) -> str | None:
        """`Backbone.weights_hash`, computed once; None for no backbone."""
        if backbone is None:
            return None
        if id(backbone) not in self._hashes:
            self._hashes[id(backbone)] = backbone.weights_hash()
        return self._hashes[id(backbone)]

    def asked(self, recipe: Recipe) -> tuple[Method, Options | None]:
        """The method and its own options: all that can be said of a recipe before anything is loaded, or downloaded.

        Raises:
            DapError: an unknown method or option, no such data, or something that the method needs is not given.
        """
        method = find(recipe.method)
        check_path(recipe.data.path)
        options = method.parse(recipe.options, recipe.method)
        if (name := _classifier(method, recipe)) not in (None, STARTER):
            check_teacher(name)
        if (file := _captions(method, recipe)) is not None:
            check_captions(file)
        return method, options

    def task(self, recipe: Recipe) -> tuple[Method, Task]:
        """The method and all it needs, with the recipe resolved.

        Raises:
            DapError: whatever is wrong with the recipe, the data or the backbone, before any work.
        """
        method, options = self.asked(recipe)
        needed = "backbone" in method.needs
        backbone = self.backbone(recipe.backbone or BackboneChoice()) if needed or recipe.data.size is None else None
        size = recipe.data.size or (backbone.card.size if backbone else 0)
        resolved = recipe.resolved(
            backbone if needed else None, method.guidance, size, method.sampling, method.together
        )
        source = self.source(resolved.data)
        name, file = _classifier(method, recipe), _captions(method, recipe)
        classifier = None if name is None else self.classifier(name, source)
        captions = None if file is None else read_captions(file, source)
        resolved = resolved.model_copy(
            update={
                "options": options.model_dump(mode="json") if options else {},
                "classifier": classifier and classifier.name,
            }
        )
        task = Task(resolved, source, backbone if needed else None, self.cache, options, classifier, captions)
        return method, replace(task, store=Store(None, self.inputs(task)), device=backbones.device_of(self.device))

    def classifier(self, name: str, source: Source) -> Teacher:
        """The network trained on the real data, "starter" or whatever `load_teacher` opens, for the source's classes."""
        key = (name, source.class_names)
        if key not in self._classifiers:
            path = REFERENCE if name == STARTER else name
            found = load_teacher(path, source.class_names, str(backbones.device_of(self.device)), offline=self.offline)
            self._classifiers[key] = replace(found, name=name)
        return self._classifiers[key]

    def inputs(self, task: Task) -> dict[str, Any]:
        """What a recipe only names: fingerprints of data, weights, classifier, captions and user code."""
        found = {"data": task.source.fingerprint(), "weights": self.weights_hash(task.backbone), **_code(task.recipe)}
        if task.classifier is not None:
            found["classifier"] = task.classifier.fingerprint
        if task.captions is not None:
            found["captions"] = sha256_of(check_captions(task.recipe.captions or ""))
        return found


def _classifier(method: Method, recipe: Recipe) -> str | None:
    """The name of the classifier that a method is to have, for `Workshop.classifier`; None for one that needs none.

    Raises:
        DapError: it is needed and there is none, or given and not needed.
    """
    if "classifier" not in method.needs:
        if recipe.classifier:
            raise DapError(f"Method {recipe.method!r} has no use for a classifier; leave out --classifier.")
        return None
    if recipe.classifier in (None, STARTER) and recipe.data.path == "fashion-mnist":
        return STARTER
    if recipe.classifier is None:
        raise DapError(
            f"Method {recipe.method!r} needs a network trained on the real data: make one with dap train-teacher "
            f"--data {recipe.data.path} --out FILE and give --classifier FILE, or give torchvision:NAME."
        )
    return recipe.classifier


def _captions(method: Method, recipe: Recipe) -> str | None:
    """The file of captions for a method; None for one that needs none.

    Raises:
        DapError: it is needed and not given, or given and not needed.
    """
    if "captions" not in method.needs:
        if recipe.captions:
            raise DapError(f"Method {recipe.method!r} has no use for captions; leave out --captions.")
        return None
    if recipe.captions is None:
        raise DapError(
            f"Method {recipe.method!r} needs captions of the real images: give --captions FILE, JSON lines of path and "
            f"caption; dap caption --data {recipe.data.path} --out FILE writes one."
        )
    return recipe.captions


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
        meter = Meter(made, method.needs, store)
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


def _code(recipe: Recipe) -> dict[str, str]:
    """sha256 of the user's own files that the recipe names as `file.py:Name`."""
    named = [
        recipe.method,
        recipe.guidance.kernel if recipe.guidance else "",
        recipe.backbone.path if recipe.backbone else "",
        *(value for value in recipe.options.values() if isinstance(value, str)),  # a network to match in
    ]
    files = [text.rpartition(":")[0] for text in named if text.rpartition(":")[0].endswith(".py")]
    return {f"code {file}": sha256_of(Path(file)) or "" for file in files}


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
