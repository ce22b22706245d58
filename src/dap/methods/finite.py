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

from dap.base.errors import DapError, NotFinite
from dap.base.files import append
from dap.base.parsing import counted, shown
from dap.base.store import Store
from dap.data.sets.contents import FAILED
from dap.data.sets.looks import advice_for
from dap.methods.base import Made, Method, Task, Unit

log = logging.getLogger("dap")

ENOUGH = 3
"""If so many units have failed and none was made, the run ends: the cause then lies in what all units share."""


def finite(method: Method, task: Task) -> Callable[[Unit], Made]:
    """The function that makes a unit, as `method.prepare(task)` gives it, whose images are numbers.

    A unit that is not finite is made again in float32 where the backbone computes in float16. The records of its images then say
    `dtype: float32`. What the retries have of real images and of earlier work is made anew in float32, so the bytes of a unit
    depend on no other unit.

    Raises:
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
    def checked(unit: Unit) -> Made:
        made = make(unit)
        if not made.images.isfinite().all():
            raise NotFinite("The finished images hold values that are no numbers", advice_for(task.recipe.values()))
        return made

    return checked


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
