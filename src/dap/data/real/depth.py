"""Values of more than 8 bits: which of them is white."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

log = logging.getLogger("dap")

_told: set[int] = set()
"""The numbers of bits of which a warning was written."""


@dataclass(frozen=True)
class Depth:
    """What the file of an image says about its values.

    Attributes:
        file: the bits of a value in the file; 8 where nothing else is said.
        used: the bits of a value that the image uses, where a PNG says so (sBIT); else None.
        inverted: whether 0 is white (TIFF's WhiteIsZero).
    """

    file: int = 8
    used: int | None = None
    inverted: bool = False


def depth_of(image: Image.Image, content: bytes | None) -> Depth:
    """What a file says about the values of its image. `content` are the bytes of the file; None: they are not at hand."""
    if image.format == "PNG" and content is not None:
        return Depth(content[24], _significant_bits(content))
    if image.format == "PNG" and image.mode == "L" and isinstance(hidden := image.info.get("transparency"), int):
        return Depth(_bits_of_grey(image, hidden))
    if image.format == "TIFF":
        tags: Any = getattr(image, "tag_v2", {})
        bits = tags.get(258, 8)
        return Depth(int(bits[0] if isinstance(bits, tuple) else bits), inverted=tags.get(262) == 0)
    return Depth(16 if image.mode.startswith("I;16") else 8)


def _bits_of_grey(image: Image.Image, hidden: int) -> int:
    """The bits of a value in the file of a grey picture, by its values where the file is not at hand: Pillow scales grey of 2 and
    4 bits to 8 bits, but not the grey `hidden` that the file declares transparent."""
    values = np.unique(np.asarray(image))
    return next((bits for bits in (2, 4) if hidden < 2**bits and not (values % (255 // (2**bits - 1))).any()), 8)


def unit(image: Image.Image, depth: Depth) -> Image.Image:
    """An image of mode I or F as mode F in [0, 1], where 1 is white.

    Raises:
        ValueError: the values have no agreed scale.
    """
    raw = np.asarray(image)
    values = raw.astype(np.float32)
    peak = 1 if image.mode == "F" else 65535
    if peak > 1 and 8 < depth.file < 16:
        peak = 2**depth.file - 1
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= peak):  # this form of the condition also catches NaN
        raise ValueError(f"its mode {image.mode} values run from {low:g} to {high:g}; rescale them to [0, {peak}]")
    if depth.file == 16 and peak > 1 and high > 0:
        if depth.used is None:
            _note(int(high))
        elif depth.used < 16 and high < 2**depth.used and (raw.astype(np.int64) % 2 ** (16 - depth.used)).any():
            # By the standard, values of fewer bits are shifted up to 16 bits. These are not: their lowest bits are used.
            peak = 2**depth.used - 1
    scaled = values / np.float32(peak)
    if depth.inverted:
        scaled = 1 - scaled
    hidden = image.info.get("transparency") if image.format == "PNG" else None
    if isinstance(hidden, int):
        scaled[raw == hidden] = 1  # on white, as other transparent images
    return Image.fromarray(scaled)


def check_colours(image: Image.Image, depth: Depth) -> None:
    """Check the colours of a file of 16 bits a channel. Pillow keeps the upper 8 bits, so values of fewer bits lose most
    of their steps.

    Raises:
        ValueError: the file says that it uses fewer bits, and its values are not shifted up to 16 bits.
    """
    if depth.file != 16 or image.mode not in ("RGB", "RGBA", "LA", "RGBX"):
        return
    extrema: Any = image.getextrema()
    high = max(most for _, most in extrema[: 1 if image.mode == "LA" else 3])
    if depth.used is not None and 8 < depth.used < 16 and 0 < high < 2 ** (depth.used - 8):
        raise ValueError(
            f"its colours have 16 bits and use only {depth.used} of them, without being scaled to 16; scale them by "
            f"{65535 / (2**depth.used - 1):.4g}, or save 8 bits"
        )
    if depth.used is None and high > 0:
        _note(256 * high + 255)


def _note(largest: int) -> None:
    """Warn if the largest value of an image of 16 bits needs at least two bits fewer: once for each number of bits."""
    used = max(largest.bit_length(), 8)
    if used <= 14 and used not in _told:
        _told.add(used)
        log.warning(
            "the largest value seen in an image of 16 bits is %d: looks like %d bits. It is read as 16 bits, so it is "
            "dark; if so, multiply the values by %d, or write an sBIT chunk with the number of bits",
            *(largest, used, 2 ** (16 - used)),
        )


def _significant_bits(content: bytes) -> int | None:
    """The largest number of bits in the sBIT chunk of a PNG file; None where there is none."""
    place = 8
    while place + 12 <= len(content):
        size, kind = int.from_bytes(content[place : place + 4], "big"), content[place + 4 : place + 8]
        if kind == b"sBIT":
            return max(content[place + 8 : place + 8 + size], default=None)
        if kind in (b"IDAT", b"PLTE"):
            return None
        place += 12 + size
    return None
