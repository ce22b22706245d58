"""A distilled set on disk. Methods write the set and the evaluation reads it. Methods and evaluation share nothing
else.

    images/<class>/<slot>.png   8-bit RGB; a clip is an animated PNG
    classes.json                names and folders, in label order
    recipe.json                 the resolved recipe; a set is resumed only under the same one
    manifest.jsonl              one line an image: path, label, class name, slot, seed, sha256, …
    env.json, README.md         versions and weights' hash; the dataset card with the licences
    .work/                      only while the set is made: parts of the manifest, leases, unfinished work

A run can be killed at any point, because an image is written aside, flushed and moved into place before its line is written. An
image without a matching line is made again. Where several processes make a set, each unit has its own part of the manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor
from torch.utils.data import Dataset

from dap.base.errors import DapError
from dap.base.files import append, dump, write_atomically
from dap.base.parsing import counted, path_of, shown
from dap.data.real.clips.pictures import encoded, shape_of, sized, stacked, whole
from dap.data.real.decode import Fit
from dap.data.real.finding.doubts import check_reading
from dap.data.real.finding.made import check_no_sets
from dap.data.sets.beginning import begin, check_begun, classes_of, frames_of, place_for, text_of
from dap.data.sets.contents import WORK, Classes, Within, file_of, new_line, part_of, read_manifest, sha256
from dap.data.sets.folders import (
    check_classes,
    class_order,
    images_by_folder,
    lines_of,
    other_than_folders,
)
from dap.data.sets.layouts.samples import Samples
from dap.data.sets.looks import advice_for
from dap.data.sets.notes import read, read_note, there
from dap.data.sets.sheet import contact_sheet
from dap.data.sets.verification import Problems, check_none, problems_of, problems_of_files


class DistilledSet(Dataset[tuple[Tensor, int]]):
    """Images by (label, slot) with their manifest. Use `create`, `open` or `from_folder`.

    A set is a torch `Dataset`: `len(made)` counts the finished images, and `made[i]` is the image (3, h, w), float32 in [0, 1],
    and the label of `made.records[i]`. Images are read from their files each time; `tensors` reads all of them at once.

    Attributes:
        path: the folder.
        class_names: the classes in label order.
        ipc: images per class of the whole set.
        frames: how many frames each clip (3, frames, h, w) has; None for images.
        recipe: the resolved recipe, or None for a folder that another project made.
        results: where `note` and judging write: the folder of the set, or another one.
        records: the valid manifest lines, in (label, slot) order.
    """

    def __init__(
        self,
        path: Path,
        class_names: Sequence[str],
        folders: Sequence[str],
        ipc: int,
        recipe: dict[str, Any] | None,
        records: Mapping[tuple[int, int], dict[str, Any]],
    ) -> None:
        self.frames = frames_of(recipe)
        self.path, self.class_names, self.ipc, self.recipe = path, tuple(class_names), ipc, recipe
        self.results, self.folders, self._records = path, tuple(folders), dict(records)
        self._ordered: list[dict[str, Any]] | None = None

    @property
    def records(self) -> list[dict[str, Any]]:
        return list(self._in_order())

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "3 *frames h w"], int]:
        """The image (3, h, w), float32 in [0, 1], and the label of a record. A negative index counts from the end.

        Raises:
            IndexError: the set has no record of this index.
            BrokenImage: the file cannot be decoded.
        """
        line = self._in_order()[index]
        return whole(file_of(self.path, line["path"]), self.frames).float() / 255, line["label"]

    def samples(
        self, transform: Callable[[Tensor], Any] | None = None, logits: Num[Tensor, "n classes"] | None = None
    ) -> Samples:
        """The images with labels, and with weights and soft labels where there are some: a torch `Dataset` of mappings.

        Args:
            transform: a function of an image (3, h, w) in [0, 1], such as one of torchvision.transforms.v2.
            logits: soft labels before the softmax, in the order of `records`.
        """
        return Samples(self, transform, logits)

    def __repr__(self) -> str:
        return f"DistilledSet({str(self.path)!r}: {self._counts()})"

    def _repr_html_(self) -> str:
        """A contact sheet of the set, which a notebook shows."""
        return contact_sheet(self.path, self.class_names, self.records, f"{self.path}: {self._counts()}")

    def _in_order(self) -> list[dict[str, Any]]:
        """The records in order. They are sorted when they are first needed, and again after an image was added."""
        if self._ordered is None:
            self._ordered = [self._records[key] for key in sorted(self._records)]
        return self._ordered

    def _counts(self) -> str:
        """The numbers of images and classes in words, and of images still to be made."""
        counts = f"{counted(len(self), 'image')} of {counted(len(self.class_names), 'class')}"
        if not there(self.path, "classes.json"):
            return counts
        return f"{counts}, {self.ipc} a class" + (f", {len(missing)} missing" if (missing := self.missing()) else "")

    @staticmethod
    def create(
        path: str | Path,
        class_names: Sequence[str],
        ipc: int,
        recipe: dict[str, Any],
        inputs: dict[str, Any] | None = None,
    ) -> DistilledSet:
        """Start a set, or continue a set of the same recipe. An image that does not match its line counts as missing.
        The caller must hold `alone.locked(path)`.

        Args:
            path: the folder: new, empty, or with a set of the same recipe and inputs.
            class_names: the classes in label order.
            ipc: images per class.
            recipe: the resolved recipe.
            inputs: fingerprints of the data, the weights and the user's code. The recipe only names these.

        Raises:
            DapError: the folder holds a set of another recipe (the message names each field that differs), or other
                files.
            OSError: the folder cannot be written.
        """
        path = Path(path)
        begin(path, class_names, ipc, DistilledSet.check_begun(path, class_names, recipe, inputs))
        return DistilledSet.open(path)

    @staticmethod
    def check_begun(
        path: Path, class_names: Sequence[str], recipe: dict[str, Any], inputs: dict[str, Any] | None = None
    ) -> dict[str, dict[str, Any]]:
        """Check that `create` can use a folder. Returns the contents of recipe.json and inputs.json, by the files' names.

        Raises:
            DapError: the folder holds a set of another recipe or of other inputs, or other files.
        """
        return check_begun(path, class_names, recipe, inputs, WORK)

    @staticmethod
    def blank(path: Path, class_names: Sequence[str], ipc: int) -> DistilledSet:
        """A new set without a recipe, for images that others made. No other process may write into the folder."""
        check_classes(class_names, ipc)
        write_atomically(path / "classes.json", dump(classes_of(path, class_names, ipc).model_dump()))
        return DistilledSet.open(path)

    @staticmethod
    def open(path: str | Path) -> DistilledSet:
        """Open a set that this library made. Images whose file does not match their manifest line are left out.

        Raises:
            DapError: the folder is no such set; the message says how to make a set of a plain folder of images. Or
                classes.json or recipe.json is damaged.
        """
        path = path_of(path, "A distilled set")
        if not path.is_dir():
            raise DapError(other_than_folders(path) or f"There is no folder {path}.")
        if not there(path, "classes.json"):
            check_no_sets(path)
            told = f"{path} is no distilled set (it has no classes.json); make one of other images with"
            raise DapError(f"{told} dap import {path} --out DIR.")
        classes = read(path, "classes.json", Classes)
        recipe = read_note(path, "recipe.json")
        within, records = Within(path), {}
        for key, (_, line) in read_manifest(path, classes).lines.items():
            with suppress(DapError):  # `verify` says what is wrong with this image
                if sha256(within.read(line["path"])) == line["sha256"]:
                    records[key] = line
        return DistilledSet(path, classes.names, classes.folders, classes.ipc, recipe, records)

    @staticmethod
    def from_folder(path: str | Path, class_names: str | Sequence[str] | None = None) -> DistilledSet:
        """Open any folder of class folders, or a set of this library. Slots follow the natural order of the file names.

        Args:
            path: the folder.
            class_names: folder names in label order, or the name of a subset of ImageNet. By default the order is that
                of the export.json of `dap export`, or the sorted order. For folders that are numbers (RDED, D4M,
                DD-Ranking), the names are given by position. A wrong order mislabels the images without an error. So
                give the order where the labels do not follow the sorted names (ImageWoof).

        Raises:
            DapError: there is no such folder, no class folder holds an image, an image is a pipe or a device, or the files
                are of a kind that only `dap import` reads.
        """
        path = path_of(path, "A distilled set")
        if path.is_dir() and there(path, "classes.json"):
            return DistilledSet.open(path)
        if not path.is_dir():
            raise DapError(other_than_folders(path) or f"There is no folder {path}.")
        found = images_by_folder(path)
        if not found:
            told = f"{path} holds no class folders with images; a set is <folder>/<class>/<image>.png."
            raise DapError(other_than_folders(path) or told)
        check_reading(path, found, class_names)
        names, folders = class_order(path, list(found), class_names)
        records = lines_of(path, names, [found[folder] for folder in folders])
        return DistilledSet(path, names, folders, max(len(found[folder]) for folder in folders), None, records)

    def has(self, label: int, slot: int) -> bool:
        return (label, slot) in self._records

    def missing(self) -> list[tuple[int, int]]:
        """The (label, slot) of every image that is still to be made."""
        return [(c, s) for c in range(len(self.class_names)) for s in range(self.ipc) if not self.has(c, s)]

    def add(self, label: int, slot: int, image: Float[Tensor, "3 *frames h w"], **record: Any) -> None:
        """Store one image in [0, 1] and its manifest line, atomically and in this order.

        Raises:
            DapError: the image holds a non-finite value, or a field of the record fits no line; nothing is written.
            OSError: the disk is full or there is no permission; no half-written file stays.
        """
        self.store(label, slot, self._encoded(label, slot, image), **record)

    def add_unit(
        self, label: int, slots: Sequence[int], images: Float[Tensor, "b 3 *size"], records: Sequence[Mapping[str, Any]]
    ) -> None:
        """Store the images of a unit and then their manifest lines, as a part of the manifest that belongs to this unit alone.

        Several processes may add units to one set at the same time. If two of them add the same unit, its images are the same.
        `beginning.gather` puts the parts together.

        Raises:
            DapError, OSError: as for `add`. No image of the unit then counts as made.
        """
        pngs = [self._encoded(label, slot, image) for slot, image in zip(slots, images, strict=True)]
        lines = [self._stored(label, *rest) for rest in zip(slots, pngs, records, strict=True)]
        write_atomically(part_of(self.path, label, slots[0]), "".join(map(text_of, lines)).encode())
        self._know(lines)

    def store(self, label: int, slot: int, png: bytes, **record: Any) -> None:
        """Store an image that is an 8-bit RGB PNG already, and its line, as `add` does. The bytes of the PNG are kept.

        Raises:
            DapError: the place of the image leads out of the set, or it is a folder.
        """
        line = self._stored(label, slot, png, record)
        append(self.path / "manifest.jsonl", text_of(line))
        self._know([line])

    def _encoded(self, label: int, slot: int, image: Float[Tensor, "3 *frames h w"]) -> bytes:
        if not torch.isfinite(image).all():
            advice = advice_for(self.recipe)
            raise DapError(f"Image {slot} of class {self.class_names[label]!r} has non-finite pixels; {advice}.")
        return encoded(image)

    def _stored(self, label: int, slot: int, png: bytes, record: Mapping[str, Any]) -> dict[str, Any]:
        """Write an image. Returns its manifest line, which is still to be written."""
        relative = f"images/{self.folders[label]}/{slot:05d}.png"
        line = new_line(relative, label, self.class_names[label], slot, sha256(png), record)
        write_atomically(place_for(self.path, relative), png)
        return line

    def _know(self, lines: Sequence[dict[str, Any]]) -> None:
        self._records |= {(line["label"], line["slot"]): line for line in lines}
        self._ordered = None

    def note(self, name: str, value: Any) -> None:
        """Write a file into the folder of results, atomically: a text as it is, another value as JSON."""
        write_atomically(self.results / name, shown(value).encode() if isinstance(value, str) else dump(value))

    def noted(self, name: str) -> Any:
        """The value that `note` wrote as JSON under this name; None where there is no such file.

        Raises:
            DapError: the file cannot be read, is not JSON, or does not fit its model in `notes.NOTES`.
        """
        return read_note(self.results, name, "Restore this file from a copy, or remove it.")

    def verify(self) -> list[str]:
        """Every problem found by reading all files and by decoding and hashing all images; empty when the set is whole.

        A set is whole if each (label, slot) has an image and a line that fit, if the files beside the images say the same
        classes, and if there are no other files among the images.
        """
        found = self._problems()
        return [*found.mendable, *found.others]

    def check_whole(self, decode: bool = True) -> None:
        """Raise `DapError` if `verify` finds a problem. The message names the first problems and says what to do.

        Args:
            decode: whether the images are decoded and hashed once more.
        """
        check_none(self._problems(decode), self.path, self.recipe is not None)

    def _problems(self, decode: bool = True) -> Problems:
        if there(self.path, "classes.json"):
            return problems_of(self.path, decode)
        return Problems(problems_of_files(self.path, self.records) if decode else [])

    def tensors(
        self, size: int | None = None, *, fit: Fit = "crop", dtype: torch.dtype = torch.float32, mixed: int = 0
    ) -> tuple[Num[Tensor, "n 3 *frames h w"], Int[Tensor, " n"]]:
        """All images (n, 3, h, w) in [0, 1] and their labels (n,), in (label, slot) order.

        Args:
            size, fit: how the images are made square, as real images are; see `data.real.decode.square`. By default the
                images keep their size, and all must then have the same size. Each is decoded as real images are.
            dtype: with uint8, the images are whole numbers from 0 to 255, in a quarter of the memory.
            mixed: where no size is given and the images differ in size, the size that all of them get; 0: an error.

        Raises:
            DapError: the set is empty, its images differ in size and no size is given, or an image is broken (it is named).
        """
        if not self._records:
            raise DapError(f"{self.path} holds no finished image yet; run dap distill again to go on.")
        labels = torch.tensor([line["label"] for line in self.records])
        if size is not None:
            images = torch.empty(len(labels), *shape_of(self.frames, size), dtype=dtype)
            for row, line in zip(images, self.records, strict=True):
                image = sized(file_of(self.path, line["path"]), self.frames, size, fit)
                row.copy_(image if dtype.is_floating_point else (image * 255).round())
            return images, labels
        pictures = [whole(file_of(self.path, line["path"]), self.frames) for line in self.records]
        if len(sizes := sorted({f"{one.shape[-1]}x{one.shape[-2]}" for one in pictures})) > 1:
            if not mixed:
                sides = ", ".join(sizes[:3])
                raise DapError(f"The images in {self.path} differ in size ({sides}); give a size for them all.")
            return self.tensors(mixed, fit=fit, dtype=dtype)
        return stacked(pictures, dtype), labels
