"""A source of clips: films and animated images in class folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, final

from torch import Tensor

from dap.base.errors import DapError
from dap.base.parsing import shown
from dap.data.real.clips.finding import locate_clips
from dap.data.real.clips.moving import decode_clip
from dap.data.real.finding.listed import FileSource
from dap.data.real.finding.walking import Left, class_folders, image_files
from dap.data.real.names import select
from dap.data.real.suffixes import CLIP_SUFFIXES

MOST_FRAMES = 4096
"""The most frames of a clip."""

CLIPS = 1
"""The version of the rules by which a file becomes a clip. Raise it when `decode_clip` gives other pixels for the same file."""


@final
class ClipSource(FileSource):
    """A folder of class folders with clips at any depth. Classes and clips are in name order.

    A clip is a file with an ending of `CLIP_SUFFIXES`: MP4, MOV, MKV, WebM, AVI, or a GIF, PNG or WebP that moves. Of each
    file the same number of frames is taken, see `moving`.

    Args:
        root: the folder.
        frames: how many frames a clip has.
        size, fit, classes, name, max_bad_fraction: see `dap.data.real.sources.open_source`.

    Raises:
        DapError: the folder has no class folders, a class has no clip, or a class does not exist.
    """

    def __init__(
        self,
        root: Path,
        frames: int,
        *,
        classes: Sequence[str] | None = None,
        name: str | None = None,
        **how: Any,
    ) -> None:
        if not 1 <= frames <= MOST_FRAMES:
            raise DapError(f"a clip has 1 to {MOST_FRAMES:,} frames, not {frames}; give another number as --frames")
        known, left = class_folders(root), Left()
        names, places = select(known, classes, shown(root))
        files = [image_files(root / known[place], left, CLIP_SUFFIXES) for place in places]
        super().__init__(name or root.name, names, root, files, **how)
        self.frames, self.root, self.place = frames, root.resolve(), (root.resolve(), frames)
        self.notes = tuple(filter(None, [left.told().replace("are no images", "are no clips")]))

    @classmethod
    def found(cls, path: Path, split: str, chosen: Mapping[str, str] | None, frames: int, **how: Any) -> Self:
        """The clips of a split of a data set; see `locate_clips` for where they lie."""
        return cls(locate_clips(path, split, chosen), frames, **how)

    def _decode(self, label: int, index: int) -> Tensor:
        return decode_clip(self._root / self._files[label][index], self.frames or 1, self.size, self.fit)

    def _listing(self) -> Iterator[str]:
        yield f"clips of {self.frames} frames, decoding {CLIPS}"
        yield from super()._listing()
