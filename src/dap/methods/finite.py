"""Units whose images are no numbers: they are made again in float32, and if that does not help they are recorded as failed.

float16 ends at 65504. A network that was trained in float32 can leave this range for one class, one noise or one push, and every
value after it is infinite or no number. The same unit is then made once more, from the same seeds, by the same weights computed
in float32. A unit that is not finite there either has failed. The others are made, and the run ends with a sentence.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from dap.base.errors import DapError, NotFinite
from dap.base.files import append
from dap.base.parsing import counted, shown
from dap.base.store import Store
from dap.data.real.clips.pictures import shape_of
from dap.data.sets.contents import FAILED, new_line
from dap.data.sets.looks import advice_for
from dap.methods.base import Made, Method, Task, Unit

log = logging.getLogger("dap")

ENOUGH = 3
"""If so many units have failed and none was made, the run ends: the cause then lies in what all units share."""


OVERSHOOT = 0.25
"""How far outside of [0, 1] a value may be that a decoder overshoots. Images beyond it have another scale."""

HALF = 0.5 / 255
"""How far outside of [0, 1] a value may be so that its byte is still the nearest one."""


def finite(method: Method, task: Task) -> Callable[[Unit], Made]:
    """The function that makes a unit, as `method.prepare(task)` gives it, whose images are numbers.

    A unit that is not finite is made again in float32 where the backbone computes in float16. The records of its images then say
    `dtype: float32`. What the retries have of real images and of earlier work is made anew in float32, so the bytes of a unit
    depend on no other unit.

    Raises:
        DapError: by the function: what the method gives is no `Made` of the unit, or its images have another scale than [0, 1].
        NotFinite: by the function: the images are not finite in float32 either, or there is no float16 to leave.
    """
    make = _checked(method.prepare(task), task)
    again: list[Callable[[Unit], Made]] = []

    def twice(unit: Unit) -> Made:
        try:
            return make(unit)
        except NotFinite:
            if task.given.backbone is None:
                raise
            with task.given.backbone.widened() as wider:
                if not wider:
                    raise
                if not again:
                    log.warning(
                        "%s leaves the range of float16; the units that do so are made again in float32",
                        shown(task.given.backbone.card.name),
                    )
                    again.append(_checked(method.prepare(_in_float32(task)), task))
                made = again[0](unit)
        return replace(made, records=[{**record, "dtype": "float32"} for record in made.records])

    return twice


def _in_float32(task: Task) -> Task:
    before = task.store
    store = Store(before.folder, {**before.inputs, "dtype": "float32"}, before.every, before.hold, before.cache)
    # The cache of real features goes by the hash of the weights, which a backbone whose parts are offloaded has kept from before.
    return replace(task, store=store, cache=None)


def _checked(make: Callable[[Unit], Made], task: Task) -> Callable[[Unit], Made]:
    told: list[str] = []

    def checked(unit: Unit) -> Made:
        made = make(unit)
        check_made(made, unit, task)
        if not made.images.isfinite().all():
            raise NotFinite("The finished images hold values that are no numbers", advice_for(task.recipe.values()))
        low, high = made.images.min().item(), made.images.max().item()
        if (outside := max(-low, high - 1)) > OVERSHOOT:
            raise DapError(
                f"The method {task.recipe.method} gives images whose values run from {low:.3g} to {high:.3g}; they should be in "
                f"[0, 1]. {_scaled(low, high)}"
            )
        if outside > HALF and not told:
            told.append(task.recipe.method)
            log.warning(
                "%s gives images whose values run from %.3g to %.3g; what is outside of [0, 1] is cut off",
                *told,
                low,
                high,
            )
        return made

    return checked


def _scaled(low: float, high: float) -> str:
    if high > 100:
        return "Divide bytes by 255."
    if low < -OVERSHOOT:
        return "Images in [-1, 1] become x / 2 + 0.5; of normalised ones undo the normalisation; and clamp(0, 1) what overshoots."
    return "Divide them by their largest value, or clamp(0, 1) what overshoots."


def check_made(made: Any, unit: Unit, task: Task) -> None:
    """Check what a method gives for a unit: its type, the number, size and kind of the images, and their records.

    Raises:
        DapError: something else than a `Made` of this unit; the message names the method.
    """
    said, slots = f"The method {task.recipe.method}", counted(len(unit.slots), "image")
    wanted = (len(unit.slots), *shape_of(task.source.frames, task.source.size))
    if not isinstance(made, Made):
        raise DapError(f"{said} gives a {type(made).__name__} for a unit; give a dap.methods.Made(images, records).")
    images, records = made.images, made.records
    if not isinstance(images, Tensor):
        raise DapError(f"{said} gives images as a {type(images).__name__}; give one float tensor of shape {wanted}.")
    if not images.is_floating_point():
        raise DapError(f"{said} gives images of {images.dtype}; give floats in [0, 1], such as images.float() / 255.")
    if tuple(images.shape) != wanted:
        raise DapError(
            f"{said} gives images of shape {tuple(images.shape)} for {slots} of class "
            f"{shown(task.source.class_names[unit.label])!r}; the set has {wanted}."
        )
    if not isinstance(records, (list, tuple)) or not all(isinstance(record, Mapping) for record in records):
        raise DapError(f"{said} gives records that are no list of mappings; give one mapping an image, such as {{}}.")
    if len(records) != len(unit.slots):
        raise DapError(f"{said} gives {counted(len(records), 'record')} for {slots}; give one an image.")
    for slot, record in zip(unit.slots, records, strict=True):
        try:
            new_line("images/0.png", unit.label, task.source.class_names[unit.label], slot, "0" * 64, record)
        except DapError as error:
            raise DapError(f"{said} gives a record that cannot be kept. {error}") from error


def tried(make: Callable[[Unit], Made], unit: Unit) -> Made | NotFinite:
    """The images of a unit, or why they are not finite."""
    try:
        return make(unit)
    except NotFinite as error:
        return error


def forget(out: Path) -> None:
    """Remove what an earlier run recorded in a set, because its units are tried again."""
    (out / FAILED).unlink(missing_ok=True)


@dataclass
class Failures:
    """The units of a run that failed.

    Attributes:
        out: the folder of the set.
        class_names: the classes, in label order.
        recipe: the resolved recipe, for advice.
        made: whether any unit of this run was made. The caller says so.
    """

    out: Path
    class_names: Sequence[str]
    recipe: Mapping[str, Any]
    made: bool = False
    found: list[tuple[Unit, NotFinite]] = field(default_factory=list)

    def add(self, unit: Unit, error: NotFinite) -> None:
        """Record a unit as failed.

        Raises:
            DapError: `ENOUGH` units have failed and none was made.
        """
        said = {"label": unit.label, "class_name": self.class_names[unit.label], "slots": list(unit.slots)}
        append(self.out / FAILED, json.dumps({**said, "reason": error.reason}) + "\n")
        self.found.append((unit, error))
        if len(self.found) >= ENOUGH and not self.made:
            raise DapError(f"{self._said()} No unit was made, so the run ends here. {self._advice()}")

    def check(self) -> None:
        """Raise `DapError` if a unit has failed. The message names the images and says what to do."""
        if self.found:
            raise DapError(f"{self._said()} All others are made. {self._advice()}")

    def _said(self) -> str:
        each = []
        for unit, error in self.found:
            slots = f"slot{'s' * (len(unit.slots) > 1)} {_span(unit.slots)}"
            each.append(f"class {shown(self.class_names[unit.label])!r}, {slots}: {error.reason}")
        more = f"; and {len(each) - 5} more units" if len(each) > 5 else ""
        count = sum(len(unit.slots) for unit, _ in self.found)
        failed = f"{counted(count, 'image')} {'has' if count == 1 else 'have'} failed"
        return f"{failed} in {self.out} ({'; '.join(each[:5])}{more}), and {FAILED} there lists them."

    def _advice(self) -> str:
        whole = {**self.recipe, "backbone": {**(self.recipe.get("backbone") or {}), "dtype": "float32"}}
        known = self.recipe if self.recipe.get("backbone") is None else whole
        last = self.found[-1][1].advice if self.recipe.get("backbone") is None else advice_for(known)
        return f"What may help: {last}; then give another --out."


def _span(slots: Sequence[int]) -> str:
    return str(slots[0]) if len(slots) == 1 else f"{slots[0]} to {slots[-1]}"
