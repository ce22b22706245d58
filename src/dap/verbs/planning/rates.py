"""What a piece of a method's work takes on this machine, by a time test of seconds on a few of the real images."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dap.base.devices.waiting import wait_for
from dap.base.seeding import seed_of
from dap.base.store import Store
from dap.data.real.counts import total_of
from dap.data.real.memory import MemorySource
from dap.methods.base import Method, Task, Unit
from dap.methods.matching.dc import Dc, loops

CLASSES = 4
"""How many classes a time test of iterations has. The time of an iteration goes with their number."""
SEEN = 4
"""How many real images of each of them are decoded. They are repeated as often as an iteration wants images."""
TRIED = 3
"""Iterations of a trial, of which the first does not count."""
ENOUGH = 15.0
"""After so many seconds a trial ends, however few iterations it has done."""


@dataclass(frozen=True)
class Rate:
    """Seconds of work as a line in the number of its pieces.

    Attributes:
        once: the seconds that the work takes beside its pieces.
        each: the seconds of a piece.
    """

    once: float
    each: float

    def seconds(self, pieces: int) -> float:
        """The seconds of so many pieces."""
        return self.once + self.each * pieces

    def pieces(self, seconds: float) -> int:
        """How many pieces fit into these seconds; 0 if none does."""
        return max(math.floor((seconds - self.once) / self.each), 0) if self.each > 0 else 10**9


class _Enough(Exception):
    """Ends a trial."""


def of_iterations(method: Method, task: Task) -> Rate:
    """The rate of a method of `methods.matching`: what all iterations take beside each other, and one of them.

    The trial optimises `CLASSES` classes of stand-ins: a few real images, repeated. Nothing of it is kept.

    Args:
        method: the method.
        task: its task, whose source is read. Its options say how large an iteration is.
    """
    options = task.options
    few, decoding = _stand_ins(task, max(options.real_batch, task.recipe.ipc))
    share = len(task.source.class_names) / len(few.class_names)

    def each(**changes: int) -> float:
        return _iteration(method, task, few, changes) * share

    if not isinstance(method, Dc):
        return Rate(decoding, each())
    # An iteration of DC may take minutes. It is `outer` steps on the pixels, with `inner` epochs of training between two of them.
    outer, inner = loops(task.recipe.ipc, options)
    step = each(outer=1, inner=0)
    epoch = max(each(outer=2, inner=1) - 2 * step, 0.0) if outer > 1 and inner else 0.0
    return Rate(decoding, outer * step + (outer - 1) * inner * epoch)


def _iteration(method: Method, task: Task, few: MemorySource, changes: Mapping[str, int]) -> float:
    """The seconds of an iteration on stand-ins, with some options changed."""
    marks = [time.perf_counter()]

    def tell(what: str, done: int, total: int) -> None:
        del what, done, total
        wait_for(task.device)
        marks.append(time.perf_counter())
        if marks[-1] - marks[0] > ENOUGH:
            raise _Enough

    said = {"iterations": TRIED, **changes}
    recipe = task.recipe.model_copy(update={"options": {**task.recipe.options, **said}})
    options = task.options.model_copy(update=said)
    small = replace(task, recipe=recipe, source=few, options=options, store=Store(), tell=tell, cache=None)
    _quietly(lambda: method.prepare(small)(Unit(0, (0,))))
    gaps = [after - before for before, after in itertools.pairwise(marks)]
    return min(gaps[1:] or gaps)  # other work on the machine only ever slows an iteration down


def of_crops(method: Method, task: Task) -> Rate:
    """The rate of RDED: a piece is one real image of each class, whose crops the classifier judges."""
    source, options = task.source, task.options
    ipc = task.recipe.ipc
    counts = [few for few in (ipc, 2 * ipc) if few <= source.count(0)] or [source.count(0)]
    taken = list[float]()
    for few in counts:
        small = replace(task, options=options.model_copy(update={"images": few}), store=Store(), cache=None)
        taken.append(_timed(lambda small=small: method.prepare(small)(Unit(0, tuple(range(ipc))))))
    classes = len(source.class_names)
    each = max(taken[-1] - taken[0], 0.0) / max(counts[-1] - counts[0], 1) or taken[0] / counts[0]
    return Rate(max(taken[0] - each * counts[0], 0.0) * classes, each * classes)


def decoding_seconds(task: Task) -> float:
    """The seconds of decoding every real image once, by a few of them."""
    return _stand_ins(task, SEEN)[1]


def _stand_ins(task: Task, wanted: int) -> tuple[MemorySource, float]:
    """A source of few classes with up to `wanted` images each; and the seconds of decoding all images of the real one."""
    source, images, decoded = task.source, dict[str, Any](), 0
    began = time.perf_counter()
    for label in _spread(len(source.class_names)):
        name, count = source.class_names[label], source.count(label)
        mine = source.good(label, min(SEEN, count), seed_of("trial", name), least=1)
        pixels = list(source.images(label, mine))
        decoded += len(pixels)
        images[name] = [pixels[k % len(pixels)] for k in range(max(min(count, wanted), task.recipe.ipc))]
    taken = time.perf_counter() - began
    return MemorySource(images, size=source.size), taken / decoded * total_of(source)


def _spread(classes: int) -> list[int]:
    """Labels spread over all classes."""
    few = min(classes, CLASSES)
    return [label * classes // few for label in range(few)]


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    _quietly(work)
    return time.perf_counter() - began


def _quietly(work: Callable[[], object]) -> None:
    """Do work whose warnings are not what the user asked for."""
    logging.disable(logging.WARNING)
    try:
        work()
    except _Enough:
        pass
    finally:
        logging.disable(logging.NOTSET)
