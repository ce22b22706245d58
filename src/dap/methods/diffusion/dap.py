"""Diffusion As Priors: see `dap.guidance.representative` for the paper and its equations."""

from __future__ import annotations

from dap.base.errors import DapError
from dap.data.bank import BankOptions, FeatureBank
from dap.guidance import Descend, Guidance, Representative, Window
from dap.kernels import parse
from dap.methods.base import Task
from dap.methods.diffusion.vanilla import Vanilla


class Dap(Vanilla):
    """DAP as the paper states it; every open choice is an option (see docs/method.md)."""

    reference = "Su, Wu, Chen, Shi, Wang, Ye & Zhu, ICLR 2026 (DAP)"
    cost = "vanilla's, and the gradient up to the tapped layer; features of the reals once a class and step"
    guidance = {}

    def build(self, task: Task) -> Guidance:
        recipe, backbone = task.recipe, task.backbone
        options = recipe.guidance
        if options.targets == "slot" and options.scale > 0:
            for label, name in enumerate(task.source.class_names):
                if task.source.count(label) < recipe.ipc:
                    raise DapError(
                        f"Class {name!r} has {task.source.count(label)} real images, too few for {recipe.ipc} targets, one a "
                        "slot; lower ipc, or use targets: class."
                    )
        bank = FeatureBank(
            task.source,
            backbone,
            BankOptions(**options.model_dump(include=set(BankOptions.model_fields))),
            ipc=recipe.ipc,
            run_seed=recipe.seed,
            keep=recipe.ipc > recipe.block,
            cache=task.cache,
        )
        energy = Representative(bank, parse(options.kernel), options.squared, options.repulsion)
        descend = Descend(energy, options.scale, options.unit)
        return Window(descend, options.start, options.stop, options.last_step)


class DapSlots(Dap):
    """DAP with a target for every slot and repulsion between the slots, so that a class does not collapse to its mean."""

    reference = "ours, after DAP"
    guidance = {"targets": "slot", "repulsion": 0.5, "scale": 0.06, "unit": "step"}
