"""Which frames of a file a clip takes, and how many a file may have."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from dap.base.errors import DapError

LONGEST = 20_000
"""How many frames a file may have."""

MOST_FRAMES = 4096
"""The most frames of a clip."""

CLIPS = 2
"""The version of the rules by which a file becomes a clip. Raise it when `decode_clip` gives other pixels for the same file."""

ROOM = 2**34
"""How many pixels all frames of a file may have together: 8,000 frames of 1920 x 1080."""


def middles(times: Sequence[float], end: float, frames: int) -> list[int]:
    """The frames that are shown in the middle of equal parts of the time from the first time to `end`.

    Args:
        times: when each frame begins to be shown, ascending.
        end: when the last one ends.
        frames: how many parts there are.
    """
    length = end - times[0]
    return [max(0, bisect_right(times, times[0] + length * (2 * k + 1) / (2 * frames)) - 1) for k in range(frames)]


def check_frames(frames: int) -> None:
    """Raise `DapError` for a number of frames that a clip cannot have."""
    if not 1 <= frames <= MOST_FRAMES:
        raise DapError(f"a clip has 1 to {MOST_FRAMES:,} frames, not {frames}; give another number as --frames")


def told_frames(frames: int) -> str:
    """How files become clips, as a line of the listing of a source."""
    return f"clips of {frames} frames, decoding {CLIPS}"


def check_room(frames: int, pixels: int) -> None:
    """Raise `ValueError` for a file of too many frames, or of frames that have too many pixels together."""
    if frames > LONGEST:
        raise ValueError(f"it has {frames:,} frames, more than {LONGEST:,}; cut it into clips")
    if frames * pixels > ROOM:
        raise ValueError(
            f"its {frames:,} frames have {frames * pixels:,} pixels, more than {ROOM:,}; make them smaller"
        )
