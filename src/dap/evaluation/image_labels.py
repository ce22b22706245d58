"""Soft labels of the images of a set, one for each image, in a folder.

    labels.safetensors   logits (n, classes) float32, of each image as it is stored, whatever a protocol does to it
    index.json           the images by their sha256, the classes in the order of the columns, and who gave the labels and how

A protocol with soft labels trains on them where the folder is named as its teacher. `stored_labels` are another thing: labels
of every augmented batch of every epoch.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dap.base.errors import DapError
from dap.base.files import building, in_use, write_atomically
from dap.base.parsing import shown
from dap.data.sets.beside import FILE, INDEX, Index, index_in, label_files, logits_in
from dap.data.sets.differences import differences
from dap.evaluation.current import hash_of
from dap.evaluation.training.labels import ImageLabels


def write_image_labels(folder: Path, labels: ImageLabels, hashes: Sequence[str], how: Mapping[str, Any]) -> Path:
    """Write labels into a folder: new, empty, or with labels of the same images by the same teacher, which are written again.

    Args:
        folder: the folder.
        labels: the labels.
        hashes: the sha256 of each image, in the order of the labels.
        how: what people and later runs should know of how they were made, as JSON values.

    Raises:
        DapError: the folder holds other files or other labels, or a logit is not finite.
        OSError: it cannot be written.
    """
    if not labels.values.isfinite().all():
        raise DapError(f"{labels.name} gives labels that are not finite numbers.")

    check = functools.partial(check_image_labels, folder, labels.name, labels.class_names, hashes, how)
    check()
    values = labels.values.float().cpu().numpy()
    files = label_files(values, hashes, labels.class_names, labels.name, labels.accuracy, dict(how))
    with building(folder, INDEX, check) as made:
        for name, data in files.items():
            write_atomically(made / name, data)
    return folder


def check_image_labels(
    folder: Path, teacher: str, class_names: Sequence[str], hashes: Sequence[str], how: Mapping[str, Any]
) -> None:
    """Check that labels can be written into a folder, so that no others are lost. It is asked before labels are computed, and
    `write_image_labels` asks it again.

    Args:
        folder, hashes: as for `write_image_labels`.
        teacher: who will give the labels.
        class_names: their columns.
        how: as for `write_image_labels`, without what only the labels themselves tell.

    Raises:
        DapError: the folder holds other files, or labels of other images, of other classes, by another teacher or made in
            another way. What the folder does not say is no difference.
    """
    if not in_use(folder):
        return
    if not holds_image_labels(folder):
        raise DapError(f"{shown(folder)} is not empty and holds no labels of images; choose a new folder with --out.")
    index = index_in(folder)
    before = index.how if isinstance(index.how, Mapping) else {}
    both = [name for name in how if name in before and not _is_of_a_set(name) and name not in ("classes", *WHO)]
    told = {name: how[name] for name in both}
    old, new = {name: before[name] for name in both}, json.loads(json.dumps(told))
    known = [
        name for name in WHO if name in before and name in how
    ]  # a file may have another name and the same weights
    if any(before[name] != how[name] for name in known) or (not known and index.teacher != teacher):
        same = "other weights of this name" if index.teacher == teacher else teacher
        old, new = {"teacher": index.teacher, **old}, {"teacher": same, **new}
    if index.classes != list(class_names):
        old, new = {"classes": index.classes, **old}, {"classes": list(class_names), **new}
    changed = differences(old, new)
    if index.images != list(hashes):
        same = len(set(index.images) & set(hashes))
        order = "in another order" if sorted(index.images) == sorted(hashes) else f"{same} of them the same"
        changed = [f"images: {len(index.images)} -> {len(hashes)}, {order}", *changed]
    if changed:
        raise DapError(f"{shown(folder)} holds other labels ({'; '.join(changed)}); choose another folder with --out.")


def holds_image_labels(folder: str | Path) -> bool:
    """Whether a folder holds labels of images."""
    return all((Path(folder) / name).is_file() for name in (FILE, INDEX))


def how_made(folder: str | Path) -> dict[str, Any]:
    """How the labels in a folder were made, as `write_image_labels` was told.

    Raises:
        DapError: they cannot be read.
    """
    return dict(_index(Path(folder)).how)


def open_image_labels(folder: str | Path, hashes: Sequence[str], class_names: Sequence[str]) -> ImageLabels:
    """The labels of these images, in this order, with columns in the order of the class names.

    Raises:
        DapError: there are none, they are damaged, or they are of other images or classes.
    """
    folder = Path(folder)
    index = _index(folder)
    values = logits_in(folder, index)
    rows = {sha256: row for row, sha256 in enumerate(index.images)}
    if missing := [sha256 for sha256 in hashes if sha256 not in rows]:
        raise DapError(
            f"The labels in {shown(folder)} are of other images: {len(missing)} of {len(hashes)} have none. Make labels of "
            "this set with dap export SET --layout labels."
        )
    if sorted(index.classes) != sorted(class_names):
        raise DapError(f"The labels in {shown(folder)} are of other classes; make labels of this set with dap export.")
    columns = [index.classes.index(name) for name in class_names]
    found = values[[rows[sha256] for sha256 in hashes]][:, columns].float()
    return image_labels(index.teacher, class_names, found, index.accuracy, _origin(index.how))


def image_labels(
    name: str, class_names: Sequence[str], values: Tensor, accuracy: float | None = None, origin: str = ""
) -> ImageLabels:
    """Labels with the fingerprint of their values.

    Args:
        name: who gave the labels.
        class_names: the columns.
        values: logits (n, classes).
        accuracy: how often whoever gave them is right on real images.
        origin: see `ImageLabels`.
    """
    values = values.detach().float().cpu().contiguous()
    digest = hashlib.sha256(json.dumps([name, *class_names]).encode())
    digest.update(values.numpy().tobytes())
    return ImageLabels(name, tuple(class_names), values, digest.hexdigest()[:16], accuracy, origin)


OF_A_SET = {"backbone", "temperature", "accuracy", "fitted_on", "tested_on", "agreement", "passes", "seconds"}
"""What is written of the labels of a backbone that each set has of its own, or that the hash of the weights says too."""


WHO = ("classifier", "weights")
"""Under which of these names is written, by a hash of the weights, who gave the labels: a classifier, or a backbone."""


def _origin(how: Mapping[str, Any]) -> str:
    """See `ImageLabels.origin`, from what `write_image_labels` was told."""
    if isinstance(classifier := how.get("classifier"), str):
        return classifier
    if "weights" not in how:
        return ""
    return hash_of({name: how[name] for name in how if not _is_of_a_set(name)})


def _is_of_a_set(name: str) -> bool:
    """Whether what is written under this name is not the same for labels of all sets that were made in one way."""
    return name in OF_A_SET or name.startswith("log_likelihood")


def _index(folder: Path) -> Index:
    if not holds_image_labels(folder):
        raise DapError(
            f"{shown(folder)} holds no labels of images ({FILE} and {INDEX}); make them with dap export SET --layout labels "
            "--teacher NAME --out DIR."
        )
    return index_in(folder)
