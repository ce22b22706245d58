"""Decode one image, from a file or from memory, as one tensor. Images of any mode, depth, orientation and shape are
read."""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from dap.base.documents import POINTER
from dap.base.errors import DapError
from dap.base.parsing import shown
from dap.data.real.depth import check_colours, depth_of, unit
from dap.data.real.suffixes import REFUSED

Fit = Literal["crop", "pad", "crop-bilinear"]
"""How an image becomes square; see `square`."""

LARGEST_FILE = 2**30
"""How many bytes the file of one image may have: 1 GiB."""

ORIENTATION = 0x0112
"""The EXIF tag that says how an image is turned upright."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How an image is turned upright, by its orientation in the EXIF data."""


class BrokenImage(DapError):
    """An image cannot be decoded. `reason` is the cause in words, without the name of the image."""

    def __init__(self, reason: str, where: object = "the image") -> None:
        super().__init__(f"cannot decode {where}: {reason}")
        self.reason = reason


def check_fit(size: int, fit: str) -> None:
    """Raise `DapError` unless `size` is at least 1 and `fit` is a known way."""
    if size < 1:
        raise DapError(f"the image size must be at least 1 pixel, not {size}")
    if fit not in get_args(Fit):
        raise DapError(f"unknown fit {fit!r}; known are {', '.join(map(repr, get_args(Fit)))}")


def decode(data: bytes | Path, size: int, fit: Fit = "crop") -> Tensor:
    """Decode an image completely and make it square.

    The EXIF orientation is applied, and the first frame is taken. Every mode becomes RGB: grey and 1-bit values are
    repeated, colours of palettes are looked up, CMYK and LAB are converted, and transparent images are laid on white,
    as a page shows them. A colour profile (ICC) is not applied, as torchvision does not apply it either: the stored
    values are taken as sRGB.

    Grey of more than 8 bits keeps its depth: integers (Pillow's `I;16` and `I`) run from 0 to 65535, floats (`F`) from 0
    to 1. Values outside these ranges have no agreed scale, so the image counts as broken. If a PNG says in its sBIT chunk
    that fewer bits are used, or a TIFF has fewer bits, the largest value of so many bits is white. If no such thing is
    said and the values of an image of 16 bits fit into 14 bits or less, a warning says so once.

    Args:
        data: the bytes of an image file, or its path.
        size: height and width of the result, in pixels.
        fit: see `square`.

    Returns:
        (3, size, size), float32 in [0, 1].

    Raises:
        BrokenImage: the file is unreadable, no regular file, not an image, or cut off; the image has more pixels than
            `most_pixels`, or its values have no agreed scale.
        DapError: `size` is below 1, or `fit` is unknown.
    """
    check_fit(size, fit)
    with _plain(data) as (image, _, _):
        return fit_square(image, size, fit)


def as_png(data: bytes | Path) -> tuple[bytes, bool]:
    """An image of any kind as an 8-bit RGB PNG of its own size, by the rules of `decode`.

    Returns:
        The bytes of the PNG, and whether these are the given bytes. They are where the given file is such a PNG
        already, upright and without transparency.

    Raises:
        BrokenImage: for the reasons that `decode` names.
    """
    with _plain(data) as (image, content, same):
        return (content, True) if same else (encode_png(_bytes(image)), False)


def pixels(data: bytes | Path, most: int | None = None) -> np.ndarray:
    """An image of any kind as 8-bit RGB pixels (h, w, 3) of its own size, by the rules of `decode`. An image of
    more than `most` pixels is refused; default: `most_pixels`.

    Raises:
        BrokenImage: for the reasons that `decode` names.
    """
    with _plain(data, most) as (image, _, _):
        values = _bytes(image)
        return np.array(values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=2))


def encode_png(pixels: np.ndarray) -> bytes:
    """The bytes of an RGB PNG. `pixels` are uint8 (h, w, 3), or grey (h, w), which is repeated for the three
    colours."""
    out = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").save(out, format="PNG")
    return out.getvalue()


