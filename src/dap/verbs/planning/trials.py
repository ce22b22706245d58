"""Trials of a method with few steps, which tell the time of a set by that of a step.

A trial makes a unit of the first class with very few steps of sampling and of refinement, and once more with a few more of each.
The differences are the time of a step. So the time of the whole run follows, whatever the backbone and the machine are.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from dap.base.devices.waiting import wait_for
from dap.base.store import Store
from dap.cost import forget_peak_memory
from dap.data.real.decode import encode_png
from dap.methods.base import Method, Task, Unit
from dap.verbs.planning.rates import Rate

FEW, MORE = 2, 6
"""Steps of the trials. A solver needs two."""


@dataclass(frozen=True)
class Paces:
    """The seconds of a set by its numbers of steps.

    Attributes:
        once: the seconds of what is done once a class, for all classes.
        unit: the seconds of all units with `FEW` steps of sampling and one more of refinement.
        sampling, refining: the seconds of one more step of sampling, or of refinement, for all units.
        steps, refined: the numbers of steps that the recipe has.
    """

    once: float
    unit: float
    sampling: float
    refining: float
    steps: int
    refined: int

    def seconds(self, steps: int | None = None, refined: int | None = None) -> float:
        """The seconds of the set with these numbers of steps, or those of the recipe."""
        steps, refined = self.steps if steps is None else steps, self.refined if refined is None else refined
        return self.once + self.unit + max(steps - FEW, 0) * self.sampling + max(refined - FEW - 1, 0) * self.refining

    def line(self, of: Literal["sampling", "refining"]) -> Rate:
        """The seconds of the set as a line in its number of steps of sampling, or of refinement."""
        if of == "sampling":
            return Rate(self.seconds(steps=FEW) - FEW * self.sampling, self.sampling)
        return Rate(self.seconds(refined=FEW + 1) - (FEW + 1) * self.refining, self.refining)


class Trials:
    """Trials of a method with few steps."""

    def __init__(self, method: Method, task: Task, folder: Path) -> None:
        self.method, self.task, self.folder = method, task, folder
        self.device = task.given.backbone.device if task.given.backbone else task.device
        self.bytes_each = 0.0
        forget_peak_memory(self.device)

    def paces(self, units: Sequence[Unit]) -> Paces:
        """What these units take by their numbers of steps.

        The first trial does what is done once a class, such as encoding real images. The others find that in the store, so their
        differences are those of the steps alone.
        """
        run = self.task.recipe.run
        steps = run.sampling.steps if run else 0
        refined = run.refine.steps if run and run.refine else 0
        block = max(len(unit.slots) for unit in units)
        self.timed(FEW, min(FEW, refined), min(block, 2), "warm")
        first, _ = self.timed(FEW, min(FEW, refined), block, "trial")
        base, later = self.timed(FEW, min(FEW + 1, refined), block, "trial")
        more, most = min(MORE, steps), min(2 * MORE, refined)
        sampling = refining = 0.0
        if more > FEW:
            sampling = max((self.timed(more, min(FEW + 1, refined), block, "trial")[0] - base) / (more - FEW), 0)
        if most > FEW + 1:
            refining = max((self.timed(FEW, most, block, "trial")[0] - base) / (most - FEW - 1), 0)
        one_more = refining * (min(FEW + 1, refined) - min(FEW, refined))  # the first trial has one step less
        once = max(first + one_more - later, 0.0) * len({unit.label for unit in units})
        share = sum(len(unit.slots) for unit in units) / block
        return Paces(once, later * share, sampling * share, refining * share, steps, refined)

    def timed(self, steps: int, refined: int, block: int, store: str) -> tuple[float, float]:
        """The seconds of the first unit of a class, and of the next one. The second is that of the first where all images of a
        class are one unit."""
        recipe = self.task.recipe
        if recipe.run is not None:
            refine = recipe.run.refine and recipe.run.refine.model_copy(update={"steps": refined})
            sampling = recipe.run.sampling.model_copy(update={"steps": steps})
            recipe = recipe.model_copy(
                update={"run": recipe.run.model_copy(update={"sampling": sampling, "refine": refine})}
            )
        kept, taken = Store(self.folder / store, self.task.store.inputs), list[float]()
        logging.disable(logging.WARNING)  # what a run of so few steps warns of is not what the user asked for
        try:
            make = self.method.prepare(replace(self.task, recipe=recipe, store=kept, cache=None))
            for start in (0, block) if 2 * block <= recipe.ipc else (0,):
                began = time.perf_counter()
                made = make(Unit(0, tuple(range(start, start + block))))
                wait_for(self.device)
                taken.append(time.perf_counter() - began)
                self.bytes_each = _png_bytes(made.images)
        finally:
            logging.disable(logging.NOTSET)
        return taken[0], taken[-1]


def _png_bytes(images: Tensor) -> float:
    """The mean size of these images as PNG files, with their lines in the manifest."""
    pixels = images.nan_to_num().clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return sum(len(encode_png(one)) + 400 for one in pixels) / len(pixels)
