"""How large the networks are and how long each stage is: the largest that learn enough in the time, by a measured rate."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dap.backbones.base import Card
from dap.base.devices.waiting import wait_for
from dap.base.errors import DapError
from dap.pretraining import autoencoders, denoisers
from dap.pretraining.encoding import SMALLEST, Encoding
from dap.pretraining.networks import Kind, Sizes, autoencoder
from dap.pretraining.notes import Asked, Notes
from dap.pretraining.pictures import Latents, Pictures

SHARE = 0.35
"""The part of the time that the autoencoder gets."""

SPARE = 0.9
"""The part of a stage's time that its steps may take. The rest is for held-out losses and previews."""

LARGEST = {"cpu": 64, "cuda": 128}
"""The largest side in px that is chosen without a word of the user, by device; of long trainings on a GPU it is 256."""

LONG = 120
"""Minutes from which a training is long."""

AUTOENCODERS = (([16, 32, 64], 1), ([32, 64, 128], 1), ([64, 128, 256], 2))
"""Channels and layers of autoencoders, from small to large. The first one is the starter's, which has learned already."""

ENOUGH = (100_000, 40)
"""An autoencoder that starts from nothing needs so many images, or each of a larger folder's so many times."""

ENOUGH_LATENTS = (100_000, 50)
"""A denoiser needs so many latents, or each of a larger folder's so many times."""

TRANSFORMERS = ((0, 128, 6), (0, 192, 8), (1, 192, 8), (1, 256, 8), (1, 384, 12), (2, 384, 12), (2, 512, 16))
"""How often the coarsest patches are halved, width and depth of DiTs, from small to large."""

FEWEST_PATCHES = 4
"""The fewest patches in a row of a latent that are tried, and half as many in a frame of a clip, which has many frames."""

UNETS = (32, 64, 96, 128, 192)
"""Widths of U-Nets, from small to large."""

FEWEST_STEPS = 50
"""A stage of fewer steps than this makes nothing that could be of use."""


@dataclass(frozen=True)
class Wish:
    """What the choice of sizes depends on.

    Attributes:
        kind: the kind of the denoiser.
        images: how many images or clips there are.
        classes: how many classes there are.
        side: the side of the images in px.
        minutes: the time.
        device: the device.
        frames: how many frames a clip has; None for images.
    """

    kind: Kind
    images: int
    classes: int
    side: int
    minutes: float
    device: torch.device
    frames: int | None = None

    @property
    def seconds(self) -> float:
        return 60 * self.minutes


def chosen_side(side: int, minutes: float, device: torch.device) -> int:
    """The side of the images that a backbone makes: that of the user's images as a multiple of 16, up to a largest one."""
    largest = LARGEST.get(device.type, 64)
    if device.type == "cuda" and minutes >= LONG:
        largest = 256
    return min(max(16, round(side / 16) * 16), largest)


