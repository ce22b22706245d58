"""`auto`: prototypes of the class, moved together in the backbone's latents until the set is like the real images."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Self

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from dap import sampling
from dap.base.errors import DapError
from dap.base.seeding import seed_of
from dap.data.clusters import herded
from dap.data.typical import Typical
from dap.methods.base import Made, Options, Task, Unit
from dap.methods.diffusion.latents import check_reals, class_latents
from dap.methods.diffusion.mgd3 import find_modes
from dap.methods.diffusion.vanilla import Vanilla
from dap.methods.refined import with_refinement, with_typical
from dap.solvers.usual import sampling_of

log = logging.getLogger(__name__)

GRID = 8
"""The side of the grid to which latents are pooled before they are clustered. Finer places are details of one image."""


FEW = 10
"""A set with fewer images per class has none to spend on images that are not typical; chosen on validation images, see
docs/results.md."""


def share_of_typical(ipc: int) -> float:
    """Which part of the real images is looked at: the most typical three quarters for small sets, all for others."""
    return 0.75 if ipc < FEW else 1.0


MANY = 50
"""From this number of images per class on, prototypes are denoised before they are refined. With so many, the refinement hardly
moves each of them, and nearly half would stay near-copies of the real images that they began at; see docs/results.md."""

MIDDLE = 0.3
"""The strength from there on, chosen on validation images."""


class AutoOptions(Options, frozen=True):
    """The starts of the images."""

    strength: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Which part of the run is done from the prototype of a slot. With 0 the prototype itself is refined. "
        "With more it is noised first and denoised by the backbone, so that the images are further from real ones. With 1 every "
        f"run begins at pure noise. Default: 0 below {MANY} images per class, and {MIDDLE} from there on.",
    )
    reals: int = Field(
        default=1000,
        ge=1,
        description="Real images of each class that are clustered; all images of a smaller class.",
    )

    def settled(self, ipc: int) -> Self:
        usual = MIDDLE if ipc >= MANY else 0.0
        return self.model_copy(update={"strength": usual}) if self.strength is None else self

    @property
    def part(self) -> float:
        """The strength; 0 where it was left open and no number of images has settled it."""
        return self.strength or 0.0


class Auto(Vanilla):
    """A set in two steps, each of which asks the backbone alone. Nothing has to be set.

    Prototypes: the latents of the class's real images are clustered, and slot i begins at the real latent nearest to the
    i-th centre. With the option `strength`, each prototype is first noised to a middle level and denoised with the class as
    condition, which makes a new image of the same kind. Refinement: the images of the class move together until the set as
    a whole is like the real images in the backbone's features; see `dap.refining`. The order of the slots is that of kernel
    herding, so the first k slots are near the mean of the class for each k.

    Below 50 images per class the prototypes are refined as they are, so the images stay near the real ones that they began at. Do
    not publish a set of private images.
    """

    from_reals = True
    reference = "ours, after DAP"
    cost = "encoding and clustering 1000 real images a class; and the refinement"
    refinement = {"typical": share_of_typical}
    together = True
    bounded = ("refine.steps", 20)
    Options = AutoOptions

    def prepare(self, task: Task) -> Callable[[Unit], Made]:
        options: AutoOptions = task.options
        if options.part == 0:
            _check_unsampled(task)
        task.backbone.condition(task.source.class_names)  # a class that the backbone does not know is told of first
        task = with_typical(task)
        if options.part < 1:
            check_reals(task, options.reals)
        make = super().prepare(task)
        if options.part < 1:
            make = self.weighed(self.bare(task) if options.part == 0 else make, task)
        return with_refinement(make, task)

    def weighed(self, make: Callable[[Unit], Made], task: Task) -> Callable[[Unit], Made]:
        """The same function, with the weight of each image's prototype in its record."""

        def made(unit: Unit) -> Made:
            found, weights = make(unit), self.stored(task, task.source.class_names[unit.label])["weights"].tolist()
            records = [{**line, "weight": weights[slot]} for line, slot in zip(found.records, unit.slots, strict=True)]
            return Made(found.images, records, found.latents)

        return made

    def bare(self, task: Task) -> Callable[[Unit], Made]:
        """The function that makes a unit of the prototypes themselves, without a step of sampling."""

        def make(unit: Unit) -> Made:
            batch = self.batch(task, unit.label, unit.slots)
            latents = self.stored(task, task.source.class_names[unit.label])["x"][list(unit.slots)].to(
                task.backbone.device
            )
            return Made(task.backbone.decode(latents).cpu(), [{"seed": seed} for seed in batch.seeds], latents)

        return make

    def start(self, task: Task) -> Callable[[sampling.Batch], sampling.Start] | None:
        options: AutoOptions = task.options
        if options.part == 1:
            return None

        def begin(batch: sampling.Batch) -> sampling.Start:
            (name,) = {batch.class_names[label] for label in batch.labels}
            found = self.stored(task, name)["x"][list(batch.slots)]
            return sampling.Start.at(found, options.part, task.recipe.sampling.steps)

        return begin

    def stored(self, task: Task, name: str) -> dict[str, Tensor]:
        """The prototypes of a class as "x" and their weights as "weights", from the store if they are there."""
        key = {"class": name, "ipc": task.recipe.ipc, "seed": task.recipe.seed, "reals": task.options.reals}
        key["typical"] = task.source.tag if isinstance(task.source, Typical) else task.recipe.refine.typical
        return task.store.get(f"weighed starts of {name}", key, lambda: self.prototypes(task, name))

    def prototypes(self, task: Task, name: str) -> dict[str, Tensor]:
        """The real latent nearest to each centre of k-means on pooled latents (ipc, C, *spatial), in the order of herding.

        The weight of a prototype, (ipc,), is the share of the class's clustered real latents to which no other prototype is
        nearer, times ipc, so that the mean weight in the class is 1.
        """
        _, latents = class_latents(task, name, task.options.reals)
        points = pooled(latents)
        seed = seed_of(task.recipe.seed, name, "prototypes")
        rows = nearest(points, find_modes(points, task.recipe.ipc, "kmeans", seed, name))
        rows = rows[herded(points[rows], points.mean(0))]
        return {"x": latents[rows], "weights": masses(points, points[rows])}


