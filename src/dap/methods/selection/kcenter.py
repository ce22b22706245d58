"""K-Center: real images that cover their class."""

from __future__ import annotations

import torch
from torch import Tensor

from dap.methods.base import Task
from dap.methods.selection.herding import Selection


class KCenter(Selection):
    """Chooses the image nearest to the mean feature of the class, then repeatedly the image farthest from all chosen.

    This is the greedy two-approximation of the k-centre problem. The first centre is the one that the published tables
    of dataset distillation use.
    """

    reference = "Gonzalez 1985; Sener & Savarese, ICLR 2018; first centre as in Zhao, Mopuri & Bilen 2021"

    def grows(self, task: Task) -> bool:
        return type(self) is KCenter and task.options.pool is None  # a pool is drawn for a number of images

    @staticmethod
    def choose(features: Tensor, k: int) -> list[int]:
        chosen = [int((features - features.mean(0)).norm(dim=1).argmin())]
        nearest = torch.full((len(features),), torch.inf, dtype=features.dtype)
        while len(chosen) < k:
            nearest = torch.minimum(nearest, (features - features[chosen[-1]]).norm(dim=1))
            nearest[chosen] = -torch.inf  # an image that has duplicates is chosen once
            chosen.append(int(nearest.argmax()))
        return chosen
