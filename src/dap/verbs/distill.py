"""`dap distill`: from a recipe to a distilled set on disk. Load, resolve the recipe, make the missing units, check the set."""

from __future__ import annotations

import functools
import gc
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dap.backbones import device_of
from dap.backbones.base import Backbone
from dap.base.devices import vram
from dap.base.errors import DapError
from dap.base.files import check_folder
from dap.base.parsing import brief
from dap.base.store import Store, checkpoint_seconds
from dap.base.watch import Watcher
from dap.base.workers import threads_of
from dap.data.real.identity import folder as user_cache
from dap.data.sets.beginning import cuts
from dap.data.sets.distilled import WORK, DistilledSet
from dap.engines.local import Workers
from dap.engines.looking import looked_at, told_doubts
from dap.engines.making import Job, make_alone, make_together
from dap.engines.on_ray import Cluster, check_installed, stream
from dap.engines.ranks import device_for, rank_of
from dap.guidance.base import Energy, Guidance
from dap.methods.base import Made, Method, Task, Unit
from dap.methods.finite import finite
from dap.objects import Objects
from dap.recipe import Recipe, flags_given, keywords, overlaid
from dap.verbs.jobs import Grid, written
from dap.verbs.options import Engine, Judging, Machine, images_budget, kind_of, permitted
from dap.verbs.picking.budget import seconds_of
from dap.verbs.picking.picked import check_given, picked
from dap.verbs.planning.hours import tell_of_hours
from dap.verbs.settling import NOTE as CHOSEN
from dap.verbs.settling import settled
from dap.verbs.understood import check_out, tell_of
from dap.workshop import Workshop

log = logging.getLogger("dap")


def open_workshop(machine: Machine, objects: Objects | None = None, watcher: Watcher | None = None) -> Workshop:
    """A new workshop on this machine. It loads nothing until something is asked of it.

    Args:
        machine: where the work runs.
        objects: the objects that were given in place of names; None: everything is named.
        watcher: is told what was understood of the data. None: nobody is told.

    Raises:
        DapError: there is no such device, the number of threads is none that this machine can run, or a budget is not above 0.
    """
    said = vram.limit(device_of(machine.device), machine.vram)
    if said is not None and watcher is not None:
        watcher.note(said)
    budget = images_budget(machine)
    if machine.threads is not None:
        processors = os.cpu_count() or 1
        most = max(256, 4 * processors)  # far above this, the threads of torch end the process without a word
        if not 1 <= machine.threads <= most:
            raise DapError(
                f"torch cannot run in {machine.threads} threads; this machine has {processors} processors. Give --threads a "
                f"number from 1 to {most}, or leave it out."
            )
        torch.set_num_threads(machine.threads)
    how = (machine.device, machine.offline, machine.cache, objects or Objects(), machine.offload)
    # What nobody limits is looked at when it is needed: other work may begin or end meanwhile.
    workshop = Workshop(*how, None if machine.memory is None and machine.disk is None else budget)
    if watcher is not None:
        workshop.tell = watcher.note
    return workshop


