"""Whether a backbone has ever seen anything like some real images: a test of a few forward passes.

A denoiser that knows nothing of the images but the mean and the variance of each latent channel predicts the noise in
x_t = alpha x_0 + sigma eps with the mean squared error alpha² v / (alpha² v + sigma²), v being the variance. A backbone that has
learned such images does far better. One that has never seen their like does no better, whatever the prompt says.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dap.backbones.base import Backbone
from dap.backbones.frames import shape_of
from dap.backbones.schedules import steps_of
from dap.base.seeding import generators, normal, seed_of

log = logging.getLogger(__name__)

LEVELS = (0.3, 0.5, 0.7)
"""The noise levels, as parts of the schedule."""

UNKNOWN = 0.8
"""Above this ratio the images are unlike all that the backbone was trained on. The embedded starter-unet has 0.24 on
Fashion-MNIST and 1.1 on crops of photographs."""


@torch.no_grad()
def strangeness(backbone: Backbone, images: Float[Tensor, "n 3 *size"], class_names: Sequence[str]) -> float:
    """How badly a backbone predicts the noise in images, as a part of the error of a denoiser that knows two moments only.

    Args:
        backbone: the diffusion model.
        images: real images in [0, 1] at the backbone's size, n ≥ 1. Ten are enough.
        class_names: the class of each image.

    Returns:
        The mean over `LEVELS` of the ratio of the two errors. A trained model has 0.2 to 0.5 on what it was trained on.
    """
    x0, schedule = backbone.encode(images.to(backbone.device)), backbone.schedule
    steps = steps_of(schedule)
    apart = [0, *range(2, x0.ndim)]
    variance = (x0 - x0.mean(apart, keepdim=True)).square().mean(apart)
    conditions, ratios = backbone.condition(class_names), []
    for level in LEVELS:
        t = int(level * steps)
        alpha, sigma = schedule.level(t)
        noise = normal(backbone.latent_shape, generators([seed_of(0, "familiar", t, i) for i in range(len(x0))]), x0)
        eps = backbone.predict(alpha * x0 + sigma * noise, t, conditions).eps
        plain = (alpha**2 * variance / (alpha**2 * variance + sigma**2)).mean()
        ratios.append((eps - noise).square().mean() / plain.clamp_min(1e-8))
    return torch.stack(ratios).mean().item()


def some_of(source: Any) -> tuple[Float[Tensor, "n 3 *size"], list[str]]:
    """Some ten images of a source over its first classes, with the class of each. A small class gives all it has."""
    names = source.class_names[:10]
    each = max(1, 10 // len(names))
    drawn = [source.images(i, source.good(i, each, seed_of(0, "familiar", i), least=1)) for i in range(len(names))]
    return torch.cat(drawn), [name for name, some in zip(names, drawn, strict=True) for _ in some]


def warned(backbone: Backbone, source: Any) -> float | None:
    """The `strangeness` of some ten real images to a text-conditioned backbone; a warning is logged where it is too large.

    A backbone that takes labels refuses classes that it does not know, so it is not asked.

    Args:
        backbone: the diffusion model.
        source: the real images, see `dap.data.bank.RealImages`. Images of another size than the backbone's are not asked for.

    Returns:
        The strangeness if it is too large, and None if it is not or was not measured.
    """
    card = backbone.card
    if backbone.class_names or card.template is None:
        return None
    images, names = some_of(source)
    if images.shape[1:] != shape_of(card):
        return None
    found = strangeness(backbone, images, names)
    if found <= UNKNOWN:
        return None
    log.warning(
        "%s has probably never seen images like these: it predicts their noise %.2f times as badly as a guess that knows "
        "only their mean and variance (trained weights: 0.2 to 0.5). Its images will not show your classes; take a "
        "--backbone that was trained on such images.",
        card.name,
        found,
    )
    return found
