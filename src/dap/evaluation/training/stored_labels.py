"""Soft labels on disk (FKD; Shen & Xing, ECCV 2022): a classifier's logits of every augmented, mixed batch of every epoch.

    epoch-00000.safetensors   one file an epoch
        indices                 (n,) int32: the images in the order of the epoch; `batch` of them are one batch
        logits                  (n, classes) float16: the teacher's, of the mixed images
        B/K.NAME                what step K drew for batch B, e.g. 0/1.flipped (steps counted from the first random one)
        B/mix.NAME              what the mixing drew: partner, box, share
    index.json                the set, the steps and the classifier that the labels belong to; written last

The images are not stored. They are made again from the set and the drawn parameters, bit for bit on the same kind of
device.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from dap.base.alone import locked
from dap.base.documents import read_json
from dap.base.errors import DapError
from dap.base.fields import FromFile, Name, Share
from dap.base.files import dump, write_atomically
from dap.base.seeding import seed_of
from dap.data.sets.differences import differences
from dap.data.sets.notes import Plain, as_read
from dap.evaluation.current import hash_of
from dap.evaluation.training.batches import Images
from dap.evaluation.training.classifier import Classifier
from dap.evaluation.training.fitting import Replay, TrainingBatch
from dap.evaluation.training.labels import ImageLabels, mixed_weights, soft_loss, whose
from dap.evaluation.training.mixing import Mixing
from dap.evaluation.training.steps import Drawn, Step
from dap.evaluation.training.transforms import apply_all, draw_all, size_after, split, unnormalised

FORMAT, AGAIN = 1, "dap export SET --layout fkd"


class Index(FromFile, frozen=True):
    """`index.json`, or `begun.json` of labels that are not finished."""

    format: int
    steps: Annotated[list[Plain], Field(max_length=100)]
    mix: Plain | None
    batch: Annotated[int, Field(ge=1, le=10**7)]
    seed: int
    classes: Annotated[list[Name], Field(max_length=10**6)]
    teacher: Name
    images: Annotated[list[Name], Field(max_length=10**7)]
    epochs: Annotated[int, Field(ge=1, le=10**6)] | None = None
    teacher_name: Name | None = None
    teacher_accuracy: Share | None = None
    protocol: Name | None = None
    torch: Name | None = None
    whose: dict[Name, Name] = {}  # see `labels.whose`; labels of earlier versions lack it


class StoredBatch(NamedTuple):
    """One batch of m images."""

    indices: Tensor
    """(m,), int64: which images of the set."""
    drawn: list[dict[str, Tensor]]
    """Parameters of each step from the first random one on, as `transforms.apply_all` takes them."""
    mix: dict[str, Tensor] | None
    """Parameters of the mixing, or None if there is none."""
    logits: Tensor
    """(m, classes), float16."""


@dataclass(frozen=True)
class Labelling:
    """How batches are made: fields of a settled protocol.

    Args:
        steps: the steps from an image in [0, 1] to what the network sees.
        mix: mixes every batch after the steps; None for no mixing.
        batch: images a batch.
        epochs: how many epochs are labelled.
        seed: seed of order, augmentation and mixing.
    """

    steps: Sequence[Step]
    mix: Mixing | None
    batch: int
    epochs: int
    seed: int = 0

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the images of a batch, as JSON values."""
        steps = [step.model_dump(mode="json") for step in self.steps]
        return {"steps": steps, "mix": self.mix and self.mix.model_dump(mode="json"), "batch": self.batch}

    def seen(self, images: Images, chosen: Tensor, drawn: Sequence[Drawn], mix: Drawn | None) -> Tensor:
        """The mixed images (m, c, h, w) as the network sees them, from `images` after the fixed steps."""
        x = apply_all(split(self.steps)[1], images.take(chosen.to(images.labels.device)), drawn)
        return x if mix is None or self.mix is None else self.mix.apply(x, mix)

    def mixed(self, mix: Drawn | None) -> tuple[Tensor | None, float]:
        """The partners (m,) of a batch, and the part of each image that is its own."""
        return (None, 1.0) if mix is None or self.mix is None else (mix["partner"], self.mix.share(mix))


