"""What each method would take for a folder on this machine, for `dap methods --data FOLDER`."""

from __future__ import annotations

from dap.base.errors import DapError
from dap.base.watch import Watcher
from dap.data.real.counts import total_of
from dap.methods import METHODS
from dap.methods.matching.base import Matching
from dap.recipe import BackboneChoice, Recipe
from dap.verbs.distill import open_workshop
from dap.verbs.options import Machine, permitted
from dap.verbs.picking.fitting import looked_at
from dap.verbs.planning.rates import decoding_seconds, of_iterations
from dap.verbs.planning.roughly import paces, seconds_of_set
from dap.workshop import Workshop


@permitted
def costs(
    data: str, *, ipc: int = 10, backbone: str | None = None, machine: Machine = Machine(), watcher: Watcher = Watcher()
) -> dict[str, float | None]:
    """The seconds of a set by each method that has a name, with its usual options.

    Methods of a backbone are told by the time of one pass, and methods that optimise pixels by a time test of some iterations.
    Both are rough.

    Args:
        data: a folder of real images, or fashion-mnist.
        ipc: images per class.
        backbone: for methods that need one. Default: the first of this machine that knows the images.
        machine: where the work would run.
        watcher: is told what was understood of the data.

    Returns:
        The seconds; None where the method cannot be used here as it is, or where no short time test tells its time.

    Raises:
        DapError: there are no such images.
    """
    workshop = open_workshop(machine, watcher=watcher)
    recipe = Recipe.parse({"data": {"path": data}, "ipc": ipc})
    workshop.whole(recipe.data)
    if backbone is None:
        looked = looked_at(recipe.data, workshop)
        backbone = looked[-1].path if looked and looked[-1].fits else None
    known = None if backbone is None else paces(workshop.backbone(BackboneChoice(path=backbone)))
    return {name: _seconds(name, recipe, backbone, workshop, known) for name in METHODS}


def _seconds(
    name: str, recipe: Recipe, backbone: str | None, workshop: Workshop, known: tuple[float, float, float] | None
) -> float | None:
    method = METHODS[name]
    needs = set(method.needs)
    optimises = issubclass(method, Matching)
    if ("backbone" in needs and backbone is None) or (method.bounded is None and "training" in needs):
        return None
    if "training" in needs and not optimises:
        return None
    values = {**recipe.model_dump(exclude_unset=True), "method": name}
    values |= {"backbone": {"path": backbone}} if "backbone" in needs else {}
    try:
        made, task = workshop.task(Recipe.parse(values))
        made.prepare(task)
    except DapError:  # such as a classifier that is missing, or a backbone of another kind
        return None
    if optimises:
        return of_iterations(made, task).seconds(task.options.iterations)
    if "backbone" in needs:
        return seconds_of_set(task, known)
    source = task.source
    total = total_of(source)
    looked = total if "classifier" in needs else min(total, recipe.ipc * len(source.class_names))
    return decoding_seconds(task) * looked / total
