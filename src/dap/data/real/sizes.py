"""How large images are, from the heads of their files."""

from __future__ import annotations

import io
import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from dap.base.documents import regular
from dap.base.parsing import counted

LARGEST_SIDE = 256
"""The largest side in px that is chosen for a set without a word of the user."""


def size_of(data: bytes | Path) -> tuple[int, int] | None:
    """Width and height of an image in px as it is shown, that is, after its EXIF orientation; None for a broken file."""
    found = kind_of(data)
    return None if found is None else found[0]


def kind_of(data: bytes | Path) -> tuple[tuple[int, int], str, str] | None:
    """Width and height as `size_of` gives them, Pillow's mode ("RGB", "P", "L") and the format of the file ("PNG"); None for a
    broken file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data) if isinstance(data, bytes) else regular(data)) as image:
                width, height = image.size
                turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
                return (height, width) if turned else (width, height), str(image.mode), str(image.format)
    except Exception:  # a damaged file can raise nearly anything inside Pillow's parsers, and ask for any memory
        return None


def told(sizes: Sequence[tuple[int, int]]) -> str:
    """Sizes in words, such as "28 × 28", or "from 300 × 200 to 640 × 480" for images of several sizes; "" for none."""
    if not sizes:
        return ""
    low, high = (choose(sizes, key=lambda size: (size[0] * size[1], size)) for choose in (min, max))
    words = [f"{width} × {height}" for width, height in (low, high)]
    return words[0] if len(set(sizes)) == 1 else f"from {words[0]} to {words[1]}"


def side_of(sizes: Sequence[tuple[int, int]]) -> int:
    """The side of square images that suits images of these sizes: their short side where it is one, else the median of the
    short sides as a multiple of 8; at most `LARGEST_SIDE`."""
    shorts = [min(size) for size in sizes]
    if len(set(shorts)) == 1:
        return min(shorts[0], LARGEST_SIDE)
    return min(max(int(statistics.median(shorts)) // 8 * 8, 8), LARGEST_SIDE)


def noun(frames: int | None) -> str:
    """What a source or a set is made of: "image", or "clip" where `frames` is a number."""
    return "image" if frames is None else "clip"


def held(counts: Sequence[int], frames: int | None) -> str:
    """How many images there are in words, or clips: "10 classes, 60,000 images", "1 class, 1 clip of 16 frames"."""
    classes, total, what = len(counts), sum(counts), noun(frames)
    told = f"{counted(classes, 'class')}, {counted(total, what)}"
    return told + (f" of {counted(frames, 'frame')}" if frames else "")


def spread(count: int, most: int) -> list[int]:
    """At most so many indices below `count`, spread evenly."""
    return sorted({count * place // most for place in range(most)}) if count > most else list(range(count))