def read_file(file: Path) -> bytes:
    """The bytes of an image file, without the danger of waiting for ever.

    Raises:
        BrokenImage: the file cannot be read, is no regular file (a pipe, a device, a folder), or is larger than
            `LARGEST_FILE` bytes.
    """
    try:
        return _content(file)
    except MemoryError:
        raise
    except Exception as error:
        raise BrokenImage(reason_of(error), shown(file)) from error


def most_pixels() -> int:
    """The largest number of pixels that an image may have: Pillow's limit for decompression bombs, 178,956,970, or the
    environment variable DAP_MAX_PIXELS.

    Raises:
        DapError: DAP_MAX_PIXELS is not a whole number of at least 1.
    """
    said = os.environ.get("DAP_MAX_PIXELS", "")
    if not said:
        return 2 * (Image.MAX_IMAGE_PIXELS or 2**62)
    if not (said.isascii() and said.isdigit() and int(said[:19]) > 0 and len(said) < 19):
        raise DapError(f"DAP_MAX_PIXELS must be a whole number of pixels, such as 400000000, not {said!r}.")
    return int(said)


def _content(data: bytes | Path) -> bytes:
    if isinstance(data, bytes):
        return data
    info = data.stat()
    if not stat.S_ISREG(info.st_mode):
        kind = "a folder" if stat.S_ISDIR(info.st_mode) else "a pipe, a socket or a device"
        raise ValueError(f"it is {kind}, not a file")
    if info.st_size > LARGEST_FILE:
        raise ValueError(f"it is larger than {LARGEST_FILE:,} bytes")
    return data.read_bytes()


@contextmanager
def _plain(data: bytes | Path, most: int | None = None) -> Iterator[tuple[Image.Image, bytes, bool]]:
    """The image, upright, as L, RGB, or mode F in [0, 1]; the bytes of its file; and whether these are an upright 8-bit
    RGB PNG without transparency. Any error while it is open is a `BrokenImage`."""
    try:
        content = _content(data)
        if not content:
            raise ValueError("it is empty (0 bytes)")
        if content.startswith(POINTER):
            raise ValueError("it is a Git LFS pointer and not the image; fetch it with git lfs pull")
        limit = most_pixels() if most is None else min(most, most_pixels())
        with opened(content, limit) as image:
            # Pillow's `verify` accepts JPEGs that are cut off. Only a full load shows whether an image is whole.
            image.load()
            eight_bit_rgb = content[24:26] == b"\x08\x02"  # IHDR: bit depth 8, colour type 2
            unturned = image.getexif().get(ORIENTATION, 1) == 1
            same = image.format == "PNG" and eight_bit_rgb and unturned and not image.has_transparency_data
            yield upright(image, content), content, same
    except (MemoryError, BrokenImage):
        raise
    except Exception as error:  # a damaged file can raise nearly anything inside Pillow's parsers
        if isinstance(error, DapError):
            raise
        raise BrokenImage(reason_of(error), "the image" if isinstance(data, bytes) else shown(data)) from error


@contextmanager
def opened(content: bytes, limit: int) -> Iterator[Image.Image]:
    """An image file of a format that is read, opened by Pillow. Raises `ValueError` for more pixels than `limit`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an image with odd metadata may have good pixels
        with _pillow_allows(limit), Image.open(io.BytesIO(content), "r", _formats()) as image:
            if image.width * image.height > limit:
                raise ValueError(_too_large(f"it has {image.width * image.height:,} pixels", limit))
            yield image


@contextmanager
def _pillow_allows(limit: int) -> Iterator[None]:
    """Raise Pillow's own limit, where the user allows more, while the block runs."""
    before = Image.MAX_IMAGE_PIXELS
    if before is not None and limit > 2 * before:
        Image.MAX_IMAGE_PIXELS = limit
    try:
        yield
    except Image.DecompressionBombError as error:
        raise ValueError(_too_large("it is too large", limit)) from error
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _too_large(what: str, limit: int) -> str:
    return (
        f"{what} and could be a decompression bomb, as the limit is {limit:,} pixels; make it smaller, or set the "
        f"environment variable DAP_MAX_PIXELS to a larger number"
    )


