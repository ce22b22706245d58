"""`dap export --layout fkd`: a teacher's labels of every augmented image of a set, stored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dap.backbones import device_of
from dap.base.errors import DapError
from dap.base.watch import Watcher
from dap.data.sets.distilled import DistilledSet
from dap.evaluation import judge
from dap.verbs.judges import open_protocol
from dap.verbs.options import Machine


def store_labels(
    made: str | Path | DistilledSet,
    out: str | Path,
    *,
    teacher: str | None,
    protocol: str | Path = "fkd-soft",
    epochs: int | None = None,
    changes: Mapping[str, Any] | None = None,
    machine: Machine = Machine(),
    watcher: Watcher = Watcher(),
) -> Path:
    """Write down what a teacher says of every augmented batch of every epoch of a protocol.

    A protocol with stored labels, such as fkd-soft, then trains on them (`Judging.labels`), and no teacher is needed.

    Args:
        made: the set, whole.
        out: folder of the labels. Epochs that are there already are kept, so a call that was interrupted goes on.
        teacher: a file of `train_teacher`, or torchvision:NAME with its ImageNet weights.
        protocol: whose augmentation and epochs are taken; the name of a shipped protocol, or a YAML file.
        epochs: epochs instead of the protocol's own.
        changes: other values of the protocol's fields.
        machine: the device and its like.
        watcher: told of every epoch.

    Returns:
        The folder.

    Raises:
        DapError: no teacher is given, the set is not whole, or the teacher does not know its classes.
    """
    if not teacher:
        raise DapError("Stored labels need a teacher: --teacher FILE of dap train-teacher, or torchvision:NAME.")
    return judge.store_labels(
        made if isinstance(made, DistilledSet) else DistilledSet.open(made),
        open_protocol(protocol, epochs, changes),
        Path(out),
        teacher=teacher,
        device=str(device_of(machine.device)),
        offline=machine.offline,
        progress=lambda done, total: watcher.epoch(0, done, total),
    )
