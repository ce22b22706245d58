"""Gradient matching: dataset condensation (DC), and DC with differentiable siamese augmentation (DSA)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dap.base.seeding import seed_of
from dap.evaluation.training.augment import Operation, dsa
from dap.evaluation.training.batches import slice_size
from dap.methods.base import Task, check_compared
from dap.methods.matching.base import ALL, Matching, MatchingOptions, Run
from dap.methods.matching.dm import augmented

LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""Outer steps and inner epochs by ipc, as published. An ipc between two entries takes the entry of the smaller ipc."""


class DcOptions(MatchingOptions, frozen=True):
    """Defaults are the paper's."""

    iterations: int = Field(
        default=1000,
        ge=0,
        description="How many networks are initialised and trained, one after another; the paper has 1,000.",
    )
    lr_images: float = Field(default=0.1, gt=0, description="Step size on pixels in normalised units.")
    init: Literal["real", "noise"] = Field(default="noise", description="What the images are at first.")
    outer: int | None = Field(
        default=None,
        ge=1,
        description="Steps on the pixels with each network. Default by ipc: 1 step at ipc 1, 10 at 10, 50 at 50.",
    )
    inner: int | None = Field(
        default=None,
        ge=0,
        description="Training epochs of the network between two steps. Default by ipc: 1 epoch at ipc 1, 50 at 10, 10 at 50.",
    )
    lr_network: float = Field(
        default=0.01, gt=0, description="Learning rate of that training, by SGD without momentum."
    )
    batch: int = Field(default=256, ge=1, description="Batch size of that training.")
    augment: tuple[Operation, ...] = Field(
        default=(), description="Operations of the siamese augmentation, which is DSA's; [] for none."
    )


class DsaOptions(DcOptions, frozen=True):
    """Defaults are the paper's."""

    init: Literal["real", "noise"] = Field(default="real", description="What the images are at first.")
    augment: tuple[Operation, ...] = Field(
        default=ALL, description="Operations of the siamese augmentation; [] for none, which is DC."
    )


class Dc(Matching):
    """Makes the gradient of the synthetic images in a network like the gradient of the real images, class by class.

    Between two steps the network is trained on the synthetic images. The distance of two gradients is the sum of 1 -
    cos over the output rows of the layers (`gradient_distance`). The loops, rates and batches are those of the authors'
    code (VICO-UoE/DatasetCondensation, main.py, 306245d).
    """

    reference = "Zhao, Mopuri & Bilen, ICLR 2021 (DC)"
    cost = "bi-level pixel optimisation: a pass and back of real_batch images a class and step, second order of the set"
    Options = DcOptions

    def check(self, task: Task) -> None:
        check_compared(task)

    def form(self, task: Task) -> dict[str, str]:
        del task
        return {"distance": "small gradients pull less"}  # earlier versions gave a row one weight whatever its norms

    def step(self, run: Run, iteration: int) -> Iterator[None]:
        options: DcOptions = run.task.options
        outer, inner = loops(run.ipc, options)
        network = run.network(iteration)
        parameters = list(network.parameters())
        for turn in range(outer):
            gradient = torch.zeros_like(run.pixels)
            for label, name in enumerate(run.task.source.class_names):
                real = run.reals.draw(label, options.real_batch, run.generator("real", iteration, turn, name))
                seed = seed_of(run.seed, "augment", iteration, turn, name)
                wanted = gradient_of(network, augmented(real, seed, options.augment), label, parameters)
                mine = run.pixels[run.of(label)].detach().requires_grad_()
                found = gradient_of(network, augmented(mine, seed, options.augment), label, parameters, keep=True)
                distance = gradient_distance(wanted, found)
                (gradient[run.of(label)],) = torch.autograd.grad(distance, mine)
            run.descend(gradient)
            yield
            if turn < outer - 1:
                _train(network, run, options, inner, iteration, turn)


class Dsa(Dc):
    """DC, where the real and the synthetic images of a class get the same random augmentation in every step."""

    reference = "Zhao & Bilen, ICML 2021 (DSA)"
    Options = DsaOptions


def loops(ipc: int, options: DcOptions) -> tuple[int, int]:
    """How many steps on the pixels each network gets, and how many epochs it is trained between two steps."""
    outer, inner = LOOPS[max(known for known in LOOPS if known <= ipc)]
    return options.outer or outer, inner if options.inner is None else options.inner


TINY = 1e-6
"""Added to the product of two norms before a division, as in the authors' code: so the smaller the gradients of a row,
the less a row pulls on the pixels."""


def gradient_distance(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """The sum of 1 - <g, s> / (|g| |s| + `TINY`) over all weights and their output rows (DC, section 3.2).

    Biases and norms, whose parameters are vectors, are left out, as in the authors' code.

    Args:
        real: gradient of the real images, one tensor a parameter.
        synthetic: gradient of the synthetic images, one tensor a parameter.
    """
    total = synthetic[0].new_zeros(())
    for one, other in zip(real, synthetic, strict=True):
        if one.ndim > 1:
            g, s = one.flatten(1), other.flatten(1)
            total = total + (1 - (g * s).sum(1) / (g.norm(dim=1) * s.norm(dim=1) + TINY)).sum()
    return total


def gradient_of(
    network: nn.Module, images: Tensor, label: int, parameters: Sequence[Tensor], keep: bool = False
) -> tuple[Tensor, ...]:
    """Gradient of the mean cross-entropy, one tensor a parameter.

    With `keep` the gradient keeps its graph, and all images pass the network at once.
    """
    # No image depends on the others, so slices give the same sum. A small slice fits into a CPU's cache.
    height, width = images.shape[2:]
    size = len(images) if keep else slice_size(height, width, images.device)
    labels, total = torch.full((len(images),), label, device=images.device), []
    for part, wanted in zip(images.split(size), labels.split(size), strict=True):
        loss = F.cross_entropy(network(part), wanted, reduction="sum") / len(images)
        found = torch.autograd.grad(loss, parameters, create_graph=keep)
        total = [a + b for a, b in zip(total, found, strict=True)] if total else list(found)
    return tuple(total)


def _train(network: nn.Module, run: Run, options: DcOptions, epochs: int, iteration: int, turn: int) -> None:
    """Train the network on the current synthetic images."""
    optimiser = torch.optim.SGD(network.parameters(), lr=options.lr_network)
    for epoch in range(epochs):
        where = ("train", iteration, turn, epoch)
        order = torch.randperm(len(run.pixels), generator=run.generator(*where))
        for k, chosen in enumerate(order.split(options.batch)):
            images = run.pixels[chosen]
            if options.augment:
                images = dsa(images, run.generator(*where, k), options.augment)
            optimiser.zero_grad()
            logits = network(images.contiguous(memory_format=torch.channels_last))
            F.cross_entropy(logits, run.labels[chosen]).backward()
            optimiser.step()
