"""The contract of a `Method`. It is tried by making tiny sets of two classes on the embedded starter, several times."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dap.backbones import load
from dap.backbones.base import Backbone
from dap.base.parsing import counted
from dap.base.registry import suggest
from dap.data.real.sources import Source, open_source
from dap.methods import METHODS
from dap.methods.base import Given, Made, Method, Task, Unit, plan
from dap.recipe import GuidanceOptions, Recipe
from dap.testing.findings import Finding, Verdicts, difference, kind_of, run, warn, wrong
from dap.workshop import STARTER, Workshop

NEEDS = ("backbone", "classifier", "training", "captions")
SLOW = 2.0
"""The largest number of seconds that `prepare` may take on two classes of images of 32 px."""


class Probe:
    """A method, and the sets that it makes of two classes of Fashion-MNIST in two steps."""

    def __init__(self, method: Method) -> None:
        self.method = method

    @cached_property
    def backbone(self) -> Backbone:
        return load("starter", device="cpu", offline=True)

    @cached_property
    def source(self) -> Source:
        return open_source("fashion-mnist", "train", size=32, classes=("Trouser", "Bag"))

    def task(self, ipc: int = 2, seed: int = 0, backbone: Backbone | None = None) -> Task:
        values: dict[str, Any] = {"ipc": ipc, "seed": seed, "method": type(self.method).__name__}
        values["sampling"] = {"steps": 2}
        if self.method.guidance is not None:
            values["guidance"] = {"reals": 4, "clustered": 8}
        used = (backbone or self.backbone) if "backbone" in self.method.needs else None
        method = self.method
        if method.refinement is not None:
            values["refine"] = {"steps": 2, "reals": 4}
        recipe = Recipe.parse(values).resolved(
            used, method.guidance, 32, method.sampling, method.together, refinement=method.refinement
        )
        name = type(self.method).__name__
        options, needs, names = self.method.parse({}, name), self.method.needs, self.source.class_names
        shop, captions = Workshop("cpu", offline=True), None
        if "captions" in needs:
            keys = [(self.source.keys(at, range(self.source.count(at))), told) for at, told in enumerate(names)]
            captions = {key: f"a {told}" for mine, told in keys for key in mine}
        classifier = shop.classifier(STARTER, self.source) if "classifier" in needs else None
        given = Given(backbone=used, classifier=classifier, captions=captions)
        return Task(recipe, self.source, given, options=options)

    def make(self, ipc: int = 2, seed: int = 0, backwards: bool = False) -> dict[Unit, Made]:
        task = self.task(ipc, seed)
        make = self.method.prepare(task)
        units = plan(2, ipc, task.recipe.block)
        made = {unit: make(unit) for unit in (units[::-1] if backwards else units)}
        return {unit: made[unit] for unit in units}

    @cached_property
    def made(self) -> dict[Unit, Made]:
        return self.make()


def pixels(made: Mapping[Unit, Made]) -> Tensor:
    """All images of a set (n, 3, h, w), in the order of its units."""
    return torch.cat([part.images for part in made.values()])


def description(p: Probe) -> Verdicts:
    needs, guidance = p.method.needs, p.method.guidance
    unknown = [need for need in needs if need not in NEEDS]
    if not isinstance(needs, frozenset) or unknown:
        yield wrong(f"needs is {needs!r}; make it a frozenset of {', '.join(NEEDS)}.")
    if guidance is not None and not isinstance(guidance, Mapping):
        yield wrong(f"guidance is {kind_of(guidance)}; make it a mapping of defaults, or None for a method without.")
    for name in guidance or ():
        if name not in GuidanceOptions.model_fields:
            yield wrong(f"guidance has a default for {name!r}. {suggest(name, GuidanceOptions.model_fields)}")
    return f"needs {', '.join(sorted(needs)) or 'nothing'}; guidance defaults {dict(guidance) if guidance else 'none'}"


def prepare(p: Probe) -> Verdicts:
    """Check that `prepare` is cheap. It must be cheap, because it is called even if every image is there already."""
    calls: list[str] = []
    watched = copy.copy(p.backbone) if "backbone" in p.method.needs else None
    for name in ("predict", "tap", "encode", "decode") if watched is not None else ():
        setattr(watched, name, _counting(getattr(p.backbone, name), name, calls))
    task = p.task(ipc=50, backbone=watched)
    began = time.monotonic()
    make = p.method.prepare(task)
    seconds = time.monotonic() - began
    if not callable(make):
        yield wrong(f"prepare returns {kind_of(make)}; return a function from a Unit to a Made.")
    if calls:
        yield warn(f"prepare runs the network ({calls[0]}, {len(calls)} times in all); leave that to the first unit.")
    if seconds > SLOW:
        yield warn(
            f"prepare takes {seconds:.1f} s on two tiny classes; leave the work to the first unit that needs it."
        )
    return f"prepare takes {seconds:.2f} s and does not run the network"


def _counting(function: Callable[..., Any], name: str, calls: list[str]) -> Callable[..., Any]:
    def watched(*args: Any, **options: Any) -> Any:
        calls.append(name)
        return function(*args, **options)

    return watched


def images(p: Probe) -> Verdicts:
    for ipc, sets in ((1, p.make(1)), (2, p.made)):
        for unit, made in sets.items():
            where = f"of unit {unit} at ipc {ipc}"
            if not isinstance(made, Made):
                yield wrong(f"the result {where} is {kind_of(made)}; make it a dap.methods.Made.")
                return ""
            value, wanted = made.images, (len(unit.slots), 3, 32, 32)
            if not isinstance(value, Tensor) or tuple(value.shape) != wanted or not value.is_floating_point():
                yield wrong(f"the images {where} are {kind_of(value)}; make them {wanted} float32.")
            elif not torch.isfinite(value).all() or value.min() < 0 or value.max() > 1:
                low, high = value.min().item(), value.max().item()
                yield wrong(
                    f"the images {where} run from {low:.2f} to {high:.2f}; they should be finite and in [0, 1]."
                )
            elif value.requires_grad:
                yield wrong(f"the images {where} carry a graph; detach them.")
    return "(slots, 3, 32, 32) in [0, 1] at ipc 1 and 2"


def records(p: Probe) -> Verdicts:
    reserved = {"path", "label", "class_name", "slot", "sha256"}
    for unit, made in p.made.items():
        if len(made.records) != len(unit.slots):
            yield wrong(
                f"unit {unit} has {len(made.records)} records for {counted(len(unit.slots), 'image')}; give one for each image."
            )
        for record in made.records:
            try:
                json.dumps(record)
            except (TypeError, ValueError) as error:
                yield wrong(f"a record cannot be written as JSON ({error}); use plain numbers, words and lists.")
            if taken := reserved & set(record):
                yield wrong(f"a record has {', '.join(sorted(taken))}, which the set writes itself; use another name.")
    fields = sorted({key for made in p.made.values() for record in made.records for key in record})
    return f"one record for each image, with {', '.join(fields) or 'nothing in it'}"


def repeatable(p: Probe) -> Verdicts:
    """Check that the same recipe gives the same images, even if its units are made in another order.

    The order may change when a run is resumed.
    """
    gap = difference(pixels(p.make()), pixels(p.made))
    if gap:
        yield wrong(
            f"the same recipe gives other images the second time (by {gap:.1e}): something ignores recipe.seed; draw from "
            "generators of dap.base.seeding.seed_of(recipe.seed, …)."
        )
    elif gap := difference(pixels(p.make(backwards=True)), pixels(p.made)):
        yield wrong(
            f"a unit's images depend on which units were made before (by {gap:.1e}); a resumed set would differ."
        )
    return "the same recipe gives the same images, in any order of units"


def seed(p: Probe) -> Verdicts:
    if torch.equal(pixels(p.make(seed=1)), pixels(p.made)):
        yield warn("another recipe.seed gives the same images: it ignores the seed, so several sets would be one set.")
    return "another seed gives other images"


def random_state(p: Probe) -> Verdicts:
    before = torch.get_rng_state()
    p.make(ipc=1)
    if not torch.equal(before, torch.get_rng_state()):
        yield warn("the method moves torch's global generator; draw from generators of its own (dap.base.seeding).")
    return "torch's global generator does not move"


def different(p: Probe) -> Verdicts:
    made = pixels(p.made).flatten(1)
    same = [(i, j) for i in range(len(made)) for j in range(i) if torch.equal(made[i], made[j])]
    if same:
        yield warn(f"{counted(len(same), 'pair')} of the {len(made)} images are the same image.")
    return f"{counted(len(made), 'different image')}"


CHECKS = {
    "description": description,
    "prepare": prepare,
    "images": images,
    "records": records,
    "repeatable": repeatable,
    "seed": seed,
    "random state": random_state,
    "different": different,
}


def findings(method: Method | str) -> Iterator[Finding]:
    """The findings of all checks. Each finding comes as soon as it is made."""
    return run(CHECKS, Probe(METHODS[method]() if isinstance(method, str) else method))
