"""Folders of frames: a clip whose frames are images in a folder of its own, as class/clip/0001.jpg."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from dap.base.parsing import shown
from dap.data.real.clips.times import check_room, middles
from dap.data.real.decode import BrokenImage, Fit, decode, most_pixels, opened, read_file
from dap.data.real.finding.walking import Left, image_files, is_image, visible
from dap.data.real.suffixes import CLIP_SUFFIXES, FILMS, IMAGE_SUFFIXES

_FILMS = frozenset(end for ends in FILMS.values() for end in ends)


def clips_of(root: Path, name: str, left: Left) -> list[str]:
    """The clips of a class folder at any depth, as sorted posix paths relative to `root`. A folder of frames ends with "/".

    A folder below the class folder is one clip if it holds two or more images and no film, and the first of them does not move.
    Every other file with an ending of `CLIP_SUFFIXES` is a clip by itself.

    Args:
        root: the folder of the class folders.
        name: the name of the class folder.
        left: counts what is left out.

    Raises:
        DapError: a folder cannot be read.
    """
    inside: dict[str, list[str]] = {}
    for file in image_files(root / name, left, IMAGE_SUFFIXES | CLIP_SUFFIXES):
        inside.setdefault(file.rpartition("/")[0], []).append(file)
    found: list[str] = []
    for folder, files in inside.items():
        if folder != name and _are_frames(root, files):
            found.append(folder + "/")
            continue
        alone = [file for file in files if _ending(file) in CLIP_SUFFIXES]
        left.others.update(_ending(file) for file in files if _ending(file) not in CLIP_SUFFIXES)
        found += alone
    return sorted(found)


def frame_names(folder: Path) -> list[str]:
    """The frames of a folder in their order: by name, and numbers in names by their size, so that 10.jpg comes after 9.jpg.

    Raises:
        DapError: the folder cannot be read.
    """
    return sorted((entry.name for entry in visible(folder) if is_image(entry)), key=_by_number)


def decode_frames(folder: Path, frames: int, size: int, fit: Fit = "crop") -> Tensor:
    """Decode a folder of frames, which are shown for equally long: see `moving.decode_clip` for which of them are taken.

    Only the frames that are taken are read.

    Args:
        folder: the folder.
        frames: how many frames of it are taken, at least 1.
        size, fit: see `dap.data.real.decode.decode`.

    Returns:
        (3, frames, size, size), float32 in [0, 1].

    Raises:
        BrokenImage: the folder holds no frame or too many of them, or one that is taken cannot be decoded.
        DapError: the folder cannot be read, `size` is below 1, or `fit` is unknown.
    """
    names = frame_names(folder)
    if not names:
        raise BrokenImage("it holds no images", shown(folder))
    try:
        check_room(len(names), 1)
    except ValueError as error:
        raise BrokenImage(str(error), shown(folder)) from error
    wanted = middles(range(len(names)), len(names), frames)
    found: dict[int, Tensor] = {}
    for place in sorted(set(wanted)):
        try:
            found[place] = decode(folder / names[place], size, fit)
        except BrokenImage as error:
            raise BrokenImage(f"its frame {shown(names[place])} is broken: {error.reason}", shown(folder)) from error
    return torch.stack([found[place] for place in wanted], dim=1)


def _are_frames(root: Path, files: list[str]) -> bool:
    """Whether the files of a folder are the frames of one clip. The head of one file is read at most."""
    endings = {_ending(file) for file in files}
    if len(files) < 2 or endings & _FILMS:
        return False
    first = min(files, key=_by_number)
    return _ending(first) not in CLIP_SUFFIXES or not _moves(root / first)


def _moves(file: Path) -> bool:
    """Whether an image has several frames. A broken one has not."""
    try:
        with opened(read_file(file), most_pixels()) as image:
            return getattr(image, "n_frames", 1) > 1
    except Exception:  # a damaged file can raise nearly anything inside the parsers
        return False


def _ending(file: str) -> str:
    return "." + file.rpartition("/")[2].rpartition(".")[2].lower()


def _by_number(name: str) -> tuple[list[str | int], str]:
    parts: list[str | int] = list(re.split("([0-9]+)", name))
    parts[1::2] = [int(number) for number in parts[1::2]]
    return parts, name
