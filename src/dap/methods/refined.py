"""`NAME+refine`: a method's images, moved together until the set is like the real images; see `dap.refining`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dap.backbones.schedules import Time
from dap.base.errors import DapError
from dap.base.parsing import counted
from dap.base.seeding import generators, normal, seed_of
from dap.data.bank import BankOptions, FeatureBank
from dap.data.typical import Typical
from dap.guidance import Energy, EnergyDistance, LogDet, MeanMatching, Representative, SinkhornDivergence, SquaredMMD
from dap.guidance.representative import RealFeatures
from dap.kernels import parse
from dap.methods.base import Made, Method, Options, Task, Unit
from dap.refining import Descent, Finished, denoising_error, refine
from dap.sampling import Batch

USUAL = 100
"""Real images of a class whose error of denoising says what is usual."""


class Refined(Method):
    """The images of another method, refined in the backbone's latents.

    Latents of a method that samples are taken as they are. Images of other methods, such as real ones, are encoded first.

    Args:
        base: the method that makes the images.

    Raises:
        DapError: the method refines its images by itself.
    """

    together = True
    bounded = ("refine.steps", 20)
    refinement: Mapping[str, Any] = {}  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, base: Method) -> None:
        if base.refinement is not None:
            raise DapError("A method that refines its images is not refined twice; leave out +refine.")
        self.base = base
        said: dict[str, Any] = {
            "needs": base.needs | {"backbone"},
            "reference": f"{base.reference}; refined" if base.reference else "refined",
            "cost": f"{base.cost}; and the refinement, about three vanilla samples"
            if base.cost
            else "about three vanilla samples",
            "guidance": base.guidance,
            "sampling": base.sampling,
            "steered": base.steered,
            "from_reals": base.from_reals,
            "Options": base.Options,
            "__doc__": f"{base.__doc__ or ''} Then all images of a class are refined together.",
        }
        vars(self).update(said)

    def parse(self, options: Mapping[str, Any], name: str) -> Options | None:
        return self.base.parse(options, name)

    def prepare(self, task: Task) -> Callable[[Unit], Made]:
        return with_refinement(self.base.prepare(task), task)


def with_refinement(make: Callable[[Unit], Made], task: Task) -> Callable[[Unit], Made]:
    """The function that makes a unit, with the task's refinement after it.

    Where a class has several blocks, each block is refined beside the finished ones before it.

    Raises:
        DapError: the energy cannot be made, or no real images are left to be held out.
    """
    return make if task.recipe.refine.steps == 0 else _Refinement(make, with_typical(task))


def with_typical(task: Task) -> Task:
    """The same task on the typical real images of each class, if its recipe wants these; see `dap.data.typical`."""
    recipe, source = task.recipe, task.source
    share, (layer, *_) = recipe.refine.typical, recipe.refine.layers
    if share == 1 or isinstance(source, Typical):
        return task
    how = {"seed": recipe.seed, "least": recipe.ipc, "store": task.store, "tell": task.tell}
    return replace(task, source=Typical(source, share, task.backbone, layer, **how))


class _Refinement:
    """Makes units and refines them. What it asks of the store is the same in every process and after every kill."""

    def __init__(self, make: Callable[[Unit], Made], task: Task) -> None:
        self.make, self.task = make, task
        options, source = task.recipe.refine, task.source
        common = {"repel": options.repel, "patience": options.patience}
        self.descent = Descent(options.steps, options.rate, options.times, options.prior, **common)
        banks = banks_of(task)
        self.energies = [energy_of(options.energy, bank, options.kernel) for bank in banks]
        self.repulsions = [LogDet(bank, parse(options.kernel)) for bank in banks if options.repel > 0]
        self.held_out: list[Energy] = []
        if options.patience:
            for label, name in enumerate(source.class_names):
                if (count := source.count(label)) <= options.reals:
                    raise DapError(
                        f"Class {name!r} has {counted(count, 'real image')}, and {options.reals} of them pull, so none is "
                        "left to look at with refine.patience; lower refine.reals, or leave out refine.patience."
                    )
            self.held_out = [
                judging_energy(options.energy, bank, options.kernel) for bank in banks_of(task, options.reals)
            ]
        self.usual = Usual(banks[0], task) if options.prior else None

    def __call__(self, unit: Unit) -> Made:
        made = self.make(unit)
        latents, curve = self.refined(unit, made, self.before(unit))
        records = made.records
        if curve:
            steps = int(min(curve, key=lambda look: look[1])[0])
            records = [{**record, "refined": {"steps": steps}} for record in records]
            records[0]["refined"]["held_out"] = [[int(step), value] for step, value in curve]
        return Made(self.task.backbone.decode(latents).cpu(), records, latents)

    def before(self, unit: Unit) -> Finished | None:
        """The finished images of the slots before a unit; None for the first unit of a class."""
        before, block = None, self.task.recipe.block
        for start in range(0, unit.slots[0], block):
            slots = tuple(range(start, start + block))
            latents, _ = self.refined(Unit(unit.label, slots), None, before)
            parts = [latents] if before is None else [before.latents, latents]
            before = Finished(self.batch(Unit(unit.label, tuple(range(start + block)))), torch.cat(parts))
        return before

    def refined(self, unit: Unit, made: Made | None, before: Finished | None) -> tuple[Tensor, list[list[float]]]:
        """The refined latents of a unit, and its looks at the held-out energy: (steps, energy).

        The latents of a unit that later ones see are kept in the store, and come out of it where they are there: after a kill
        the images alone would not give them back.
        """
        task, name = self.task, self.task.source.class_names[unit.label]
        device = task.backbone.device

        def compute() -> dict[str, Tensor]:
            of = made or self.make(unit)
            latents = task.backbone.encode(of.images.to(device)) if of.latents is None else of.latents
            curve: list[tuple[int, float]] = []
            checkpoint = task.store.checkpoint(f"refinement of {name}", key)
            after = refine(
                task.backbone,
                self.energies,
                self.batch(unit),
                latents,
                self.descent,
                usual=self.usual,
                repulsions=self.repulsions,
                held_out=self.held_out,
                finished=before,
                told=lambda done, total: task.tell(f"refining {name}", done, total),
                looked=lambda step, energy: curve.append((step, energy)),
                checkpoint=checkpoint,
            )
            task.store.discard(checkpoint)
            return {"x": after, "curve": torch.tensor(curve, dtype=torch.float64)}

        key = {"class": name, "slots": list(unit.slots), "recipe": task.recipe.values()}
        last = unit.slots[-1] + 1 == task.recipe.ipc
        found = compute() if last else task.store.get(f"refined {name}", key, compute)
        return found["x"].to(device, copy=True), found["curve"].tolist()

    def batch(self, unit: Unit) -> Batch:
        names = self.task.source.class_names
        return Batch.of(names, [unit.label] * len(unit.slots), unit.slots, self.task.recipe.seed)


def banks_of(task: Task, skip: int = 0) -> list[FeatureBank]:
    """The real features of each layer that a task's refinement compares with. All of them share the encoded images.

    Args:
        task: the task.
        skip: how many real images of each class are left out.
    """
    recipe = task.recipe
    chosen = recipe.refine.model_dump(include={"reals", "pool", "normalise"})
    banks: list[FeatureBank] = []
    for layer in recipe.refine.layers:
        options = BankOptions(layer=layer, **chosen)
        how = {"ipc": recipe.ipc, "run_seed": recipe.seed, "cache": task.cache, "skip": skip}
        how |= {"steps": len(recipe.refine.times), "memory": task.budget.memory if task.budget else None}
        banks.append(FeatureBank(task.source, task.backbone, options, **how, beside=banks[0] if banks else None))
    return banks


def energy_of(name: str, reals: RealFeatures, kernel: str) -> Energy:
    """The energy of a set behind a name of `Refinement.energy`.

    Raises:
        DapError: the kernel is no kernel, or a package is missing.
    """
    found = parse(kernel)
    if name == "mean":
        return MeanMatching(reals)
    if name == "sinkhorn":
        return SinkhornDivergence(reals, found)
    return SquaredMMD(reals, found) if name == "mmd" else Representative(reals, found, repulsion=1.0)


def judging_energy(name: str, reals: RealFeatures, kernel: str) -> Energy:
    """The energy behind a name, as a value of the set. Under `distance` only the gradient of `energy_of` is that of the set."""
    return EnergyDistance(reals, parse(kernel)) if name == "distance" else energy_of(name, reals, kernel)


class Usual:
    """The mean squared error of denoising of a class's real images, for each class and time, computed once."""

    def __init__(self, bank: FeatureBank, task: Task) -> None:
        self.bank, self.task = bank, task
        self._found: dict[tuple[int, Time], float] = {}

    def __call__(self, label: int, t: Time) -> float:
        if (label, t) not in self._found:
            self._found[label, t] = self._computed(label, t)
        return self._found[label, t]

    def _computed(self, label: int, t: Time) -> float:
        backbone, name = self.task.backbone, self.task.source.class_names[label]
        latents = self.bank.latents(label)[:USUAL]
        seeds = [seed_of(self.task.recipe.seed, name, "usual", t, index) for index in range(len(latents))]
        noise = normal(latents.shape[1:], generators(seeds), latents)
        condition = backbone.condition([name] * len(latents))
        return denoising_error(backbone, latents, condition, t, noise).square().mean().item()
