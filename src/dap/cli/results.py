"""The text and the values that the command writes about judged sets."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dap.base.parsing import counted
from dap.cli.flags import Output, Told
from dap.verbs.planning.hour import spoken

if TYPE_CHECKING:
    from dap.verbs.planning.estimate import Estimate
    from dap.verbs.planning.status import SetStatus, Status
    from dap.verbs.report import Results


def free(folder: str) -> str:
    """A folder for a command that is shown as the next one: this one or, where it is there already, one with a number."""
    names = itertools.chain([folder], (f"{folder}-{n}" for n in itertools.count(2)))
    return next(name for name in names if not os.path.lexists(name))


def shown(results: Results, track: str | None = None) -> Told:
    """The table of accuracies, the place of the page and, if a tracker is asked for, the place of its log.

    A terminal gets a table as wide as the terminal. A file or a pipe gets the whole table as Markdown.

    Args:
        results: the judged sets.
        track: "tensorboard" or "wandb" to log the sets, or None.
    """
    from dap.verbs.report import log_for

    table = results.table
    terminal = sys.stdout.isatty()
    text = table.terminal(shutil.get_terminal_size().columns) if terminal else table.markdown()
    values: dict[str, Any] = {"sets": list(results.sets), "page": results.page, "trials": trials(results)}
    values["outdated"] = results.outdated
    lines = [text.rstrip("\n"), *results.outdated, *results.unshown, "", f"Report: {results.page}"]
    if track is not None:
        where = log_for(track, results)
        lines.append(f"Logged for {track}: {where}")
        values["log"] = where
    return Told("\n".join(lines), values)


def shown_of(run: Callable[[], Results], track: str | None, output: Output) -> Told:
    """The same for the results of a function. Where it raises `Unfinished`, the results that there are go to standard output, and
    the error is raised again.

    Args:
        run: makes and judges sets.
        track: as for `shown`.
        output: how results are shown; with --json or --quiet an unfinished work shows none.
    """
    from dap.verbs.report import Unfinished

    try:
        return shown(run(), track)
    except Unfinished as error:
        if error.results is not None and not (output.json or output.quiet):
            print(shown(error.results, track).text)
        raise


def trials(results: Results) -> list[dict[str, Any]]:
    """Every training of every set: the network, the seed, the accuracies, as fractions in [0, 1], and all by which a report tells
    trainings apart. A value that a line of others does not say is null."""
    names = (
        "epochs",
        "seconds",
        "n_test",
        "headline",
        "tested_on",
        "labels",
        "data",
        "judged",
        "tested",
        "by",
        "apart",
    )
    found = []
    for one in results.records:
        for line in one.trials:
            trial = {name: line.get(name) for name in ("protocol", "network", "seed", "last", "best")}
            accuracy = line["best" if line.get("headline") == "best" else "last"]
            found.append({"set": one.path, **trial, "accuracy": accuracy, **{name: line.get(name) for name in names}})
    return found


MOST_ROWS = 40
"""How many sets a status lists. Those that are done or not begun are left out first."""


def progress(found: Status) -> Told:
    """How far work is: a line for each set, and the sums with the time that is left."""
    counts = [
        f"{found.done} of {len(found.sets)} {'set is' if len(found.sets) == 1 else 'sets are'} done",
        f"{sum(one.missing for one in found.sets)} not begun",
        f"{found.busy} changed lately",
    ]
    images, of = sum(one.images for one in found.sets), sum(one.of for one in found.sets)
    trainings = sum(one.trainings for one in found.sets)
    planned = [one.planned for one in found.sets if one.planned is not None]
    noun = "clip" if {one.noun for one in found.sets if not one.missing} == {"clip"} else "image"
    counts.append(f"{images} of {of} {noun}s" if of else f"{images} {noun}s")
    # Where sets that no plan knows have trainings, as after two comparisons were copied into one folder, no total is known.
    whole = planned and all(one.planned is not None or not one.trainings for one in found.sets)
    counts.append(f"trainings: {trainings}" + (f" of {sum(planned)}" if whole else ""))
    order = sorted(found.sets, key=lambda one: (one.done, one.missing))[:MOST_ROWS]
    lines = [_row(one, found) for one in found.sets if one in order]
    if len(lines) < len(found.sets):
        lines.append(f"and {counted(len(found.sets) - len(lines), 'more set')}; --json lists them all")
    lines += [told for one in found.sets if one in order for told in one.outdated]
    waiting = any(not one.done for one in found.sets)
    if waiting and found.remaining is None:
        lines.append(f"The time that is left is not known yet: no {noun} or training tells how long one takes.")
    elif waiting:
        lines.append(f"{duration(found.remaining or 0)} left, if it goes on as so far.".capitalize())
    names = (
        "path",
        "images",
        "of",
        "trainings",
        "planned",
        "others",
        "rate",
        "idle",
        "busy",
        "seconds",
        "missing",
        "failed",
        "gone",
        "outdated",
        "done",
    )
    values = {
        "sets": [{name: getattr(one, name) for name in names} for one in found.sets],
        "done": found.done,
        "remaining_seconds": found.remaining,
    }
    return Told("\n".join([", ".join(counts) + ".", *lines]), values)


def _row(one: SetStatus, of: Status) -> str:
    """One line on a set."""
    name = "this set" if one.path == of.path else str(one.path.relative_to(of.path))
    if one.missing:
        return f"  {name}: not begun"
    parts = [f"{one.images} of {one.of} {one.noun}s" if one.of else f"{one.images} {one.noun}s"]
    if one.planned is not None or one.trainings:
        parts.append(f"trainings: {one.trainings}" + (f" of {one.planned}" if one.planned else ""))
    if one.others:
        parts.append(f"{counted(one.others, 'training')} of other protocols, networks or seeds")
    if one.gone:
        parts.append(f"the files of {counted(one.gone, one.noun)} are gone; dap verify names them")
    if one.failed:
        parts.append(f"{counted(one.failed, one.noun)} failed, see failed.jsonl there")
    if one.rate and one.left:
        parts.append(f"{one.rate:.2g} {one.noun}s/s" if one.rate >= 0.1 else f"{1 / one.rate:.3g} s per {one.noun}")
    if one.idle is not None and not one.done:
        parts.append(f"last change {duration(one.idle)} ago" + ("" if one.busy else ", so probably nobody works on it"))
    return f"  {name}: {', '.join(parts)}" + ("" if not one.done else " (done)")


def forecast(found: Sequence[Estimate], out: Path) -> Told:
    """What work will take: a line for each piece of it, and the sums."""
    from dap.verbs.planning.estimate import free_disk

    lines = ["This is a dry run: nothing was made."]
    for one in found:
        done = one.pieces - one.left
        kept = f", {done} of them there already" if done else ""
        units = f" in {counted(one.units, 'unit')}" if one.units and one.units != one.left else ""
        told = one.why if one.seconds is None else duration(one.seconds)
        lines.append(f"  {one.name}: {counted(one.pieces, one.kind.removesuffix('s'))}{kept}{units}; {told}")
    known = [one.seconds for one in found if one.seconds is not None]
    if known:
        which = "" if len(known) == len(found) else f" for {len(known)} of these {len(found)} lines"
        lines.append(
            f"Time: {duration(sum(known))}{which}, in one process that has this machine to itself as much as now."
        )
    if trial := sum(one.trial for one in found):
        lines.append(f"These times are told by trials on this machine, which took {duration(trial)}.")
    memory = [one.memory_gb for one in found if one.memory_gb is not None]
    if memory:
        lines.append(f"Memory: {max(memory):.1f} GB at the most in the time test.")
    disk, free = sum(one.disk for one in found), free_disk(out)
    lines.append(f"Disk: about {size(disk)} of new files; {size(free)} are free there.")
    fetched = dict(item for one in found for item in one.downloads)
    names = [name if bytes_ is None else f"{name} ({size(bytes_)})" for name, bytes_ in fetched.items()]
    lines.append(f"Downloads: {', '.join(names) if names else 'nothing'}.")
    if disk > free:
        lines.append("Warning: the disk has too little room for this.")
    values = {
        "work": [{**asdict(one), "downloads": dict(one.downloads)} for one in found],
        "seconds": sum(known) if len(known) == len(found) else None,
        "disk": disk,
        "free": free,
    }
    return Told("\n".join(lines), values)


def size(count: float) -> str:
    """A number of bytes in words, such as "3.1 MB" (10⁶ bytes)."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """A time in words, such as "about 5 min"."""
    return spoken(seconds) if seconds < 90 else f"about {spoken(seconds)}"
