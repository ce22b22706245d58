"""Diffusion As Priors: see `dap.guidance.representative` for the paper and its equations."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from dap.base.errors import DapError
from dap.base.parsing import counted
from dap.data.bank import BankOptions, FeatureBank
from dap.guidance import Descend, Guidance, Representative, State, Window, strength
from dap.guidance.base import per_image_norm
from dap.kernels import parse
from dap.methods.base import Task
from dap.methods.diffusion.vanilla import Vanilla

log = logging.getLogger("dap")

LARGE = 0.05
"""The part of ||x_0|| from which on the last push is said. It is in the finished latents, and nothing denoises it."""


@dataclass(frozen=True)
class Warned(Window):
    """A window of the run that warns, once a run, where the push of the very last step is large beside x_0.

    In the unit "paper" the push of the last step is gamma g_T, however small the sampler's own step is. The sample itself
    is that of `Window`.
    """

    said: list[float] = field(default_factory=list, compare=False)

    def finish(self, state: State) -> None:
        super().finish(state)
        if self.said or state.next is None or not self.active(state.index, state.steps):
            return
        part = (per_image_norm(state.next - state.proposal) / per_image_norm(state.next).clamp_min(1e-30)).mean().item()
        if part > LARGE:
            self.said.append(part)
            log.warning(
                "The guidance of the last step makes up %.0f %% of the finished latents, and no later step denoises it. "
                "--last-step false leaves this push out; --unit step measures it by the sampler's own step.",
                100 * part,
            )


class Dap(Vanilla):
    """DAP as the paper states it; every open choice is an option (see docs/method.md)."""

    clips = True
    reference = "Su, Wu, Chen, Shi, Wang, Ye & Zhu, ICLR 2026 (DAP)"
    cost = "vanilla's, and the gradient up to the tapped layer; features of the reals once a class and step"
    guidance = {}

    def grows(self, task: Task) -> bool:
        shared = task.recipe.guidance.targets == "slot" and task.recipe.guidance.scale > 0  # the reals, among ipc slots
        return type(self) in (Dap, DapSlots) and not shared and self.alone(task)

    def build(self, task: Task) -> Guidance:
        recipe, backbone = task.recipe, task.backbone
        options = recipe.guidance
        if options.targets == "slot" and options.scale > 0:
            for label, name in enumerate(task.source.class_names):
                if task.source.count(label) < recipe.ipc:
                    raise DapError(
                        f"Class {name!r} has {counted(task.source.count(label), 'real image')}, too few for "
                        f"{counted(recipe.ipc, 'target')}, one a slot; lower ipc, or use targets: class."
                    )
        bank = FeatureBank(
            task.source,
            backbone,
            BankOptions(**options.model_dump(include=set(BankOptions.model_fields))),
            ipc=recipe.ipc,
            run_seed=recipe.seed,
            keep=recipe.ipc > recipe.block,
            cache=task.cache,
            steps=recipe.sampling.steps,
            memory=task.budget.memory if task.budget else None,
        )
        energy = Representative(bank, parse(options.kernel), options.squared, options.repulsion)
        descend = Descend(energy, options.scale, options.unit)
        scheduled = strength.scheduled(descend, options.schedule)
        return Warned(scheduled, options.start, options.stop, options.last_step)


class DapSlots(Dap):
    """DAP with a target for every slot and repulsion between the slots, so that a class does not collapse to its mean."""

    clips = True
    reference = "ours, after DAP"
    guidance = {"targets": "slot", "repulsion": 0.5, "scale": 0.06, "unit": "step"}
