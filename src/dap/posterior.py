r"""The diffusion classifier: how well a backbone predicts an image's noise under each class, and what it believes by that.

Sources: Li, Prabhudesai, Duggal, Brown & Pathak, "Your Diffusion Model is Secretly a Zero-Shot Classifier", ICCV 2023;
Clark & Jaini, "Text-to-Image Diffusion Models are Zero-Shot Classifiers", NeurIPS 2023. If all classes have equal priors, the
class whose condition predicts the noise best has the largest evidence lower bound:

    error(z, c) = mean over (t, eps) of ||eps - eps_theta(alpha_t z + sigma_t eps, t, c)||^2 / dim,
    label(z)    = argmin_c error(z, c),
    p(c | z)    = exp(-error(z, c) / tau) / sum_k exp(-error(z, k) / tau).

All classes are given the same noise levels and the same noises. Only the difference between the errors of two classes
counts, and under the same noises this difference varies far less than either error.

Li et al. weigh all noise levels alike and write the squared norm, which is tau = 1 / dim. These weights are not those of the
bound, and a few levels estimate the mean with an error of its own. So the right tau is not known beforehand; it is chosen on
real images, by their likelihood; see `fitted_temperature`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dap.backbones.base import Backbone
from dap.backbones.schedules import Flow, Time, steps_of
from dap.base.devices import vram
from dap.base.errors import DapError
from dap.base.seeding import generators, normal, seed_of

BATCH = 100
"""Pairs of image and class that go through the backbone together."""

Tell = Callable[[int, int], object]
"""A function that is called with (done, total), both counted in pairs of image and class."""


@dataclass(frozen=True)
class Levels:
    """The noise levels that the classifier looks at, and how many classes stay in the race from stage to stage.

    Args:
        times: the number of noise levels for each image and class. The levels are spread evenly over the schedule, and
            each level has one noise.
        keep: how many classes are left after each stage except the last. The noise levels are shared out evenly over
            the stages, and the levels of each stage spread over the whole schedule. Empty: one stage, with all classes.
        seed: the seed of the noises.

    Raises:
        DapError: there is no noise level, there are fewer levels than stages, or the numbers of classes do not fall.
    """

    times: int = 10
    keep: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.times < len(self.keep) + 1:
            raise DapError(f"{len(self.keep) + 1} stages need as many noise levels at least, not {self.times}.")
        if any(k < 1 for k in self.keep) or list(self.keep) != sorted(set(self.keep), reverse=True):
            raise DapError(f"The classes kept must fall from stage to stage and be at least 1, not {list(self.keep)}.")

    def stages(self, backbone: Backbone) -> list[list[Time]]:
        """The timesteps of each stage.

        The timesteps are the midpoints of equal parts of the schedule. They are shared out so that the timesteps of
        each stage spread over the whole schedule.

        Raises:
            DapError: the backbone has fewer noise levels than `times`.
        """
        schedule = backbone.schedule
        length = steps_of(schedule)
        middles = [length * (i + 0.5) / self.times for i in range(self.times)]
        grid: list[Time] = [t if isinstance(schedule, Flow) else int(t) for t in middles]
        if len(set(grid)) < len(grid):
            raise DapError(f"{backbone.card.name} has {length} noise levels, not {self.times}.")
        dealt = [grid[i] for i in sorted(range(self.times), key=_reversed_bits)]
        return [dealt[a:b] for a, b in pairwise(self._bounds())]

    def passes(self, classes: int) -> int:
        """How many passes of the backbone the errors of one image take, among so many classes."""
        alive = [classes, *(min(k, classes) for k in self.keep)]
        return sum((b - a) * k for (a, b), k in zip(pairwise(self._bounds()), alive, strict=True))

    def _bounds(self) -> list[int]:
        return [round(i * self.times / (len(self.keep) + 1)) for i in range(len(self.keep) + 2)]


def _reversed_bits(i: int) -> int:
    """A sort key that gives the order 0, 4, 2, 6, 1, 5, 3, 7: the first few numbers already spread over the whole range."""
    return int(f"{i:020b}"[::-1], 2)


def usual_levels(classes: int) -> Levels:
    """The levels for soft labels among so many classes: ten, and stages where there are more than 20 classes.

    Ten classes are left in the last stage. From 110 classes on a tenth of them is left in a stage before it. With 1,000
    classes an image takes 3,430 passes instead of 10,000.
    """
    return Levels(keep=(classes // 10, 10) if classes >= 110 else (10,) * (classes > 20))


@dataclass(frozen=True)
class _Stage:
    """What is known after a stage: which classes were in it, the sums of their errors, and over how many levels."""

    inside: Tensor
    sums: Tensor
    levels: int


@torch.no_grad()
def _stages(
    backbone: Backbone, latents: Tensor, class_names: Sequence[str], levels: Levels, batch: int, tell: Tell | None
) -> Iterator[_Stage]:
    """The stages of the race among the classes. A class that is left out keeps the sum that it had."""
    latents, conditions = latents.to(backbone.device), backbone.condition(class_names)
    n, classes = len(latents), len(class_names)
    total = torch.zeros(n, classes, dtype=torch.float64)
    left = torch.ones(n, classes, dtype=torch.bool)
    stages, alive = levels.stages(backbone), [classes, *(min(k, classes) for k in levels.keep)]
    planned, done, seen = n * levels.passes(classes), 0, 0
    for times, most in zip(stages, [*alive[1:], alive[-1]], strict=True):
        pairs = left.nonzero().to(backbone.device)
        for t in times:
            noise = normal(backbone.latent_shape, generators([seed_of(levels.seed, "zero-shot", t)]), latents)
            error = functools.partial(_error, backbone, t, noise)
            for rows, columns in (part.unbind(1) for part in pairs.split(batch)):
                found = torch.cat(vram.in_parts(error, batch, latents[rows], conditions[columns]))
                total[rows.cpu(), columns.cpu()] += found
                done += len(rows)
                if tell is not None:
                    tell(done, planned)
        if not torch.isfinite(total).all():
            raise DapError(f"{backbone.card.name} predicts noise that is not finite; use --dtype float32.")
        seen += len(times)
        yield _Stage(left, total.clone(), seen)
        nearest = total.masked_fill(~left, torch.inf).sort(dim=1, stable=True).indices[:, :most]
        left = torch.zeros_like(left).scatter_(1, nearest, True)


def _error(backbone: Backbone, t: Time, noise: Tensor, latents: Tensor, condition: Tensor) -> Tensor:
    """The error (n,) of the predicted noise of each image under its condition, in float64 on the CPU."""
    alpha, sigma = backbone.schedule.level(t)
    eps = backbone.predict(alpha * latents + sigma * noise, t, condition).eps
    return (eps - noise).flatten(1).square().mean(1).cpu().double()


def errors(
    backbone: Backbone,
    latents: Float[Tensor, "n c *spatial"],
    class_names: Sequence[str],
    levels: Levels = Levels(),
    *,
    batch: int = BATCH,
    tell: Tell | None = None,
) -> Float[Tensor, "n classes"]:
    """The mean squared error of the predicted noise for every image and class, in float64 on the CPU.

    An image's row does not depend on the other images, except for the rounding that the batch decides. A class that was
    left out after a stage has an infinite error.

    Args:
        backbone: the diffusion model. It predicts without classifier-free guidance.
        latents: x_0 of the images.
        class_names: the classes to choose among. The backbone must know them.
        levels: the noise levels and the seed of the noises.
        batch: how many pairs of image and class go through the backbone together.
        tell: is called with the number of pairs done and the number of all pairs.

    Raises:
        DapError: the backbone does not know a class, or a prediction is not finite.
    """
    *_, last = _stages(backbone, latents, class_names, levels, batch, tell)
    return _mean(last, levels)


def _mean(last: _Stage, levels: Levels) -> Tensor:
    """The mean errors after the last stage; those of classes that it had no more are infinite."""
    return (last.sums / last.levels).masked_fill(~last.inside, torch.inf)


def gaps(
    backbone: Backbone,
    latents: Float[Tensor, "n c *spatial"],
    class_names: Sequence[str],
    levels: Levels = Levels(),
    *,
    batch: int = BATCH,
    tell: Tell | None = None,
) -> Float[Tensor, "n classes"]:
    """How much larger the error of each class is than that of the best class, in float64 on the CPU; all are finite.

    The two errors of a gap are of the same noise levels: for a class that was left out after a stage, those of the stages up
    to there. So a class that was left out has a gap too, from fewer levels, and no class has probability 0.

    Args:
        backbone, latents, class_names, levels, batch, tell: as for `errors`.

    Raises:
        DapError: as for `errors`.
    """
    stages = list(_stages(backbone, latents, class_names, levels, batch, tell))
    best = _mean(stages[-1], levels).argmin(1, keepdim=True)
    found = torch.zeros_like(stages[-1].sums)
    for stage in stages:
        gap = (stage.sums - stage.sums.gather(1, best)) / stage.levels
        found = torch.where(stage.inside, gap, found)
    return found


def fitted_temperature(found: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> float:
    """The temperature under which images of known labels are likeliest, in the unit of the gaps.

    The negative log-likelihood is convex in 1 / tau, so its minimum is the only one. tau is between a thousandth of the mean
    gap and a thousand times it: where the classifier is right on all images, any small tau is as likely, and where it is worse
    than guessing, the largest is the likeliest.

    Args:
        found: `gaps` of real images.
        labels: the label of each image.

    Raises:
        DapError: the backbone predicts the same under every class.
    """
    from scipy.optimize import minimize_scalar

    scale = found.mean().item()
    if scale <= 0:
        raise DapError("The backbone predicts the same noise under every class, so it cannot label images.")
    bounds = (math.log(scale / 1000), math.log(scale * 1000))
    options = {"xatol": 1e-4}
    least = minimize_scalar(lambda v: -log_likelihood(found, labels, math.exp(v)), bounds=bounds, options=options)
    return math.exp(float(least.x))  # pyright: ignore[reportAttributeAccessIssue]


def log_likelihood(found: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], temperature: float) -> float:
    """The mean of log p(label | image) over images, at a temperature; that of guessing is -log(classes)."""
    return (-found / temperature).log_softmax(1).gather(1, labels[:, None]).mean().item()
