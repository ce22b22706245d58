"""Labelled images before they enter a network: they are checked, transformed and cut into slices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from dap.base.errors import DapError
from dap.evaluation.training.steps import CenterCrop, Resize, Step
from dap.evaluation.training.transforms import run, size_after

Labelled = tuple[Tensor, Tensor]
"""Images (n, c, h, w), float in [0, 1] or uint8 from 0 to 255, and labels (n,), int64."""

KEPT_BYTES = 2 * 2**30
"""Transformed test images are kept in memory up to this size. Larger sets are transformed anew at every look."""


class Images:
    """Labelled images after the fixed steps of a protocol, on a device.

    Images that the steps do not change keep their type: uint8 images stay uint8 until a batch is taken, to save memory.

    Attributes:
        labels: (n,), on the device.
    """

    def __init__(self, labelled: Labelled, steps: Sequence[Step], device: torch.device, *, keep: bool = True) -> None:
        """
        Args:
            labelled: see `Labelled`.
            steps: the steps to run; none of them is random.
            device: where the images are kept.
            keep: transform all images now and keep the result, whatever its size.
        """
        images, labels = labelled
        self.labels = labels.to(device)
        size = size_after(steps, *images.shape[2:])
        moved = all(isinstance(step, (Resize, CenterCrop)) for step in steps) and size == images.shape[2:]
        steps = () if moved else tuple(steps)
        self._kept, self._steps, self.size = images.to(device), steps, size
        nbytes = 4 * len(images) * images.shape[1] * size[0] * size[1]
        if steps and (keep or nbytes <= KEPT_BYTES):
            self._kept, self._steps = prepare(images, steps, device), ()

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: Tensor | slice) -> Tensor:
        """The chosen images (m, c, h, w) after the steps, float32 and channels-last."""
        found = as_float(self._kept[chosen])
        return (run(self._steps, found) if self._steps else found).contiguous(memory_format=torch.channels_last)

    def slices(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all images and labels in slices."""
        size = slice_size(*self.size, self.labels.device)
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield self.take(part), self.labels[part]


def prepare(images: Tensor, steps: Sequence[Step], device: torch.device | str = "cpu") -> Tensor:
    """Apply steps, none of them random, to images (n, c, h, w), float in [0, 1] or uint8.

    Returns:
        The changed images, float32 and channels-last.
    """
    parts = [run(steps, as_float(part.to(device))) for part in images.split(500)]
    return torch.cat(parts).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def confusion(net: nn.Module, images: Images, classes: int) -> Tensor:
    """The confusion matrix (classes, classes), int64, on the CPU: how many images of a label (row) get a label (column).

    The network is in evaluation mode afterwards.
    """
    net.eval()
    counts = torch.zeros(classes * classes, dtype=torch.int64, device=images.labels.device)
    for part, labels in images.slices():
        counts += (labels * classes + net(part)[:, :classes].argmax(1)).bincount(minlength=classes * classes)
    return counts.view(classes, classes).cpu()


def accuracy(counts: Tensor) -> float:
    """The part of all images on the diagonal of a confusion matrix."""
    return counts.diagonal().sum().item() / counts.sum().item()


@torch.inference_mode()
def in_slices(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Apply `function` to images (n, c, h, w), one slice at a time, without gradients."""
    parts = images.split(slice_size(*images.shape[2:], images.device))  # pyright: ignore[reportCallIssue]
    return torch.cat([function(part.contiguous(memory_format=torch.channels_last)) for part in parts])


def slice_size(height: int, width: int, device: torch.device) -> int:
    """How many images to pass at once: on a CPU 16 of 32 px, because 128 channels of more images overflow its cache."""
    pixels = 2**14 if device.type == "cpu" else 2**22
    return max(1, pixels // (height * width))


def check_labelled(what: str, labelled: Labelled, classes: int) -> None:
    """Raise DapError unless images and labels are as `Labelled` says, and the labels are in [0, classes)."""
    images, labels = labelled
    if classes < 2:
        raise DapError(f"A classifier needs at least 2 classes, not {classes}.")
    if images.ndim != 4 or not (images.is_floating_point() or images.dtype == torch.uint8):
        shape = tuple(images.shape)
        raise DapError(
            f"The images of the {what} should be float or uint8 (n, c, h, w), but are {images.dtype} {shape}."
        )
    if not len(images):
        raise DapError(f"The {what} is empty.")
    if labels.shape != (len(images),) or labels.dtype != torch.int64:
        shape = tuple(labels.shape)
        raise DapError(f"The {what} has {len(images)} images, but labels {labels.dtype} {shape} instead of int64 (n,).")
    low, high = (int(v) for v in labels.aminmax())
    if low < 0 or high >= classes:
        raise DapError(f"The {what} has labels {low} to {high}, but {classes} classes allow 0 to {classes - 1}.")
    if images.is_floating_point():
        darkest, brightest = (float(v) for v in images.aminmax())
        if not (darkest >= -1e-3 and brightest <= 1 + 1e-3):  # this form is also true for NaN
            raise DapError(
                f"The images of the {what} should be in [0, 1], but go from {darkest:.3g} to {brightest:.3g}."
            )


def as_float(images: Tensor) -> Tensor:
    """Images in [0, 1] as float32, made of float images in [0, 1] or of uint8 images from 0 to 255."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()
