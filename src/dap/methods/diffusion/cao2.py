r"""CaO2: sample more images than needed, keep those that a classifier classifies correctly, and refine their latents.

1. For each class several times ipc images are sampled. Of the images that a classifier assigns to the class, ipc
images are
   kept: the most confident ones if ipc is small, the least confident ones if ipc is large.
2. Adam changes the latent z of each kept image so that the backbone predicts the noise better. The loss is

    loss(z) = mean (eps_theta(z_t, t, c) - eps)^2 + lambda max |eps_theta(z_t, t, c) - eps|,
    z_t = alpha_t z + sigma_t eps.

   Each image has one noise eps. Each iteration draws a new low noise level t.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from dap import sampling, solvers
from dap.backbones.base import Backbone
from dap.backbones.guided import ClassifierFree
from dap.backbones.schedules import Time
from dap.base.errors import DapError, NotFinite
from dap.base.seeding import generators, image_seeds, normal, seed_of
from dap.guidance import Nothing
from dap.methods import base
from dap.methods.base import Made, Task, Unit, check_compared, plan
from dap.methods.diffusion.vanilla import Vanilla
from dap.methods.selection.features import check_finite

SMALL = 10
"""The largest ipc for which the most confident images are kept."""


class Cao2Options(base.Options, frozen=True):
    """Defaults are the paper's."""

    candidates: int = Field(
        default=4,
        ge=1,
        description="How many images are sampled for each image that is kept. The paper has 4 on ImageNet-1K, its code 2 "
        "on ten "
        "classes. 1 keeps all.",
    )
    prefer: Literal["auto", "most", "least"] = Field(
        default="auto",
        description="Which of the correctly classified images are kept: those with the most or the least confidence of the "
        "classifier. auto: the most confident up to ipc 10, the least confident above.",
    )
    iterations: int = Field(default=100, ge=0, description="Steps of Adam on each latent. With 0 no latent is refined.")
    lr: float = Field(default=6e-4, gt=0, description="Learning rate of Adam.")
    peak: float = Field(
        default=10.0, ge=0, description="Weight lambda of the largest error of the predicted noise in the loss."
    )
    window: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="The refinement draws its noise levels from this part of the run, counted from the end, without the "
        "very last "
        "level (of 50 steps: levels 1 ... 11 from the end). The backbone is told the timestep of the level; the paper's code "
        "tells it the number of the step.",
    )
    condition: Literal["class", "null"] = Field(
        default="class",
        description="The condition of the backbone in the refinement: the class, or none. The paper's code has the class on "
        "ImageNet-1K and none on ten classes.",
    )


