"""The common part of DC, DSA, DM and MTT: one tensor holds the pixels of all classes, and small steps optimise it.

The published methods let pixels leave the range of an image and keep floating-point tensors. Here a set is images of 8
bits. By default pixels are clamped to [0, 1] after every step (a projected gradient), so that the stored images are
the optimised ones. With `clamp=end` the pixels are free, as published, and are clamped only when they are stored.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal, Self

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Generator, Tensor

from dap.base.errors import DapError
from dap.base.parsing import counted
from dap.base.seeding import seed_of
from dap.data.real.stored.gathering import stored
from dap.data.real.stored.streams import Stored
from dap.evaluation.training.augment import Operation
from dap.evaluation.training.fitting import seeded
from dap.evaluation.training.networks import Network, build, check_width
from dap.evaluation.training.networks.layers import Norm
from dap.methods import base
from dap.methods.base import Made, Method, Task, Unit
from dap.methods.selection.features import check_decoded

PART = 1024
"""How many real images are looked at together for colour."""


class MatchingOptions(base.Options, frozen=True):
    """Options that all matching methods have."""

    iterations: int = Field(default=1000, ge=0, description="Steps of the outermost loop.")
    lr_images: float = Field(default=1.0, gt=0, description="Step size on pixels in normalised units.")
    momentum: float = Field(default=0.5, ge=0, lt=1, description="Momentum of the optimiser of the pixels.")
    real_batch: int = Field(
        default=256, ge=1, description="Real images of each class in each step; the papers take 256."
    )
    init: Literal["real", "noise"] = Field(
        default="real", description="The images at the beginning: real images, or noise."
    )
    network: str = Field(
        default="convnet3",
        description="The network in which real and synthetic images are compared; the papers have ConvNet-3.",
    )
    width: int = Field(default=128, ge=1, description="Channels of a ConvNet; the papers take 128.")
    norm: Norm = Field(default="instance", description="Normalisation of the network.")
    grey: Literal["auto", "yes", "no"] = Field(
        default="auto",
        description="Whether images have one channel instead of three, as in the papers on grey data. auto: where the "
        "real images "
        "have no colour.",
    )
    clamp: Literal["step", "end"] = Field(
        default="step",
        description="When pixels are brought back into the range of an image: after every step, or when they are stored.",
    )

    @model_validator(mode="after")
    def _wide(self) -> Self:
        if self.width != type(self).model_fields["width"].default:
            check_width([self.network])
        return self

    @model_serializer(mode="wrap")
    def _said(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # The default of `clamp` is left out, so that older sets, begun before this option existed, keep their recipe.
        values = dump(self)
        return {name: value for name, value in values.items() if (name, value) != ("clamp", "step")}


@dataclass
class RealPixels:
    """The decodable real images of all classes, which need not fit into memory. Grey images have one channel.

    Args:
        task: the task, whose source is read.
        options: the option `grey` says when images have one channel.
    """

    task: Task
    options: MatchingOptions

    @cached_property
    def _kept(self) -> tuple[Stored, list[int], int]:
        """The images of all classes, uint8 (n, c, h, w), where each class begins, and the number of channels that count: 1 if the
        images of all classes are grey, or 3.

        Raises:
            DapError: a class has too few decodable images to begin from, or an error of `stored`.
        """
        source, grey = self.task.source, self.options.grey
        images, labels, _ = stored(source, self.task.allowed, grey=grey == "yes")
        counts = labels.bincount(minlength=len(source.class_names)).tolist()
        for label, count in enumerate(counts):
            check_decoded(source, label, count, self.task.recipe.ipc if self.options.init == "real" else 1)
        channels = images.shape[1]
        parts = images.split(PART)  # pyright: ignore[reportCallIssue]
        if grey == "auto" and all((part == part[:, :1]).all() for part in parts):
            channels = 1
            images = images[:, :1].clone() if isinstance(images, Tensor) else images
        return images, list(accumulate(counts, initial=0)), channels

    @property
    def channels(self) -> int:
        """1 for grey images, else 3."""
        return self._kept[2]

    def rows(self, label: int) -> Tensor:
        """The places of the images of a class among those of all classes."""
        starts = self._kept[1]
        return torch.arange(starts[label], starts[label + 1])

    def taken(self, rows: Tensor) -> Tensor:
        """Images (m, c, h, w), uint8, by their places among those of all classes."""
        images, _, channels = self._kept
        found = images[rows] if isinstance(images, Tensor) else images.take(rows)
        return found[:, :channels]

    @cached_property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the pixels of each channel, (1, c, 1, 1). Every class has the same weight."""
        moments = []
        for label in range(len(self.task.source.class_names)):  # one by one, because floats take four times the memory
            pixels = self.taken(self.rows(label)).float().div_(255)
            moments.append((pixels.mean((0, 2, 3)), pixels.square_().mean((0, 2, 3))))
        mean, square = (torch.stack(parts).mean(0) for parts in zip(*moments, strict=True))
        std = (square - mean.square()).clamp_min(1e-8).sqrt()
        return mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)

    def normalise(self, images: Tensor) -> Tensor:
        mean, std = self.statistics
        return (images - mean.to(images)) / std.to(images)

    def draw(self, label: int, n: int, generator: Generator) -> Tensor:
        """Draw n images of a class without replacement, or all images of a smaller class.

        Returns:
            (n, c, h, w), normalised, on the task's device.
        """
        rows = self.rows(label)
        images = self.taken(rows[torch.randperm(len(rows), generator=generator)[:n]])
        return self.normalise(images.to(self.task.device).float() / 255)


