"""Which backbones of this machine suit real images: they know the classes, and have seen such images.

Nothing is fetched. These are looked at, in this order: folders that the environment variable `DAP_BACKBONES` names, folders
in `backbones/` of the user's cache, the starters, and the pipelines in the cache of the Hugging Face hub. A place may be the
folder of a pipeline, or hold such folders.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dap import imagenet, starter
from dap.backbones import device_of
from dap.backbones.hub import index_of, labels_of
from dap.backbones.known import KINDS
from dap.backbones.opening import STARTERS, source_of
from dap.base.documents import read_names
from dap.base.errors import DapError
from dap.choices import BackboneChoice, Data
from dap.data.familiar import some_of, strangeness
from dap.data.real.base import Source
from dap.data.real.identity import folder as user_cache
from dap.data.real.sources import EMBEDDED
from dap.pretraining.notes import read_notes
from dap.workshop import Workshop

VARIABLE = "DAP_BACKBONES"
"""The environment variable with folders of backbones, which the system's separator of paths separates."""

SEEN = 0.6
"""Up to this `strangeness` the images count as such that a backbone was trained on. Trained weights have 0.2 to 0.5; the starters
have 0.3 and 0.2 on Fashion-MNIST, 0.9 and 0.7 on the same images shifted and blurred, and 3.0 and 1.7 on emoji."""

LARGEST = 400 * 10**6
"""Bytes of the weights of a backbone that a CPU can sample in minutes. Larger ones are tried on a GPU alone."""

MOST = 12
"""How many backbones are looked at, at most."""


@dataclass(frozen=True)
class Looked:
    """A backbone of this machine, and whether it suits the images.

    Attributes:
        path: what `--backbone` takes.
        fits: whether it knows the classes and has seen such images.
        why: why not, or what speaks for it; the end of a sentence that begins with its name.
    """

    path: str
    fits: bool
    why: str


def looked_at(data: Data, workshop: Workshop) -> list[Looked]:
    """The backbones of this machine up to the first one that suits the images, in the order in which they are looked at.

    Args:
        data: the real images.
        workshop: loads them, and the backbones.

    Raises:
        DapError: the images cannot be read.
    """
    found = list[Looked]()
    for path, folder in _places():
        if len(found) >= MOST:
            break
        found.append(_looked(path, folder, data, workshop))
        if found[-1].fits:
            break
    return found


def _looked(path: str, folder: Path, data: Data, workshop: Workshop) -> Looked:
    """Whether a backbone suits real images. Its weights are loaded only if it knows the names of the classes.

    Args:
        path: its name for `--backbone`.
        folder: its folder.
        data, workshop: as for `looked_at`.
    """
    whole = workshop.whole(data)
    if path == "starter" and data.path == EMBEDDED and workshop.objects.source is None:
        return Looked(path, True, "was trained on these images")
    try:
        if missing := _unknown(folder, whole.class_names):
            more = f" and {len(missing) - 1} other classes" if len(missing) > 1 else ""
            return Looked(path, False, f"does not know {missing[0]!r}{more}")
        if _bytes(folder) > LARGEST and device_of(workshop.device).type == "cpu":
            return Looked(path, False, "is too large to be tried on a CPU")
        if _was_trained_on(folder, whole):
            return Looked(path, True, "was trained on these images")
        found = _strangeness(BackboneChoice(path=path if path in STARTERS else str(folder)), data, workshop)
    except DapError as error:
        return Looked(path, False, f"cannot be used ({str(error).rstrip('.')})")
    if found > SEEN:
        return Looked(path, False, "knows the names of the classes, and has never seen such images")
    return Looked(path, True, "knows these classes, and has seen such images")


def _was_trained_on(folder: Path, whole: Source) -> bool:
    """Whether `dap train-backbone` made the folder of these very images, and is done with it. A backbone whose prompts said other
    names than it is now asked for is looked at as any other."""
    try:
        notes = read_notes(folder)
    except DapError:  # another program's training.json, such as that of the starters
        return False
    if notes is None or not notes.done or notes.asked.misnamed:
        return False
    return notes.asked.data == whole.fingerprint(sized=False)


def _strangeness(choice: BackboneChoice, data: Data, workshop: Workshop) -> float:
    """The `strangeness` of some ten real images to a backbone, each under its own class."""
    backbone = workshop.backbone(choice)
    source = workshop.source(data.model_copy(update={"size": backbone.card.size}))
    return strangeness(backbone, *some_of(source))


def _unknown(folder: Path, class_names: Sequence[str]) -> list[str]:
    """The classes that a backbone has no label for, by the names in its folder. [] for one that reads any text."""
    if (folder / "classes.json").is_file():
        known = read_names(folder / "classes.json")
    elif not (known := list(labels_of(folder, index_of(folder)).values())):
        return [] if index_of(folder).get("_class_name") != "DiTPipeline" else list(class_names)
    labels = imagenet.lookup(known)
    return [name for name in class_names if len(imagenet.find(name, labels)) != 1]


def _bytes(folder: Path) -> int:
    """The bytes of the weights in the folder of a pipeline."""
    return sum(file.stat().st_size for file in folder.glob("*/*") if file.suffix in (".safetensors", ".bin"))


def _places() -> Iterator[tuple[str, Path]]:
    """The backbones of this machine: what `--backbone` takes, and the folder."""
    given = [Path(one).expanduser() for one in os.environ.get(VARIABLE, "").split(os.pathsep) if one]
    for place in (*given, user_cache() / "backbones"):
        yield from ((str(folder.absolute()), folder) for folder in _pipelines(place))
    if starter.installed():
        yield from ((name, Path(source_of(name))) for name in STARTERS)
    yield from _of_hub()


def _pipelines(place: Path) -> list[Path]:
    """The folders of pipelines in a place: itself, or folders in it."""
    if (place / "model_index.json").is_file():
        return [place]
    return sorted(file.parent for file in place.glob("*/model_index.json")) if place.is_dir() else []


def _of_hub() -> list[tuple[str, Path]]:
    """The ids and folders of the pipelines in the hub's cache of a kind that has a backbone. The network is not asked."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except (CacheNotFound, OSError, ValueError):
        return []
    found = list[tuple[str, Path]]()
    for repo in sorted(repos, key=lambda one: one.repo_id):
        for revision in repo.revisions:
            folder = revision.snapshot_path
            try:
                kind = index_of(folder).get("_class_name") if (folder / "model_index.json").is_file() else None
            except DapError:
                continue
            if "main" in revision.refs and kind in KINDS:
                found.append((repo.repo_id, folder))
    return found
