"""What `dap distill` makes sure of while it runs: that images can be meant, and that its folder is still there."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from dap.base.errors import DapError
from dap.base.parsing import shown
from dap.base.seeding import seed_of
from dap.data.real.names import some
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.looks import CONSTANT, advice_for, check_of, doubts
from dap.methods.base import Made, Task, Unit

LOOKED_AT = 16
"""How many real images of a class tell what is usual."""


def looked_at(made: Made, unit: Unit, task: Task) -> Made:
    """The images of a unit; the record of an image that is probably nothing says so as `doubt`.

    Real images, whose record has `real`, are never doubted.

    Raises:
        DapError: a backbone gave only images of one colour, so that hours would be spent for nothing.
    """
    if any("real" in record for record in made.records) or not made.images.isfinite().all():
        return made  # `DistilledSet.add` refuses what is not finite
    found = doubts(made.images, lambda: _reals(task, unit.label))
    if task.given.backbone is not None and all(doubt == CONSTANT for doubt in found):
        name = task.source.class_names[unit.label]
        slots = f"slot {unit.slots[0]}" if len(unit.slots) == 1 else f"slots {unit.slots[0]} to {unit.slots[-1]}"
        raise DapError(
            f"The backbone {task.given.backbone.card.name} gave images of one colour for class {shown(name)!r}, {slots}. "
            "Something in it is damaged, such as an autoencoder whose weights are zero; look at it with "
            f"{check_of(task.recipe.backbone.path)}."
        )
    told = [{**record, "doubt": doubt} if doubt else record for record, doubt in zip(made.records, found, strict=True)]
    return replace(made, records=told)


def _reals(task: Task, label: int) -> Tensor | None:
    with suppress(DapError):  # a class whose images are broken is told elsewhere
        indices = task.source.good(label, LOOKED_AT, seed_of("looks", task.source.class_names[label]), least=1)
        return task.source.images(label, indices)
    return None


def told_doubts(made: DistilledSet) -> str:
    """Sentences on the images whose record says `doubt`, and on those of a class that are the same, with class and slot; "" where
    there is none."""
    return " ".join(filter(None, [_nothings(made), _twins(made)]))


def _nothings(made: DistilledSet) -> str:
    found = [record for record in made.records if record.get("doubt")]
    if not found:
        return ""
    first = "; ".join(f"{shown(r['class_name'])!r}, slot {r['slot']}: {r['doubt']}" for r in found[:5])
    more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
    return (
        f"Warning: {len(found)} of {len(made)} images are probably no images of anything ({first}{more}). "
        f"Look at them before you use them. What may help: {advice_for(made.recipe)}."
    )


def _twins(made: DistilledSet) -> str:
    alike = dict[tuple[str, str], list[int]]()
    for record in made.records:
        alike.setdefault((record["class_name"], record["sha256"]), []).append(record["slot"])
    found = [(name, slots) for (name, _), slots in alike.items() if len(slots) > 1]
    if not found:
        return ""
    first = [f"{shown(name)!r}, slots {some(map(str, sorted(slots)), 5)}" for name, slots in found[:3]]
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    return (
        f"Warning: {sum(len(slots) for _, slots in found)} of {len(made)} images are the same as another one of their class "
        f"({'; '.join(first)}{more}). The real images of the class may be duplicates: remove these, or take a smaller --ipc."
    )


def check_still_there(out: Path) -> None:
    """Raise `DapError` if the folder of the set was removed or emptied while the set is made."""
    if absent := [name for name in ("recipe.json", "inputs.json", "classes.json") if not (out / name).is_file()]:
        raise DapError(
            f"{out} has lost its {absent[0]}: something removed or emptied the folder while the set was made. Remove what is "
            "left of it, and run the same command again."
        )
