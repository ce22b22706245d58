"""Decode one clip, and write one: animated images by Pillow, films by PyAV.

A clip is N frames of a file, those that are shown in the middle of N equal parts of its time, as the segments of Wang et al. 2016
(Temporal Segment Networks) at test time. A file of N equally long frames so gives each frame once, a shorter one repeats frames,
and a still image is repeated N times.
"""

from __future__ import annotations

import io
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dap.base.errors import DapError
from dap.base.parsing import shown
from dap.data.real.clips.films import container_of, pictures
from dap.data.real.clips.times import check_room, middles
from dap.data.real.decode import (
    BrokenImage,
    Fit,
    check_fit,
    encode_png,
    fit_square,
    most_pixels,
    opened,
    read_file,
    reason_of,
    upright,
)

MS = 125
"""How many milliseconds each frame of a clip is shown that is written here: 8 frames a second."""

USUAL_MS = 100
"""How long a frame is shown whose file gives no time, as browsers show it."""


def decode_clip(data: bytes | Path, frames: int, size: int, fit: Fit = "crop") -> Tensor:
    """Decode a clip, and make its frames square, each as `dap.data.real.decode.decode` makes an image square.

    Args:
        data: the bytes of a GIF, PNG, WebP, MP4, MOV, MKV, WebM or AVI file, or its path.
        frames: how many frames of it are taken.
        size, fit: see `dap.data.real.decode.decode`.

    Returns:
        (3, frames, size, size), float32 in [0, 1].

    Raises:
        BrokenImage: the file is unreadable, cut off or too large, or it has no picture.
        DapError: `frames` or `size` is below 1, `fit` is unknown, or a film is to be read and PyAV is not installed.
    """
    check_fit(size, fit)
    found = [fit_square(image, size, fit) for image in _taken(data, frames)]
    return torch.stack(found, dim=1)


def clip_pixels(data: bytes | Path, frames: int) -> np.ndarray:
    """The frames of a clip at their own size, 8-bit RGB (frames, h, w, 3). Raises as `decode_clip`."""
    return np.stack([np.asarray(image.convert("RGB")) for image in _taken(data, frames)])


def encode_clip(pixels: np.ndarray) -> bytes:
    """The bytes of an animated PNG, which keeps every pixel. A program that knows no animated PNG sees the first frame.

    Pillow stores frames that are the same one after the other as one frame that is shown longer, and `decode_clip` tells them
    apart again by their time.

    Args:
        pixels: RGB, uint8 (frames, h, w, 3).
    """
    if len(pixels) == 1:
        return encode_png(pixels[0])
    first, *others = [Image.fromarray(frame) for frame in pixels]
    out = io.BytesIO()
    first.save(out, format="PNG", save_all=True, append_images=others, duration=MS, loop=0)
    return out.getvalue()


def is_moving(data: bytes) -> bool:
    """Whether these are the bytes of an animated PNG. Its chunk `acTL` stands before the pixels."""
    return data.startswith(b"\x89PNG") and 0 < data.find(b"acTL") < (data.find(b"IDAT") % 2**63)


def preview(data: bytes, side: int, most: int = 32) -> bytes:
    """A clip as an animated WebP to look at: with losses, and no larger than `side` px. Of a long clip `most` frames are taken.

    Raises:
        BrokenImage: the clip cannot be decoded.
    """
    with opened(data, most_pixels()) as image:
        frames = max(1, min(round(sum(_lasting(image)) / MS), most))
    small = [image.convert("RGB") for image in _taken(data, frames)]
    for image in small:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small[0].save(out, format="WEBP", save_all=True, append_images=small[1:], duration=MS, loop=0, quality=70, method=2)
    return out.getvalue()


def _taken(data: bytes | Path, frames: int) -> list[Image.Image]:
    """The frames of a clip, upright, as L, RGB, or mode F in [0, 1]."""
    if frames < 1:
        raise DapError(f"a clip has at least 1 frame, not {frames}")
    try:
        content = data if isinstance(data, bytes) else read_file(data)
        container = container_of(content)
        return _animated(content, frames) if container is None else pictures(content, container, frames)
    except (MemoryError, BrokenImage):
        raise
    except Exception as error:  # a damaged file can raise nearly anything inside the parsers
        if isinstance(error, DapError):
            raise
        raise BrokenImage(reason_of(error), "the clip" if isinstance(data, bytes) else shown(data)) from error


def _animated(content: bytes, frames: int) -> list[Image.Image]:
    """The frames that are taken of an image that moves, or of one that stands still."""
    if not content:
        raise ValueError("it is empty (0 bytes)")
    with opened(content, most_pixels()) as image:
        *begins, end = accumulate(_lasting(image), initial=0)
        wanted = middles(begins, end, frames)
        found: dict[int, Image.Image] = {}
        for place in sorted(set(wanted)):
            image.seek(place)
            found[place] = upright(image, content)
        return [found[place] for place in wanted]


def _lasting(image: Image.Image) -> list[float]:
    """How many milliseconds each frame of an image is shown. Raises `ValueError` for too many frames."""
    count = getattr(image, "n_frames", 1)
    check_room(count, image.width * image.height)
    found = []
    for place in range(count):
        image.seek(place)
        image.load()
        found.append(image.info.get("duration") or USUAL_MS)
    return found
