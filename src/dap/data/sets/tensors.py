"""Reader of distilled sets that others made, as tensors: .pt, .pth and .safetensors files of images and labels.

A pickled file may run code when it is opened. Therefore only tensors and plain values are unpickled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dap.base.errors import DapError
from dap.data.real.decode import encode_png
from dap.data.real.names import some
from dap.data.sets.beside import of_tensors
from dap.data.sets.folders import choose, exported, files_by_kind
from dap.data.sets.opening import open_tensors
from dap.data.sets.readers import Ask, Reading

_IMAGES, _LABELS = ("images", "image", "imgs", "x", "data"), ("labels", "label", "targets", "target", "y")
_NAMES = ("class_names", "classes", "names")
_SLACK = 1e-3
"""How far float values may lie outside [0, 1] by rounding alone; beyond this distance they are normalised."""


def read_tensors(source: Path, ask: Ask) -> Reading:
    """Read images (n, c, h, w) with labels (n,), from a dictionary, a pair, or two files; c is 1 or 3.

    Bytes are taken as they are. Floats must lie in [0, 1], or be whole numbers from 0 to 255, which are divided by 255.
    With a mean and a standard deviation, floats are denormalised as x * std + mean. PNG holds 8 bits. Therefore `facts`
    records how many values were clipped, and the largest error of rounding.

    Raises:
        DapError: the file holds more than tensors and plain values, the meaning of a shape or a range is not clear, or
            the classes have no names.
    """
    images, labels, names, facts = _gather(source, ask)
    held, names = facts.pop("held"), _as_exported(names, source)
    if images.dtype.is_floating_point and images.dtype.itemsize == 1:  # few operations know float8
        images = images.float()
    images = _channels_first(images, str(source), facts)
    if labels is None:
        labels = _class_by_class(len(images), ask, str(source), facts)
    labels = _hard(labels, len(images), str(source), facts)
    low, high = int(labels.min()), int(labels.max())
    count = max(high + 1, len(names or ()))
    if low < 0 or (names is not None and high >= len(names)):
        raise DapError(f"{source} has labels from {low} to {high}, but classes only for 0 to {count - 1}.")
    names, places, order = choose(names, ask.class_names, count, f"{source} numbers its classes")
    pixels = _Pixels(images, ask, str(source), facts)
    rows = [torch.nonzero(labels == label)[:, 0].tolist() for label in places]
    entries = [[(f"{source.name}#{row}", partial(pixels.png, row)) for row in of_class] for of_class in rows]
    columns = [names[places.index(place)] if place in places else str(place) for place in range(count)]
    beside = of_tensors(held, source.name, len(images), columns)
    return Reading(names, entries, order, named=False, facts=facts, beside=beside)


class _Pixels:
    """Turns rows of a tensor of images into PNG files. `facts` records the values that 8 bits could not hold
    exactly."""

    def __init__(self, images: Tensor, ask: Ask, where: str, facts: dict[str, Any]) -> None:
        self._images, self._facts, self._shift = images, facts, None
        normal = (ask.mean is not None, ask.std is not None)
        if images.dtype == torch.uint8:
            if any(normal):
                raise DapError(f"{where} holds bytes, which are not normalised; leave out --mean and --std.")
            facts["values"] = "bytes, as they are"
            if int(images.max()) == 1:
                facts["values"] += (
                    "; all are 0 or 1, so the images are nearly black. If 1 is white, save floats from 0 to 1"
                )
            return
        if not images.is_floating_point():
            raise DapError(f"{where} holds images of {images.dtype}; bytes or floats are needed.")
        low, high = (float(v) for v in images.aminmax())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise DapError(f"{where} holds images with non-finite values.")
        if any(normal):
            self._shift = _by_channel(ask, images.shape[1])
            facts["values"] = f"denormalised from [{low:.4g}, {high:.4g}] as x * std + mean"
        elif low >= -_SLACK and high <= 1 + _SLACK:
            facts["values"] = "floats in [0, 1], as they are"
        elif low >= 0 and 1 < high <= 255 and bool((images == images.round()).all()):
            self._shift = (torch.tensor(0.0), torch.tensor(1 / 255))
            facts["values"] = "whole floats from 0 to 255, divided by 255"
        else:
            raise DapError(
                f"The images in {where} run from {low:.4g} to {high:.4g}. If they are normalised, give --mean and --std "
                "(--mean 0.5 --std 0.5 for [-1, 1]); if they are meant to lie in [0, 1] and were optimised beyond it, "
                "give --mean 0 --std 1, which clips."
            )
        facts |= {"clipped_values": 0, "of_values": 0, "furthest_outside": 0.0, "largest_rounding_error": 0.0}

    def png(self, row: int) -> bytes:
        image = self._images[row]
        if image.dtype != torch.uint8:
            image = self._rounded(image.double())
        return encode_png((image[0] if len(image) == 1 else image.permute(1, 2, 0)).contiguous().numpy())

    def _rounded(self, image: Tensor) -> Tensor:
        if self._shift is not None:
            image = image * self._shift[1] + self._shift[0]
        inside = image.clamp(0, 1)
        rounded = (inside * 255).round()
        beyond, error = (image - inside).abs(), (inside - rounded / 255).abs()
        # A float32 that was 1 before normalisation comes back as 1.0000001. So small an excess is not counted as
        # clipping.
        self._facts["clipped_values"] += int((beyond > 1e-6).sum())
        self._facts["of_values"] += image.numel()
        for fact, values in (("furthest_outside", beyond), ("largest_rounding_error", error)):
            self._facts[fact] = max(self._facts[fact], round(float(values.max()), 9))
        return rounded.byte()


def _by_channel(ask: Ask, channels: int) -> tuple[Tensor, Tensor]:
    if ask.mean is None or ask.std is None:
        raise DapError("--mean and --std go together; give both.")
    for flag, values in (("--mean", ask.mean), ("--std", ask.std)):
        if len(values) not in (1, channels):
            raise DapError(
                f"{flag} takes 1 or {channels} numbers for images of {channels} channels, not {len(values)}."
            )
    if not all(np.isfinite(ask.mean)) or not all(np.isfinite(ask.std)) or min(ask.std) <= 0:
        raise DapError("--mean takes finite numbers and --std positive ones.")
    mean, std = (torch.tensor(list(v), dtype=torch.float64)[:, None, None] for v in (ask.mean, ask.std))
    return mean, std


def _gather(source: Path, ask: Ask) -> tuple[Tensor, Tensor | None, list[str] | None, dict[str, Any]]:
    """The images, labels and class names of a source, and the facts that say which file held the images and which the
    labels. Labels and names are None where the source has none."""
    files = files_by_kind(source).get("tensors", [])
    labels_file = ask.labels
    if len(files) == 2 and labels_file is None:
        by_word = {word: [f for f in files if word in f.stem.lower()] for word in ("image", "label")}
        if len(by_word["image"]) == len(by_word["label"]) == 1 and by_word["image"] != by_word["label"]:
            files, labels_file = by_word["image"], by_word["label"][0]
    if len(files) != 1:
        held = some([file.name for file in files], 6) or "none"
        raise DapError(
            f"{source} should hold one file of tensors, or one of images and one of labels; it has {held}. "
            "Give the file of images itself, and --labels FILE."
        )
    facts: dict[str, Any] = {"images_from": files[0].name, "held": (held := open_tensors(files[0]))}
    images, labels, names = _parts(held, files[0])
    if labels_file is not None:
        if not labels_file.is_file():
            raise DapError(f"There is no file of labels {labels_file}.")
        if labels is not None:
            raise DapError(f"{files[0]} holds labels of its own; leave out --labels {labels_file}.")
        labels, facts["labels_from"] = _only_labels(open_tensors(labels_file), labels_file), labels_file.name
    return images, labels, names, facts


def _parts(held: Any, file: Path, deep: int = 0) -> tuple[Tensor, Tensor | None, list[str] | None]:
    """The images, the labels and the class names among the contents of a file. Labels and names are None where the file
    has none. What is there and cannot be understood is an error."""
    while isinstance(held, (list, tuple)) and len(held) == 1 and deep < 8:
        held, deep = held[0], deep + 1
    if isinstance(held, (Tensor, np.ndarray)):
        held = [held]
    if isinstance(held, Mapping):
        nested = held.get("data")
        if isinstance(nested, (list, tuple)) and deep < 8 and not _is_images(nested):
            # results of DC: {"data": [[images, labels], …], …}, a pair for each experiment
            if len(nested) != 1:
                raise DapError(
                    f"{file} holds {len(nested)} sets; save the one you mean as a dictionary of images and labels."
                )
            return _parts(nested[0], file, deep + 1)
        return _entries(held, file)
    if isinstance(held, Sequence) and not isinstance(held, str) and 1 <= len(held) <= 2 and _is_images(held[0]):
        images = _images(held[0], file)
        return images, None if len(held) == 1 or held[1] is None else _labels(held[1], "its labels", file), None
    raise DapError(f"{file} holds {_told(held)}, not images (n, c, h, w) with labels (n,), as a dictionary or a pair.")


def _entries(held: Mapping[Any, Any], file: Path) -> tuple[Tensor, Tensor | None, list[str] | None]:
    """The parts of a dictionary. An entry with a usual name must be what the name says."""
    usual = next((key for key in _IMAGES if held.get(key) is not None), None)
    if usual is None:
        could = {k: v for k, v in held.items() if _is_images(v)}
        of_colours = {k: v for k, v in could.items() if getattr(v, "ndim", 4) == 4}
        usual = _pick(of_colours or could, "images", file)
    images = _images(held[usual], file)
    key = next((key for key in _LABELS if held.get(key) is not None and key != usual), None)
    if key is None:
        others = {k: v for k, v in held.items() if k != usual and _is_labels(v, len(images))}
        key = _pick(others, "labels", file, needed=False)
    labels = None if key is None else _labels(held[key], f"its entry {key!r}", file)
    names = None
    for name in _NAMES:
        if name == key or held.get(name) is None or isinstance(held[name], int):  # a number of classes names none
            continue
        if (names := _names(held[name])) is not None:
            break
        if isinstance(held[name], (list, tuple, Mapping)) and len(held[name]) > 0:
            raise DapError(
                f"{file} has an entry {name!r} that is {_told(held[name])}, not a list of the names of classes."
            )
    return images, labels, names


def _pick(found: dict[Any, Any], what: str, file: Path, needed: bool = True) -> Any:
    if len(found) == 1:
        return next(iter(found))
    if needed or found:
        problem = f"several tensors that could be the {what}: {some(map(str, found))}" if found else f"no {what}"
        raise DapError(f"{file} has {problem}; call the right one {what!r}.")
    return None


def _is_images(value: Any) -> bool:
    """Whether a value can be images: a tensor or array of 3 or 4 axes, or a list of tensors of 2 or 3 axes."""
    if isinstance(value, (list, tuple)):
        return len(value) > 1 and all(isinstance(one, (Tensor, np.ndarray)) and one.ndim in (2, 3) for one in value)
    return isinstance(value, (Tensor, np.ndarray)) and value.ndim in (3, 4)


def _images(value: Any, file: Path) -> Tensor:
    """Images (n, c, h, w) or (n, h, w, c) as one tensor; grey images (n, h, w) get one channel."""
    if isinstance(value, (list, tuple)) and _is_images(value):
        shapes = {tuple(one.shape) for one in value}
        if len(shapes) > 1:
            raise DapError(
                f"The images in {file} differ in shape ({some(map(str, sorted(shapes)))}); give them one size."
            )
        value = torch.stack([_tensor(one, "its images", file) for one in value])
    if not _is_images(value):
        raise DapError(
            f"The images in {file} are {_told(value)}; (n, c, h, w) with c 1 or 3 is needed, or grey (n, h, w)."
        )
    images = _tensor(value, "its images", file)
    return images[:, None] if images.ndim == 3 else images


def _labels(value: Any, what: str, file: Path) -> Tensor:
    """Labels (n,) or a row for each image (n, classes), of any form in which people save them.

    Raises:
        DapError: the value is no labels.
    """
    given = value
    if isinstance(value, (list, tuple)) and value:
        try:
            if all(isinstance(one, (Tensor, np.ndarray, np.generic)) for one in value):
                value = torch.stack([torch.as_tensor(one) for one in value])
            else:
                value = torch.tensor(value)
        except (ValueError, TypeError, RuntimeError, OverflowError):
            value = given
    if isinstance(value, (Tensor, np.ndarray)):
        labels = _tensor(value, what, file)
        if labels.ndim in (1, 2) and labels.numel() and not labels.is_complex():
            return labels
    raise DapError(
        f"{file}: {what} is {_told(given)}, not labels (n,) of whole numbers, nor a row for each image (n, classes)."
    )


def _tensor(value: Any, what: str, file: Path) -> Tensor:
    try:
        return (torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value).detach()
    except (TypeError, ValueError) as error:
        raise DapError(f"{file}: {what} is an array of {value.dtype}; numbers are needed.") from error


def _only_labels(held: Any, file: Path) -> Tensor:
    if isinstance(held, Mapping):
        key = next((key for key in _LABELS if held.get(key) is not None), None)
        held = held[_pick({k: v for k, v in held.items() if _is_labels(v)}, "labels", file) if key is None else key]
    return _labels(held, "what it holds", file)


def _is_labels(value: Any, n: int | None = None) -> bool:
    return (
        isinstance(value, (Tensor, np.ndarray)) and value.ndim in (1, 2) and len(value) > 0 and n in (None, len(value))
    )


def _names(value: Any) -> list[str] | None:
    """The class names in a list, or in a dictionary by their numbers; None for anything else."""
    if isinstance(value, Mapping) and set(value) == set(range(len(value))):
        value = [value[number] for number in range(len(value))]
    usable = isinstance(value, (list, tuple)) and bool(value) and all(isinstance(name, str) for name in value)
    return [name.strip() for name in value] if usable else None


def _as_exported(names: list[str] | None, source: Path) -> list[str] | None:
    """The names as an export.json of ours beside the tensors says them: `_names` has taken spaces off their ends."""
    with suppress(DapError):  # a damaged file of others says nothing here
        said = exported(source if source.is_dir() else source.parent).get("class_names", [])
        return list(said) if names is not None and [name.strip() for name in said] == names else names
    return names


def _told(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"an array {value.shape} of {value.dtype}"
    of = (
        some([_told(v) if isinstance(v, Tensor) else f"a {type(v).__name__}" for v in value])
        if isinstance(value, list)
        else ""
    )
    return f"a {type(value).__name__}" + (f" of {of}" if of else "")


def _channels_first(images: Tensor, where: str, facts: dict[str, Any]) -> Tensor:
    if len(images) and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        facts["axes"] = "(n, h, w, c), turned into (n, c, h, w)"
        images = images.permute(0, 3, 1, 2)
    if not images.numel() or images.shape[1] not in (1, 3):
        raise DapError(f"The images in {where} have shape {tuple(images.shape)}; (n, c, h, w) with c 1 or 3 is needed.")
    return images


def _class_by_class(n: int, ask: Ask, where: str, facts: dict[str, Any]) -> Tensor:
    """Labels for tensors without labels, as DD-Ranking has: first ipc images of the first class, then ipc of the
    second, …"""
    if ask.ipc is None or n % ask.ipc:
        raise DapError(
            f"{where} has {n} images and no labels; give --labels FILE, or --ipc K if they lie class by class."
        )
    facts["labels"] = f"none; taken class by class, {ask.ipc} images each"
    return torch.arange(n) // ask.ipc


def _hard(labels: Tensor, n: int, where: str, facts: dict[str, Any]) -> Tensor:
    if len(labels) != n:
        raise DapError(f"{where} has {n} images but {len(labels)} labels.")
    if labels.is_floating_point() and not bool(torch.isfinite(labels.float()).all()):
        raise DapError(f"The labels of {where} are not finite numbers.")
    if labels.ndim == 2 and labels.shape[1] > 1:
        if bool(((labels == 0) | (labels == 1)).all()) and bool((labels.sum(1) == 1).all()):
            facts["labels"] = "one-hot"
            return labels.long().argmax(1)
        facts["labels"] = "soft; the largest entry of each row is taken"
        return labels.argmax(1)
    labels = labels.reshape(-1)
    if labels.is_floating_point() and not bool((labels == labels.round()).all()):
        raise DapError(f"The labels of {where} are not whole numbers.")
    return labels.long()
