"""Real images that lie in memory: tensors, arrays or pictures that a Python user already has."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dap.base.errors import DapError
from dap.data.real.base import Source
from dap.data.real.columns import USUAL
from dap.data.real.decode import ORIENTATION, BrokenImage, Fit, decode, encode_png, fit_square, plain
from dap.data.real.names import composed, some

UNPLACED = "images in memory"
"""How the place of images that no name opens begins in a recipe."""


class MemorySource(Source):
    """Labelled images in memory.

    The source keeps the caller's arrays and copies none, as a copy would take the memory of all images again. So the caller can
    change them in place. They are therefore hashed anew whenever their fingerprint is asked for, and what was decoded is dropped
    if they have changed. Making a set and judging ask for it, so changed images count as other images. An array must not change
    while a set is made or judged: this is not noticed.

    Args:
        images: class name -> images of the class, in label order. An image is a PIL picture of any mode, which is read as
            `decode` reads one from a file, or a tensor or array (3, h, w) or (1, h, w) of floats in [0, 1] or of bytes.
        name: the name of the data in manifests and messages.
        size, fit, max_bad_fraction: as for `Source`.

    Raises:
        DapError: an image is of another kind or shape, its numbers are outside [0, 1], or two classes have one name.
    """

    steady = False

    def __init__(
        self,
        images: Mapping[str, Sequence[Any] | Tensor],
        *,
        size: int,
        name: str = UNPLACED,
        fit: Fit = "crop",
        max_bad_fraction: float = 0.01,
    ) -> None:
        _check_apart(images)
        self._images = list(images.values())
        counts = [len(mine) for mine in self._images]
        super().__init__(name, list(images), counts, size=size, fit=fit, max_bad_fraction=max_bad_fraction)
        for class_name, mine in images.items():
            for index, image in enumerate(mine):
                _pixels(image, f"image {index} of class {class_name!r}")

    def _key(self, label: int, index: int) -> str:
        return f"{self.class_names[label]}/{index}"

    def _decode(self, label: int, index: int) -> Tensor:
        found = _pixels(self._images[label][index], self._key(label, index))
        if isinstance(found, Tensor):
            if found.shape[1:] == (self.size, self.size):
                return found.expand(3, -1, -1).contiguous()
            pixels = (found.expand(3, -1, -1) * 255).round().byte().permute(1, 2, 0).numpy()
            return decode(encode_png(np.ascontiguousarray(pixels)), self.size, self.fit)
        return fit_square(plain(found), self.size, self.fit)

    def _look(self, label: int, index: int) -> tuple[int, int] | None:
        found = _pixels(self._images[label][index], self._key(label, index))
        if isinstance(found, Tensor):
            return int(found.shape[2]), int(found.shape[1])
        try:
            return plain(found).size
        except BrokenImage:
            return None

    def _listing(self) -> Iterator[str]:
        for label, mine in enumerate(self._images):
            for index, image in enumerate(mine):
                found = _pixels(image, self._key(label, index))
                yield f"{label} {index} {_tensor_hash(found) if isinstance(found, Tensor) else _picture_hash(found)}"


def _tensor_hash(image: Tensor) -> str:
    """The sha256 of the values of an image (1 or 3, h, w), and its shape unless it is square."""
    _, height, width = image.shape
    return _hash(image.numpy().tobytes()) + ("" if height == width else f" {width} {height}")


def _picture_hash(picture: Image.Image) -> str:
    """The sha256 of the pixels of a picture as they are decoded, and all that is needed to tell them from others.

    The bytes of a palette or of a turned picture say nothing of its colours or of its side. A square RGB or grey picture needs
    nothing beside its bytes, and has the hash that earlier versions gave it.
    """
    try:
        read = plain(picture)
    except BrokenImage:
        return "broken"
    usual = picture.mode in ("RGB", "L") and picture.width == picture.height and not picture.has_transparency_data
    if usual and picture.getexif().get(ORIENTATION, 1) == 1:
        return _hash(picture.tobytes())
    return f"{_hash(read.tobytes())} {read.mode} {read.width} {read.height}"


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def by_class(images: Any, wanted: Iterable[str] | None = None) -> dict[str, Any]:
    """Images by class name, in label order, from the forms in which Python users have them.

    A class that the images name, and of which they hold no image, is there without images, and a source refuses it.

    Args:
        images: a mapping from class name to images; a pair of images (n, ...) and whole-number labels (n,); or a sized
            collection of (image, label) pairs such as a torch `Dataset` or a `DistilledSet`, or of rows with an image and a label
            as `datasets` has them. Labels are named as `names_of` says. Without names a label's number is its name.
        wanted: the classes that are taken; of other classes those without images are left out. None: all.

    Raises:
        DapError: the images have none of these forms, a label is no whole number from 0 on or has no name, or two classes have
            one name.
    """
    if isinstance(images, Mapping):
        _check_apart(images)
        return {str(name): mine for name, mine in images.items()}
    names = names_of(images)
    try:
        pair = isinstance(images, tuple) and len(images) == 2 and len(images[0]) == len(images[1])
        pairs = list(zip(*images, strict=True)) if pair else [images[i] for i in range(len(images))]
        pairs = [_of_row(one) if isinstance(one, Mapping) else one for one in pairs]
        pairs = [(image, label) for image, label in pairs]
    except DapError:
        raise
    except (TypeError, ValueError, KeyError, IndexError, RuntimeError) as error:
        raise DapError(
            "The images in memory should be a mapping from class name to images, a pair of images and labels, or a "
            f"collection of (image, label) pairs, not a {type(images).__name__}."
        ) from error
    found: dict[int, list[Any]] = {}
    for image, label in pairs:
        found.setdefault(_whole(label), []).append(image)
    if names is None:
        return {str(label): found[label] for label in sorted(found)}
    if found and max(found) >= len(names):
        raise DapError(
            f"The images in memory have the label {max(found)}, and their {len(names)} class names are those of the labels from "
            f"0 to {len(names) - 1}."
        )
    _check_apart([names[label] for label in found])
    held = {composed(names[label]) for label in found}
    taken = None if wanted is None else set(map(composed, wanted))
    kept: dict[str, Any] = {}
    for label, name in enumerate(names):
        if label in found:
            kept[name] = found[label]
        elif composed(name) not in held and (taken is None or composed(name) in taken):
            kept[name] = []
    return kept


def _of_row(row: Mapping[str, Any]) -> tuple[Any, Any]:
    """The image and the label of a row, from the columns in which parquet files have them."""
    found: list[Any] = []
    for what in ("image", "label"):
        column = next((name for name in USUAL[what] if name in row), None)
        if column is None:
            raise DapError(
                f"The rows of the images in memory have no column of {what}s among {some(map(str, row), 8)}. Call it {what!r}, "
                "as with rename_column of datasets."
            )
        found.append(row[column])
    return found[0], found[1]


def names_of(images: Any) -> list[str] | None:
    """The names of the labels 0, 1, … of a data set; None where there are none.

    They are its attribute `classes`, as torchvision's data sets have it, or `class_names`, as `DistilledSet` has it, or the names
    that `features` lists for the labels, as `datasets` has them. A torch `Subset` has the labels of its whole data set.

    Raises:
        DapError: these are no list of names.
    """
    while isinstance(images, torch.utils.data.Subset) and _listed(images) is None:
        images = images.dataset
    if (listed := _listed(images)) is None:
        return None
    where, names = listed
    if isinstance(names, Mapping) and set(names) == set(range(len(names))):
        names = [names[label] for label in range(len(names))]
    if isinstance(names, (str, Mapping)) or not isinstance(names, Iterable):
        raise DapError(
            f"The attribute `{where}` of the images in memory is a {type(names).__name__}, not a list of the names of "
            "classes in label order."
        )
    return list(map(str, names)) or None


def _listed(images: Any) -> tuple[str, Any] | None:
    """The attribute that names the labels of a data set, and the names."""
    for where in ("classes", "class_names"):
        if (names := getattr(images, where, None)) is not None:
            return where, names
    features = getattr(images, "features", None)
    if isinstance(features, Mapping):  # of the column that `_of_row` takes
        label = next((name for name in USUAL["label"] if name in features), None)
        names = getattr(features.get(label), "names", None)
        return None if names is None else (f"features[{label!r}].names", names)
    return None


def _whole(label: Any) -> int:
    """A label as a number. A number with a fraction, and a text such as 01, is none: another label would become equal to it."""
    try:
        if isinstance(label, str):
            number = int(label)
            whole = str(number) == label
        else:
            number = int(label)
            whole = bool(label == number)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number, whole = -1, False
    if not whole or number < 0:
        told = str(label.tolist() if isinstance(label, (Tensor, np.ndarray)) else label)[:40]
        raise DapError(
            f"The label {told} of an image in memory is no whole number from 0 on. Leave out images without a label, and give "
            "classes of other names as a mapping from class name to images."
        )
    return number


def _check_apart(names: Iterable[Any]) -> None:
    """Raise `DapError` if two classes have the same name, also where they are spelt with other code points."""
    counts = Counter(composed(str(name)) for name in names)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise DapError(
            f"Several classes of the images in memory are called {some(map(repr, twice))}, so their images would be mixed. Give "
            "each class a name of its own, such as its WordNet id: set `classes` of the data set, or give a mapping from class "
            "name to images."
        )


def _pixels(image: Any, where: str) -> Tensor | Image.Image:
    """A PIL picture unchanged; a tensor or array as a float tensor (1 or 3, h, w) in [0, 1]."""
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray):
        # torch takes neither flipped axes nor the bytes of another machine, and an array of objects has no numbers at all.
        if image.dtype.kind not in "biuf":
            raise DapError(f"{where} is an array of {image.dtype}; it should have floats in [0, 1] or bytes.")
        image = torch.from_numpy(np.ascontiguousarray(image, dtype=image.dtype.newbyteorder("=")))
    if not isinstance(image, Tensor) or image.ndim != 3 or image.shape[0] not in (1, 3):
        told = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise DapError(f"{where} should be a picture or a tensor (3, h, w) or (1, h, w), not {told}.")
    image = image.detach().cpu()
    if image.dtype == torch.uint8:
        return image.float() / 255
    if not image.is_floating_point() or not (torch.isfinite(image).all() and image.min() >= 0 and image.max() <= 1):
        raise DapError(f"{where} should have floats in [0, 1] or bytes.")
    return image.float()
