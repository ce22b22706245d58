"""Samples of a pre-trained diffusion model: vanilla, and guided as "Diffusion As Priors" guides it."""

from __future__ import annotations

from collections.abc import Callable

from dap import sampling, solvers
from dap.backbones.base import ClassifierFree
from dap.data.bank import BankOptions, FeatureBank
from dap.errors import DapError
from dap.guidance import Descend, Guidance, Nothing, Representative, Window
from dap.kernels import parse
from dap.methods.base import Made, Method, Task, Unit


class Vanilla(Method):
    """The backbone's own samples: the scale-0 end of every guided method."""

    needs = frozenset({"backbone"})

    def build(self, task: Task) -> Guidance:
        """The guidance of the run."""
        del task
        return Nothing()

    def prepare(self, task: Task) -> Callable[[Unit], Made]:
        recipe, backbone = task.recipe, task.backbone
        assert backbone is not None and recipe.sampling is not None
        options = recipe.sampling
        assert options.cfg is not None and options.cfg_channels is not None
        # A class the backbone does not know, or a wrong number of steps, stops the run here.
        backbone.condition(task.source.class_names)
        run = {"steps": options.steps, "solver": options.solver, "eta": options.eta}
        solvers.make(backbone, **run)
        guidance = self.build(task)
        assert recipe.block is not None
        acts = any(guidance.active(index, options.steps) for index in range(options.steps))
        if guidance.joint and acts and recipe.block < recipe.ipc:
            raise DapError(
                f"This guidance looks at all slots of a class together: set block >= ipc ({recipe.ipc}), not {recipe.block}."
            )
        model = ClassifierFree(backbone, options.cfg, options.cfg_channels)

        def make(unit: Unit) -> Made:
            labels = [unit.label] * len(unit.slots)
            batch = sampling.Batch.of(task.source.class_names, labels, unit.slots, recipe.seed)
            images = sampling.images(model, guidance, batch, **run)
            return Made(images.cpu(), [{"seed": seed} for seed in batch.seeds])

        return make


class Dap(Vanilla):
    """DAP as the paper states it; every open choice is an option (see docs/method.md)."""

    guidance = {}

    def build(self, task: Task) -> Guidance:
        recipe, backbone = task.recipe, task.backbone
        assert backbone is not None and recipe.guidance is not None and recipe.block is not None
        options = recipe.guidance
        assert options.scale is not None and options.unit is not None
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

    guidance = {"targets": "slot", "repulsion": 0.5, "scale": 0.06, "unit": "step"}
