"""Herding: real images whose mean feature follows the mean feature of their class."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor

from dap.methods import base
from dap.methods.base import Made, Method, Task, Unit
from dap.methods.selection.features import check_pool, class_features


class SelectionOptions(base.Options, frozen=True):
    """Options of methods that select real images by their features."""

    pool: int | None = Field(
        default=None,
        ge=1,
        description="Real images of each class to choose among, drawn by the run seed; all images of a smaller class. "
        "Default: all, "
        "as published. Then the choice is the same for every seed, so several sets are the same set and have no spread. With a "
        "pool the sets differ, but the method is another one: it chooses among fewer images, towards the mean of these.",
    )


class Selection(Method):
    """Chooses real images of each class by features of a classifier trained on the real data, before any augmentation.

    The choice is a function of the data and the classifier alone, unless a `pool` is drawn. An honest comparison keeps
    the default and gives the spread over trainings. How much the choice depends on the classifier shows with several
    classifiers, each trained with a seed of its own.
    """

    from_reals = True
    needs = frozenset({"classifier"})
    cost = "a classifier trained on all real data, and one pass over them"
    Options = SelectionOptions

    @staticmethod
    def choose(features: Tensor, k: int) -> list[int]:
        """Choose k rows of features (n, D), k <= n. The chosen rows are in the order of the slots."""
        raise NotImplementedError

    def prepare(self, task: Task) -> Callable[[Unit], Made]:
        recipe, source, options = task.recipe, task.source, task.options
        check_pool(task, options.pool)
        chosen: dict[int, list[int]] = {}

        def make(unit: Unit) -> Made:
            if unit.label not in chosen:
                indices, features = class_features(task, unit.label, options.pool)
                chosen[unit.label] = indices[self.choose(features.double(), recipe.ipc)].tolist()
            mine = [chosen[unit.label][slot] for slot in unit.slots]
            keys = source.keys(unit.label, mine)
            return Made(source.images(unit.label, mine), [{"seed": recipe.seed, "real": key} for key in keys])

        return make


class Herding(Selection):
    """Chooses real images one by one; each brings the mean feature of the chosen closest to the mean of the class."""

    reference = "Welling, ICML 2009; Rebuffi et al., CVPR 2017 (iCaRL); Castro et al., ECCV 2018"

    def grows(self, task: Task) -> bool:
        return type(self) is Herding and task.options.pool is None  # a pool is drawn for a number of images

    @staticmethod
    def choose(features: Tensor, k: int) -> list[int]:
        """argmin_x ||(i + 1) mean - sum of chosen - f(x)||, for i = 0 ... k - 1, without replacement."""
        mean, total = features.mean(0), torch.zeros_like(features[0])
        chosen: list[int] = []
        left = torch.ones(len(features), dtype=torch.bool)
        for i in range(k):
            distance = ((i + 1) * mean - total - features).norm(dim=1)
            nearest = int(distance.masked_fill(~left, torch.inf).argmin())
            left[nearest] = False
            chosen.append(nearest)
            total = total + features[nearest]
        return chosen