@permitted
def distill(
    recipe: Recipe | Mapping[str, Any] | str | Path | None = None,
    out: str | Path | None = None,
    *,
    method: str | Method | type[Method] | None = None,
    backbone: str | Backbone | None = None,
    guidance: str | Guidance | Energy | None = None,
    source: Any = None,
    machine: Machine | None = None,
    workshop: Workshop | None = None,
    watcher: Watcher | None = None,
    name: str | None = None,
    command: str | None = None,
    grid: Path | None = None,
    engine: Engine = Engine(),
    budget: str | float | None = None,
    **fields: Any,
) -> DistilledSet:
    """Make a distilled set, go on with one that was interrupted, or let one grow.

    Where nothing says the method, one is chosen that suits the images: `auto` on a backbone of this machine that knows them, else
    one that needs no backbone. The watcher is told which, why, and how long it takes; the recipe of the set holds it.

    A set grows if its folder is given again with a larger ipc and everything else the same, and its method promises that the
    first images of a class stay the same (`Method.grows`). These images are kept byte for byte, and the rest is made.

    Give a recipe, keywords, or a recipe with keywords that replace some of its values. Four parts of a recipe may be
    objects in place of names: method, backbone, guidance and source. The set then keeps the names of the objects' classes,
    hashes of the code that they run, and the values the objects were made with (see `dap.described.describe`). The set goes on
    only if these are the same, and not at all where one of these values cannot be described.

        dap.distill(out="runs/first", method="dap", ipc=1, scale=0.05)
        dap.distill("imagenette-dit-ipc10", "runs/second", backbone=dap.load_backbone("my/folder"), seed=1)

    Args:
        recipe: a `Recipe`, its nested values, the path of a YAML file, or the name of a shipped recipe. Default: an empty
            recipe, in which every choice has its default.
        out: the folder of the set. The folder may be new, empty, or hold a set of the same recipe. It must be given.
        method: a name, `file.py:Name`, a `Method` or its class.
        backbone: a name, a folder, a hub id, `file.py:Name`, or a `Backbone`.
        guidance: `file.py:Name`, a `Guidance` or an `Energy` of your own, added to the guidance of the method.
        source: a folder or another place of real images, a `Source`, or images in memory: a mapping from class name to images,
            a pair of images and labels, or a collection of (image, label) pairs. Images are pictures, or tensors (3, h, w)
            or (1, h, w) of floats in [0, 1] or bytes. The keywords `classes` and `size` choose among them.
        machine: where the work runs. The machine changes nothing in the recipe. Default: `Machine()`.
        workshop: loaded backbones and data that several calls share. It takes the place of `machine` and of objects.
        watcher: is told how the work goes on. Default: nobody is told.
        name: the name of the set that the watcher is told. Default: the name of the folder.
        command: the shell command to record in the set.
        grid: the folder of the grid that the set is a part of, whose sets share what they leave to `auto`.
        engine: how several processes share the units of the set. Default: this process makes all of them.
        budget: the time that the set may take, such as "10m", or seconds. The number of iterations or steps follows from it by a
            short time test on this machine, and is kept in the recipe. Default: what the recipe says, or the method's usual work.
        fields: any other fields of the recipe by their keywords, which are the flags of `dap distill` with underscores:
            ipc, seed, steps, scale, reals, guidance_scale, ... The keyword `options` takes the method's own options.

    Returns:
        The finished set.

    Raises:
        DapError: an argument is wrong. Images that were made before stay.
        OSError: the disk is full, or there is no permission. Images that were made before stay.
    """
    if out is None:
        raise DapError("The folder of the set is missing; give out, such as out='runs/first'.")
    check_folder(Path(out))
    method = method() if isinstance(method, type) else method
    named = {"method": method, "backbone": backbone, "guidance": guidance, "data": source}
    if source is not None and fields.get("data") is not None:
        raise DapError("Give the real images as data or as source, and not as both.")
    fields |= {key: str(value) for key, value in named.items() if isinstance(value, (str, Path))}
    given = {
        "method": None if isinstance(method, str) else method,
        "backbone": None if isinstance(backbone, (str, Path)) else backbone,
        "guidance": None if isinstance(guidance, str) else guidance,
        "source": None if isinstance(source, (str, Path)) else source,
    }
    if workshop is not None and not isinstance(workshop, Workshop):
        raise DapError(f"The keyword workshop takes a dap.Workshop(...), not {brief(workshop)}.")
    if workshop is not None and any(value is not None for value in given.values()):
        raise DapError("Give objects, or a workshop that has them (Workshop(objects=Objects(...))), but not both.")
    objects = workshop.objects if workshop else Objects(**given)
    with objects.used():
        recipe = _asked(recipe, objects, fields)
        seconds = None if budget is None else seconds_of(budget)
        kind = kind_of(engine)
        if kind in ("workers", "ray") and (workshop is not None or objects.named()):
            raise DapError(
                "Several processes need names that each of them can find, such as file.py:Name. Give names in place of objects, "
                "or no engine."
            )
        machine, watcher, out, rank = machine or Machine(), watcher or Watcher(), Path(out), None
        name = name or out.name
        if kind == "shard":
            rank = rank_of(engine.shard)
            machine = replace(machine, device=device_for(machine.device, rank, torch.cuda.device_count()))
        if workshop is None:
            workshop = open_workshop(machine, objects, watcher)
        threads = None
        if kind == "ray":
            check_installed()
            threads = machine.threads or torch.get_num_threads()
        elif kind == "workers":
            threads = machine.threads or threads_of(engine.workers or 1)
        check_given(out, recipe, workshop, seconds)
        _tell_unused(recipe, workshop.asked(recipe)[0])
        tell_of(workshop, recipe.data)
        check_out(workshop, recipe.data, out)
        pick = picked(recipe, workshop, out, watcher, seconds)
        recipe = pick.recipe
        job = _job(recipe, out, workshop, watcher, name, command, grid, threads, pick.choices)
        tell_of_hours(job)
        if kind == "workers":
            parent = Workers(job)
            asked = Grid(((out.name, recipe),), out.absolute().parent, Judging(), machine, (), command, kind="set")
            del job, workshop, objects
            give_back()
            # The folder of the set loses its unfinished work as soon as it is whole.
            with written(asked) as (_, arguments):
                made = parent.run(arguments, engine.workers or 1, machine.device in ("auto", "cuda"))
        elif rank is not None:
            made = make_together(job, rank)
        elif kind == "ray":
            cluster = cluster_of(engine, machine)
            given = (job.recipe.model_dump(mode="json", exclude_unset=True), machine)
            made = make_alone(job, functools.partial(stream, cluster, unit_maker, given, watcher))
        else:
            made = make_alone(job)
        if doubtful := told_doubts(made):
            watcher.note(doubtful)
            if type(watcher) is Watcher:  # nobody listens, and a user of Python should hear of it all the same
                log.warning("%s", doubtful)
        return made


