r"""D3HR: real images are inverted to a noise level, and sampling starts from draws that are like the inverted images.

1. DDIM inversion takes the latents of real images of a class to noise level t, where the latents are nearly Gaussian.
2. A Gaussian N(mu, sd^2) is fitted to each dimension.
3. Many groups S of ipc draws from these Gaussians are compared. The group with the smallest

    w_1 ||mean(S) - mu|| + w_2 ||std(S) - sd|| + w_3 ||skew(S)||

   is kept. Mean and standard deviation are those of each dimension over the draws. The skewness is that of each draw
   over its dimensions, as in the authors' code: see `scores`.
4. DDIM takes the group to images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from dap import sampling, solvers
from dap.backbones.guided import ClassifierFree
from dap.base.errors import DapError, NotFinite
from dap.base.seeding import seed_of
from dap.methods import base
from dap.methods.base import Task
from dap.methods.diffusion.latents import duplicates_told
from dap.methods.diffusion.vanilla import Vanilla
from dap.solvers import Solver

TOGETHER = 64
"""How many real images are inverted together."""
NUMBERS = 2**21
"""The size of a chunk of candidate groups, in numbers. The size is a constant, because it decides the draws."""


class D3hrOptions(base.Options, frozen=True):
    """Defaults are the paper's, except for the numbers of real images and of candidates, which suit a small machine."""

    reals: int = Field(
        default=200,
        ge=2,
        description="Real images of each class that are inverted, drawn by the run seed; all images of a smaller class. "
        "The paper "
        "takes all.",
    )
    strength: float = Field(
        default=0.62,
        gt=0,
        le=1,
        description="How far the inversion goes, as a part of the run; the paper inverts over 31 of 50 steps.",
    )
    refine: int = Field(
        default=0,
        ge=0,
        description="Fixed-point iterations that make each step of the inversion exact; the paper has none, and predicts the "
        "noise of a level from the latents of the level before.",
    )
    candidates: int = Field(
        default=20_000,
        ge=1,
        description="How many groups of draws are compared for each class; the paper has 1,000,000.",
    )
    weights: tuple[float, float, float] = Field(
        default=(1.0, 1.0, 0.5),
        description="Weights of mean, standard deviation and skewness in the choice. The defaults are the paper's; its "
        "code has "
        "1, 1, 0.1.",
    )


class D3HR(Vanilla):
    """Inverts real images to a noise level where a class is nearly Gaussian, and samples from draws like the class.

    Many groups of ipc draws from the Gaussian are compared, and the group most like the Gaussian is kept. Sampling
    begins at this group and its noise level, and goes on as in vanilla. Inversion and sampling have the same
    classifier-free guidance. One image has no standard deviation, and so no skewness: at ipc 1 the choice goes by the
    mean alone.
    """

    reference = "Zhao et al., ICML 2025 (D3HR)"
    cost = "inversion of the real images, two passes a step and image; then less than vanilla's"
    sampling = {"solver": "ddim"}
    Options = D3hrOptions

    def start(self, task: Task) -> Callable[[sampling.Batch], sampling.Start]:
        recipe, options, source = task.recipe, task.options, task.source
        if not any(options.weights) or min(options.weights) < 0:
            raise DapError(f"The weights of d3hr must be at least 0, and one above, not {list(options.weights)}.")
        few = [name for label, name in enumerate(source.class_names) if source.count(label) < 2]
        if few:
            raise DapError(f"Class {few[0]!r} has one image alone, which has no spread for d3hr to follow.")
        steps = recipe.sampling.steps
        index = sampling.Start.at(torch.empty(0), options.strength, steps).index

        def begin(batch: sampling.Batch) -> sampling.Start:
            groups = {label: self.group(task, label, index) for label in set(batch.labels)}
            chosen = [groups[label][slot] for label, slot in zip(batch.labels, batch.slots, strict=True)]
            return sampling.Start(torch.stack(chosen), index, noised=True)

        return begin

    def group(self, task: Task, label: int, index: int) -> Float[Tensor, "ipc c *spatial"]:
        """The latents x_t of a class's slots at the step `index`. The store keeps them, so they are computed once."""
        recipe, options, name = task.recipe, task.options, task.source.class_names[label]
        key = {"class": name, "seed": recipe.seed, "size": task.source.size, "sampling": recipe.sampling.model_dump()}
        of_class = {**key, "index": index, **options.model_dump(include={"reals", "refine"})}
        spread = task.store.get(f"spread of {name}", of_class, lambda: self.spread(task, label, index))
        of_group = {**of_class, "ipc": recipe.ipc, **options.model_dump(include={"candidates", "weights"})}
        of_group["skewness"] = "of each draw"  # earlier versions had that of each dimension

        def make() -> dict[str, Tensor]:
            seed = seed_of(recipe.seed, name, "d3hr")
            group, score = best_group(
                spread["mean"].flatten(), spread["std"].flatten(), recipe.ipc, options.candidates, seed, options.weights
            )
            return {"latents": group.view(recipe.ipc, *spread["mean"].shape), "score": torch.tensor(score)}

        return task.store.get(f"group of {name}", of_group, make)["latents"]

    def spread(self, task: Task, label: int, index: int) -> dict[str, Tensor]:
        """Mean and standard deviation (C, *spatial) of the inverted latents of a class."""
        backbone, source, options, chosen = task.backbone, task.source, task.options, task.recipe.sampling
        model = ClassifierFree(backbone, chosen.cfg, chosen.cfg_channels)
        name = source.class_names[label]
        drawn = source.good(label, options.reals, seed_of(task.recipe.seed, name, "reals"), least=2)
        found = []
        for start in range(0, len(drawn), TOGETHER):
            indices = drawn[start : start + TOGETHER]
            latents = backbone.encode(source.images(label, indices).to(backbone.device))
            run = solvers.make(backbone, chosen.solver, chosen.steps, chosen.eta)
            condition = backbone.condition([name] * len(indices))
            found.append(invert(model, latents, condition, run, index, options.refine).cpu())
            task.tell(f"inverting {name}", start + len(indices), len(drawn))
        points = torch.cat(found)
        with duplicates_told(
            points.flatten(1), 2, name, "that a spread needs, so all its images begin at the same latents"
        ):
            std, mean = torch.std_mean(points.double(), dim=0)
        return {"mean": mean.float(), "std": std.float()}


