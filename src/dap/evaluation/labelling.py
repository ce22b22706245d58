"""Labels of a set that are stored: the logits that a teacher gives to every augmented batch, or to the images themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dap.base.errors import DapError
from dap.data.real.clips.pictures import sized
from dap.data.real.sizes import size_of
from dap.data.real.stored.budget import Budget
from dap.data.real.stored.gathering import folded, gathered
from dap.data.sets.contents import file_of
from dap.data.sets.distilled import DistilledSet
from dap.evaluation.image_labels import image_labels, open_image_labels
from dap.evaluation.training.batches import Labelled
from dap.evaluation.training.classifier import Classifier
from dap.evaluation.training.labels import ImageLabels
from dap.evaluation.training.loading import load_classifier
from dap.evaluation.training.protocol import Protocol
from dap.evaluation.training.steps import Resize, Step
from dap.evaluation.training.stored_labels import Labelling, write_labels

MIXED = 224
"""The side in px to which images of different sizes are brought for a classifier that takes any size."""


def store_labels(
    judged: DistilledSet,
    protocol: Protocol,
    out: Path,
    *,
    teacher: str | ImageLabels,
    device: str = "cpu",
    offline: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> Path:
    """Write the logits that a teacher gives to every augmented batch of every epoch of a protocol.

    See `evaluation.training.stored_labels`.

    Args:
        judged: the set; no image may be missing.
        protocol: gives the steps, the mixing, the batch and the epochs. An example is `fkd-soft`.
        out: the folder to write to. Epochs that are there already are kept.
        teacher: see `evaluation.training.loading.load_classifier`; or a folder with labels of the images, or these labels
            themselves, which are then stored for each batch by what its images are mixed with.
        device: the device on which the teacher runs.
        offline: the weights of the teacher come from the local cache alone.
        seed: seed of the order and of the augmentation.
        progress: called with the number of epochs done and the number of all epochs.

    Raises:
        DapError: the set is not whole, the teacher does not know the classes of the set, or an error of `write_labels`.
    """
    check_images(judged)
    judged.check_whole()
    settled = protocol.settled(ipc=largest(judged), classes=len(judged.class_names))
    side = first_side(settled.train_steps)
    images, _ = judged.tensors(side, fit="crop-bilinear", dtype=torch.uint8, mixed=settled.size)
    said = opened(teacher, judged, device, offline)
    how = labelling(settled, seed)
    return write_labels(out, images, image_hashes(judged), how, said, protocol=settled.name, progress=progress)


def opened(teacher: str | ImageLabels, judged: DistilledSet, device: str, offline: bool) -> Classifier | ImageLabels:
    """What gives labels to a set: a classifier, or labels of its images.

    Raises:
        DapError: there is nothing of this name, or it does not know the classes or the images.
    """
    if isinstance(teacher, ImageLabels):
        return teacher
    if Path(teacher).is_dir():
        return open_image_labels(teacher, image_hashes(judged), judged.class_names)
    return load_classifier(teacher, judged.class_names, device, offline=offline)


def labels_by(teacher: Classifier, judged: DistilledSet) -> ImageLabels:
    """The labels that a classifier gives to the images of a set as they are stored.

    Raises:
        DapError: the set is not whole.
    """
    check_images(judged)
    judged.check_whole()
    images, _ = judged.tensors(None, fit="crop-bilinear", dtype=torch.uint8, mixed=teacher.size or MIXED)
    return image_labels(teacher.name, judged.class_names, teacher.logits(images), teacher.accuracy, teacher.fingerprint)


def check_images(judged: DistilledSet) -> None:
    """Raise `DapError` for a set of clips, which no teacher labels."""
    if judged.frames is not None:
        raise DapError(
            f"{judged.path} holds clips, and there is no teacher of clips; soft labels are for images alone."
        )


def labelling(protocol: Protocol, seed: int = 0) -> Labelling:
    """The parts of a protocol that decide its augmented batches, and so the stored labels of a set."""
    return Labelling(protocol.train_steps, protocol.mix, protocol.batch, protocol.passes, seed)


def images_of(
    judged: DistilledSet, size: int | None, budget: Budget, *, exact: bool = False, mixed: int = 0
) -> Labelled:
    """The images of a set and their labels, as `DistilledSet.tensors` gives them; clips are images of 3 · frames channels. Many
    images are kept as the budget allows.

    Args:
        judged: the set.
        size: the side to which each image is brought while it is decoded; None: the images keep their size.
        budget: memory and disk.
        exact: float32 images of a set that is small, and of images of more than 8 bits. By default all images are uint8.
        mixed: where no size is given and the images differ in size, the side that all of them get.

    Raises:
        DapError: as `DistilledSet.tensors`.
    """
    dtype, records = torch.float32 if exact else torch.uint8, judged.records
    side = size or max(size_of(file_of(judged.path, records[0]["path"])) or (mixed, 1)) if records else 1
    channels = 3 * (judged.frames or 1)
    if len(records) * channels * side * side * dtype.itemsize <= budget.memory // 8:
        return _folded(judged.tensors(size, fit="crop-bilinear", dtype=dtype, mixed=mixed))
    if size is None:
        sides = {size_of(file_of(judged.path, record["path"])) for record in records}
        if len(sides) > 1 and mixed:
            side = mixed
        elif len(sides) > 1 or sides != {(side, side)}:  # images that are not square, or an error that is told there
            return _folded(judged.tensors(None, fit="crop-bilinear", dtype=dtype))
    files = [record["path"] for record in records]
    found = gathered(
        lambda row: folded(sized(file_of(judged.path, files[row]), judged.frames, side, "crop-bilinear")),
        len(files),
        side,
        budget,
        exact=exact,
        channels=channels,
    )
    return found.images, torch.tensor([record["label"] for record in records])


def _folded(labelled: tuple[Tensor, Tensor]) -> Labelled:
    """Clips as images of 3 · frames channels; images stay as they are."""
    images, labels = labelled
    return (images.flatten(1, 2) if images.ndim == 5 else images), labels


def image_hashes(judged: DistilledSet) -> list[str]:
    """The sha256 of every image of a set, in the order of its records."""
    return [record["sha256"] for record in judged.records]


def labels_of(judged: DistilledSet) -> list[int]:
    """The label of every image of a set, in the order of its records."""
    return [record["label"] for record in judged.records]


def even(judged: DistilledSet) -> bool:
    """Whether all classes have as many images, so that the order of the images says their labels."""
    counts = Counter(labels_of(judged))
    return len(counts) == len(judged.class_names) and len(set(counts.values())) == 1


def first_side(steps: Sequence[Step]) -> int | None:
    """The side to which the first step resizes images, or None. Images are best resized while they are decoded."""
    return steps[0].side if steps and isinstance(steps[0], Resize) else None


def largest(judged: DistilledSet) -> int:
    """How many images the largest class has."""
    return max(Counter(labels_of(judged)).values(), default=0)
