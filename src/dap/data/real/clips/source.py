"""A source of clips in class folders: films, animated images, and folders of frames."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, final

from torch import Tensor

from dap.base.parsing import counted, shown
from dap.data.real.clips.frames import clips_of, decode_frames, frame_names
from dap.data.real.clips.moving import decode_clip
from dap.data.real.clips.times import check_frames, told_frames
from dap.data.real.finding.listed import FileSource, filled
from dap.data.real.finding.made import real_classes
from dap.data.real.finding.walking import Left, class_folders
from dap.data.real.identity import DIGEST, digests
from dap.data.real.sizes import size_of


@final
class ClipSource(FileSource):
    """A folder of class folders with clips at any depth. Classes and clips are in name order.

    A clip is a file with an ending of `CLIP_SUFFIXES`: MP4, MOV, MKV, WebM, AVI, or a GIF, PNG or WebP that moves. Or it is a
    folder of frames below the class folder, see `frames.clips_of`. Of each clip the same number of frames is taken.

    Args:
        root: the folder.
        frames: how many frames a clip has.
        elsewhere: gives the classes of which the other split holds clips, see `filled`.
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
        elsewhere: Callable[[], set[str]] = set,
        **how: Any,
    ) -> None:
        check_frames(frames)
        names, folders = real_classes(root, class_folders(root), classes)
        lefts = [Left() for _ in folders]
        found = [(clips_of(root, folder, left), left) for folder, left in zip(folders, lefts, strict=True)]
        names, files, left, out = filled(names, found, (lambda: set(names)) if classes else elsewhere, "clip")
        super().__init__(name or root.name, names, root, files, **how)
        self.frames = frames
        framed = sum(file.endswith("/") for inside in files for file in inside)
        told = f"{counted(framed, 'folder')} of frames {'are' if framed > 1 else 'is'} read as clips"
        others = left.told().replace("are no images", "are no clips").replace("is no image", "is no clip")
        self.notes = tuple(filter(None, [told if framed else "", out, others]))

    def _decode(self, label: int, index: int) -> Tensor:
        file, frames = self._files[label][index], self.frames or 1
        return (decode_frames if file.endswith("/") else decode_clip)(self._root / file, frames, self.size, self.fit)

    def _look(self, label: int, index: int) -> tuple[int, int] | None:
        file = self._files[label][index]
        if not file.endswith("/"):
            return super()._look(label, index)
        names = frame_names(self._root / file)
        return size_of(self._root / file / names[0]) if names else None

    def _hashed(self, files: list[str]) -> bytearray:
        """The sha256 of each clip. That of a folder is one of the names and the sha256 of its frames."""
        inside = {file: [file + name for name in frame_names(self._root / file)] for file in files if file[-1] == "/"}
        found, each, place = bytearray(), digests(self._root, [one for f in files for one in inside.get(f, [f])]), 0
        for file in files:
            parts = inside.get(file, [file])
            hashed = [bytes(each[(place + k) * DIGEST : (place + k + 1) * DIGEST]) for k in range(len(parts))]
            place += len(parts)
            if file in inside:
                lines = (f"{shown(name)}\t{digest.hex()}\n" for name, digest in zip(parts, hashed, strict=True))
                found += hashlib.sha256("".join(lines).encode()).digest()
            else:
                found += hashed[0]
        return found

    def _listing(self) -> Iterator[str]:
        yield told_frames(self.frames or 1)
        yield from super()._listing()
