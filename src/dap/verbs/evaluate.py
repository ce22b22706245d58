"""`dap evaluate`: train networks on distilled sets and test them on real images."""

from __future__ import annotations

import functools
import logging
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dap.base.claims import CLAIMS, share
from dap.base.errors import DapError
from dap.base.parsing import path_of
from dap.base.watch import Watcher
from dap.base.workers import run_workers
from dap.data.real.base import Source
from dap.data.real.finding.made import check_no_sets, is_made
from dap.data.real.memory import MemorySource, names_of
from dap.data.real.sources import EMBEDDED
from dap.data.sets.distilled import DistilledSet
from dap.engines.on_ray import check_installed, run_workers_on
from dap.engines.ranks import Rank, device_for, rank_of
from dap.evaluation.failures import Failures, TrainingsFailed
from dap.evaluation.judge import check_links, check_ready, judge
from dap.evaluation.plan import Loaded
from dap.evaluation.suiting import side_of, takes_values
from dap.recipe import Recipe
from dap.verbs.distill import cluster_of, give_back, open_workshop
from dap.verbs.jobs import read_judging, written_judging
from dap.verbs.judges import LoadedFor, judging_plan, loader, naming, source_of, suited_plan
from dap.verbs.memory import HeldSets, is_in_memory, is_number, loaded_from, names_given
from dap.verbs.options import Engine, Judging, Machine, kind_of, permitted
from dap.verbs.placing import check_no_other_set, place, real_of
from dap.verbs.recorded import data_of, of_others, recorded_data
from dap.verbs.report import Results, Unfinished, write_page
from dap.verbs.understood import tell_changed
from dap.workshop import Workshop

log = logging.getLogger("dap")

MOST_NAMED = 10
"""How many sets a command in a message names."""


@permitted
def evaluate(
    sets: Any,
    *,
    data: Any = None,
    classes: Sequence[str] | None = None,
    max_bad_fraction: float | None = None,
    split: Any = None,
    out: str | Path | None = None,
    title: str = "Distilled sets judged",
    judging: Judging = Judging(),
    machine: Machine = Machine(),
    watcher: Watcher = Watcher(),
    engine: Engine = Engine(),
) -> Results:
    """Train networks on sets, test them on real images, and measure the images of the sets.

    Trials and measures are kept beside the images of each set. A trial or measure that is there already is not made
    again. So an interrupted call goes on where it stopped when it is made again.

        dap.evaluate("runs/first", judging=Judging(protocol="quick-hard", trials=3))
        dap.evaluate((images, labels), data=(test_images, test_labels))

    Args:
        sets: one set or a list of sets. A set is a `DistilledSet`, its folder, any folder of class folders, or images in
            memory: a pair of images (n, 3, h, w) in [0, 1] and labels (n,), or a mapping from class name to images. Images
            in memory are written to a folder that lives as long as the results.
        data: the real images: "fashion-mnist", a folder, an opened `Source` of test images, or test images in memory.
            Default: the data that each set was made of. An opened source and images in memory have no training part.
            The images of the sets are then not measured against real training images. Labels that are only numbers number
            the classes of the set; where these are numbers that nobody named, a label is the name of its class.
        classes: for folders that others made, the names of the class folders in label order. For images in memory, the
            names of the labels; of images that have class names, the classes to take. Or the name of a subset of ImageNet.
        split: where the splits of the real images lie, as `data.split` of a recipe: "train=FOLDER,test=FOLDER". Default:
            what the recipe of the set says.
        max_bad_fraction: the largest fraction of the real images that may be broken. Default: that of each set's recipe.
        out: the file of the page on these sets, with a name that ends in .html, or a folder for it. The results of sets that
            do not lie in this folder are kept there too, in `judged`, and nothing is written beside the sets. None: no page
            is written, and sets of this library keep their results. Those of a folder that others made are kept in
            NAME-judged in the current folder.
        title: the heading of the page.
        judging: the protocol, networks and trials.
        machine: the device, the network, the cache and the CPU threads.
        watcher: is told of every epoch and trial.
        engine: how several processes share the trainings, each of which is a set, a network and a seed. The sets and the data
            must then be folders or names.

    Returns:
        The folders of the sets, their table of accuracies, their trials, and the page.

    Raises:
        Unfinished: some trainings failed. All else is done, and the error has the results.
        DapError: there is no such set or data, the classes differ, the protocol is unknown, or the protocol needs
            something that is not given. All sets are checked before the first training. With several, the message names the set.
    """
    classes = names_given(classes)
    kind, named, rank = kind_of(engine), isinstance(data, (str, Path)) or data is None, None
    if kind == "ray":
        check_installed()
    if kind != "alone" and not (named and all(isinstance(one, (str, Path)) for one in _listed(sets))):
        raise DapError("Several processes need sets and data that each of them can find; give folders or names.")
    if kind == "shard":
        rank = rank_of(engine.shard)
        machine = replace(machine, device=device_for(machine.device, rank, torch.cuda.device_count()))
    workshop, held = open_workshop(machine, watcher=watcher), HeldSets()
    opened = [_opened(one, data, classes, split, workshop, held) for one in _listed(sets)]
    if not opened:
        raise DapError("There is no set to judge; give a set or a list of sets.")
    where = None if out is None else Path(out)
    check_no_other_set(opened, where)
    failed = None
    try:
        if data is None or isinstance(data, (str, Path)):
            loaded_for = loader(judging, machine, workshop)
            path = None if data is None else str(data)
            ready = readied(opened, loaded_for, path, max_bad_fraction, split)
            place(
                opened, where, real_of(data, split)
            )  # after what can be refused, so that a wrong turn leaves no folder
            for made in opened:
                check_links(made.results)
            if rank is not None:
                _judge_shared(list(zip(opened, ready, strict=True)), watcher, rank)
            elif kind in ("workers", "ray"):
                pieces = sum(1 + len(one.plan.all_networks) * len(one.plan.seeds) for one in ready)
                told = {"max_bad_fraction": max_bad_fraction, "split": split, "out": where and where.absolute()}
                told |= {"sets": [Path(one).absolute() for one in _listed(sets)], "data": path, "judging": judging}
                told |= {"classes": classes, "machine": machine}
                del workshop, loaded_for, ready
                give_back()
                _judge_in_workers(told, opened[0].results.absolute(), pieces, engine, watcher)
            else:
                _judge_each(opened, ready, watcher)
        else:
            _judge_on(data, opened, where, classes, judging, machine, watcher, workshop, held)
    except TrainingsFailed as error:  # the page on the others is still written
        failed = error
    paths = tuple(made.results for made in opened)
    results = Results(paths, None if out is None else write_page(paths, Path(out), title), held)
    if failed is not None:
        raise Unfinished(str(failed), results) from failed
    return results


