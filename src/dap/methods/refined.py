"""`NAME+refine`: a method's images, moved together until the set is like the real images; see `dap.refining`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dap.backbones.schedules import Time
from dap.base.errors import DapError
from dap.base.seeding import generators, normal, seed_of
from dap.data.bank import BankOptions, FeatureBank
from dap.guidance import Energy, MeanMatching, Representative, SquaredMMD
from dap.guidance.representative import RealFeatures
from dap.kernels import parse
from dap.methods.base import Made, Method, Options, Task, Unit
from dap.refining import Descent, denoising_error, refine
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

    Raises:
        DapError: not all slots of a class are made together, as the refinement needs.
    """
    recipe, backbone = task.recipe, task.backbone
    options = recipe.refine
    if options.steps == 0:
        return make
    if recipe.block < recipe.ipc:
        raise DapError(
            f"The refinement looks at all slots of a class together: set block >= ipc ({recipe.ipc}), not {recipe.block}."
        )
    descent = Descent(options.steps, options.rate, options.times, options.prior)
    banks = [bank_of(task, layer) for layer in options.layers]
    energies = [energy_of(options.energy, bank, options.kernel) for bank in banks]
    usual = Usual(banks[0], task)

    def refined(unit: Unit) -> Made:
        made = make(unit)
        latents = backbone.encode(made.images.to(backbone.device)) if made.latents is None else made.latents
        names = task.source.class_names
        batch = Batch.of(names, [unit.label] * len(unit.slots), unit.slots, recipe.seed)
        after = refine(backbone, energies, batch, latents, descent, usual=usual if descent.prior else None)
        return Made(backbone.decode(after).cpu(), made.records, after)

    return refined


def bank_of(task: Task, layer: str) -> FeatureBank:
    """The real features of a layer that a task's refinement compares with."""
    recipe = task.recipe
    chosen = recipe.refine.model_dump(include={"reals", "pool", "normalise"})
    return FeatureBank(
        task.source,
        task.backbone,
        BankOptions(layer=layer, **chosen),
        ipc=recipe.ipc,
        run_seed=recipe.seed,
        cache=task.cache,
    )


def energy_of(name: str, reals: RealFeatures, kernel: str) -> Energy:
    """The energy of a set behind a name of `Refinement.energy`.

    Raises:
        DapError: the kernel is no kernel.
    """
    found = parse(kernel)
    if name == "mean":
        return MeanMatching(reals)
    return SquaredMMD(reals, found) if name == "mmd" else Representative(reals, found, repulsion=1.0)


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
