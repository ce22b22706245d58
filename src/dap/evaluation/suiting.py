"""The size, mean and standard deviation with which images are judged belong to the data, not to the protocol.

The protocols for small images (`small-hard`, `quick-hard`, `quick-soft`, `small-hard-dsa`, `reference`) state the values of
Fashion-MNIST.
Other data are judged at the size of their own sets, with the mean and the standard deviation of their own training images.
This holds for opened sources too. Test images in memory have no training images beside them, so the mean and the standard
deviation stay there, and a warning says so.
What is taken from the data stands in the name of the protocol, as if it had been given with `--set`, and in its record, so
trials of other values are never taken for the same. Protocols with other values, such as those of ImageNet, stay as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch

from dap.base.seeding import seed_of
from dap.data.real.base import Source
from dap.data.sets.distilled import DistilledSet
from dap.evaluation.training.protocol import Protocol

log = logging.getLogger("dap")

VALUES = (0.2861, 0.3530)
"""Mean and standard deviation of Fashion-MNIST, by which such a protocol is known."""
SIZE = 32
"""The size of such a protocol."""
SMALLEST, LARGEST = 16, 128
"""The sizes for which such a protocol is made. Other images are judged at the protocol's own size."""
READ = 5000
"""How many training images are read, at most, for the mean and the standard deviation; of each class equally many."""


def suited_size(protocol: Protocol, given: Mapping[str, Any], side: int | None) -> dict[str, Any]:
    """The size at which sets of this side are judged, if it is not the protocol's own.

    Args:
        protocol: the protocol.
        given: fields that the user gave. They stay.
        side: the side of the images of the set in px; None where they have no common side.
    """
    if not _of_embedded(protocol) or "size" in given or protocol.size != SIZE or side in (None, SIZE):
        return {}
    if side is None or not SMALLEST <= side <= LARGEST:
        log.warning(
            "images of %s px are judged at %d px, the size of %s; --set size=N takes another",
            side, protocol.size, protocol.name,
        )  # fmt: skip
        return {}
    return {"size": side}


def suited_values(protocol: Protocol, given: Mapping[str, Any], source: Callable[[], Source]) -> dict[str, Any]:
    """The mean and the standard deviation of each channel of the training images, if they are not the protocol's own.

    Args:
        protocol: the protocol.
        given: fields that the user gave. They stay.
        source: opens the training images, at the size of the protocol. It is called where their values are wanted.

    Raises:
        DapError: the images of a class cannot be decoded.
    """
    if not takes_values(protocol, given):
        return {}
    opened = source()
    each = max(1, READ // len(opened.class_names))
    total, squares, count = torch.zeros(3).double(), torch.zeros(3).double(), 0
    for label, name in enumerate(opened.class_names):
        chosen = opened.good(label, min(each, opened.count(label)), seed_of("normalisation", name), least=1)
        for start in range(0, len(chosen), 500):
            images = opened.images(label, chosen[start : start + 500]).double().transpose(0, 1).flatten(1)
            total += images.sum(1)
            squares += images.square().sum(1)
            count += images.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt().clamp_min(0.001)  # images of one colour have none
    return {"mean": [round(v, 4) for v in mean.tolist()], "std": [round(v, 4) for v in std.tolist()]}


def takes_values(protocol: Protocol, given: Mapping[str, Any]) -> bool:
    """Whether such a protocol takes its mean and standard deviation from the data, see `suited_values`."""
    return _of_embedded(protocol) and not {"mean", "std"} & set(given)


def side_of(judged: DistilledSet) -> int | None:
    """The side of the images of a set in px, as the heads of a few files say it; None where it is not one."""
    from dap.data.real.sizes import size_of

    records = judged.records
    sides: set[tuple[int, int]] = set()
    for record in records[:: max(1, len(records) // 50)]:
        if (side := size_of(judged.path / record["path"])) is None:
            return None  # judging names the broken file
        sides.add(side)
    width, height = next(iter(sides)) if len(sides) == 1 else (0, -1)
    return width if width == height else None


def _of_embedded(protocol: Protocol) -> bool:
    """Whether the protocol states the values of the embedded data."""
    return (set(protocol.mean), set(protocol.std)) == ({VALUES[0]}, {VALUES[1]})
