"""Real images as they are: the baseline every distilled set has to beat."""

from __future__ import annotations

from collections.abc import Callable

from dap.base.seeding import seed_of
from dap.methods.base import Made, Method, Task, Unit
from dap.methods.selection.features import check_pool


class Random(Method):
    """A seeded uniform draw without replacement of ipc real images of each class (and not the first ipc file names)."""

    from_reals = True
    clips = True
    cost = "none"

    def grows(self, task: Task) -> bool:
        return type(self) is Random  # a subclass must say for itself that its images do not depend on ipc

    def prepare(self, task: Task) -> Callable[[Unit], Made]:
        recipe, source = task.recipe, task.source
        check_pool(task, None)

        def make(unit: Unit) -> Made:
            name = source.class_names[unit.label]
            drawn = source.good(unit.label, recipe.ipc, seed_of(recipe.seed, name, "random"))
            mine = [drawn[slot] for slot in unit.slots]
            keys = source.keys(unit.label, mine)
            return Made(source.images(unit.label, mine), [{"seed": recipe.seed, "real": key} for key in keys])

        return make
