"""Latents of the real images of a class. Modes and prototypes are made of these latents."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from dap.base.errors import DapError
from dap.base.parsing import counted
from dap.base.seeding import seed_of
from dap.methods.base import Task

log = logging.getLogger("dap")

CHUNK = 64
"""Real images that are read and encoded together."""


def check_reals(task: Task, reals: int) -> None:
    """Check that every class has at least one real image for each slot.

    Args:
        task: names the source and ipc.
        reals: how many real images of each class are used at most.

    Raises:
        DapError: a class has fewer real images than ipc, or `reals` is smaller than ipc.
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
    """Draw real images of a class and encode them. The draw depends on the seed and the class's name.

    Args:
        task: the task, whose backbone encodes the images.
        name: name of the class.
        reals: how many images are drawn at most.
        seed: seed of the draw; default: the run seed.
        flip: mirror each image with probability 1/2 before the image is encoded.
        among: the indices to draw from; default: all images of the class.
        least: how many images are needed; default: ipc, because ipc clusters need as many images.

    Returns:
        The indices of the images that can be decoded, and their latents, float32 on the CPU.

    Raises:
        DapError: fewer than `least` of the drawn images can be decoded.
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
        raise DapError(
            f"Of {counted(len(drawn), 'image')} of class {name!r} only {len(kept)} can be decoded; repair them."
        )
    if least is None and len(kept) < ipc:
        raise DapError(
            f"{ipc} clusters of class {name!r} need as many real images, and of {len(drawn)} drawn only {len(kept)} can be "
            "decoded; repair them, lower ipc, or raise reals."
        )
    return kept, torch.cat(parts)


@contextmanager
def duplicates_told(
    points: Float[Tensor, "n d"],
    k: int,
    name: str,
    why: str = "centres that are asked for, so some centres are the same",
) -> Iterator[None]:
    """Say, once a call, that fewer points than k differ, and keep scikit-learn's own warning of it away while the block runs.

    Args:
        points: the latents of real images, one a row.
        k: how many different ones are needed.
        name: the class; "" for none.
        why: what needs them, and what follows.
    """
    from sklearn.exceptions import ConvergenceWarning

    if (distinct := len(points.unique(dim=0))) < k:
        of = f" of class {name!r}" if name else ""
        log.warning(
            f"Of {counted(len(points), 'real image')}{of} only {distinct} differ{'s' * (distinct == 1)}, fewer than the "
            f"{k} {why}. Remove the duplicates, or take a smaller --ipc."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield
