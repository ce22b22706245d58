"""The images of a set as a torch `Dataset` with transforms, weights and soft labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dap.base.errors import DapError
from dap.base.parsing import counted


class Samples(Dataset[dict[str, Any]]):
    """The images of a set one by one, as mappings that a `DataLoader` collates.

    A sample has `image`, what the transform made of (3, h, w) float32 in [0, 1]; `label`; `weight` where all images of the set
    have one; and `logits` (classes,), where there are soft labels: their softmax is the soft label.

    Args:
        made: the set, or any dataset of pairs of image and label that has `records`.
        transform: a function of an image (3, h, w), such as one of torchvision.transforms.v2.
        logits: soft labels (n, classes) in the order of the records.

    Raises:
        DapError: the soft labels are not one row for each image, with a number for each class of the set.
    """

    def __init__(
        self, made: Any, transform: Callable[[Tensor], Any] | None = None, logits: Tensor | None = None
    ) -> None:
        weights = [line.get("weight") for line in made.records]
        self.weights = None if not weights or None in weights else torch.tensor(weights, dtype=torch.float32)
        """How much of its class each image stands for, (n,); None where not all images have a weight."""
        if logits is not None and (logits.ndim != 2 or len(logits) != len(made)):
            raise DapError(
                f"Soft labels are a row for each of the {counted(len(made), 'image')}, not {tuple(logits.shape)}."
            )
        names = getattr(made, "class_names", None)
        if logits is not None and names is not None and logits.shape[1] != len(names):
            raise DapError(
                f"Soft labels of this set have a number for each of its {counted(len(names), 'class')}, not {logits.shape[1]}."
            )
        self.made, self.transform, self.logits = made, transform, logits

    def __len__(self) -> int:
        return len(self.made)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = self.made[index]
        sample = {"image": image if self.transform is None else self.transform(image), "label": label}
        sample |= {} if self.weights is None else {"weight": self.weights[index]}
        return sample | ({} if self.logits is None else {"logits": self.logits[index]})
