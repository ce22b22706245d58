"""IGD: see `dap.guidance.influence` for the paper and its equations."""

from __future__ import annotations

import math

from dap.guidance import Descend, Deviation, Guidance, Influence, Nothing, Sum, Window
from dap.guidance.influence import STRENGTH_UNIT
from dap.methods.base import Task
from dap.methods.diffusion.surrogate import IgdOptions, Surrogate
from dap.methods.diffusion.vanilla import Vanilla

PAPER_LATENTS = 4 * 32 * 32
"""How many numbers a latent of the paper's backbone has."""


class Igd(Vanilla):
    """Samples guided so that they train a network as the real images do, and so that they differ from each other.

    A surrogate network is trained on the real data. The influence guidance turns the gradient that a sample gives this
    network towards the mean gradient of the real images of the class. The deviation guidance pushes a sample away from
    the samples of its class that were made before it.
    """

    needs = frozenset({"backbone", "training"})
    reference = "Chen, Du, Huang, Wang, Zhang & Wang, ICLR 2025 (IGD)"
    cost = "a network trained on the real data, once; image by image, second order through it and the decoder in guided steps"
    together = True
    Options = IgdOptions

    def build(self, task: Task) -> Guidance:
        recipe, options, backbone = task.recipe, task.options, task.backbone
        parts: list[Guidance] = []
        if options.influence > 0:
            influence = Influence(Surrogate(task, options), options.through)
            parts.append(Descend(influence, options.influence * STRENGTH_UNIT, "noise"))
        if options.deviation > 0:
            scale = options.deviation * math.prod(backbone.latent_shape) / PAPER_LATENTS
            parts.append(Descend(Deviation(options.memory, options.apart), scale))
        window = Window(Sum(tuple(parts)), options.start, options.stop) if parts else Nothing()
        steps = recipe.sampling.steps
        # Without a guided step no surrogate is trained.
        return window if any(window.active(index, steps) for index in range(steps)) else Nothing()
