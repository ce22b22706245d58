"""Small images in each format that Pillow writes here."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "ICO", "TGA", "PCX", "JPEG2000", "AVIF", "DDS", "SGI")


def picture(kind: str = "PNG", mode: str = "RGB") -> bytes:
    """A small image."""
    out = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).convert(mode).save(out, kind)
    return out.getvalue()


def pictures() -> tuple[bytes, ...]:
    """A small image in each format that Pillow writes here."""
    found = [picture("PNG", mode) for mode in ("RGB", "L", "P", "RGBA", "1", "I;16", "LA")]
    for kind in FORMATS:
        try:
            found.append(picture(kind))
        except (OSError, KeyError, ValueError):
            continue
    return tuple(found)
