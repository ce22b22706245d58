"""What encoding all images takes before the denoiser learns: the time, by a time test, the memory, and the versions that fit into
both."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from dap.base.devices.waiting import wait_for
from dap.base.errors import DapError
from dap.pretraining.networks import Sizes
from dap.pretraining.notes import Asked
from dap.pretraining.pictures import Pictures, encoded, together, versions_of

SMALLEST = 16
"""The smallest side in px of an image."""

SHARE = 0.15
"""The part of the time that the encoding may take before fewer versions of each image are encoded."""

LEAST = 2**26
"""Latents may take so many bytes on any machine."""

SLOW = 2.0
"""Where one image takes so many seconds, the trial encodes no more than this one."""


@dataclass(frozen=True)
class Encoding:
    """What encoding all images takes.

    Attributes:
        versions: how many versions of each image that is trained on are encoded. An image that is held out has one.
        images: how many images are encoded, each version counted.
        seconds: the time.
    """

    versions: int
    images: int
    seconds: float


def encoding_of(
    vae: Any, asked: Asked, sizes: Sizes, device: torch.device, most: int, *, settled: bool = False
) -> Encoding:
    """What encoding takes, in as many versions as the time allows.

    Where the user says the number of steps, this number decides how long the training takes, and the time takes away no version:
    the same command then gives the same bytes on any machine.

    Args:
        vae: an autoencoder of the sizes, on the device.
        asked: what the training is asked for.
        sizes: how large images are.
        device: where they are encoded.
        most: how many versions there are at the most; see `versions_in`.
        settled: whether a training that goes on has settled the versions.
    """
    each = seconds_of_encoding(vae, sizes, asked.images, device)
    versions = min(usual_versions(asked, sizes), most)
    if asked.steps is None and not settled:
        limit = SHARE * 60 * asked.minutes
        while versions > 1 and each * (versions * asked.images + asked.held_out) > limit:
            versions -= 1
    images = versions * asked.images + asked.held_out
    return Encoding(versions, images, each * images)


def usual_versions(asked: Asked, sizes: Sizes) -> int:
    """In how many versions so many images are encoded where time and memory allow it."""
    images = torch.empty(0, 3 * (sizes.frames or 1), sizes.size, sizes.size)
    labels = torch.empty(asked.images, dtype=torch.int64, device="meta")
    return versions_of(Pictures(images, labels, asked.flip, sizes.frames))


def versions_in(memory: int, of: str, asked: Asked, sizes: Sizes) -> int:
    """In how many versions, at the most, the latents of all images fit into memory.

    Args:
        memory: bytes.
        of: the flag that says how much memory there is.
        asked: what the training is asked for.
        sizes: how large images are.

    Raises:
        DapError: not even one version fits.
    """
    memory = max(memory, LEAST)
    for versions in range(usual_versions(asked, sizes), 0, -1):
        if latents_bytes(versions, asked, sizes) <= memory:
            return versions
    needed, what = latents_bytes(1, asked, sizes), "images" if sizes.frames is None else "clips"
    size = " or a smaller --size" if asked.backbone is None and sizes.size > SMALLEST else ""
    raise DapError(
        f"The latents of {asked.images + asked.held_out:,} {what} of {sizes.size} px take up to {needed / 2**30:.1f} GiB, and "
        f"there are {memory / 2**30:.1f} GiB for them (half of {of}); give a larger {of}{size}, or fewer --classes."
    )


def latents_bytes(versions: int, asked: Asked, sizes: Sizes) -> int:
    """The largest number of bytes that the means and deviations of all latents take. While those of a new autoencoder are
    standardised, the squares of the deviations are there too."""
    each = 4 * sizes.latent_channels * sizes.latent_side**2 * (sizes.frames or 1)
    tensors = 2 if asked.backbone is not None else 3
    return each * max(tensors * versions * asked.images, 2 * (versions * asked.images + asked.held_out))


def seconds_of_encoding(vae: Any, sizes: Sizes, images: int, device: torch.device) -> float:
    """The seconds that one of so many images or clips takes to be encoded, by a time test."""
    taken, n = 0.0, 1
    for n in (1, min(images, together(sizes.size, sizes.frames))):  # the first one is slow, as any first one is
        shape = (n, 3 * (sizes.frames or 1), sizes.size, sizes.size)
        pictures = Pictures(
            torch.zeros(shape, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64), True, sizes.frames
        )
        began = time.monotonic()
        encoded(vae, pictures, device, seed=0, versions=1)
        wait_for(device)
        taken = time.monotonic() - began
        if taken > SLOW:
            break
    return taken / n
