"""Real images of a class that can be decoded, and their features in a classifier trained on them: what is selected from."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dap.base.errors import DapError
from dap.base.seeding import seed_of
from dap.data.real.sources import Source
from dap.methods.base import Task

CHUNK = 512
"""Images that are decoded and embedded together."""


def class_features(task: Task, label: int, pool: int | None = None) -> tuple[Tensor, Tensor]:
    """Indices (n,), ascending, of a class's decodable images and their features (n, D), float32.

    Args:
        task: with a classifier.
        label: of the class.
        pool: None for all images; else so many, drawn by the run seed, or all if there are no more.

    Raises:
        DapError: fewer than ipc of them can be decoded, or as `Source.readable`.
    """
    source, classifier, name = task.source, task.classifier, task.source.class_names[label]

    def make() -> dict[str, Tensor]:
        kept, found = [], []
        for indices, images in decodable(source, label, pool, seed_of(task.recipe.seed, name, "pool")):
            kept += indices
            found.append(classifier.features(images).cpu())
        check_decoded(source, label, len(kept), task.recipe.ipc)
        order = torch.tensor(kept).argsort()
        return {"indices": torch.tensor(kept)[order], "features": torch.cat(found)[order]}

    # All images are the same for every set; a draw is its seed's own.
    drawn = {"seed": task.recipe.seed} if pool is not None else {}
    made = task.store.get(f"features of {name}", {"class": name, "pool": pool, **drawn}, make)
    check_decoded(source, label, len(made["indices"]), task.recipe.ipc)  # another ipc may have made them
    return made["indices"], made["features"]


def decodable(source: Source, label: int, n: int | None, seed: int) -> Iterator[tuple[list[int], Tensor]]:
    """Indices of decodable images of a class and the images (m, 3, size, size), in chunks.

    Args:
        source: of the images.
        label: of the class.
        n: None for all images in their order; else so many in the order of `Source.good`, or all if there are no more.
        seed: of the draw.

    Raises:
        DapError: as `Source.readable`.
    """
    total = source.count(label)
    order = list(range(total))
    if n is not None:
        order = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).tolist()
    missing, start = total if n is None else n, 0
    while missing and start < total:
        wanted = order[start : start + min(CHUNK, missing)]
        indices, images = source.readable(label, wanted)
        if indices:
            yield indices, images
        missing, start = missing - len(indices), start + len(wanted)


def check_pool(task: Task, pool: int | None) -> None:
    """Whether every class has enough images to choose from.

    Raises:
        DapError: fewer than ipc.
    """
    ipc, source = task.recipe.ipc, task.source
    for label, name in enumerate(source.class_names):
        among = min(source.count(label), pool or source.count(label))
        if among < ipc:
            raise DapError(
                f"{ipc} images of class {name!r} cannot be chosen among {among}; take a smaller ipc or a larger pool."
            )


def check_decoded(source: Source, label: int, found: int, wanted: int) -> None:
    """Whether the broken images leave enough.

    Raises:
        DapError: they do not.
    """
    if found < wanted:
        raise DapError(
            f"Class {source.class_names[label]!r} of {source.name} has only {found} decodable images of "
            f"{source.count(label)} to choose from, and {wanted} are needed; repair the broken ones or take a smaller ipc."
        )