def write_labels(
    folder: str | Path,
    images: Tensor,
    hashes: Sequence[str],
    how: Labelling,
    teacher: Classifier | ImageLabels,
    *,
    protocol: str,
    progress: Callable[[int, int], object] | None = None,
) -> Path:
    """Label a set and return the folder. Epochs that are in the folder already are kept, so an interrupted labelling continues.

    Args:
        folder: the folder to write; new, or begun by the same call.
        images: (n, c, h, w) of the set, float in [0, 1] or uint8.
        hashes: the hash of each image's file, in the same order.
        how: how the batches are made.
        teacher: the classifier whose logits are stored, on its device; or labels of the images in the same order.
        protocol: the protocol's name, which only people read.
        progress: called with the number of epochs that are done and of all epochs.

    Raises:
        DapError: the folder holds labels of something else, the disk is too small, a logit is not finite or beyond half
            precision, or images and hashes disagree.
        OSError: it cannot be written.
    """
    folder = Path(folder)
    if len(hashes) != len(images):
        raise DapError(f"There are {len(hashes)} hashes for {len(images)} images.")
    size_after(how.steps, *images.shape[2:])
    facts: dict[str, Any] = {
        "format": FORMAT,
        **how.facts,
        "seed": how.seed,
        "classes": list(teacher.class_names),
        "teacher": teacher.fingerprint or teacher.name,
        "images": list(hashes),
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    with locked(folder):
        begun = folder / "begun.json"
        index = folder / "index.json"
        written = next((read_json(file, as_read(Index)) for file in (index, begun) if file.is_file()), None)
        if written is not None:
            old = {name: written.get(name) for name in facts}
            if changed := _differences(old, json.loads(json.dumps(facts))):
                raise DapError(f"{folder} holds labels made otherwise ({changed}); choose another folder.")
        write_atomically(begun, dump(facts))
        todo = [epoch for epoch in range(how.epochs) if not _is_whole(folder / _file(epoch), key)]
        need = len(todo) * len(images) * len(teacher.class_names) * 2
        if need > (free := shutil.disk_usage(folder).free):
            raise DapError(
                f"{folder} would need {need / 1e9:.1f} GB for {len(todo)} epochs of {len(images)} images, and "
                f"{free / 1e9:.1f} GB are free; choose another disk or fewer epochs."
            )
        if todo:
            labels = torch.zeros(len(images), dtype=torch.int64)
            ready = Images((images, labels), split(how.steps)[0], teacher.device)
            for epoch in todo:
                _write_epoch(folder / _file(epoch), key, ready, epoch, how, teacher)
                if progress is not None:
                    progress(how.epochs - len(todo) + todo.index(epoch) + 1, how.epochs)
        epochs = max(how.epochs, (written or {}).get("epochs") or 0)
        notes = {"teacher_name": teacher.name, "teacher_accuracy": teacher.accuracy, "protocol": protocol}
        notes["whose"] = whose(teacher)
        write_atomically(index, dump({**facts, "epochs": epochs, **notes, "torch": str(torch.__version__)}))
        begun.unlink()
    return folder


class StoredLabels:
    """Labels that `write_labels` finished. Use `open_labels`.

    Attributes:
        index: what index.json says.
    """

    def __init__(self, folder: Path, index: dict[str, Any], how: Labelling, columns: Sequence[int]) -> None:
        self.folder, self.index, self._how, self._columns = folder, index, how, list(columns)

    @property
    def teacher(self) -> str:
        """The teacher's name."""
        return self.index["teacher_name"]

    @property
    def fingerprint(self) -> str:
        """Sixteen digits that change with everything that the labels depend on."""
        return hash_of({name: value for name, value in self.index.items() if name != "whose"})

    def epoch(self, number: int) -> Iterator[StoredBatch]:
        """The batches of an epoch, counted from 0.

        Raises:
            DapError: there is no such epoch, or its file is damaged.
        """
        from safetensors import SafetensorError, safe_open

        if not 0 <= number < self.index["epochs"]:
            raise DapError(f"{self.folder} has labels for epochs 0 to {self.index['epochs'] - 1}, not {number}.")
        file = self.folder / _file(number)
        try:
            with safe_open(str(file), framework="pt") as opened:
                values = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            indices, logits = values.pop("indices").long(), values.pop("logits")
            _check_tensors(indices, logits, len(self.index["images"]), len(self.index["classes"]))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise DapError(
                f"{file} is missing or damaged ({error}); delete it and run the dap export that made it again."
            ) from error
        found: dict[str, dict[str, Tensor]] = {}
        for name, value in values.items():
            place, _, parameter = name.rpartition(".")
            found.setdefault(place, {})[parameter] = value
        n_steps = len(split(self._how.steps)[1])
        batches = zip(indices.split(self._how.batch), logits.split(self._how.batch), strict=True)
        for b, (chosen, said) in enumerate(batches):
            drawn = [found.get(f"{b}/{k}", {}) for k in range(n_steps)]
            yield StoredBatch(chosen, drawn, found.get(f"{b}/mix"), said[:, self._columns])

    def seen(self, images: Images, batch: StoredBatch) -> Tensor:
        """The images (m, c, h, w) of a batch, normalised, for which the teacher gave `batch.logits`.

        Args:
            images: the set after the fixed steps, `transforms.split(steps)[0]`.
            batch: of `epoch`.
        """
        return self._how.seen(images, batch.indices, batch.drawn, batch.mix)

    def replay(self, images: Images, temperature: float, weights: Tensor | None = None) -> Replay:
        """The batches for a training, whose images weigh `weights` (n,), or all the same."""

        def batches(number: int) -> Iterator[TrainingBatch]:
            for stored in self.epoch(number):
                said = stored.logits.to(images.labels.device)
                try:
                    seen = self.seen(images, stored)
                    weighed = mixed_weights(weights, stored.indices, *self._how.mixed(stored.mix))
                except (RuntimeError, LookupError, TypeError, ValueError) as error:  # what was drawn does not fit
                    raise DapError(
                        f"{self.folder / _file(number)} does not fit the set ({' '.join(str(error).split())[:100]}); delete "
                        "it and run the dap export that made it again."
                    ) from error
                yield seen, soft_loss(said, temperature, weighed)

        return batches


def open_labels(
    folder: str | Path, hashes: Sequence[str], class_names: Sequence[str], how: Labelling, command: str = AGAIN
) -> StoredLabels:
    """Labels for this set and protocol, of any seed, as `command` makes them; their columns come in the order of `class_names`.

    Raises:
        DapError: there are none, they are not finished, or they were made for other images, classes or steps, or for
            fewer epochs; the message says what differs.
    """
    folder = Path(folder)
    if not (folder / "index.json").is_file():
        state = "are not finished" if (folder / "begun.json").is_file() else "are not there (no index.json)"
        raise DapError(f"The labels in {folder} {state}; make them with {command}.")
    index = read_json(folder / "index.json", as_read(Index))
    if index.get("format") != FORMAT:
        raise DapError(f"{folder} has labels of format {index.get('format')}, and this version reads format {FORMAT}.")
    wanted = {**how.facts, "images": list(hashes), "classes": sorted(class_names)}
    written = {name: index[name] for name in wanted} | {"classes": sorted(index["classes"])}
    if changed := _differences(written, json.loads(json.dumps(wanted))):
        raise DapError(
            f"The labels in {folder} are of another set or protocol ({changed}); make others with {command}."
        )
    if (index.get("epochs") or 0) < how.epochs or not index.get("teacher_name"):
        told = f"{folder} has labels for {index.get('epochs') or 0} epochs, and {how.epochs} are wanted"
        raise DapError(f"{told}; make more with {command}, where DIR may be {folder}.")
    return StoredLabels(folder, index, how, [index["classes"].index(name) for name in class_names])


def _write_epoch(
    path: Path, key: str, images: Images, epoch: int, how: Labelling, teacher: Classifier | ImageLabels
) -> None:
    from safetensors.torch import save

    steps = split(how.steps)[1]
    generator = torch.Generator().manual_seed(seed_of(how.seed, "stored labels", epoch))
    order = torch.randperm(len(images), generator=generator)
    size = size_after(steps, *images.size)
    values, said = {"indices": order.int()}, []
    for b, chosen in enumerate(order.split(how.batch)):
        drawn = draw_all(steps, len(chosen), *images.size, generator)
        mix = None if how.mix is None else how.mix.draw(len(chosen), *size, generator)
        if isinstance(teacher, ImageLabels):
            found = teacher.logits(chosen, *how.mixed(mix))
        else:
            found = teacher.logits(unnormalised(how.steps, how.seen(images, chosen, drawn, mix)))
        logits = found.cpu().half()
        if not logits.isfinite().all():
            raise DapError(
                f"The teacher {teacher.name} says what half precision does not hold (infinite or no number)."
            )
        said.append(logits)
        for place, parameters in [*enumerate(drawn), ("mix", mix or {})]:
            values |= {f"{b}/{place}.{name}": value.contiguous() for name, value in parameters.items()}
    values["logits"] = torch.cat(said)
    write_atomically(path, save(values, {"key": key}))


def _is_whole(path: Path, key: str) -> bool:
    """Whether the file was written with this key and is as long as its own header says, which opening it checks."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as opened:
            return (opened.metadata() or {}).get("key") == key
    except (OSError, SafetensorError):
        return False


def _check_tensors(indices: Tensor, logits: Tensor, images: int, classes: int) -> None:
    """Raise ValueError unless each image stands in `indices` once and has finite logits."""
    if indices.ndim != 1 or not torch.equal(indices.sort().values, torch.arange(images)):
        raise ValueError(f"its indices are not those of {images} images")
    if tuple(logits.shape) != (images, classes) or not logits.is_floating_point() or not logits.isfinite().all():
        raise ValueError(f"its logits are not {images} x {classes} finite numbers")


def _file(epoch: int) -> str:
    return f"epoch-{epoch:05d}.safetensors"


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The differences in words. Of differing images only the numbers are given."""
    mine, theirs = new.pop("images"), old.pop("images")
    lines = [line.removeprefix("steps.") for line in differences(old, new)]
    if mine != theirs:
        same = len(set(mine) & set(theirs))
        how = "in another order" if sorted(mine) == sorted(theirs) else f"{same} of them the same"
        lines.append(f"images: {len(theirs)} -> {len(mine)}, {how}")
    return "; ".join(lines)
