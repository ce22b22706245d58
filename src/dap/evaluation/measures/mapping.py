"""The map of a set: synthetic and a few real features in few dimensions, for a joint t-SNE."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from dap.base.seeding import seed_of
from dap.evaluation.measures.measures import extract
from dap.evaluation.measures.rows import Table
from dap.evaluation.training.batches import Labelled, rows_of

MAPPED, MAPPED_IN_ALL, DIMENSIONS = 50, 5000, 50
"""The largest number of real images in each half of a map, of one class and of all; and how many dimensions the map has."""

BLOCK = 8192
"""How many features are put onto a map at once."""


def mapping(
    names: Sequence[str], pools: Sequence[Tensor], test: Labelled, extractor: Callable[[Tensor], Tensor]
) -> Mapping[str, Tensor]:
    """The map that real images span, by principal components.

    Args:
        names: the classes.
        pools: the features (m, D) of real training images of each class.
        test: real test images and labels.
        extractor: images -> features.

    Returns:
        For train and test the places (n, d) and the labels (n,) as `train_label` and `test_label`; and the mean (D,) and the
        axes (D, d), which put features onto the map.
    """
    each = min(MAPPED, max(MAPPED_IN_ALL // len(names), 1))
    chosen: list[Tensor] = []
    picked: list[Tensor] = []
    images, labels = test
    for label, name in enumerate(names):
        generator = torch.Generator().manual_seed(seed_of("map", name))
        pool, places = pools[label], (labels == label).nonzero()[:, 0]
        chosen.append(pool[torch.randperm(len(pool), generator=generator)[:each]])
        picked.append(places[torch.randperm(len(places), generator=generator)[:each]])
    parts = [extract(extractor, rows_of(images, rows)) for rows in torch.cat(picked).split(500)]
    train, held_out = torch.cat(chosen), torch.cat(parts).float()
    both = torch.cat([train, held_out])
    mean = both.mean(0)
    _, _, axes = torch.linalg.svd(both - mean, full_matrices=False)
    axes = axes[:DIMENSIONS].T
    # The sign of a singular vector is arbitrary. It is fixed here, so that the same data always give the same map.
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    train_label = torch.arange(len(names)).repeat_interleave(torch.tensor([len(part) for part in chosen]))
    real = {"train": (train - mean) @ axes, "test": (held_out - mean) @ axes}
    return {**real, "train_label": train_label, "test_label": labels[torch.cat(picked)], "mean": mean, "axes": axes}


def placed(features: Table, mapped: Mapping[str, Tensor]) -> Tensor:
    """The places (n, d) of features (n, D) on a map of `mapping`."""
    parts = features.split(BLOCK)  # pyright: ignore[reportCallIssue]
    return torch.cat([(part - mapped["mean"]) @ mapped["axes"] for part in parts])