@torch.no_grad()
def invert(
    model: ClassifierFree,
    latents: Float[Tensor, "n c *spatial"],
    condition: Tensor,
    run: Solver,
    index: int,
    refine: int = 0,
) -> Float[Tensor, "n c *spatial"]:
    r"""DDIM inversion: from x_0 up the noise levels of a run to x_t at the step `index`.

    DDIM's step from t down to s gives x_s = alpha_s x_0 + sigma_s eps(x_t, t) with x_0 = (x_t - sigma_t eps(x_t, t)) /
    alpha_t, so that

        x_t = alpha_t / alpha_s (x_s - sigma_s eps(x_t, t)) + sigma_t eps(x_t, t),

    where x_t is on both sides. The usual inversion computes eps at x_s instead of x_t. Each iteration of `refine`
    computes eps again at the x_t found so far.

    Args:
        model: the model that the run samples with.
        latents: x_0.
        condition: the condition of each image.
        run: the solver whose timesteps and noise levels are used.
        index: the step to end at: 0 (the whole run) ... steps - 1.
        refine: how many fixed-point iterations each step has.

    Raises:
        DapError: the result is not finite.
    """
    x = latents
    for step in range(len(run.timesteps) - 1, index - 1, -1):
        (alpha, sigma), (after, left) = run.levels[step], run.levels[step + 1]
        guess = x
        for _ in range(refine + 1):
            eps = model.predict(guess, run.timesteps[step], condition).eps
            guess = alpha / after * (x - left * eps) + sigma * eps
        x = guess
    if not torch.isfinite(x).all():
        advice = "lower --cfg, the option refine, or use --dtype float32"
        raise NotFinite("The inversion left the finite numbers", advice)
    return x


def best_group(
    mean: Float[Tensor, " d"],
    std: Float[Tensor, " d"],
    size: int,
    candidates: int,
    seed: int,
    weights: tuple[float, float, float] = (1.0, 1.0, 0.5),
) -> tuple[Float[Tensor, "size d"], float]:
    """Draw many groups from a Gaussian, and return the group with the lowest score, and this score.

    Of groups with equal scores the first is returned.

    Args:
        mean: mean of the Gaussian in each dimension.
        std: standard deviation of the Gaussian in each dimension.
        size: how many draws a group has.
        candidates: how many groups are compared.
        seed: seed of all draws.
        weights: see `scores`.
    """
    each = max(1, NUMBERS // (size * len(mean)))
    best: tuple[float, Any] = (float("inf"), None)
    for chunk in range(-(-candidates // each)):
        generator = torch.Generator().manual_seed(seed_of(seed, chunk))
        drawn = torch.randn(each, size, len(mean), generator=generator)[: candidates - chunk * each]
        found = scores(drawn * std + mean, mean, std, weights)
        if (score := found.min().item()) < best[0]:
            place = int(found.argmin())
            best = score, (drawn[place] * std + mean)
    assert best[1] is not None
    return best[1], best[0]


def scores(
    groups: Float[Tensor, "n size d"],
    mean: Float[Tensor, " d"],
    std: Float[Tensor, " d"],
    weights: tuple[float, float, float],
) -> Float[Tensor, " n"]:
    r"""The distance of each group from N(mean, std²): the weighted sum of three Euclidean norms.

    The first two norms are over the dimensions, of the errors of the mean and of the standard deviation, which is
    unbiased. The third is over the draws. With z_jd the draws of a group, standardised in each dimension d by the
    group's own mean and standard deviation, and D dimensions, the skewness of draw j is

        skew_j = D / ((D - 1)(D - 2)) sum_d z_jd^3.

    The second and third terms count for groups of two draws or more, the third also needs three dimensions or more.

    Args:
        groups: the groups.
        mean: mean of the Gaussian in each dimension.
        std: standard deviation of the Gaussian in each dimension.
        weights: weights of mean, standard deviation and skewness.
    """
    _, size, dimensions = groups.shape
    centre = groups.mean(1)
    total = weights[0] * (centre - mean).norm(dim=1)
    if size == 1:
        return total
    apart = groups - centre[:, None]
    spread = (apart.square().sum(1) / (size - 1)).sqrt()
    total = total + weights[1] * (spread - std).norm(dim=1)
    if dimensions > 2:
        z = apart / spread.clamp_min(1e-12)[:, None]
        skewness = z.pow(3).sum(2) * dimensions / ((dimensions - 1) * (dimensions - 2))
        total = total + weights[2] * skewness.norm(dim=1)
    return total