class CaO2(Vanilla):
    """Keeps of several samples those that a classifier agrees with, and refines their latents under the diffusion loss.

    The candidates are the images that vanilla makes for the slots 0 ... candidates * ipc - 1, and the kept ones stay
    in this order. So with one candidate for each image and no iteration the set is the one of vanilla. Where too few
    candidates are classified correctly, wrong ones fill the set up. As in the authors' code, these go by the largest
    probability of any class, in the same order as the correct ones: the most or the least confident first. The
    manifest says for each image which candidate it is, how confident the classifier was, and whether the classifier
    was right. The scale of classifier-free guidance is the backbone card's; the paper has --cfg 2.7 on DiT.
    """

    needs = frozenset({"backbone", "classifier"})
    reference = "Wang et al., ICCV 2025 (CaO2)"
    cost = "vanilla's four times, a look of the classifier, and 100 passes forth and back an image"
    Options = Cao2Options

    def prepare(self, task: Task) -> Callable[[Unit], Made]:
        check_compared(task)
        super().prepare(task)  # for its checks: the candidates are vanilla's samples
        recipe, backbone, source = task.recipe, task.backbone, task.source
        options: Cao2Options = task.options
        if task.given.guidance is not None and (task.given.guidance.joint or task.given.guidance.sequential):
            raise DapError(
                "cao2 samples more candidates than it keeps, so it cannot take a guidance under which the images of a class "
                "depend on each other; use it with another method."
            )
        run = solvers.make(backbone, recipe.sampling.solver, recipe.sampling.steps, recipe.sampling.eta)
        times = run.timesteps[::-1][1 : max(2, int(len(run.timesteps) * options.window))]

        def make(unit: Unit) -> Made:
            kept = self.kept(task, unit.label)
            rows = list(unit.slots)
            latents = kept["latents"][rows].to(backbone.device)
            name, candidates = source.class_names[unit.label], kept["candidates"][rows].tolist()
            seeds = image_seeds(recipe.seed, source.class_names, [unit.label] * len(rows), candidates)
            if options.iterations:
                told = backbone.condition([name] * len(rows))
                given = backbone.null(len(rows)) if options.condition == "null" else told
                noise = normal(backbone.latent_shape, generators([seed_of(seed, "cao2") for seed in seeds]), latents)
                drawn = torch.Generator().manual_seed(seed_of(recipe.seed, name, "cao2"))
                order = [times[i] for i in torch.randint(len(times), (options.iterations,), generator=drawn).tolist()]
                latents = refine(backbone, latents, given, noise, order, lr=options.lr, peak=options.peak)
            told = zip(
                seeds, candidates, kept["confidence"][rows].tolist(), kept["correct"][rows].tolist(), strict=True
            )
            records = [
                {"seed": seed, "candidate": candidate, "confidence": round(confidence, 4), "correct": correct}
                for seed, candidate, confidence, correct in told
            ]
            return Made(backbone.decode(latents).cpu(), records, latents)

        return make

    def kept(self, task: Task, label: int) -> dict[str, Tensor]:
        """The kept candidates of a class. The store keeps them, so they are made once.

        Returns:
            "latents" (ipc, C, *spatial), and "candidates", "confidence" and "correct" (ipc,).
        """
        recipe, options, name = task.recipe, task.options, task.source.class_names[label]
        key = {"class": name, "seed": recipe.seed, "ipc": recipe.ipc, "block": recipe.block, "size": task.source.size}
        key |= {"sampling": recipe.sampling.model_dump(), **options.model_dump(include={"candidates", "prefer"})}
        key["filled"] = "by the largest probability"  # earlier versions took the probability of the class
        key |= {} if recipe.own is None else {"own_guidance": recipe.own.model_dump()}

        def make() -> dict[str, Tensor]:
            latents, confidence, correct, largest = self.candidates(task, label, key)
            least = options.prefer == "least" or (options.prefer == "auto" and recipe.ipc > SMALL)
            chosen = choose(largest, correct, recipe.ipc, least=least)
            found = {"latents": latents, "confidence": confidence, "correct": correct}
            return {**{part: tensor[chosen] for part, tensor in found.items()}, "candidates": torch.tensor(chosen)}

        kept = task.store.get(f"candidates of {name}", key, make)
        task.store.discard(task.store.checkpoint(f"candidates of {name}", key))
        return kept

    def candidates(self, task: Task, label: int, key: dict[str, object]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sample all candidates of a class and classify them.

        Returns:
            The latents, the classifier's probability of the class, whether the class has the highest logit, and the largest
            probability of any class.
        """
        recipe, backbone, classifier, options = task.recipe, task.backbone, task.classifier, task.options
        model = ClassifierFree(backbone, recipe.sampling.cfg, recipe.sampling.cfg_channels)
        run = {name: getattr(recipe.sampling, name) for name in ("steps", "solver", "eta")}
        name = task.source.class_names[label]
        guidance = task.given.guidance or Nothing()
        units = plan(1, recipe.ipc * options.candidates, recipe.block)
        checkpoint = task.store.checkpoint(f"candidates of {name}", key)
        parts: list[Tensor] = (checkpoint.read() or {"parts": []})["parts"]
        for unit in units[len(parts) :]:
            parts.append(sampling.latents(model, guidance, self.batch(task, label, unit.slots), **run).cpu())
            if checkpoint.due:
                checkpoint.write({"parts": parts})
            task.tell(f"candidates of {name}", unit.slots[-1] + 1, recipe.ipc * options.candidates)
        said = torch.cat([classifier.logits(backbone.decode(part.to(backbone.device))).cpu() for part in parts])
        check_finite(said, classifier, "logits", name)
        probabilities = said.softmax(1)
        return torch.cat(parts), probabilities[:, label], said.argmax(1) == label, probabilities.amax(1)


def choose(confidence: Float[Tensor, " n"], correct: Bool[Tensor, " n"], k: int, *, least: bool) -> list[int]:
    """Choose k of n candidates, and return their positions, ascending. Of equal candidates the earlier is chosen.

    Args:
        confidence: the classifier's largest probability, of whichever class.
        correct: whether the class is the classifier's first choice. Correct candidates are chosen first, then others.
        k: how many candidates are chosen, at most n.
        least: prefer the least confident candidates instead of the most confident ones, among the correct and among the
            others.
    """

    def rank(i: int) -> tuple[bool, float]:
        sure = float(confidence[i])
        return not bool(correct[i]), sure if least else -sure

    return sorted(sorted(range(len(confidence)), key=rank)[:k])


def loss(eps: Float[Tensor, "b c *spatial"], noise: Float[Tensor, "b c *spatial"], peak: float) -> Float[Tensor, " b"]:
    """mean (eps − noise)² + peak · max |eps − noise| of each image."""
    gap = (eps - noise).flatten(1)
    return gap.square().mean(1) + peak * gap.abs().amax(1)


def refine(
    backbone: Backbone,
    latents: Float[Tensor, "b c *spatial"],
    condition: Tensor,
    noise: Float[Tensor, "b c *spatial"],
    times: Sequence[Time],
    *,
    lr: float = 6e-4,
    peak: float = 10.0,
) -> Float[Tensor, "b c *spatial"]:
    """Refine latents with one step of Adam for each timestep. Each image has its own loss, whatever its batch.

    Args:
        backbone: predicts the noise, without classifier-free guidance.
        latents: x_0.
        condition: the condition of the backbone for each image.
        noise: eps of each image, the same in all iterations.
        times: the timestep of every iteration.
        lr: learning rate.
        peak: see `loss`.

    Raises:
        DapError: a gradient is not finite.
    """
    z = latents.clone().requires_grad_()
    optimiser = torch.optim.Adam([z], lr=lr)
    for t in times:
        alpha, sigma = backbone.schedule.level(t)
        with torch.enable_grad():
            eps = backbone.predict(alpha * z + sigma * noise, t, condition, grad_through="denoiser").eps
            (z.grad,) = torch.autograd.grad(loss(eps, noise, peak).sum(), z)
        if not torch.isfinite(z.grad).all():
            raise NotFinite(
                f"The refinement of cao2 has a gradient that is not finite at t = {t}", "use --dtype float32"
            )
        optimiser.step()
    return z.detach()
