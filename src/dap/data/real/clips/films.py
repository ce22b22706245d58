"""Films by PyAV, which is FFmpeg: only the containers of `FILMS`, and only from memory, so that no file can name another one."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from dap.base.errors import DapError
from dap.data.real.clips.times import check_room, middles


def container_of(content: bytes) -> str | None:
    """The name that FFmpeg has for the container of a film, by its first bytes; None for a file that is no such film."""
    if content[4:8] == b"ftyp" and content[8:12] not in (b"avif", b"avis", b"heic", b"mif1", b"msf1"):
        return "mp4"
    if content.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    return "avi" if content.startswith(b"RIFF") and content[8:12] == b"AVI " else None


def pictures(content: bytes, container: str, frames: int) -> list[Image.Image]:
    """Frames of the first video stream of a film, upright, RGB; see `times.middles`.

    Args:
        content: the bytes of the film.
        container: as `container_of` says.
        frames: how many frames are taken.

    Raises:
        DapError: PyAV is not installed.
        ValueError: the film is damaged, or it has no picture or too many of them.
    """
    av = _library()
    try:
        return _read(av, content, container, frames)
    except av.FFmpegError as error:
        raise ValueError(str(error.strerror).lower()) from error


def _read(av: Any, content: bytes, container: str, frames: int) -> list[Image.Image]:
    with av.open(io.BytesIO(content), format=container) as film:
        if not film.streams.video:
            raise ValueError("it has no pictures, only sound or data")
        stream = film.streams.video[0]
        packets = [(packet.pts, packet.duration) for packet in film.demux(stream) if packet.size]
        check_room(len(packets), stream.codec_context.width * stream.codec_context.height)
    if not packets:
        raise ValueError("it has no pictures")
    wanted = middles(*_times(packets), frames)
    found: dict[int, Image.Image] = {}
    with av.open(io.BytesIO(content), format=container) as film:
        stream = film.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1  # several processes decode, a film each
        for place, frame in enumerate(film.decode(stream)):
            if place in wanted or place == 0:
                turns = round((getattr(frame, "rotation", 0) or 0) / 90) % 4
                check_room(1, frame.width * frame.height)
                found[place] = Image.fromarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
            if place >= wanted[-1]:
                break
    if not found:
        raise ValueError("none of its pictures can be decoded")
    if missing := set(wanted) - set(found):
        raise ValueError(f"it is cut off: picture {min(missing) + 1} of {len(packets)} cannot be decoded")
    return [found[place] for place in wanted]


def _times(packets: list[tuple[Any, Any]]) -> tuple[list[float], float]:
    """When each picture begins to be shown, and when the last one ends; one unit each where the film does not say it."""
    if any(shown is None for shown, _ in packets):
        return list(map(float, range(len(packets)))), float(len(packets))
    times = sorted(float(shown) for shown, _ in packets)
    usual = (times[-1] - times[0]) / max(1, len(times) - 1) or 1.0
    last = max(packets, key=lambda one: one[0])[1]
    return times, times[-1] + (float(last) if last and last > 0 else usual)


def _library() -> Any:
    try:
        import av
    except ImportError as error:
        raise DapError(
            "Films are read by the package av, which is not installed; pip install 'diffusion-as-priors[video]', or save the "
            "clips as animated GIF, PNG or WebP."
        ) from error
    return av
