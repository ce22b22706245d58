"""Real images that lie in memory: tensors, arrays or pictures that a Python user already has."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dap.base.errors import DapError
from dap.data.real.base import Source
from dap.data.real.decode import Fit, decode, encode_png


class MemorySource(Source):
    """Labelled images in memory.

    Args:
        images: class name -> images of the class, in label order. An image is a PIL picture, or a tensor or array (3,
            h, w) or (1, h, w) of floats in [0, 1] or of bytes.
        name: the name of the data in manifests and messages.
        size, fit, max_bad_fraction: as for `Source`.

    Raises:
        DapError: an image is of another kind or shape, or its numbers are outside [0, 1].
    """

    def __init__(
        self,
        images: Mapping[str, Sequence[Any] | Tensor],
        *,
        size: int,
        name: str = "images in memory",
        fit: Fit = "crop",
        max_bad_fraction: float = 0.01,
    ) -> None:
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
        file = io.BytesIO()
        found.save(file, format="PNG")
        return decode(file.getvalue(), self.size, self.fit)

    def _look(self, label: int, index: int) -> tuple[int, int]:
        found = _pixels(self._images[label][index], self._key(label, index))
        return (int(found.shape[2]), int(found.shape[1])) if isinstance(found, Tensor) else found.size

    def _listing(self) -> Iterator[str]:
        for label, mine in enumerate(self._images):
            for index, image in enumerate(mine):
                found = _pixels(image, self._key(label, index))
                data = found.numpy().tobytes() if isinstance(found, Tensor) else found.tobytes()
                yield f"{label} {index} {hashlib.sha256(data).hexdigest()}"


def by_class(images: Any) -> dict[str, Any]:
    """Images by class name, in label order, from the forms in which Python users have them.

    Args:
        images: a mapping from class name to images; a pair of images (n, ...) and whole-number labels (n,); or a sized
            collection of (image, label) pairs such as a torch `Dataset`, whose attribute `classes` names the labels if
            there is one. Without names a label's number is its name.

    Raises:
        DapError: the images have none of these forms.
    """
    if isinstance(images, Mapping):
        return {str(name): mine for name, mine in images.items()}
    names: Sequence[str] | None = getattr(images, "classes", None)
    pair = isinstance(images, tuple) and len(images) == 2 and len(images[0]) == len(images[1])
    try:
        pairs = list(zip(*images, strict=True)) if pair else [images[i] for i in range(len(images))]
        found: dict[int, list[Any]] = {}
        for image, label in pairs:
            found.setdefault(int(label), []).append(image)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise DapError(
            "The images in memory should be a mapping from class name to images, a pair of images and labels, or a "
            f"collection of (image, label) pairs, not a {type(images).__name__}."
        ) from error
    return {str(names[label]) if names else str(label): found[label] for label in sorted(found)}


def _pixels(image: Any, where: str) -> Tensor | Image.Image:
    """A PIL picture unchanged; a tensor or array as a float tensor (1 or 3, h, w) in [0, 1]."""
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(image)
    if not isinstance(image, Tensor) or image.ndim != 3 or image.shape[0] not in (1, 3):
        told = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise DapError(f"{where} should be a picture or a tensor (3, h, w) or (1, h, w), not {told}.")
    image = image.detach().cpu()
    if image.dtype == torch.uint8:
        return image.float() / 255
    if not image.is_floating_point() or not (torch.isfinite(image).all() and image.min() >= 0 and image.max() <= 1):
        raise DapError(f"{where} should have floats in [0, 1] or bytes.")
    return image.float()