def readied(
    opened: Sequence[DistilledSet],
    loaded_for: LoadedFor,
    path: str | None,
    max_bad_fraction: float | None,
    split: Any,
    *,
    fetch: bool = True,
) -> list[Loaded]:
    """What judging each set needs, see `evaluate`. All sets are checked.

    Args:
        opened: the sets.
        loaded_for: as `loader` gives it.
        path, max_bad_fraction, split: as for `data_of`.
        fetch: as for `judge.check_ready`.

    Raises:
        DapError: the real images cannot be opened, or a set cannot be judged. Where there are several, the message names it.
    """
    ready = list[Loaded]()
    for made in opened:
        with naming(made.path, len(opened) > 1):
            loaded = loaded_for(data_of(made, path, max_bad_fraction, split), not of_others(made, path))
            check_ready(made, loaded, fetch=fetch)
        if split is None and not of_others(made, path):
            loaded = loaded.saying(tell_changed(made, recorded_data(made), loaded.open))
        ready.append(loaded)
    return ready


def work_on(job: Path, watcher: Watcher) -> None:
    """Make those trainings that a parent process wrote into the file `job` and that no other process makes."""
    found = read_judging(job)
    evaluate(found.pop("sets"), **found, watcher=watcher, engine=Engine(engine="shard"))


def _judge_shared(sets: Sequence[tuple[DistilledSet, Loaded]], watcher: Watcher, rank: Rank) -> None:
    """Make those trainings and measures that no other process makes, until all are there."""
    pieces = [
        (
            f"{k}/{network}/{seed}",
            functools.partial(judge, made, loaded.narrowed(network, seed), watcher, only="trials"),
        )
        for k, (made, loaded) in enumerate(sets)
        for network in loaded.plan.all_networks
        for seed in loaded.plan.seeds
    ]
    pieces += [
        (f"{k}/measures", functools.partial(judge, made, loaded, watcher, only="measures"))
        for k, (made, loaded) in enumerate(sets)
    ]
    first, folder = rank.first(len(pieces)), sets[0][0].results
    with _failing(folder):
        share([*pieces[first:], *pieces[:first]], folder)


def _judge_in_workers(told: Mapping[str, Any], folder: Path, pieces: int, engine: Engine, watcher: Watcher) -> None:
    """The same in other processes, which read in a file what they are told. `folder` is that of the first results."""
    machine = told["machine"]
    with _failing(folder), written_judging(told, folder / CLAIMS) as (_, command):
        if engine.engine == "ray":
            run_workers_on(cluster_of(engine, machine), command, pieces, watcher)
        else:
            run_workers(command, engine.workers or 1, machine.device in ("auto", "cuda"), tell=watcher.note)


@contextmanager
def _failing(folder: Path) -> Iterator[None]:
    """A block in which processes share the work of judging. What fails in one of them stops none of the others."""
    try:
        yield
    except DapError as error:
        raise TrainingsFailed(str(error)) from error
    finally:
        _no_claims(folder)


