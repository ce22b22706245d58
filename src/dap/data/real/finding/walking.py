"""What lies in a folder: which of its entries are images, which are folders, and which are litter."""

from __future__ import annotations

import math
import os
import re
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from dap.base.errors import DapError
from dap.base.parsing import shown
from dap.data.real.suffixes import IMAGE_SUFFIXES

LITTER = frozenset({"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"})
"""Names, in lower case, of what Finder, Explorer and file servers leave behind. It counts as hidden."""

LAYOUTS = (
    "one folder of images for each class, such folders under train/ and test/ (or val/, validation/), images beside a "
    "metadata.csv or labels.csv, *.parquet files with an image and a label column, or the IDX files of an MNIST-like set"
)
"""The layouts that `layouts.locate` accepts, in words for messages."""


@dataclass
class Left:
    """What was left out of a walk.

    Attributes:
        others: how many files are no images, by their ending in lower case.
        hidden: how many hidden files and folders there were.
    """

    others: Counter[str] = field(default_factory=Counter)
    hidden: int = 0

    def told(self) -> str:
        """A clause such as "left out: 20 files that are no images (.txt 12, .csv 8), 3 hidden"; "" where there is none."""
        parts = []
        if total := self.others.total():
            kinds = [f"{ending or 'no ending'} {count}" for ending, count in self.others.most_common(4)]
            kinds += ["…"] * (len(self.others) > 4)
            parts.append(f"{total:,} file{'s' * (total > 1)} that {'are no images' if total > 1 else 'is no image'} ")
            parts[-1] += f"({', '.join(kinds)})"
        if self.hidden:
            parts.append(f"{self.hidden:,} hidden")
        return f"left out: {', '.join(parts)}" if parts else ""


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder, sorted by name, hidden ones too. Raises `DapError` where the folder cannot be read."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except (OSError, ValueError) as error:
        raise unreadable(folder, error) from error


def _found(folder: Path) -> Iterator[os.DirEntry[str]]:
    """The entries of a folder in the order of the disk, one after the other. Raises `DapError` as `entries`."""
    try:
        with os.scandir(folder) as found:
            yield from found
    except (OSError, ValueError) as error:
        raise unreadable(folder, error) from error


