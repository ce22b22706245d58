"""What encoding all images takes before the denoiser learns: the time, by a trial, and in how many versions they are encoded."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from dap.pretraining.networks import Sizes
from dap.pretraining.notes import Asked
from dap.pretraining.pictures import Pictures, encoded, together, versions_of

SHARE = 0.15
"""The part of the time that the encoding may take before fewer versions of each image are encoded."""

SLOW = 2.0
"""Where one image takes so many seconds, the trial encodes no more than this one."""


@dataclass(frozen=True)
class Encoding:
    """What encoding all images takes.

    Attributes:
        versions: how many versions of each image that is trained on are encoded. An image that is held out has one.
        images: how many images are encoded, each version counted.
        seconds: the time.
        fewer: whether there are fewer versions than so few images usually have.
    """

    versions: int
    images: int
    seconds: float
    fewer: bool


def encoding_of(vae: Any, asked: Asked, sizes: Sizes, device: torch.device, most: int | None = None) -> Encoding:
    """What encoding takes, in as many versions as the time allows.

    Where the user says the number of steps, it is this number that decides how long the training takes, and the versions are
    those that so few images usually have: the same command then gives the same bytes on any machine.

    Args:
        vae: an autoencoder of the sizes, on the device.
        asked: what the training is asked for.
        sizes: how large images are.
        device: where they are encoded.
        most: how many versions there are at the most, as a training that goes on has chosen.
    """
    each = seconds_of_encoding(vae, sizes, asked.images, device)
    shape = (0, 3 * (sizes.frames or 1), sizes.size, sizes.size)
    like = Pictures(torch.empty(shape), torch.empty(asked.images, dtype=torch.int8), asked.flip, sizes.frames)
    usual = min(versions_of(like), most or versions_of(like))
    limit = SHARE * 60 * asked.minutes if asked.steps is None and most is None else None
    versions = usual
    while versions > 1 and limit is not None and each * (versions * asked.images + asked.held_out) > limit:
        versions -= 1
    images = versions * asked.images + asked.held_out
    return Encoding(versions, images, each * images, versions < usual)


def seconds_of_encoding(vae: Any, sizes: Sizes, images: int, device: torch.device) -> float:
    """The seconds that one of so many images or clips takes to be encoded, by a trial."""
    taken, n = 0.0, 1
    for n in (1, min(images, together(sizes.size, sizes.frames))):  # the first one is slow, as any first one is
        shape = (n, 3 * (sizes.frames or 1), sizes.size, sizes.size)
        pictures = Pictures(
            torch.zeros(shape, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64), True, sizes.frames
        )
        began = time.monotonic()
        encoded(vae, pictures, device, seed=0, versions=1)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken = time.monotonic() - began
        if taken > SLOW:
            break
    return taken / n