def chosen(wish: Wish) -> tuple[Sizes, str, float, float]:
    """The sizes, why they were chosen, and the seconds of one step of the autoencoder and of the denoiser.

    Raises:
        DapError: the time is too short for any size.
    """
    needed = _enough(ENOUGH, wish.images * (wish.frames or 1))
    found, seconds, rate = None, 0.0, 0.0
    for sizes in _of_autoencoders(wish):
        took = autoencoder_seconds(sizes, wish.device)
        fits = wish.seconds * SHARE * SPARE / took * sizes.batch_images >= needed
        if found is None or fits:
            found, seconds, rate = sizes, took, sizes.batch_images / took
        if not fits:
            break
    assert found is not None
    needed = _enough(ENOUGH_LATENTS, wish.images)
    best, step, short = None, 0.0, False
    for sizes in _of_denoisers(wish, found):
        took = denoiser_seconds(sizes, wish.classes, wish.device)
        fits = wish.seconds * (1 - SHARE) * SPARE / took * sizes.batch_latents >= needed
        short = best is None and not fits
        if best is None or fits:
            best, step = sizes, took
        if not fits:
            break
    assert best is not None
    tokens, what = (best.latent_side // best.patch) ** 2, "images"
    network = f"a DiT of {best.depth} blocks, width {best.width}, {tokens} tokens"
    if best.frames is not None:
        network = f"a Latte of {best.depth} blocks, width {best.width}, {best.frames} × {tokens} tokens"
        what = "clips"
    if best.kind == "unet":
        network = f"a U-Net of width {best.width}"
    size = (
        f"They are the largest of those tried that see {needed:,} latents or more in {wish.minutes:g} minutes on this "
        f"{wish.device.type}"
    )
    if short:
        size = (
            f"They are the smallest there are. In {wish.minutes:g} minutes this {wish.device.type} shows them fewer than the "
            f"{needed:,} latents that good {what} of {wish.images:,} {what} need, so give more --minutes if they come out rough"
        )
    known = " that starts as the starter's" if best.start == "starter" else ""
    latent = f"{best.latent_channels}×{best.latent_side}×{best.latent_side}"
    side = f"images of {best.size} px" if best.frames is None else f"clips of {best.frames} frames of {best.size} px"
    reason = (
        f"{side}, an autoencoder{known} with channels {', '.join(map(str, best.levels))} to latents {latent} "
        f"({rate:.0f} images/s), and {network} ({best.batch_latents / step:.0f} latents/s). {size}"
    )
    return best, reason, seconds, step


def _enough(least: tuple[int, int], images: int) -> int:
    """How many images or latents are enough for a folder of so many images."""
    return min(max(least[0], least[1] * images), 5_000_000)


def steps_in(seconds: float, step: float, what: str, advice: str = "give more --minutes", after: str = "") -> int:
    """How many steps fit into a time.

    Args:
        seconds: the time.
        step: the seconds of one step.
        what: what is trained.
        advice: what gives more steps.
        after: what takes the rest of the time, in a clause.

    Raises:
        DapError: too few.
    """
    steps = max(0, int(seconds * SPARE / step))
    if steps < FEWEST_STEPS:
        raise DapError(
            f"In {max(0.0, seconds) / 60:.1f} minutes{after} this machine makes {steps} steps of the {what}, which is too few to "
            f"learn anything; {advice}."
        )
    return steps


def denoiser_steps(
    notes: Notes, step: float, encoding: Encoding, *, spent: float | None = None, begun: bool = True
) -> int:
    """How many steps of the denoiser fit into what the autoencoder and the encoding leave of the time.

    An autoencoder that took longer than planned, on a machine that became busier, takes at most half of what was planned for the
    denoiser. The whole training then takes longer than was asked.

    Args:
        notes: what was asked for, and what the training has come to.
        step: the seconds of one step.
        encoding: what encoding all images takes.
        spent: the seconds of the autoencoder; default: those that are in the notes.
        begun: whether the notes are in the folder, so that it takes no training with other wishes.

    Raises:
        DapError: too few.
    """
    asked = notes.asked
    planned = (
        asked.minutes * 30 if notes.reserved is None else notes.reserved
    )  # what earlier versions gave at the least
    left = denoiser_seconds_left(asked, notes.seconds if spent is None else spent, encoding)
    what, advice = "tuning", "give more --minutes"
    first = "" if asked.backbone is not None else "the autoencoder and "
    if asked.backbone is None:
        what = "denoiser"
        advice += ", fewer --autoencoder-steps" if asked.autoencoder_steps else ""
        advice += " or a smaller --size" if notes.sizes.size > SMALLEST else ""
    advice += ", and another --out" if begun else ""
    after = f", which are left after {first}the encoding of the images ({encoding.seconds / 60:.1f} minutes),"
    return steps_in(max(left, planned / 2) if begun else left, step, what, advice, after)


def denoiser_seconds_left(asked: Asked, spent: float, encoding: Encoding) -> float:
    """The seconds that an autoencoder of so many seconds and the encoding leave."""
    return 60 * asked.minutes - spent - encoding.seconds


def _of_autoencoders(wish: Wish) -> Iterator[Sizes]:
    cuda = wish.device.type == "cuda"
    # Small batches, and so more steps, learn faster on a CPU; a GPU would not be used by them. A clip is many images.
    batches = {"batch_images": 64 if cuda else 8, "batch_latents": 256 if cuda else 32}
    if wish.frames is not None:
        batches["batch_latents"] = 64 if cuda else 8
    for number, (levels, layers) in enumerate(AUTOENCODERS):
        if number and wish.side > 64:  # one more halving, so that latents stay small
            levels = [levels[0] // 2, *levels]
        what = {"levels": levels, "layers": layers, "start": "nothing" if number else "starter", **batches}
        yield Sizes(kind=wish.kind, size=wish.side, frames=wish.frames, width=128, depth=6, patch=1, **what)


def _of_denoisers(wish: Wish, sizes: Sizes) -> Iterator[Sizes]:
    if wish.kind == "unet":
        yield from (sizes.model_copy(update={"width": width, "patch": 1}) for width in UNETS)
        return
    side, fewest = sizes.latent_side, FEWEST_PATCHES if sizes.frames is None else FEWEST_PATCHES // 2
    coarsest = next(patch for patch in (8, 4, 2, 1) if side % patch == 0 and (side // patch >= fewest or patch == 1))
    for halved, width, depth in TRANSFORMERS:
        if patch := coarsest >> halved:
            yield sizes.model_copy(update={"patch": patch, "width": width, "depth": depth})


def autoencoder_seconds(sizes: Sizes, device: torch.device) -> float:
    """The seconds of one step of the autoencoder, by a time test."""
    vae = autoencoder(sizes, 0).to(device, memory_format=torch.channels_last)
    pictures = Pictures(torch.rand(4, 3, sizes.size, sizes.size), torch.zeros(4, dtype=torch.int64))
    return seconds_of(vae, autoencoders.loss_of(vae, pictures, sizes.batch_images, device), device)


def denoiser_seconds(sizes: Sizes, classes: int, device: torch.device) -> float:
    """The seconds of one step of the denoiser, by a time test."""
    vae: Any = nn.Linear(1, 1).to(device)
    vae.config = _Channels(sizes.latent_channels)
    card = Card("trial", "", sizes.size, 1.0, "all", "0", 0.0, "step")
    names = [str(label) for label in range(classes)]
    learner = denoisers.learner_of(sizes, vae, names, card, 0)
    return learner_seconds(learner, sizes.batch_latents, device)


def learner_seconds(learner: denoisers.Learner, batch: int, device: torch.device) -> float:
    """The seconds of one step of what learns, by a time test on latents of nothing. Its weights stay as they are."""
    shape = (1, 4, *learner.backbone.latent_shape)
    latents = Latents(torch.zeros(shape), torch.ones(shape), torch.zeros(4, dtype=torch.int64))
    latents = Latents(*(part.to(device) for part in (latents.mean, latents.std, latents.labels)))
    return seconds_of(learner.module, denoisers.loss_of(learner, latents, batch), device)


@dataclass(frozen=True)
class _Channels:
    """The part of an autoencoder's configuration that a denoiser is checked against."""

    latent_channels: int


def seconds_of(
    module: nn.Module, loss_of: Callable[[torch.Generator], Tensor], device: torch.device, times: int = 2
) -> float:
    """The seconds of one step: the fastest of some, after one that is not counted."""
    optimiser = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.0)
    found = []
    for number in range(times + 1):
        began = time.monotonic()
        optimiser.zero_grad(set_to_none=True)
        loss_of(torch.Generator().manual_seed(number)).backward()
        optimiser.step()
        wait_for(device)
        found.append(time.monotonic() - began)
    return min(found[1:])
