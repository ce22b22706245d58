"""`dap export --layout fkd`: store a teacher's labels of every augmented image of a set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dap.backbones import device_of
from dap.base.errors import DapError
from dap.base.watch import Watcher
from dap.data.sets.distilled import DistilledSet
from dap.evaluation import labelling
from dap.verbs.judges import open_protocol
from dap.verbs.options import Machine, permitted


@permitted
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
    """Store a teacher's labels of every augmented batch of every epoch of a protocol.

    A protocol with stored labels, such as fkd-soft, then trains on these labels (`Judging.labels`) and needs no
    teacher.

    Args:
        made: the set. No image may be missing.
        out: the folder of the labels. Epochs that are there already are kept, so an interrupted call goes on.
        teacher: a file of `train_teacher`, or torchvision:NAME with its ImageNet weights.
        protocol: the protocol that gives the augmentation and the epochs: the name of a shipped protocol, or a YAML
            file.
        epochs: the number of epochs, instead of the protocol's own.
        changes: other values of the protocol's fields.
        machine: the device, the network and the CPU threads.
        watcher: is told of every epoch.

    Returns:
        The folder of the labels.

    Raises:
        DapError: no teacher is given, the set is not whole, or the teacher does not know its classes.
    """
    if not teacher:
        raise DapError("Stored labels need a teacher: --teacher FILE of dap train-teacher, or torchvision:NAME.")
    return labelling.store_labels(
        made if isinstance(made, DistilledSet) else DistilledSet.open(made),
        open_protocol(protocol, epochs, changes),
        Path(out),
        teacher=teacher,
        device=str(device_of(machine.device)),
        offline=machine.offline,
        progress=lambda done, total: watcher.epoch(0, done, total),
    )
