"""What a set says of how it was made, beside its recipe: versions, machine, command and the dataset card."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dap.data.real.sizes import noun
from dap.data.sets.cards import IMAGES, USE, USE_CLIPS, card, cell, clips_told, licence_fields, size_category
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.notes import whole_note
from dap.methods.base import Task


def versions(threads: int | None = None) -> dict[str, str]:
    """The versions of Python and of the packages that decide the bytes, the platform, the CPU threads and instructions.

    Args:
        threads: the CPU threads of the processes that make the images. Default: those of this process.
    """
    packages = ("diffusion-as-priors", "torch", "torchvision", "diffusers", "transformers", "numpy", "pillow")
    found = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": str(threads or torch.get_num_threads()),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }
    return found | {name: version(name) for name in packages}


def other_machine(folder: Path, device: torch.device, threads: int | None = None) -> str | None:
    """A sentence if a set was begun with other CPU threads or instructions than this process has; None where nothing differs.

    Args:
        folder: the folder of the set.
        device: where the images are made. On a GPU the CPU does not decide what is sampled.
        threads: as for `versions`.
    """
    said = whole_note(folder, "env.json").get("versions") if folder.is_dir() else None
    if device.type != "cpu" or not isinstance(said, Mapping):
        return None
    here, what = versions(threads), {"threads": "CPU threads", "instructions": "instructions of the CPU"}
    changed = [
        f"{said[name]} {word}, and here it has {here[name]}"
        for name, word in what.items()
        if name in said and said[name] != here[name]
    ]
    if not changed:
        return None
    return (
        f"Warning: {folder} was begun with {'; and '.join(changed)}. A pixel of an image that is made here may differ by one "
        "from what the first machine would have made; take the same --threads for the same bytes."
    )


def describe(made: DistilledSet, task: Task, command: str | None, said: Mapping[str, Any], threads: int | None) -> None:
    """Write env.json and command.txt where the set has none, and the dataset card.

    Args:
        made: the set.
        task: what it is made of.
        command: the shell command to record.
        said: more for env.json; numbers, of which those that are not finite are left out.
        threads: as for `versions`.
    """
    backbone, recipe, kind = task.given.backbone, task.recipe, noun(made.frames)
    if made.noted("env.json") is None:
        device = str(backbone.device if backbone else task.device)
        more = {name: round(value, 3) for name, value in said.items() if value is not None and math.isfinite(value)}
        inputs = made.noted("inputs.json") or {}
        made.note("env.json", {"versions": versions(threads), "device": device, **inputs, **more})
    if command and not (made.path / "command.txt").exists():
        made.note("command.txt", command + "\n")
    data_licence = task.source.licence or "unknown; ask whoever gave you the data"
    weights = f"{backbone.card.name} ({backbone.card.licence})" if backbone else f"none; these are real {kind}s"
    classes = ", ".join(map(cell, made.class_names[:50]))
    front: dict[str, Any] = {
        "task_categories": ["image-classification" if made.frames is None else "video-classification"],
        "size_categories": [size_category(len(made.class_names) * recipe.ipc)],
        "tags": ["dataset-distillation", "synthetic"],
    }
    front |= licence_fields(data_licence, *((backbone.card.name, backbone.card.licence) if backbone else ()))
    made.note(
        "README.md",
        card(
            {**front, **IMAGES},
            f"""# Distilled {Path(recipe.data.path).name}, {recipe.ipc} {kind}s per class, by `{recipe.method}`

Made by diffusion-as-priors {version("diffusion-as-priors")}; `recipe.json` is what made it, `manifest.jsonl` holds the seed
and sha256 of every {kind}, `env.json` the versions and the hash of the weights.{clips_told(made.frames)}

| | |
|---|---|
| classes, in label order | {classes} |
| real data | {task.source.name} |
| licence of the data | {data_licence} |
| backbone and its licence | {weights} |

{USE if made.frames is None else USE_CLIPS}

What may be done with these {kind}s follows from both licences. Synthetic {kind}s can resemble real ones of the training
data; look before you publish a set made from private {kind}s.
""",
        ),
    )
