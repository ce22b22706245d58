"""Finished sets and their trials are logged as runs of TensorBoard or of Weights & Biases. Both packages are
optional."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from dap.base.disk import writing
from dap.base.errors import DapError
from dap.base.parsing import counted, shown
from dap.data.sets.differences import flatten
from dap.evaluation.report.gallery import LARGEST_IMAGE, MAX_CLASSES, MAX_SLOTS, file_in
from dap.evaluation.report.records import Json, SetRecord, is_number
from dap.evaluation.training.trials import APART

log = logging.getLogger("dap")

TRACKERS = ("tensorboard", "wandb")


class Run(Protocol):
    """The run of one set in a tracker. Both trackers offer these four methods."""

    def scalars(self, curve: str, points: Sequence[tuple[int, float]]) -> None:
        """Log one curve. Each point is a pair (epoch, value)."""
        ...

    def figures(self, values: Mapping[str, float]) -> None:
        """Log numbers that belong to no epoch, by name."""
        ...

    def images(self, name: str, images: Sequence[tuple[str, Any]]) -> None:
        """Log pairs of a caption and an image (h, w, 3), uint8."""
        ...

    def close(self) -> None:
        """End the run and write out everything that was logged."""
        ...


def require(to: str) -> None:
    """Check that the tracker is known and that its package is installed.

    Raises:
        DapError: the tracker is unknown or not installed. The message then names the trackers or says how to install
            it.
    """
    if to not in TRACKERS:
        raise DapError(f"There is no tracker {to!r}; choose {' or '.join(TRACKERS)}.")
    if find_spec(to) is None:
        raise DapError(f"--track {to} needs the package {to}; install it with: pip install 'diffusion-as-priors[{to}]'")


def track(sets: Sequence[SetRecord], to: str, where: Path, project: str = "dap") -> Path:
    """Log every finished set as one run: its recipe, the accuracy of its trials by epoch, its measures and its images.

    A set that still lacks images of its recipe is left out, and a warning names it. With TensorBoard, a new run of a set replaces
    the earlier run of the same name in the same folder. Weights & Biases starts a new run each time, and sends the run to its
    server unless `WANDB_MODE` is "offline".

    Args:
        sets: the sets, as `records.load` returns them.
        to: the tracker, "tensorboard" or "wandb".
        where: the folder of the report. The runs go into a subfolder that has the name of the tracker.
        project: the name of the project at Weights & Biases. TensorBoard does not use this name.

    Returns:
        The subfolder with the runs.

    Raises:
        DapError: the tracker is unknown or not installed, or Weights & Biases starts no run.
    """
    require(to)
    where = Path(where)
    folder = where / to
    folder.mkdir(parents=True, exist_ok=True)
    for name, record in _named(sets):
        config = {**flatten(record.recipe), "command": record.command, "path": str(record.path)}
        with writing(folder):
            run: Run = _Board(folder / name, config) if to == "tensorboard" else _Weights(where, project, name, config)
            try:
                _log(record, run)
            finally:
                run.close()
    return folder


def _named(sets: Sequence[SetRecord]) -> Iterator[tuple[str, SetRecord]]:
    """Pairs of a run name and a finished set. The name is the set's path relative to the folder that holds all sets."""
    paths = [record.path.resolve() for record in sets]
    shared = Path(os.path.commonpath([path.parent for path in paths])) if paths else Path()
    for path, record in zip(paths, sets, strict=True):
        # Only a recipe says how many images a set has. The classes of others may have unequally many.
        of = record.ipc * len(record.class_names) if isinstance(record.recipe.get("ipc"), int) else 0
        if (lacking := of - len(record.images)) > 0:
            log.warning("%s is not logged, as it still lacks %s", shown(record.path), counted(lacking, record.noun))
        else:
            yield path.relative_to(shared).as_posix(), record


def _log(record: SetRecord, run: Run) -> None:
    for trial in record.trials:
        apart = f" ({trial[APART]})" if trial.get(APART) else ""
        name = f"{trial['network']}/{trial['protocol']}{apart}/seed{trial.get('seed') or 0}"
        run.scalars(f"accuracy/{name}", list(_curve(trial)))
        run.figures({f"last/{name}": trial["last"], f"best/{name}": trial["best"]})
    run.figures({f"measures/{k}": float(v) for k, v in record.measures.items() if is_number(v)})
    for label, name in list(enumerate(record.class_names))[:MAX_CLASSES]:
        of_class = [image for image in record.images if image["label"] == label][:MAX_SLOTS]
        pictures = [
            (f"{name}, slot {i['slot']}", pixels) for i in of_class if (pixels := _pixels(record, i)) is not None
        ]
        if pictures:
            run.images(f"images/{name}", pictures)


def _curve(trial: Json) -> Iterator[tuple[int, float]]:
    curve = trial.get("curve")
    for point in curve if isinstance(curve, list) else ():
        if isinstance(point, list) and len(point) == 2 and all(map(is_number, point)):
            yield int(point[0]), float(point[1])


def _pixels(record: SetRecord, image: Json) -> Any:
    """The pixels of the image (h, w, 3), uint8; None where the image cannot be read."""
    from dap.data.real.decode import BrokenImage, pixels

    file = file_in(record, image["path"])
    try:
        return None if file is None else pixels(file, LARGEST_IMAGE)
    except BrokenImage:
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
        # One run holds the curves of several trials, and a run has one step counter. The epoch is therefore a separate
        # axis.
        self._run.define_metric(curve, step_metric="epoch")
        for epoch, value in points:
            self._run.log({curve: value, "epoch": epoch})

    def figures(self, values: Mapping[str, float]) -> None:
        self._run.summary.update(dict(values))

    def images(self, name: str, images: Sequence[tuple[str, Any]]) -> None:
        self._run.log({name: [self._wandb.Image(pixels, caption=caption) for caption, pixels in images]})

    def close(self) -> None:
        cast(Any, self._run).finish()
