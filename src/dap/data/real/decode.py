"""One image, from a file or from memory, to one tensor: whatever its mode, depth, orientation or shape."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from dap.base.errors import DapError

Fit = Literal["crop", "pad", "crop-bilinear"]
"""How an image becomes square; see `square`."""


class BrokenImage(DapError):
    """An image that cannot be decoded. `reason` is the sentence without the image's name."""

    def __init__(self, reason: str, where: object = "the image") -> None:
        super().__init__(f"cannot decode {where}: {reason}")
        self.reason = reason


def check_fit(size: int, fit: str) -> None:
    """Raise `DapError` unless `size` is at least 1 and `fit` is one of the known ones."""
    if size < 1:
        raise DapError(f"the image size must be at least 1 pixel, not {size}")
    if fit not in get_args(Fit):
        raise DapError(f"unknown fit {fit!r}; known are {', '.join(map(repr, get_args(Fit)))}")


def decode(data: bytes | Path, size: int, fit: Fit = "crop") -> Tensor:
    """Decode an image completely and make it square.

    The EXIF orientation is applied and the first frame is taken. Every mode becomes RGB: grey and 1-bit are repeated,
    palettes looked up, CMYK and LAB converted, and transparency is laid on white, as a page would show it. Grey of more
    than 8 bits keeps its depth: integers (Pillow's `I;16` and `I`) count from 0 to 65535, floats (`F`) from 0 to 1;
    values outside have no agreed scale and make the image a broken one rather than a guess.

    Args:
        data: the bytes of an image file, or its path.
        size: height and width of the result, in pixels.
        fit: see `square`.

    Returns:
        (3, size, size), float32 in [0, 1].

    Raises:
        BrokenImage: unreadable, not an image, cut off, above Pillow's decompression-bomb limit, or without a scale.
        DapError: `size` or `fit` make no sense.
    """
    check_fit(size, fit)
    where = "the image" if isinstance(data, bytes) else data
    try:
        with _opened(data) as image:
            return fit_square(_plain(ImageOps.exif_transpose(image)), size, fit)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything inside Pillow's parsers
        raise BrokenImage(_reason(error), where) from error


def as_png(data: bytes | Path) -> tuple[bytes, bool]:
    """An image of any kind as an 8-bit RGB PNG of its own size, by the rules of `decode`.

    Returns:
        The file, and whether it is the very bytes that were given: so where they are such a PNG already.

    Raises:
        BrokenImage: as `decode` does.
    """
    where = "the image" if isinstance(data, bytes) else data
    try:
        content = data if isinstance(data, bytes) else data.read_bytes()
        with _opened(content) as image:
            upright = image.getexif().get(0x0112, 1) == 1
            eight_bit_rgb = content[24:26] == b"\x08\x02"  # IHDR: bit depth 8, colour type 2
            if image.format == "PNG" and eight_bit_rgb and upright and not image.has_transparency_data:
                return content, True
            plain = _plain(ImageOps.exif_transpose(image))
        values = np.asarray(plain)
        return encode_png((values * 255).round().astype(np.uint8) if plain.mode == "F" else values), False
    except MemoryError:
        raise
    except Exception as error:
        raise BrokenImage(_reason(error), where) from error


@contextmanager
def opened(file: Path) -> Iterator[Image.Image]:
    """The image of a file, wholly loaded, as Pillow gives it.

    Raises:
        BrokenImage: as `decode` does.
    """
    try:
        with _opened(file) as image:
            yield image
    except (MemoryError, BrokenImage):
        raise
    except Exception as error:
        raise BrokenImage(_reason(error), file) from error


def encode_png(pixels: np.ndarray) -> bytes:
    """A PNG of bytes (h, w, 3), or of grey ones (h, w), which are repeated."""
    out = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").save(out, format="PNG")
    return out.getvalue()


@contextmanager
def _opened(data: bytes | Path) -> Iterator[Image.Image]:
    """An image, wholly loaded."""
    # Pillow's `verify` passes cut-off JPEGs: nothing less than a full load tells a whole image from a broken one.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata is no reason to refuse good pixels ...
        warnings.simplefilter("error", Image.DecompressionBombWarning)  # ... but a bomb is
        content = data if isinstance(data, bytes) else data.read_bytes()
        if not content:
            raise ValueError("it is empty (0 bytes)")
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            yield image


def fit_square(image: Image.Image, size: int, fit: Fit) -> Tensor:
    """An image of mode L, RGB or F (the last already in [0, 1]) as a square tensor (3, size, size) in [0, 1]: `square`."""
    image = square(image, size, fit)
    values = torch.from_numpy(np.array(image, dtype=np.float32))
    if image.mode != "F":
        values /= 255
    values.clamp_(0, 1)  # bicubic overshoots in floating point
    return values.expand(3, -1, -1).contiguous() if values.ndim == 2 else values.permute(2, 0, 1).contiguous()


def square(image: Image.Image, size: int, fit: Fit) -> Image.Image:
    """An image of mode L, RGB or F as one of size x size pixels.

    `crop` resizes the short side to `size` (bicubic, antialiased) and keeps the centre; `crop-bilinear` does so by
    bilinear resampling, as torchvision's Resize and CenterCrop. `pad` puts an image that fits into the square onto the
    centre of a black one without resampling, and crops any other.
    """
    (width, height), short = image.size, min(image.size)
    if fit == "pad" and max(width, height) <= size:
        canvas = Image.new(image.mode, (size, size))
        canvas.paste(image, ((size - width) // 2, (size - height) // 2))
        image = canvas
    elif (width, height) != (size, size):
        # Cropping inside the resize keeps a 1 x 10000 strip from growing to gigabytes; whole pixels keep it sharp.
        left, top = (width - short) // 2, (height - short) // 2
        kind = Image.Resampling.BILINEAR if fit == "crop-bilinear" else Image.Resampling.BICUBIC
        image = image.resize((size, size), kind, box=(left, top, left + short, top + short))
    return image


def _plain(image: Image.Image) -> Image.Image:
    """The image as 8-bit RGB, or as mode F in [0, 1] where 8 bits would lose depth."""
    if image.mode.startswith("I"):
        return _unit(image, 65535)
    if image.mode == "F":
        return _unit(image, 1)
    if image.has_transparency_data:
        page = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(page, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _unit(image: Image.Image, peak: int) -> Image.Image:
    values = np.asarray(image).astype(np.float32)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= peak):  # also catches NaN
        raise ValueError(f"its mode {image.mode} values run from {low:g} to {high:g}; rescale them to [0, {peak}]")
    return Image.fromarray(values / np.float32(peak))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image in a format Pillow reads"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__
