"""Clips for tests: squares that move, as bytes of several kinds of files and as folders of classes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ["Bag", "Dress", "Shirt"]


def moving(label: int, seed: int, frames: int = 8, side: int = 20) -> np.ndarray:
    """A bright square that moves to the right, down or to the left, (frames, side, side, 3)."""
    random = np.random.default_rng((label, seed))
    clip = np.full((frames, side, side, 3), random.integers(0, 30), np.uint8)
    x, y = random.integers(2, side - 6, 2)
    for t in range(frames):
        across, down = ((t, 0), (0, t), (-t, 0))[label]
        left, top = (x + across) % (side - 4), (y + down) % (side - 4)
        clip[t, top : top + 4, left : left + 4] = random.integers(200, 255, 3)
    return clip


def film(clip: np.ndarray, container: str = "mp4", codec: str = "mpeg4") -> bytes:
    import av

    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream(codec, rate=8)
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in clip:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        file.mux(stream.encode())
    return out.getvalue()


def animated(clip: np.ndarray, kind: str = "GIF", **how) -> bytes:
    out = io.BytesIO()
    first, *others = [Image.fromarray(frame) for frame in clip]
    first.save(out, kind, save_all=True, append_images=others, duration=how.pop("duration", 100), loop=0, **how)
    return out.getvalue()


def folder(root: Path, train: int = 6, test: int = 4, side: int = 20) -> Path:
    """Class folders with GIF and MP4 files under train/ and test/."""
    for split, count in (("train", train), ("test", test)):
        for label, name in enumerate(NAMES):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                clip = moving(label, i + 100 * (split == "test"), side=side)
                end, data = ("mp4", film(clip)) if i % 2 else ("gif", animated(clip))
                (root / split / name / f"{i}.{end}").write_bytes(data)
    return root