class Matching(Method):
    """Optimises the pixels of all images of a set together."""

    from_reals = True
    needs = frozenset({"training"})
    bounded = ("options.iterations", 1)
    Options = MatchingOptions

    @abstractmethod
    def step(self, run: Run, iteration: int) -> Iterator[None]:
        """Do one iteration: call `run.descend` once or several times, and yield after each call."""

    def check(self, task: Task) -> None:
        """Check that the options fit each other. Raises `DapError` if they do not."""

    def form(self, task: Task) -> dict[str, str]:
        """What earlier versions did in another way, so that a shared cache never gives what they made."""
        del task
        return {}

    def prepare(self, task: Task) -> Callable[[Unit], Made]:
        options: MatchingOptions = task.options
        self.check(task)
        size, classes = task.source.size, len(task.source.class_names)
        made = build(options.network, classes=max(2, classes), size=size, norm=options.norm, width=options.width)
        if not isinstance(made, Network) or not made.per_image:
            raise DapError(
                f"Method {task.recipe.method!r} matches in networks that pass each image alone and have features, and "
                f"{options.network!r} with norm {options.norm!r} is none; convnet3 with norm instance is."
            )
        ipc = task.recipe.ipc
        if options.init == "real":
            for label, name in enumerate(task.source.class_names):
                if task.source.count(label) < ipc:
                    raise DapError(
                        f"Class {name!r} has {counted(task.source.count(label), 'image')}, too few to begin {ipc} from; "
                        "give --option init=noise."
                    )
        key = {
            "method": task.recipe.method,
            "seed": task.recipe.seed,
            "ipc": ipc,
            "options": options.model_dump(mode="json"),
            **self.form(task),
        }

        def optimise() -> dict[str, Tensor]:
            run = Run(task, options)
            checkpoint = task.store.checkpoint("pixels", key)
            if (state := checkpoint.read()) is not None:
                run.restore(state)
            for iteration in range(run.iteration, options.iterations):
                for _ in self.step(run, iteration):
                    pass
                run.check(iteration + 1)
                run.iteration = iteration + 1
                task.tell(f"{task.recipe.method}: iterations", run.iteration, options.iterations)
                if checkpoint.due:
                    checkpoint.write(run.state())
            return {"images": run.images()}

        def make(unit: Unit) -> Made:
            images = task.store.get("images", key, optimise)["images"]
            task.store.discard(task.store.checkpoint("pixels", key))
            mine = images[[unit.label * ipc + slot for slot in unit.slots]]
            return Made(mine.expand(-1, 3, -1, -1).clone(), [{"seed": task.recipe.seed} for _ in unit.slots])

        return make


