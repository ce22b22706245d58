"""MGD3: see `dap.guidance.modes` for the paper and its equation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from dap.base.seeding import seed_of
from dap.guidance import Guidance, Modes, Window
from dap.methods.base import Options, Task
from dap.methods.diffusion.latents import check_reals, class_latents, duplicates_told
from dap.methods.diffusion.vanilla import Vanilla

Discovery = Literal["kmeans", "nearest", "tree"]


class ModeOptions(Options, frozen=True):
    """Options of the modes and of their guidance."""

    scale: float = Field(
        default=0.1, ge=0, description="Strength lambda of the pull; the paper has 0.1. 0 gives the unguided sample."
    )
    stop: float = Field(
        default=0.48,
        ge=0,
        le=1,
        description="Guide until this fraction of the run. The paper guides in the first 24 of 50 steps.",
    )
    reals: int = Field(
        default=1300,
        ge=1,
        description="Real images of each class that are clustered, drawn by the run seed; all images of a smaller class. "
        "The paper "
        "takes all, which are at most 1300 in ImageNet.",
    )
    discovery: Discovery = Field(
        default="kmeans",
        description="How the modes are found. kmeans: the centroids of ipc clusters of the latents, as in the paper. "
        "nearest: the "
        "real latent nearest to each centroid. tree: the centroids of the ipc leaves of bisecting k-means, which always splits "
        "the leaf with the largest squared error, as in ManifoldGD.",
    )


def find_modes(
    points: Float[Tensor, "n d"], k: int, discovery: Discovery, seed: int, name: str = ""
) -> Float[Tensor, "k d"]:
    """The modes of points, float32: k-means with k-means++ and Lloyd's algorithm (scikit-learn).

    `n_init` is 1, and 10 for each split of the tree. See the option `discovery` for the three ways. `name` is the class, for a
    warning where fewer points than k differ.
    """
    from sklearn.cluster import BisectingKMeans, KMeans

    x, state = points.float().cpu(), seed % 2**32
    with duplicates_told(x, k, name):
        if discovery == "tree":
            options = {"init": "k-means++", "n_init": 10, "bisecting_strategy": "biggest_inertia"}
            found = BisectingKMeans(k, random_state=state, **options).fit(x.numpy())
        else:
            found = KMeans(k, random_state=state).fit(x.numpy())
    centroids = torch.from_numpy(found.cluster_centers_).float()
    if discovery != "nearest":
        return centroids
    return x[torch.stack([(x - centroid).square().sum(1).argmin() for centroid in centroids])]


class ClassModes:
    """The modes of each class, one for each slot: clusters of the latents of the class's real images.

    The task's store keeps the modes. All seeds are made of the name of a class, never of its label, so that another
    order of the classes changes no mode.

    Args:
        task: the task, whose backbone encodes the images.
        options: the options of the modes.

    Raises:
        DapError: a class has fewer real images than modes, or the option `reals` is smaller than ipc.
    """

    def __init__(self, task: Task, options: ModeOptions) -> None:
        self.task, self.options, self.ipc = task, options, task.recipe.ipc
        check_reals(task, options.reals)
        self._modes: dict[int, Tensor] = {}

    def begin(self, labels: Sequence[int]) -> None:
        """Find the modes of these labels, or take them from the store. The modes of other labels leave the memory."""
        self._modes = {label: modes for label, modes in self._modes.items() if label in labels}
        for label in labels:
            if label not in self._modes:
                name, options = self.task.source.class_names[label], self.options
                key = {
                    "class": name,
                    "modes": self.ipc,
                    "seed": self.task.recipe.seed,
                    **options.model_dump(include={"reals", "discovery"}),
                }
                find = partial(self._find, label)
                self._modes[label] = self.task.store.get(f"modes of {name}", key, find)["x"]

    def of(self, label: int) -> Float[Tensor, "slots c *spatial"]:
        """The modes of a class, on the CPU. `begin` must have been called with the label."""
        return self._modes[label]

    def seed(self, label: int, *purpose: object) -> int:
        """A hash of the run seed, the class's name and the purpose."""
        return seed_of(self.task.recipe.seed, self.task.source.class_names[label], *purpose)

    def _find(self, label: int) -> dict[str, Tensor]:
        name = self.task.source.class_names[label]
        _, latents = class_latents(self.task, name, self.options.reals)
        modes = find_modes(latents.flatten(1), self.ipc, self.options.discovery, self.seed(label, "modes"), name)
        return {"x": modes.view(self.ipc, *latents.shape[1:])}


class Mgd3(Vanilla):
    """Each slot is drawn towards its own mode, a cluster centre of the class's latents, in the first half of the run.

    The paper mirrors half of the images before it encodes them. Here no image is mirrored, because a mirrored digit or
    letter is no longer that digit or letter. Under a solver that draws no noise, σ_t is the noise that an ancestral
    step would draw.
    """

    clips = True
    reference = "Chan-Santiago, Tirupattur, Nayak, Liu & Shah, ICML 2025 (MGD3)"
    cost = "vanilla's; once, the latents of up to 1300 images a class, and k-means"
    Options = ModeOptions

    def build(self, task: Task) -> Guidance:
        options = task.options
        return Window(Modes(ClassModes(task, options), options.scale), stop=options.stop)
