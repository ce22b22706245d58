"""The verbs that look at things and change nothing: look, methods, status, verify, check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from dap.cli.flags import (
    Classes,
    Dtype,
    OutputFlags,
    PlaceFlags,
    Places,
    Positive,
    Told,
    machine_of,
    output_of,
    watcher_of,
)


def methods(
    name: Annotated[str | None, Parameter(metavar="NAME")] = None,
    /,
    *,
    data: Annotated[str | None, Parameter(metavar="DIR")] = None,
    ipc: Positive = 10,
    backbone: str | None = None,
    machine: PlaceFlags | None = None,
    output: OutputFlags | None = None,
) -> Told:
    """List the methods.

    Args:
        name: A method, or file.py:Name.
        data: Real images, whose time by each method is told by short time tests on this machine.
        ipc: Images per class, for the time.
        backbone: The backbone, for the time. Default: one of this machine that knows the images.
    """
    from dap.methods import METHODS, find
    from dap.methods.catalogue import one, table

    chosen, costs = {name: type(find(name))} if name else METHODS, {}
    if data is not None:
        from dap.verbs.picking.costs import costs as measured
        from dap.verbs.planning.hour import in_words

        told = {"machine": machine_of(machine), "watcher": watcher_of(output)}
        seconds = measured(data, ipc=ipc, backbone=backbone, **told)
        costs = {known: "–" if one is None else in_words(one) for known, one in seconds.items()}
    values = {
        known: {"needs": sorted(made.needs), "reference": made.reference, "options": _options(made)}
        for known, made in chosen.items()
    }
    if data is not None:
        values = {known: {**about, "seconds": seconds.get(known)} for known, about in values.items()}
    text = one(name) + (f"\n\n{'time':11}{costs.get(name, '–')} for {data}" * bool(costs)) if name else table(costs)
    return Told(text, {"methods": values})


def look(
    what: Annotated[str, Parameter(name="FOLDER|SET", metavar="FOLDER|SET")],
    /,
    *,
    out: Annotated[Path | None, Parameter(metavar="FILE.png")] = None,
    data: str | None = None,
    classes: Classes = None,
    split: Places = None,
    reference: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    most: Positive = 20_000,
    machine: PlaceFlags | None = None,
    output: OutputFlags | None = None,
) -> Told:
    """Look into images.

    Args:
        what: Real images, as for --data, or a distilled set.
        out: Write a contact sheet of the first images of each class.
        data: For a set, the real images to look for in it. Default: those that it was made of.
        classes: The classes to look at. Default: all.
        split: Where the splits lie, where this is not plain: train=FOLDER,test=FOLDER.
        reference: File of dap train-teacher whose features tell which images look like another class.
        most: Images of each part that are looked at.
    """
    from dap.verbs.looking.look import look as run

    found = run(
        what,
        out=out,
        data=data,
        classes=classes,
        split=split,
        reference=reference,
        most=most,
        machine=machine_of(machine),
        watcher=watcher_of(output),
    )
    lines = [*found.sentences, *([f"Contact sheet: {found.sheet}"] if found.sheet else [])]
    return Told("\n".join(lines), {**found.facts, "sentences": found.sentences, "sheet": found.sheet})


def status(
    folder: Annotated[Path, Parameter(name="DIR", metavar="DIR")],
    /,
    *,
    output: OutputFlags | None = None,
) -> Told:
    """Tell how far work is.

    Args:
        folder: The folder of a set, of dap compare or dap sweep, or a folder that holds sets. Every machine that sees the
            folder can ask, and nothing is written.
    """
    from dap.cli.results import progress
    from dap.verbs.planning.status import status as run

    del output
    return progress(run(folder))


def verify(
    set_: Annotated[Path, Parameter(name="SET", metavar="SET")],
    /,
    *,
    output: OutputFlags | None = None,
) -> Told:
    """Verify a set.

    Args:
        set_: The distilled set.
    """
    from dap.data.real.sizes import noun
    from dap.data.sets.distilled import DistilledSet

    del output
    made = DistilledSet.open(set_)
    made.check_whole()
    return Told(
        f"{set_} is whole: {len(made.records)} {noun(made.frames)}s.", {"set": set_, "images": len(made.records)}
    )


def check(
    name: Annotated[str, Parameter(metavar="NAME")],
    /,
    *,
    dtype: Dtype = "float32",
    machine: PlaceFlags | None = None,
    output: OutputFlags | None = None,
) -> Told:
    """Check a part.

    Args:
        name: starter, a folder, a hub id, a kernel, a method, or your own as file.py:Name.
        dtype: Type of a backbone's weights and activations.
    """
    from dap.testing import check as run
    from dap.testing import summary

    where, told = machine_of(machine), output_of(output)
    kind, found = run(name, device=where.device, dtype=dtype, offline=where.offline)
    seen = []
    for finding in found:  # each one is shown when it is found, because a backbone takes minutes
        seen.append(finding)
        if not (told.json or told.quiet):
            print(finding, flush=True)
    values = {"name": name, "kind": kind, "findings": [{"level": one.level, "says": str(one)} for one in seen]}
    return Told(summary(name, kind, seen), values, status=int(any(one.level == "wrong" for one in seen)))


def _options(made: type) -> dict[str, object]:
    """The options of a method's own, with their defaults."""
    options = getattr(made, "Options", None)
    return {} if options is None else {name: str(field.default) for name, field in options.model_fields.items()}