def visible(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder, sorted by name, without hidden entries and litter. Raises `DapError` where the folder
    cannot be read."""
    return [entry for entry in entries(folder) if not is_hidden(entry.name)]


def is_hidden(name: str) -> bool:
    """Whether this is the name of a hidden entry or of litter."""
    return name.startswith(".") or name.lower() in LITTER


def class_folders(root: Path) -> list[str]:
    """The names of the class folders in `root`, sorted, without hidden folders. Raises `DapError` where `root` cannot
    be read."""
    return [entry.name for entry in visible(root) if is_folder(entry)]


def image_files(folder: Path, left: Left | None = None, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> list[str]:
    """Every image file at any depth below a class folder, as sorted posix paths relative to the folder's parent.

    Links to files and to folders are followed, and each folder is read once. A link to a folder that contains the class
    folder is not followed, because the class would then get the images of other classes. Image links that lead nowhere
    are listed, so that they are reported as broken.

    Args:
        folder: the class folder.
        left: counts what is left out.
        suffixes: the endings of the files that count as images.

    Raises:
        DapError: a folder cannot be read.
    """
    left = Left() if left is None else left
    visited = {os.path.realpath(parent) for parent in folder.absolute().parents}
    return sorted(_images(folder, visited, left, suffixes=suffixes))


def images_below(folder: Path) -> Iterator[str]:
    """Every image file at any depth below a folder, as a posix path relative to it. Links are followed as by `image_files`, and
    a folder inside is read under its own name and not under that of a link to it. Raises `DapError` as `image_files`."""
    folder = folder.absolute()
    visited = {os.path.realpath(parent) for parent in folder.parents}
    start = len(folder.name) + 1
    return (path[start:] for path in _images(folder, visited, Left(), links_last=True))


def holds_images(folder: Path, most: int = 2000, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> bool:
    """Whether there is an image file below the folder. At most so many folders are looked at, and no further than the first
    image."""
    return any(True for _ in _images(folder, set(), Left(), most, suffixes))


def _images(
    folder: Path,
    visited: set[str],
    left: Left,
    most: float = math.inf,
    suffixes: frozenset[str] = IMAGE_SUFFIXES,
    links_last: bool = False,
) -> Iterator[str]:
    """Every image file at any depth below a folder, as a posix path relative to the folder's parent. Each folder is read once.

    Args:
        folder: the folder.
        visited: real paths of folders that are not read. The folders that were read are put in.
        left: counts what is left out.
        most: no further folder is read when so many are in `visited`.
        suffixes: the endings of the files that count as images.
        links_last: whether links to folders are followed after all folders, so that each folder is read under its own name.
    """
    pending, links = deque([folder]), deque[Path]()
    while (pending or links) and len(visited) < most:
        here = (pending or links).popleft()
        real = os.path.realpath(here)
        if real in visited:
            continue
        visited.add(real)
        start = here.relative_to(folder.parent).as_posix() + "/"  # once a folder: there may be a million files
        folders: list[str] = []
        linked = set[str]()
        for entry in _found(here):
            if is_hidden(entry.name):
                left.hidden += 1
            elif is_folder(entry):
                folders.append(entry.name)
                if links_last and entry.is_symlink():
                    linked.add(entry.name)
            elif is_image(entry, suffixes):
                yield start + entry.name
            else:
                left.others[os.path.splitext(entry.name)[1].lower()] += 1
        # In name order, as the order decides under which name a folder is read to which two links lead.
        for name in sorted(folders):
            (links if name in linked else pending).append(here / name)


def loose_images(folder: Path) -> int:
    """How many images lie in the folder itself."""
    return sum(is_image(entry) and not is_folder(entry) for entry in visible(folder))


LINK = re.compile(r"(https?|ftp|s3|gs|hf):/")
"""The beginning of a link in the internet, of which `Path` leaves one slash."""


def check_folder(path: Path) -> None:
    """Check that a data folder exists. The message of the error says what the folder above holds, and suggests a name.

    Raises:
        DapError: the folder does not exist, the path is a file, or the system does not let us look at the path.
    """
    if LINK.match(str(path)):
        raise DapError("dap fetches no images from a link; download and unpack them, and give their folder with --data")
    try:
        if path.is_dir():
            return
        if path.exists():
            what = "a file" if path.is_file() else "a pipe, a socket or a device"
            raise DapError(f"{shown(path)} is {what}, not a folder; give the folder that holds the data set")
    except DapError:
        raise
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    missing, parent = path.absolute(), path.absolute().parent
    while not parent.is_dir():
        missing, parent = parent, parent.parent
    held = [entry.name + "/" * is_folder(entry) for entry in visible(parent)]
    close = get_close_matches(missing.name, [name.rstrip("/") for name in held], n=1)
    hint = f"; did you mean {parent / close[0]}?" if close else ""
    more = f" and {len(held) - 12} more" if len(held) > 12 else ""
    raise DapError(
        f"data path {path} does not exist{hint or ';'} {parent} holds {', '.join(held[:12]) or 'nothing'}{more}; "
        'say where the data lie with --data FOLDER (the embedded data set is called "fashion-mnist")'
    )


def unreadable(path: Path, error: Exception) -> DapError:
    """The error to raise for a folder or file that the system does not let us read."""
    reason = getattr(error, "strerror", None) or str(error)
    return DapError(f"cannot read {shown(path)}: {reason.lower()}; check the path and its permissions")


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether the entry is a folder or a link to a folder. A circular link is not a folder."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_image(entry: os.DirEntry[str], suffixes: frozenset[str] = IMAGE_SUFFIXES) -> bool:
    """Whether the entry is a file or a link, and its name ends as the name of an image file does, or with another suffix."""
    named = os.path.splitext(entry.name)[1].lower() in suffixes
    return named and (entry.is_symlink() or entry.is_file(follow_symlinks=False))
