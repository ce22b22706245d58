"""What weights make: images, or clips of some frames."""

from __future__ import annotations

from dap.backbones.base import Card
from dap.base.errors import DapError


def shape_of(card: Card) -> tuple[int, ...]:
    """The shape of what weights make: an image (3, size, size), or a clip (3, frames, size, size)."""
    return (3, card.size, card.size) if card.frames is None else (3, card.frames, card.size, card.size)


def check_frames(card: Card, frames: int | None) -> None:
    """Raise `DapError` unless a backbone makes clips of as many frames as the data have, or images where they are images."""
    if card.frames == frames:
        return
    if card.frames is None:
        raise DapError(
            f"{card.name} makes images and the data are clips; leave out --frames, or take a video backbone such as a Wan."
        )
    other = f", not {frames}, or write frames: {frames} into the card.yaml beside its weights."
    raise DapError(
        f"{card.name} makes clips of {card.frames} frames; read the data as such with --frames {card.frames}"
        + ("." if frames is None else other)
    )