def _tell_unused(recipe: Recipe, method: Method) -> None:
    """Tell a user whose choices about sampling mean nothing, because the method samples no backbone. A backbone alone is no such
    choice: a recipe may be shared by many methods."""
    if "backbone" not in method.needs and (unused := flags_given(recipe, "sampling")):
        log.warning("%s samples no backbone, so these change nothing: %s", recipe.method, ", ".join(unused))


def _asked(
    recipe: Recipe | Mapping[str, Any] | str | Path | None, objects: Objects, fields: Mapping[str, Any]
) -> Recipe:
    """The recipe, in which the keywords and the names of the objects replace its own values."""
    where = "the recipe"
    if isinstance(recipe, (str, Path)):
        known = keywords()
        where, recipe = str(recipe), Recipe.load(recipe, [known[name][0] for name in fields if name in known])
    elif recipe is not None and not isinstance(recipe, (Recipe, Mapping)):
        raise DapError(
            f"A recipe is a dap.Recipe, nested values, a file, or the name of a shipped recipe, not {brief(recipe)}. Single "
            "fields are keywords, such as ipc=3."
        )
    if isinstance(recipe, Recipe):
        recipe = recipe.model_dump(exclude_unset=True)
    objects.check(fields)
    values = overlaid(recipe or {}, fields)
    return Recipe.parse(overlaid(values, objects.named(values.get("data"))), where)


def _job(
    recipe: Recipe,
    out: Path,
    workshop: Workshop,
    watcher: Watcher,
    name: str,
    command: str | None,
    grid: Path | None = None,
    threads: int | None = None,
    choices: Sequence[Mapping[str, Any]] = (),
) -> Job:
    """The work on a set: its recipe is settled, and everything that it names is loaded and checked. Nothing is made yet."""
    chosen = settled(recipe, workshop, out, watcher, grid)
    method, task = workshop.task(chosen.recipe)
    inputs = task.store.inputs
    task = replace(task, store=_store(task, workshop.cache, out / WORK), tell=watcher.work)
    return Job(
        out=out,
        name=name,
        recipe=chosen.recipe,
        task=task,
        needs=method.needs,
        make=_maker(method, task),
        inputs=inputs,
        watcher=watcher,
        notes={CHOSEN: {"choices": made}} if (made := [*choices, *chosen.choices]) else {},
        used=chosen.used,
        command=command,
        said={"strangeness": workshop.strangeness(task)},
        threads=threads,
        sizes=cuts(out, task.recipe.values(), can_grow=method.grows(task)),
    )


def cluster_of(engine: Engine, machine: Machine) -> Cluster:
    """The Ray cluster that an engine names. An actor without a GPU takes as many CPUs as this process has threads."""
    threads = machine.threads or torch.get_num_threads()
    return Cluster(engine.address, engine.workers, machine.device in ("auto", "cuda"), threads)


def unit_maker(recipe: Mapping[str, Any], machine: Machine) -> Callable[[Unit], Made]:
    """What makes the units of a set on a machine that does not write the set. It loads everything that the recipe names.

    What the method makes once is kept in the cache of `machine`. If it has none, it is kept in a folder of this machine alone.

    Args:
        recipe: the nested values of a recipe in which no choice is left to `auto`.
        machine: where the work runs.

    Raises:
        DapError: something that the recipe names is not here, or something is wrong with it.
    """
    cache = machine.cache or user_cache() / "actors"
    workshop = open_workshop(replace(machine, cache=cache))
    method, task = workshop.task(Recipe.parse(recipe))
    return _maker(method, replace(task, store=_store(task, cache, cache)))


def _store(task: Task, cache: Path | None, own: Path) -> Store:
    """Where a method keeps what it makes once: in the cache or, where there is none, in the set's own folder."""
    # Several sets may share the store, and the store does not know their recipes, which hold the prompts. The prompts decide
    # what the store keeps as much as the weights do. So the prompts are among the inputs of the store.
    prompts = task.given.backbone.card.prompts if task.given.backbone else {}
    return Store(cache or own, {**task.store.inputs, **prompts}, every=checkpoint_seconds(), cache=cache)


def _maker(method: Method, task: Task) -> Callable[[Unit], Made]:
    make = finite(method, task)
    return lambda unit: looked_at(make(unit), unit, task)


def give_back() -> None:
    """Free the memory of what is no longer used. Processes that share the work need it, above all that of a GPU."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