class Run:
    """The pixels under optimisation, in normalised units, (classes · ipc, c, h, w), ordered by label.

    Args:
        task: the task, with the real images, the run seed and ipc.
        options: the options of the method.
    """

    def __init__(self, task: Task, options: MatchingOptions) -> None:
        self.task, self.options = task, options
        self.reals = RealPixels(task, options)
        self.seed, self.ipc = task.recipe.seed, task.recipe.ipc
        self.n_classes = len(task.source.class_names)
        self.device = task.device
        self.labels = torch.arange(self.n_classes, device=self.device).repeat_interleave(self.ipc)
        self.pixels = self.clamped(self._first()).contiguous(memory_format=torch.channels_last)
        self.velocity = torch.zeros_like(self.pixels)
        self.iteration = 0
        """How many iterations are done."""
        self.also: dict[str, Tensor] = {}
        """The tensors that a method optimises beside the pixels, by name."""

    def generator(self, *purpose: object) -> Generator:
        """A new generator for one purpose. All random numbers come from these, so a resumed run needs no states."""
        return torch.Generator().manual_seed(seed_of(self.seed, "matching", *purpose))

    def network(self, *purpose: object) -> Network:
        """A newly initialised network for one purpose, in eval mode, so that dropout is off."""
        options, size = self.options, self.task.source.size
        with seeded(seed_of(self.seed, "matching", "network", *purpose), torch.device("cpu")):
            made = build(
                options.network,
                channels=self.pixels.shape[1],
                classes=self.n_classes,
                size=size,
                norm=options.norm,
                width=options.width,
            )
        assert isinstance(made, Network)
        return made.eval().to(self.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def of(self, label: int) -> slice:
        """The slice of the pixels that holds the images of a label."""
        return slice(label * self.ipc, (label + 1) * self.ipc)

    @torch.no_grad()
    def descend(self, gradient: Tensor) -> None:
        """Do one step of gradient descent with momentum on all pixels, then clamp the pixels if `clamp` is step."""
        self.velocity.mul_(self.options.momentum).add_(gradient)
        self.pixels = self.clamped(self.pixels - self.options.lr_images * self.velocity)

    def clamped(self, pixels: Tensor) -> Tensor:
        """Clamp pixels, in normalised units, to the range [0, 1] of images; with `clamp=end` they stay as they are."""
        if self.options.clamp == "end":
            return pixels
        corner = torch.zeros_like(pixels[:1, :, :1, :1])
        low, high = self.reals.normalise(corner), self.reals.normalise(corner + 1)
        return torch.minimum(torch.maximum(pixels, low), high)

    def check(self, iteration: int) -> None:
        """Check after an iteration that all pixels, and what is optimised beside them, are numbers.

        Raises:
            DapError: the optimisation diverged. All images are optimised together, so none of them can be used.
        """
        if not all(torch.isfinite(values).all() for values in (self.pixels, *self.also.values())):
            options = self.options
            raise DapError(
                f"The loss of {self.task.recipe.method} is no number any more at iteration {iteration} of {options.iterations}, "
                f"so the optimisation diverged; lower the step size, as in --option lr_images={options.lr_images / 10:g}."
            )

    def images(self) -> Tensor:
        """The pixels as images (classes · ipc, c, h, w) in [0, 1]."""
        mean, std = (values.to(self.pixels) for values in self.reals.statistics)
        return (self.pixels * std + mean).clamp(0, 1)

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {"iteration": self.iteration, "pixels": self.pixels, "velocity": self.velocity, "also": self.also}

    def restore(self, state: dict[str, Any]) -> None:
        """Set the run to a state that `state` returned."""
        self.iteration = state["iteration"]
        self.also = {name: value.to(self.device) for name, value in state["also"].items()}
        self.pixels, self.velocity = state["pixels"].to(self.device), state["velocity"].to(self.device)

    def _first(self) -> Tensor:
        parts = []
        for label, name in enumerate(self.task.source.class_names):
            generator = self.generator("init", name)
            if self.options.init == "real":
                parts.append(self.reals.draw(label, self.ipc, generator))
            else:
                size = self.task.source.size
                noise = torch.randn(self.ipc, self.reals.channels, size, size, generator=generator)
                parts.append(noise.to(self.device))
        return torch.cat(parts)


ALL: tuple[Operation, ...] = ("color", "crop", "cutout", "flip", "scale", "rotate")
"""The siamese augmentations of DSA, DM and MTT; on digits the papers leave out the flip."""