def _check_unsampled(task: Task) -> None:
    """Tell a user whose choices about sampling mean nothing, because nothing is sampled."""
    if task.given.guidance is not None:
        raise DapError(
            "auto samples nothing unless its option strength is above 0, so a guidance of your own would do nothing. Give "
            "--option strength=0.3, or take --method vanilla."
        )
    chosen, backbone = task.recipe.sampling, task.backbone
    usually = sampling_of(backbone.card, backbone.schedule, {}).model_dump()
    if chosen.solver != usually["solver"]:  # each solver has its own usual eta
        usually["eta"] = sampling_of(backbone.card, backbone.schedule, {"solver": chosen.solver}).eta
    if given := [name for name, value in usually.items() if getattr(chosen, name) != value]:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        log.warning("auto samples nothing unless its option strength is above 0, so these change nothing: %s", flags)


def pooled(latents: Float[Tensor, "n c *spatial"]) -> Float[Tensor, "n d"]:
    """Latents as points: averaged over the cells of a grid of 8 × 8 if they are finer, and flattened."""
    side = min(GRID, *latents.shape[-2:])
    x = latents if latents.ndim == 4 else latents.flatten(1, -3)
    return adaptive_avg_pool2d(x.float(), side).flatten(1)


def nearest(points: Float[Tensor, "n d"], centres: Float[Tensor, "k d"]) -> Tensor:
    """For each centre the row of the nearest point that no earlier centre has taken, (k,)."""
    gaps, rows = torch.cdist(centres, points), list[int]()
    for gap in gaps:
        gap[rows] = torch.inf
        rows.append(int(gap.argmin()))
    return torch.tensor(rows)


def masses(points: Float[Tensor, "n d"], prototypes: Float[Tensor, "k d"]) -> Float[Tensor, " k"]:
    """k times the share of the points that are nearest to each prototype. Points as near to several are divided among them."""
    gaps = torch.cdist(prototypes, points, compute_mode="donot_use_mm_for_euclid_dist")
    owners = (gaps == gaps.min(0).values).double()
    return (owners / owners.sum(0)).sum(1) * len(prototypes) / len(points)
