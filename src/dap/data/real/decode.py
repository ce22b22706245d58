"""Decode one image, from a file or from memory, as one tensor. Images of any mode, depth, orientation and shape are
read."""

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
    as a page shows them. Grey of more than 8 bits keeps its depth: integers (Pillow's `I;16` and `I`) run from 0 to
    65535, floats (`F`) from 0 to 1. Values outside these ranges have no agreed scale, so the image counts as broken.

    Args:
        data: the bytes of an image file, or its path.
        size: height and width of the result, in pixels.
        fit: see `square`.

    Returns:
        (3, size, size), float32 in [0, 1].

    Raises:
        BrokenImage: the file is unreadable, not an image, or cut off, the image is above Pillow's decompression-bomb
            limit, or its values have no agreed scale.
        DapError: `size` is below 1, or `fit` is unknown.
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
        The bytes of the PNG, and whether these are the given bytes. They are where the given file is such a PNG
        already, upright and without transparency.

    Raises:
        BrokenImage: for the reasons that `decode` names.
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
    """The image of a file, completely loaded, as Pillow gives it.

    Raises:
        BrokenImage: the file is unreadable, not an image, cut off, or above Pillow's decompression-bomb limit.
    """
    try:
        with _opened(file) as image:
            yield image
    except (MemoryError, BrokenImage):
        raise
    except Exception as error:
        raise BrokenImage(_reason(error), file) from error


def encode_png(pixels: np.ndarray) -> bytes:
    """The bytes of an RGB PNG. `pixels` are uint8 (h, w, 3), or grey (h, w), which is repeated for the three
    colours."""
    out = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").save(out, format="PNG")
    return out.getvalue()


@contextmanager
def _opened(data: bytes | Path) -> Iterator[Image.Image]:
    """The image, completely loaded."""
    # Pillow's `verify` accepts JPEGs that are cut off. Only a full load shows whether an image is whole.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an image with odd metadata may have good pixels ...
        warnings.simplefilter("error", Image.DecompressionBombWarning)  # ... but a decompression bomb is refused
        content = data if isinstance(data, bytes) else data.read_bytes()
        if not content:
            raise ValueError("it is empty (0 bytes)")
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            yield image


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
    if not (low >= 0 and high <= peak):  # this form of the condition also catches NaN
        raise ValueError(f"its mode {image.mode} values run from {low:g} to {high:g}; rescale them to [0, {peak}]")
    return Image.fromarray(values / np.float32(peak))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image in a format Pillow reads"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__
