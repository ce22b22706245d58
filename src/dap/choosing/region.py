r"""The scale of `scale: auto`: the largest push that keeps the denoiser's own error on the samples about as it was.

A sample z has the log of the error

    e(z) = mean_s log || eps_theta(alpha_s z + sigma_s eps, s) - eps ||^2,        s in `TIMES`,

with the same noises eps for every gamma. Trial images i are sampled without guidance (gamma = 0) and with it, from the same
seeds, and the change is

    c(gamma) = mean_i e(z_i(gamma)) - e(z_i(0)).

The region of trust is |c(gamma)| <= room * s, where s is the spread of e(z_i(0)) over unguided images of one class: the push
may move the images of a class by a part of what they differ by among themselves. It has two sides. A push that is too strong can
leave the images that the backbone knows, and the error rises; or it can draw them to their mean, which is easy to denoise, and
the error falls. The largest gamma of the region is found by bisection on a scale of logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dap.backbones.base import Backbone
from dap.base.errors import DapError
from dap.base.seeding import generators, normal, seed_of
from dap.refining import denoising_error, time_of

TIMES = (0.05, 0.15, 0.3)
"""The noise levels of the error, as fractions of the schedule."""

ROOM = 0.5
"""How far the mean of the log error may move, in spreads over unguided images of a class."""

SMALLEST, LARGEST = 0.005, 1.0
"""Between these scales the largest allowed one is looked for; at 1 the push is as long as the sampler's own step."""

ROUNDS = 5
"""How many scales are tried. Five tell scales apart that differ by 18 %."""


@dataclass(frozen=True)
class Region:
    """The region of trust of a scale.

    Attributes:
        scale: the largest scale that was found inside; 0 if every tried one was outside.
        tried: the scales that were tried, in rising order.
        changes: c of each; NaN where sampling failed.
        room: the largest allowed |c|.
        images: how many trial images each scale had.
    """

    scale: float
    tried: tuple[float, ...]
    changes: tuple[float, ...]
    room: float
    images: int


def log_errors(
    backbone: Backbone, latents: Float[Tensor, "n c *spatial"], name: str, times: Sequence[float] = TIMES, seed: int = 0
) -> Float[Tensor, " n"]:
    """e(z) of the latents of a class. Row k has the same noises whatever the latents are."""
    condition, levels = backbone.condition([name] * len(latents)), list[Tensor]()
    for fraction in times:
        t = time_of(backbone.schedule, fraction)
        gens = generators([seed_of(seed, name, "region", t, row) for row in range(len(latents))])
        error = denoising_error(backbone, latents, condition, t, normal(latents.shape[1:], gens, latents))
        levels.append(error.square().flatten(1).mean(1).clamp_min(1e-30).log())
    return torch.stack(levels).mean(0)


def largest(
    trial: Callable[[float], Sequence[Float[Tensor, " n"]]],
    *,
    room: float = ROOM,
    rounds: int = ROUNDS,
    tell: Callable[[int, int], object] = lambda done, total: None,
) -> Region:
    """The largest scale in the region of trust.

    Args:
        trial: for a scale the log errors of trial images, a tensor for each class; the same images in the same order for
            every scale. It is called with 0 first.
        room: see `ROOM`.
        rounds: how many other scales are tried.
        tell: is told how many trials are done, and of how many.

    Raises:
        DapError: the unguided trial fails, or no class has two images, so that nothing says how images differ.
    """
    before = trial(0.0)
    tell(1, rounds + 1)
    if all(len(errors) < 2 for errors in before):
        raise DapError("scale: auto compares at least two images of a class; name a scale instead.")
    apart = torch.cat([errors - errors.mean() for errors in before])
    allowed = room * math.sqrt(apart.square().sum().item() / sum(len(errors) - 1 for errors in before))
    low, high, found, tried = math.log(SMALLEST), math.log(LARGEST), 0.0, dict[float, float]()
    for number in range(rounds):
        scale = rounded(math.exp((low + high) / 2))
        tried[scale] = _change(trial, before, scale)
        if abs(tried[scale]) <= allowed:
            low, found = math.log(scale), scale
        else:  # a NaN too
            high = math.log(scale)
        tell(number + 2, rounds + 1)
    order = sorted(tried)
    return Region(found, tuple(order), tuple(tried[one] for one in order), allowed, sum(map(len, before)))


def _change(trial: Callable[[float], Sequence[Tensor]], before: Sequence[Tensor], scale: float) -> float:
    """c of a scale; NaN where a push of this length makes sampling fail."""
    try:
        after = trial(scale)
    except DapError:  # the unguided trial went well, so it is the push
        return math.nan
    return torch.cat([new - old for new, old in zip(after, before, strict=True)]).mean().item()


def rounded(scale: float) -> float:
    """A scale with two digits, for people to read."""
    return float(f"{scale:.2g}")
