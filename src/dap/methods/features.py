"""Features of all real images of a class, in a classifier trained on them: what selection methods choose by."""

from __future__ import annotations

import torch
from torch import Tensor

from dap.errors import DapError
from dap.methods.base import Task
from dap.seeding import seed_of

CHUNK = 512
"""Images that are decoded and embedded together."""


def class_features(task: Task, label: int, pool: int | None = None) -> tuple[Tensor, Tensor]:
    """Indices (n,) of a class's decodable images and their features (n, D), float32.

    Args:
        task: with a classifier.
        label: of the class.
        pool: None for all images; else so many, drawn by the run seed.
    """
    source, classifier, name = task.source, task.classifier, task.source.class_names[label]
    assert classifier is not None

    def make() -> dict[str, Tensor]:
        total = source.count(label)
        wanted = list(range(total))
        if pool is not None and pool < total:
            wanted = sorted(source.good(label, pool, seed_of(task.recipe.seed, name, "pool")))
        kept, found = [], []
        for start in range(0, len(wanted), CHUNK):
            indices, images = source.readable(label, wanted[start : start + CHUNK])
            kept += indices
            found.append(classifier.features(images).cpu())
        return {"indices": torch.tensor(kept), "features": torch.cat(found)}

    # All images are the same for every set; a draw is its seed's own.
    drawn = {"seed": task.recipe.seed} if pool is not None else {}
    made = task.store.get(f"features of {name}", {"class": name, "pool": pool, **drawn}, make)
    return made["indices"], made["features"]


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
