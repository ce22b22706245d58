"""Small images in each format that Pillow writes here."""

from __future__ import annotations

import io
from typing import Any

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


def clip(kind: str) -> bytes:
    """A small clip of four frames: of a format of Pillow, or a film in a container of FFmpeg."""
    frames = [np.roll(np.arange(768, dtype=np.uint8).reshape(16, 16, 3), 4 * shift, axis=1) for shift in range(4)]
    out = io.BytesIO()
    if kind.isupper():
        first, *others = map(Image.fromarray, frames)
        first.save(out, kind, save_all=True, append_images=others, duration=100, loop=0)
        return out.getvalue()
    import av

    with av.open(out, "w", format=kind) as film:
        stream: Any = film.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for frame in frames:
            film.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        film.mux(stream.encode())
    return out.getvalue()