@cache
def _formats() -> tuple[str, ...]:
    """Every format that Pillow decodes by itself."""
    Image.init()
    return tuple(name for name in Image.ID if name not in REFUSED)


def plain(picture: Image.Image) -> Image.Image:
    """A picture in memory, upright, as L, RGB, or mode F in [0, 1], by the rules of `decode`. The picture is not changed.

    Raises:
        BrokenImage: the picture is of a file that is cut off, or its values have no agreed scale.
    """
    try:
        picture.load()
        return upright(picture, None)
    except MemoryError:
        raise
    except Exception as error:  # a picture may be of a damaged file that was opened and not read yet
        raise BrokenImage(reason_of(error)) from error


def upright(image: Image.Image, content: bytes | None) -> Image.Image:
    """The image as `_as_rgb` gives it, turned as the EXIF data of its file say."""
    turn = _TURNS.get(image.getexif().get(ORIENTATION, 1))
    rgb = _as_rgb(image, content)
    return rgb if turn is None else rgb.transpose(turn)


def _as_rgb(image: Image.Image, content: bytes | None) -> Image.Image:
    """The image as 8-bit RGB or grey, or as mode F in [0, 1] where 8 bits would lose depth. `content` are the bytes of its
    file, if they are at hand."""
    facts = depth_of(image, content)
    if image.mode.startswith("I") or image.mode == "F":
        return unit(image, facts)
    check_colours(image, facts)
    if image.format == "PNG" and image.mode == "L" and facts.file in (2, 4) and "transparency" in image.info:
        # Pillow scales grey of 2 and 4 bits to 8 bits, but not the grey that the file declares transparent. The picture is the
        # caller's, and other frames of a clip have the same `info`, so that a copy takes the change.
        image = image.copy()
        image.info["transparency"] *= 255 // (2**facts.file - 1)
    if image.has_transparency_data:
        page = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(page, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _bytes(image: Image.Image) -> np.ndarray:
    values = np.asarray(image)
    return (values * 255).round().astype(np.uint8) if image.mode == "F" else values


def fit_square(image: Image.Image, size: int, fit: Fit) -> Tensor:
    """Make an image square with `square`, and return it as a tensor (3, size, size) in [0, 1].

    The mode of the image is L, RGB or F; values of mode F must lie in [0, 1] already.
    """
    image = square(image, size, fit)
    values = torch.from_numpy(np.array(image, dtype=np.float32))
    if image.mode != "F":
        values /= 255
    values.clamp_(0, 1)  # bicubic resampling of floats may give values outside [0, 1]
    return values.expand(3, -1, -1).contiguous() if values.ndim == 2 else values.permute(2, 0, 1).contiguous()


def square(image: Image.Image, size: int, fit: Fit) -> Image.Image:
    """Make an image of mode L, RGB or F square, with size x size pixels.

    `crop` resizes the short side to `size` (bicubic, antialiased) and keeps the centre. `crop-bilinear` does the same
    with bilinear resampling, as torchvision's Resize and CenterCrop do. `pad` puts an image that fits into the square
    on the centre of a black square, without resampling; any other image is cropped as with `crop`.
    """
    (width, height), short = image.size, min(image.size)
    if fit == "pad" and max(width, height) <= size:
        canvas = Image.new(image.mode, (size, size))
        canvas.paste(image, ((size - width) // 2, (size - height) // 2))
        image = canvas
    elif (width, height) != (size, size):
        # The crop is a part of the resize, because a strip of 1 x 10000 pixels would else grow to gigabytes. The
        # corners of the crop are whole pixels, which keeps the image sharp.
        left, top = (width - short) // 2, (height - short) // 2
        kind = Image.Resampling.BILINEAR if fit == "crop-bilinear" else Image.Resampling.BICUBIC
        image = image.resize((size, size), kind, box=(left, top, left + short, top + short))
    return image


def reason_of(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image in a format Pillow reads"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__
