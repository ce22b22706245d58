"""A set of a backbone that will take more than an hour says so before its first image."""

from __future__ import annotations

import logging
from typing import Any

from dap.base.parsing import counted
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.notes import there
from dap.engines.making import Job, has
from dap.verbs.planning.hour import HOUR, LESS, Hourglass, sentence
from dap.verbs.planning.roughly import paces, seconds_of_set

SMALL = 10**6
"""Parameters of a backbone that is so small that nobody has to be told of an hour. It is not timed."""


def tell_of_hours(job: Job) -> None:
    """Tell the watcher of a job if what is left of its set will take more than an hour, by the time of one pass of its backbone.

    A method that trains something is told of by `hour.Hourglass`, once its training has a rate.
    """
    backbone: Any = job.task.given.backbone
    if backbone is None or job.task.recipe.run is None or not _is_large(backbone):
        return
    made = DistilledSet.open(job.out) if there(job.out, "classes.json") else None
    left = sum(len(unit.slots) for unit in job.units if made is None or not has(made, unit))
    if not left:
        return
    logging.disable(logging.WARNING)
    try:
        seconds = seconds_of_set(job.task, paces(backbone, quickly=True)) * left / job.total
        if seconds > HOUR:
            seconds = seconds_of_set(job.task) * left / job.total
    finally:
        logging.disable(logging.NOTSET)
    if seconds > HOUR:
        job.watcher.note(
            sentence(
                f"{counted(left, 'image')}, by the time of one pass of {backbone.card.name}", seconds, LESS["images"]
            )
        )
        if isinstance(job.watcher, Hourglass):
            job.watcher.told()


def _is_large(backbone: Any) -> bool:
    network: Any = getattr(backbone, "denoiser", None)
    return hasattr(network, "parameters") and sum(one.numel() for one in network.parameters()) > SMALL
