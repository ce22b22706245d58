"""Soft labels of the images of a set, one for each image, in a folder.

    labels.safetensors   logits (n, classes) float32, of each image as it is stored, whatever a protocol does to it
    index.json           the images by their sha256, the classes in the order of the columns, and who gave the labels and how

A protocol with soft labels trains on them where the folder is named as its teacher. `stored_labels` are another thing: labels
of every augmented batch of every epoch.
"""

from __future__ import annotations

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
from dap.evaluation.current import hash_of
from dap.evaluation.training.labels import ImageLabels


def write_image_labels(folder: Path, labels: ImageLabels, hashes: Sequence[str], how: Mapping[str, Any]) -> Path:
    """Write labels into a folder: new, empty, or with labels of images, which are replaced.

    Args:
        folder: the folder.
        labels: the labels.
        hashes: the sha256 of each image, in the order of the labels.
        how: what people and later runs should know of how they were made, as JSON values.

    Raises:
        DapError: the folder holds other files, or a logit is not finite.
        OSError: it cannot be written.
    """
    if not labels.values.isfinite().all():
        raise DapError(f"{labels.name} gives labels that are not finite numbers.")

    def check() -> None:
        if in_use(folder) and not holds_image_labels(folder):
            raise DapError(
                f"{shown(folder)} is not empty and holds no labels of images; choose a new folder with --out."
            )

    check()
    values = labels.values.float().cpu().numpy()
    files = label_files(values, hashes, labels.class_names, labels.name, labels.accuracy, dict(how))
    with building(folder, INDEX, check) as made:
        for name, data in files.items():
            write_atomically(made / name, data)
    return folder


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


def _origin(how: Mapping[str, Any]) -> str:
    """See `ImageLabels.origin`, from what `write_image_labels` was told."""
    if isinstance(classifier := how.get("classifier"), str):
        return classifier
    if "weights" not in how:
        return ""
    return hash_of({name: how[name] for name in how if name not in OF_A_SET and not name.startswith("log_likelihood")})


def _index(folder: Path) -> Index:
    if not holds_image_labels(folder):
        raise DapError(
            f"{shown(folder)} holds no labels of images ({FILE} and {INDEX}); make them with dap export SET --layout labels "
            "--teacher NAME --out DIR."
        )
    return index_in(folder)
