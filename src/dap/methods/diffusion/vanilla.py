"""Samples of a pre-trained diffusion model without guidance. The guided methods sample through this module too."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from dap import sampling, solvers
from dap.backbones.base import Backbone
from dap.backbones.guided import ClassifierFree
from dap.backbones.kinds.dit import DiT
from dap.backbones.kinds.unet import UNet
from dap.base.errors import DapError
from dap.guidance import Guidance, Nothing
from dap.methods.base import Made, Method, Task, Unit

log = logging.getLogger("dap")


def _asked(task: Task) -> bool:
    """Whether a guidance of some strength is asked for: that of the method, or the user's own."""
    run, own = task.recipe.run, task.recipe.own
    strong = run is not None and run.guidance is not None and run.guidance.scale > 0
    return strong or (own is not None and own.scale > 0)


class Vanilla(Method):
    """Samples of the backbone without guidance; every guided method with scale 0 gives these samples.

    A guided method overrides `build`. A method that starts from real images overrides `start`. A method that tunes the
    backbone overrides `tune`. None of these functions may do long work. Long work belongs in `Guidance.begin`, or in
    the functions that `start` and `tune` return.
    """

    needs = frozenset({"backbone"})
    reference = "Ho, Jain & Abbeel 2020; Peebles & Xie 2023 (DiT); Rombach et al. 2022 (Stable Diffusion)"
    cost = "two passes of the backbone a step and image"
    steered = True
    clips = True
    bounded = ("sampling.steps", 10)

    def build(self, task: Task) -> Guidance:
        """The guidance of the run."""
        del task
        return Nothing()

    def start(self, task: Task) -> Callable[[sampling.Batch], sampling.Start] | None:
        """A function that gives the start of a batch's run, or None if every run begins at pure noise."""
        del task
        return None

    def tune(self, task: Task) -> Callable[[], Backbone] | None:
        """A function that gives the backbone to sample from, or None for the task's own backbone.

        The function is called once, before the first image.
        """
        del task
        return None

    def guided(self, task: Task) -> tuple[Guidance, bool]:
        """The guidance of the run with the user's own, and whether it acts at any step."""
        guidance, steps = self.build(task), task.recipe.sampling.steps
        if (own := task.given.guidance) is not None:
            guidance = own if isinstance(guidance, Nothing) else guidance + own
        return guidance, any(guidance.active(index, steps) for index in range(steps))

    def grows(self, task: Task) -> bool:
        """A subclass must say for itself that its images do not depend on ipc."""
        return type(self) in (Vanilla, Dit, Sd) and self.alone(task)

    def alone(self, task: Task) -> bool:
        """Whether the guidance looks at one image at a time."""
        guidance, acts = self.guided(task)
        return not (acts and (guidance.joint or guidance.sequential))

    def prepare(self, task: Task) -> Callable[[Unit], Made]:
        recipe, backbone = task.recipe, task.backbone
        options = recipe.sampling
        # A class the backbone does not know, or a wrong number of steps, stops the run here.
        backbone.condition(task.source.class_names)
        run = {"steps": options.steps, "solver": options.solver, "eta": options.eta}
        solvers.make(backbone, **run)
        (guidance, acts), start, tune = self.guided(task), self.start(task), self.tune(task)
        if (guidance.joint or guidance.sequential) and acts and recipe.block < recipe.ipc:
            raise DapError(
                f"This guidance looks at all slots of a class together: set block >= ipc ({recipe.ipc}), not {recipe.block}."
            )
        if not acts and not isinstance(guidance, Nothing) and _asked(task):
            log.warning(
                "None of the %d steps lies in the part of the run in which the guidance acts, so it changes nothing; give more "
                "--steps, or a wider window.", options.steps,
            )  # fmt: skip
        if not acts:
            guidance = Nothing()  # so nothing is clustered, encoded or trained
        models: list[ClassifierFree] = []

        def make(unit: Unit) -> Made:
            if not models:
                models.append(ClassifierFree(tune() if tune else backbone, options.cfg, options.cfg_channels))
            alone = guidance.sequential and acts
            parts = [(slot,) for slot in unit.slots] if alone else [unit.slots]
            images, latents, seeds = [], [], []
            for slots in parts:
                batch = self.batch(task, unit.label, slots)
                begin = start(batch) if start else None
                latents.append(sampling.latents(models[0], guidance, batch, start=begin, **run))
                images.append(backbone.decode(latents[-1]).cpu())
                seeds += batch.seeds
            return Made(torch.cat(images), [{"seed": seed} for seed in seeds], torch.cat(latents))

        return make

    def batch(self, task: Task, label: int, slots: tuple[int, ...]) -> sampling.Batch:
        """The batch of some slots of a class, which are sampled together."""
        return sampling.Batch.of(task.source.class_names, [label] * len(slots), slots, task.recipe.seed)


class Dit(Vanilla):
    """Vanilla samples of a diffusion transformer. The tables of the papers have a row of this name."""

    def prepare(self, task: Task) -> Callable[[Unit], Made]:
        if not isinstance(task.backbone, DiT):
            raise DapError("The method 'dit' is the samples of a DiT backbone; 'vanilla' are those of any.")
        return super().prepare(task)


class Sd(Vanilla):
    """Vanilla samples of Stable Diffusion, text-to-image with the class's name."""

    def prepare(self, task: Task) -> Callable[[Unit], Made]:
        if not isinstance(task.backbone, UNet):
            raise DapError(
                "The method 'sd' is the samples of a Stable Diffusion backbone, such as --backbone starter-unet; "
                "'vanilla' are those of any."
            )
        return super().prepare(task)
