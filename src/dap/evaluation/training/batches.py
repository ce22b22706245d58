"""Labelled images before they enter a network: they are checked, transformed and cut into slices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from dap.base.devices import vram
from dap.base.errors import DapError
from dap.data.real.stored.streams import Stored, Streamed
from dap.evaluation.training.in_step import Group
from dap.evaluation.training.steps import CenterCrop, Resize, Step
from dap.evaluation.training.transforms import run, size_after

Labelled = tuple[Stored, Tensor]
"""Images (n, c, h, w), float in [0, 1] or uint8 from 0 to 255, in memory or read when they are asked for; and labels (n,),
int64."""

KEPT_BYTES = 2 * 2**30
"""Transformed test images are kept in memory up to this size. Larger sets are transformed anew at every look."""

AHEAD = 256
"""How many images are read from a file at a time, at least, where they are looked at in order."""


class Images:
    """Labelled images after the fixed steps of a protocol, on a device.

    Images that the steps do not change keep their type: uint8 images stay uint8 until a batch is taken, to save memory.

    Attributes:
        labels: (n,), on the device.
    """

    def __init__(
        self, labelled: Labelled, steps: Sequence[Step], device: torch.device, *, keep: int = 2**62, room: int = 2**62
    ) -> None:
        """
        Args:
            labelled: see `Labelled`. Images that are read when they are asked for are never kept.
            steps: the steps to run; none of them is random.
            device: where the images are kept.
            keep: transform all images now and keep the result, if it has no more bytes than this.
            room: bytes that a GPU has for images. More images stay in the memory of the machine, and their batches move.
        """
        images, labels = labelled
        self.labels = labels.to(device)
        self.size = size = size_after(steps, *images.shape[2:])
        self._steps = _changing(steps, *images.shape[2:])
        self._kept: Stored = images
        if isinstance(images, Streamed):
            return
        nbytes = 4 * len(images) * images.shape[1] * size[0] * size[1]
        if self._steps and nbytes <= min(keep, room):
            self._kept, self._steps = prepare(images, steps, device), ()
        elif images.nbytes <= room:
            self._kept = images.to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: Tensor | slice) -> Tensor:
        """The chosen images (m, c, h, w) after the steps, float32 and channels-last."""
        kept = self._kept
        rows = chosen.to("cpu" if isinstance(kept, Streamed) else kept.device) if isinstance(chosen, Tensor) else chosen
        return self._ready(kept.take(rows) if isinstance(kept, Streamed) else kept[rows])

    def in_parts(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """`take` of each part, one part after the other; images that are read are read ahead."""
        if isinstance(self._kept, Streamed):
            yield from map(self._ready, self._kept.in_parts(part.cpu() for part in parts))
        else:
            yield from map(self.take, parts)

    def slices(self, share: slice | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all images and labels in slices, or those of a share."""
        size = slice_size(*self.size, self.labels.device)
        if share is not None:
            parts = torch.arange(len(self), device=self.labels.device)[share].split(size)
            yield from ((x, self.labels[part]) for x, part in zip(self.in_parts(parts), parts, strict=True) if len(x))
            return
        whole = size * -(-AHEAD // size) if isinstance(self._kept, Streamed) else size
        start = 0
        for block in self._kept.split(whole):  # pyright: ignore[reportCallIssue]
            for part in block.split(size):
                yield self._ready(part), self.labels[start : start + len(part)]
                start += len(part)

    def _ready(self, images: Tensor) -> Tensor:
        found = as_float(images.to(self.labels.device, non_blocking=True))
        return (run(self._steps, found) if self._steps else found).contiguous(memory_format=torch.channels_last)


def _changing(steps: Sequence[Step], height: int, width: int) -> tuple[Step, ...]:
    """The steps without those that leave images of this height and width as they are. A step that only scales or cuts does so
    where its own input has the size of its output. Of several together that is not enough: a crop that is scaled back to the
    first size has changed the images."""
    kept = list[Step]()
    for step in steps:
        before, (height, width) = (height, width), step.size_after(height, width)
        if not (isinstance(step, (Resize, CenterCrop)) and before == (height, width)):
            kept.append(step)
    return tuple(kept)


def prepare(images: Tensor, steps: Sequence[Step], device: torch.device | str = "cpu") -> Tensor:
    """Apply steps, none of them random, to images (n, c, h, w), float in [0, 1] or uint8.

    Returns:
        The changed images, float32 and channels-last.
    """
    parts = [run(steps, as_float(part.to(device))) for part in images.split(500)]
    return torch.cat(parts).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def confusion(net: nn.Module, images: Images, classes: int, group: Group | None = None) -> Tensor:
    """The confusion matrix (classes, classes), int64, on the CPU: how many images of a label (row) get a label (column).

    The network is in evaluation mode afterwards. Each process of a `group` looks at its share of the images, and all get the sum.
    """
    net.eval()
    device = images.labels.device
    counts = torch.zeros(classes * classes, dtype=torch.int64, device=device)
    for part, labels in images.slices(None if group is None else group.share(len(images))):
        told = torch.cat(vram.in_parts(lambda x: net(x)[:, :classes].argmax(1), max(1, len(part)), part))
        counts += (labels * classes + told).bincount(minlength=classes * classes)
    return (counts if group is None else group.summed(counts, device)).view(classes, classes).cpu()


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


def gpu_room(device: torch.device) -> int:
    """Bytes that a GPU has for images: a quarter of what is free on it now. A CPU takes any number."""
    return vram.free(device) // 4 if device.type == "cuda" else 2**62


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
    for part in images.split(AHEAD) if images.is_floating_point() else ():  # pyright: ignore[reportCallIssue]
        darkest, brightest = (float(v) for v in part.aminmax())
        if not (darkest >= -1e-3 and brightest <= 1 + 1e-3):  # this form is also true for NaN
            raise DapError(
                f"The images of the {what} should be in [0, 1], but go from {darkest:.3g} to {brightest:.3g}."
            )


def rows_of(images: Stored, rows: Tensor) -> Tensor:
    """Some of the images (m, c, h, w), float32 in [0, 1]."""
    return as_float(images.take(rows) if isinstance(images, Streamed) else images[rows])


def in_blocks(function: Callable[[Tensor], Tensor], images: Stored) -> Tensor:
    """What `function` gives for images (n, c, h, w), float32 in [0, 1]. Images that are not float yet, or lie in a file, are
    handed to it in blocks, so that memory holds few of them as floats."""
    if isinstance(images, Tensor) and images.is_floating_point():
        return function(images)
    return torch.cat([function(as_float(part)) for part in images.split(2 * AHEAD)])  # pyright: ignore[reportCallIssue]


def as_float(images: Tensor) -> Tensor:
    """Images in [0, 1] as float32, made of float images in [0, 1] or of uint8 images from 0 to 255."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()