def _judge_each(sets: Sequence[DistilledSet], ready: Sequence[Loaded], watcher: Watcher) -> None:
    """Judge sets one after the other. Trainings that fail stop no other set; `TrainingsFailed` tells of them at the end."""
    failures = Failures()
    for made, loaded in zip(sets, ready, strict=True):
        with failures.noted(kind=TrainingsFailed):
            judge(made, loaded, watcher)
    failures.check()


def _no_claims(folder: Path) -> None:
    """Remove the folder of the claims, if no other process still works there."""
    with suppress(OSError):
        (folder / CLAIMS).rmdir()


def _listed(sets: Any) -> list[Any]:
    """The sets one by one. A tuple may be a pair of images and labels. So several sets in memory must be given in a list."""
    several = isinstance(sets, (list, tuple)) and not (isinstance(sets, tuple) and sets and is_in_memory(sets[0]))
    return list(sets) if several else [sets]


def open_set(place: str | Path, classes: Sequence[str] | None) -> DistilledSet:
    """A set of this library, or class folders of others.

    Raises:
        DapError: it is none. Where the folder holds several sets, the message is a command that judges them.
    """
    folder = path_of(place, "A distilled set")
    if folder.is_dir() and not is_made(folder):
        check_no_sets(folder, advice=_judged_by_name)
    return DistilledSet.from_folder(folder, classes)


def _judged_by_name(paths: Sequence[str]) -> str:
    first, more = shlex.join(["dap", "evaluate", *paths[:MOST_NAMED]]), len(paths) - MOST_NAMED
    return f"Give them by name: {first}" + (f", and {more} more." if more > 0 else ".")


def _opened(
    one: Any, data: Any, classes: Sequence[str] | None, split: Any, workshop: Workshop, held: HeldSets
) -> DistilledSet:
    if isinstance(one, DistilledSet):
        return one
    if not is_in_memory(one):
        return open_set(one, classes)
    if classes is not None:
        return held.set_of(one, classes, "place")
    if isinstance(data, Source):
        by = "value" if isinstance(data, MemorySource) and all(map(is_number, data.class_names)) else "name"
        return held.set_of(one, data.class_names, by)
    if isinstance(data, (str, Path)):
        chosen = Recipe.parse({"data": {"path": str(data), "classes": classes, "split": split}}).data
        return held.set_of(one, workshop.whole(chosen, "test").class_names)
    theirs = None if data is None else names_of(data)
    if isinstance(data, Mapping):
        theirs = tuple(map(str, data))
    return held.set_of(one, theirs)


def _judge_on(
    data: Any,
    opened: Sequence[DistilledSet],
    where: Path | None,
    classes: Sequence[str] | None,
    judging: Judging,
    machine: Machine,
    watcher: Watcher,
    workshop: Workshop,
    held: HeldSets,
) -> None:
    """Judge sets by test images that are objects. The number labels of images in memory number the classes of the set."""
    plan, loaded = judging_plan(judging, machine), dict[Any, Loaded]()
    train = _training_of(data, workshop) if isinstance(data, Source) else None
    own = isinstance(data, Source) and data.opened is not None and data.opened[1]["data"] == EMBEDDED
    if takes_values(plan.protocol, judging.changes) and train is None and not own:
        of = {recorded_data(made).get("path") for made in opened}
        if of != {EMBEDDED}:
            log.warning(
                "the mean and the standard deviation of %s stay, which are those of Fashion-MNIST: these test images have no "
                "training images beside them; give data by name or folder, or Judging(changes={'mean': …, 'std': …})",
                plan.protocol.name,
            )
    ready = list[Loaded]()
    for made in opened:
        names, by = (classes, "place") if classes else (made.class_names, "value" if held.numbered(made) else "name")
        side = side_of(made)
        key = (tuple(names), by, None if own else side)
        with naming(made.path, len(opened) > 1):
            if key not in loaded:
                suited = plan if own else suited_plan(plan, judging, side, train)
                loaded[key] = loaded_from(data, names, suited, by)
            check_ready(made, loaded[key])
        ready.append(loaded[key])
    place(opened, where, real_of(data))  # after what can be refused, so that a wrong turn leaves no folder
    for made in opened:
        check_links(made.results)
    _judge_each(opened, ready, watcher)


def _training_of(data: Source, workshop: Workshop) -> Callable[[int], Source] | None:
    """A function from a size to the training images beside opened test images; None where they cannot be opened."""
    if data.opened is None or data.opened[1]["data"] == EMBEDDED:
        return None
    values = {"path": data.opened[1]["data"], "split": data.opened[1].get("split"), "frames": data.frames}
    chosen = Recipe.parse({"data": {**values, "classes": list(data.class_names)}}).data
    try:
        workshop.whole(chosen)
    except DapError:
        return None
    return lambda size: source_of(workshop, chosen, "train", size)
