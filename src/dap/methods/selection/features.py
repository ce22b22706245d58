"""The real images of a class that can be decoded, and their features in a classifier trained on the real data.

The selection methods choose among these images.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dap.base.errors import DapError
from dap.base.parsing import counted
from dap.base.seeding import seed_of
from dap.data.real.sources import Source
from dap.evaluation.training.labels import ClassifierLike
from dap.methods.base import Task

CHUNK = 512
"""Images that are decoded and embedded together."""


def class_features(task: Task, label: int, pool: int | None = None) -> tuple[Tensor, Tensor]:
    """The decodable images of a class as indices (n,), ascending, and their features (n, D), float32.

    Args:
        task: the task, whose classifier gives the features.
        label: label of the class.
        pool: how many images are drawn by the run seed, or all images of a smaller class; None: all images.

    Raises:
        DapError: fewer than ipc images can be decoded, features are not finite, or an error of `Source.readable`.
    """
    source, classifier, name = task.source, task.classifier, task.source.class_names[label]

    def make() -> dict[str, Tensor]:
        kept, found = [], []
        for indices, images in decodable(source, label, pool, seed_of(task.recipe.seed, name, "pool")):
            kept += indices
            found.append(classifier.features(images).cpu())
            check_finite(found[-1], classifier, "features", name)
        check_decoded(source, label, len(kept), task.recipe.ipc)
        order = torch.tensor(kept).argsort()
        return {"indices": torch.tensor(kept)[order], "features": torch.cat(found)[order]}

    # Without a pool the features are the same for every run seed. With a pool they belong to one run seed.
    drawn = {"seed": task.recipe.seed} if pool is not None else {}
    made = task.store.get(f"features of {name}", {"class": name, "pool": pool, **drawn}, make)
    check_decoded(source, label, len(made["indices"]), task.recipe.ipc)  # stored with another ipc
    check_finite(made["features"], classifier, "features", name)  # stored by an earlier version
    return made["indices"], made["features"]


def decodable(source: Source, label: int, n: int | None, seed: int) -> Iterator[tuple[list[int], Tensor]]:
    """Yield the decodable images of a class in chunks: their indices and the images (m, 3, size, size).

    Args:
        source: the source of the images.
        label: label of the class.
        n: how many images, in the order of `Source.good`, or all images of a smaller class. None: all, in their own
            order.
        seed: seed of the draw.

    Raises:
        DapError: an error of `Source.readable`.
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


def check_finite(values: Tensor, classifier: ClassifierLike, what: str, class_name: str) -> None:
    """Check what a classifier says of images. A comparison with a value that is no number is never true, so such values would
    choose images without a word.

    Args:
        values: what it says, one row an image.
        classifier: the classifier.
        what: "features" or "logits".
        class_name: the class of the images.

    Raises:
        DapError: a value is not finite.
    """
    bad = int((~values.flatten(1).isfinite().all(1)).sum())
    if bad:
        raise DapError(
            f"The classifier {classifier.name} gives {what} of {class_name!r} that are not finite, for {bad} of {len(values)} "
            "images. Give another --classifier."
        )


def check_pool(task: Task, pool: int | None) -> None:
    """Check that every class has enough images to choose from.

    Raises:
        DapError: a class or `pool` has fewer than ipc images.
    """
    ipc, source = task.recipe.ipc, task.source
    for label, name in enumerate(source.class_names):
        among = min(source.count(label), pool or source.count(label))
        if among < ipc:
            raise DapError(
                f"{counted(ipc, 'image')} of class {name!r} cannot be chosen among {among}; take a smaller ipc"
                f"{'' if pool is None or pool > source.count(label) else ' or a larger pool'}."
            )


def check_decoded(source: Source, label: int, found: int, wanted: int) -> None:
    """Check that enough images of a class can be decoded.

    Raises:
        DapError: `found` is smaller than `wanted`.
    """
    if found < wanted:
        raise DapError(
            f"Class {source.class_names[label]!r} of {source.name} has only {counted(found, 'decodable image')} of "
            f"{source.count(label)} to choose from, and {wanted} are needed; repair the broken ones or take a smaller ipc."
        )
