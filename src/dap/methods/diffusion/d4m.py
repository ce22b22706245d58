"""D4M: image-to-image from prototypes of the class in latent space."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from dap import sampling
from dap.base.seeding import seed_of
from dap.methods import base
from dap.methods.base import Made, Task, Unit
from dap.methods.diffusion.latents import check_reals, class_latents, duplicates_told
from dap.methods.diffusion.vanilla import Vanilla


class D4mOptions(base.Options, frozen=True):
    """Defaults are the authors', except for three that are no options of the method: --cfg, --template, --negative-prompt."""

    strength: float = Field(
        default=0.7,
        ge=0,
        le=1,
        description="Which part of the run is done. The prototype is noised to the level where this part begins: 0.7 of "
        "50 steps "
        "are the last 35. With 1 the whole run is done without the prototype, and the images are vanilla's.",
    )
    reals: int = Field(
        default=1300, ge=1, description="Real images of each class that are clustered; all images of a smaller class."
    )
    expand: int = Field(
        default=1,
        ge=1,
        description="Latents of each mini-batch of k-means, in multiples of ipc. The authors' script for ImageNet has 1; the "
        "default of their program is 10.",
    )


class D4m(Vanilla):
    """Samples that start from prototypes: the k-means centres of the latents of the class, one for each slot.

    The centres are those of one pass of mini-batch k-means over the class in a random order. Each prototype is noised
    to the level of a later step, and the rest of the run denoises it with the class as condition. Clusters belong to
    the name of the class, and slots take them in the order that k-means gives. On Stable Diffusion 1.5 the authors'
    code has --cfg 8, --template "{}" and --negative-prompt "cartoon, anime, painting"; the backbone card's are the
    defaults here.
    """

    reference = "Su, Hou, Gao, Tian & Tang, CVPR 2024 (D4M)"
    cost = "encoding and clustering the class's images; 0.7 of a vanilla sample"
    Options = D4mOptions

    def prepare(self, task: Task) -> Callable[[Unit], Made]:
        if task.options.strength < 1:
            check_reals(task, task.options.reals)
        return super().prepare(task)

    def start(self, task: Task) -> Callable[[sampling.Batch], sampling.Start] | None:
        options: D4mOptions = task.options
        if options.strength == 1:
            return None
        steps, ipc = task.recipe.sampling.steps, task.recipe.ipc

        def begin(batch: sampling.Batch) -> sampling.Start:
            (name,) = {batch.class_names[label] for label in batch.labels}
            used = options.model_dump(include={"reals", "expand"})
            key = {"class": name, "ipc": ipc, "seed": task.recipe.seed, **used}
            found = task.store.get(f"prototypes of {name}", key, lambda: {"x": self.prototypes(task, name)})["x"]
            return sampling.Start.at(found[list(batch.slots)], options.strength, steps)

        return begin

    def prototypes(self, task: Task, name: str) -> Tensor:
        """(ipc, C, *spatial): the centres of mini-batch k-means of the class's latents."""
        _, latents = class_latents(task, name, task.options.reals)
        seed = seed_of(task.recipe.seed, name, "k-means") % 2**32
        ipc, points = task.recipe.ipc, latents.flatten(1)
        with duplicates_told(points, ipc, name):
            return one_pass(points, ipc, task.options.expand * ipc, seed).view(-1, *latents.shape[1:])


def one_pass(points: Float[Tensor, "n d"], k: int, batch: int, seed: int) -> Float[Tensor, "k d"]:
    """The centres of mini-batch k-means (Sculley 2010; scikit-learn) after one pass over points in their order.

    The first batch gives the first centres by k-means++. After each batch, a centre is the mean of all points that were
    nearest to it so far. Now and then, a centre with less than a hundredth of the points of the largest cluster moves to
    a random point. A last batch of fewer than k points is left out.

    Args:
        points: at least k points.
        k: how many centres.
        batch: points of a batch, at least k.
        seed: of k-means++.
    """
    from sklearn.cluster import MiniBatchKMeans

    found = MiniBatchKMeans(k, random_state=seed, batch_size=batch)
    for part in points.split(batch):
        if len(part) >= k:
            found.partial_fit(part.numpy())
    return torch.from_numpy(found.cluster_centers_).float()
