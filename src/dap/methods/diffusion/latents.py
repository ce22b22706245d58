"""Latents of real images of a class: what modes and prototypes are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from dap.base.errors import DapError
from dap.base.seeding import seed_of
from dap.methods.base import Task

CHUNK = 64
"""Real images that are read and encoded together."""


def check_reals(task: Task, reals: int) -> None:
    """Whether every class has an image for each slot.

    Raises:
        DapError: one has fewer real images, or `reals` is smaller, than ipc.
    """
    for label, name in enumerate(task.source.class_names):
        if min(task.source.count(label), reals) < task.recipe.ipc:
            raise DapError(
                f"{task.recipe.ipc} clusters of class {name!r} need as many real images; it has {task.source.count(label)}, "
                f"and reals is {reals}. Lower ipc, or raise reals."
            )


def class_latents(
    task: Task,
    name: str,
    reals: int,
    *,
    seed: int | None = None,
    flip: bool = False,
    among: Sequence[int] | None = None,
    least: int | None = None,
) -> tuple[list[int], Float[Tensor, "n c *spatial"]]:
    """Indices of a class's images, a draw by a seed and the class's name, and their latents on the CPU.

    Args:
        task: with a backbone.
        name: of the class.
        reals: at most so many.
        seed: of the draw; default: the run's.
        flip: mirror a random half of the images before they are encoded.
        among: indices to draw from; default: all of the class.
        least: how many are needed; default: ipc, for as many clusters.

    Raises:
        DapError: fewer than `least` of them can be decoded.
    """
    source, backbone, ipc = task.source, task.backbone, task.recipe.ipc
    label = source.class_names.index(name)
    seed = task.recipe.seed if seed is None else seed
    generator = torch.Generator().manual_seed(seed_of(seed, name, "reals"))
    pool = torch.arange(source.count(label)) if among is None else torch.tensor(among)
    drawn = pool[torch.randperm(len(pool), generator=generator)[:reals]]
    parts, kept = [], []
    for chunk in drawn.split(CHUNK):
        indices, images = source.readable(label, chunk.tolist())
        if flip:
            mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
            images = torch.where(mirrored, images.flip(3), images)
        if len(images):
            parts.append(backbone.encode(images.to(backbone.device)).float().cpu())
            kept += indices
        task.tell(f"latents of {name}", len(kept), len(drawn))
    if least is not None and len(kept) < least:
        raise DapError(f"Of {len(drawn)} images of class {name!r} only {len(kept)} can be decoded; repair them.")
    if least is None and len(kept) < ipc:
        raise DapError(
            f"{ipc} clusters of class {name!r} need as many real images, and of {len(drawn)} drawn only {len(kept)} can be "
            "decoded; repair them, lower ipc, or raise reals."
        )
    return kept, torch.cat(parts)
