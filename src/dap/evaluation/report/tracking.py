"""Finished sets and their trials as runs of TensorBoard or Weights & Biases, both optional."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np

from dap.base.errors import DapError
from dap.evaluation.report.gallery import MAX_CLASSES, MAX_SLOTS, file_in
from dap.evaluation.report.records import Json, SetRecord, is_number
from dap.evaluation.report.summary import flatten

Tracker = Literal["tensorboard", "wandb"]
TRACKERS = ("tensorboard", "wandb")


class Run(Protocol):
    """What both trackers are asked to do for one set."""

    def scalars(self, curve: str, points: Sequence[tuple[int, float]]) -> None:
        """One curve: (epoch, value)."""
        ...

    def figures(self, values: Mapping[str, float]) -> None:
        """Figures that have no epoch."""
        ...

    def images(self, name: str, images: Sequence[tuple[str, Any]]) -> None:
        """Captioned images (h, w, 3), uint8."""
        ...

    def close(self) -> None:
        """Write everything out."""
        ...


def require(to: str) -> None:
    """Raises DapError unless the tracker is known and its package is installed; the message says how to get it."""
    if to not in TRACKERS:
        raise DapError(f"There is no tracker {to!r}; choose {' or '.join(TRACKERS)}.")
    if find_spec(to) is None:
        raise DapError(f"--track {to} needs the package {to}; install it with: pip install 'diffusion-as-priors[{to}]'")


def track(sets: Sequence[SetRecord], to: str, where: Path, project: str = "dap") -> Path:
    """Log every finished set as a run: its recipe, the accuracy of its trials by epoch, its measures and its images.

    A set whose images are not all there is left out. TensorBoard replaces what it had logged for a set in this place;
    Weights & Biases starts new runs, and sends them unless `WANDB_MODE` is "offline".

    Args:
        sets: from `records.load`.
        to: "tensorboard" or "wandb".
        where: the folder of the report; the runs go into a folder of the tracker's name in it.
        project: of Weights & Biases.

    Returns:
        The folder the runs lie in.

    Raises:
        DapError: the tracker is unknown or not installed, or Weights & Biases starts no run.
    """
    require(to)
    where = Path(where)
    folder = where / to
    folder.mkdir(parents=True, exist_ok=True)
    for name, record in _named(sets):
        config = {**flatten(record.recipe), "command": record.command, "path": str(record.path)}
        run: Run = _Board(folder / name, config) if to == "tensorboard" else _Weights(where, project, name, config)
        try:
            _log(record, run)
        finally:
            run.close()
    return folder


def _named(sets: Sequence[SetRecord]) -> Iterator[tuple[str, SetRecord]]:
    """Finished sets and the name of each run: its path below what all sets share."""
    paths = [record.path.resolve() for record in sets]
    shared = Path(os.path.commonpath([path.parent for path in paths])) if paths else Path()
    for path, record in zip(paths, sets, strict=True):
        if len(record.images) >= record.ipc * len(record.class_names):
            yield path.relative_to(shared).as_posix(), record


def _log(record: SetRecord, run: Run) -> None:
    for trial in record.trials:
        name = f"{trial['network']}/{trial['protocol']}/seed{trial.get('seed', 0)}"
        run.scalars(f"accuracy/{name}", list(_curve(trial)))
        run.figures({f"last/{name}": trial["last"], f"best/{name}": trial["best"]})
    run.figures({f"measures/{k}": float(v) for k, v in record.measures.items() if is_number(v)})
    for label, name in list(enumerate(record.class_names))[:MAX_CLASSES]:
        of_class = [image for image in record.images if image["label"] == label][:MAX_SLOTS]
        shown = [(f"{name}, slot {i['slot']}", pixels) for i in of_class if (pixels := _pixels(record, i)) is not None]
        if shown:
            run.images(f"images/{name}", shown)


def _curve(trial: Json) -> Iterator[tuple[int, float]]:
    curve = trial.get("curve")
    for point in curve if isinstance(curve, list) else ():
        if isinstance(point, list) and len(point) == 2 and all(map(is_number, point)):
            yield int(point[0]), float(point[1])


def _pixels(record: SetRecord, image: Json) -> Any:
    """The image as (h, w, 3), uint8; None where it cannot be read."""
    from PIL import Image

    file = file_in(record, image["path"])
    try:
        return None if file is None else np.asarray(Image.open(file).convert("RGB"))
    except (OSError, ValueError, SyntaxError):
        return None


class _Board:
    def __init__(self, folder: Path, config: Json) -> None:
        from torch.utils.tensorboard import SummaryWriter

        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = SummaryWriter(str(folder))
        self._writer.add_text("recipe", f"```json\n{json.dumps(config, indent=2, default=str)}\n```")

    def scalars(self, curve: str, points: Sequence[tuple[int, float]]) -> None:
        for epoch, value in points:
            self._writer.add_scalar(curve, value, epoch)

    def figures(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, 0)

    def images(self, name: str, images: Sequence[tuple[str, Any]]) -> None:
        height = max(pixels.shape[0] for _, pixels in images)
        padded = [np.pad(p, ((0, height - p.shape[0]), (0, 2), (0, 0))) for _, p in images]
        self._writer.add_image(name, np.concatenate(padded, axis=1), dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class _Weights:
    def __init__(self, where: Path, project: str, name: str, config: Json) -> None:
        import wandb

        self._wandb = wandb
        settings = wandb.Settings(console="off", silent=True)
        try:
            self._run = wandb.init(project=project, name=name, dir=str(where), config=dict(config), settings=settings)
        except wandb.Error as error:
            said = " ".join(str(error).split()).rstrip(".")
            raise DapError(
                f"Weights & Biases starts no run: {said}. Run `wandb login`, or set WANDB_MODE=offline."
            ) from error

    def scalars(self, curve: str, points: Sequence[tuple[int, float]]) -> None:
        # Curves of several trials share one run, so the epoch is an axis of its own and not the run's step.
        self._run.define_metric(curve, step_metric="epoch")
        for epoch, value in points:
            self._run.log({curve: value, "epoch": epoch})

    def figures(self, values: Mapping[str, float]) -> None:
        self._run.summary.update(dict(values))

    def images(self, name: str, images: Sequence[tuple[str, Any]]) -> None:
        self._run.log({name: [self._wandb.Image(pixels, caption=caption) for caption, pixels in images]})

    def close(self) -> None:
        cast(Any, self._run).finish()
