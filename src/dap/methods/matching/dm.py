"""Distribution matching: equal mean embeddings of real and synthetic images in random networks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor

from dap.base.seeding import seed_of
from dap.evaluation.training.augment import Operation, dsa
from dap.evaluation.training.batches import in_slices
from dap.methods.matching.base import ALL, Matching, MatchingOptions, Run


class DmOptions(MatchingOptions, frozen=True):
    """Defaults are the paper's."""

    iterations: int = Field(
        default=20_000, ge=0, description="Steps, each in a new random network; the paper has 20,000."
    )
    augment: tuple[Operation, ...] = Field(
        default=ALL, description="Operations of the siamese augmentation; [] for none."
    )


class Dm(Matching):
    r"""Minimises ||mean_j f(a(x_j)) - mean_i f(a(s_i))||^2 over the pixels of the synthetic images s_i of each class.

    x_j are real images, f is the feature map of a network with new random weights in every step, and a is an augmentation that
    is the same for both. No network is ever trained.
    """

    reference = "Zhao & Bilen, WACV 2023 (DM)"
    cost = "pixel optimisation: a forward pass of real_batch images a class and step, a pass and back of the set"
    Options = DmOptions

    def step(self, run: Run, iteration: int) -> Iterator[None]:
        options: DmOptions = run.task.options
        network = run.network(iteration)
        network.requires_grad_(False)
        gradient = torch.zeros_like(run.pixels)
        for label, name in enumerate(run.task.source.class_names):
            real = run.reals.draw(label, options.real_batch, run.generator("real", iteration, name))
            seed = seed_of(run.seed, "augment", iteration, name)
            with torch.no_grad():
                wanted = in_slices(network.features, augmented(real, seed, options.augment)).mean(0)
            mine = run.pixels[run.of(label)].detach().requires_grad_()
            found = network.features(augmented(mine, seed, options.augment)).mean(0)
            (gradient[run.of(label)],) = torch.autograd.grad((wanted - found).square().sum(), mine)
        run.descend(gradient)
        yield


def augmented(images: Tensor, seed: int, operations: tuple[Operation, ...]) -> Tensor:
    """Siamese augmentation: batches of any sizes are augmented alike by one seed."""
    generator = torch.Generator().manual_seed(seed)
    images = dsa(images, generator, operations, siamese=True) if operations else images
    return images.contiguous(memory_format=torch.channels_last)
