"""What the verbs that judge share: from the words of `Judging` and `Machine` to a protocol, a workshop and judges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from dap.backbones import device_of
from dap.base.store import checkpoint_seconds
from dap.data.real.sources import Source
from dap.evaluation.judge import Judge
from dap.evaluation.measures.embedding import embedding
from dap.evaluation.training.protocol import Protocol, load_protocol
from dap.recipe import Data
from dap.verbs.options import Judging, Machine
from dap.workshop import Workshop

JudgeFor = Callable[[Data], Judge]
"""From the real data that a set was made of to the judge of such sets. The judge is made once for each data."""


def open_workshop(machine: Machine) -> Workshop:
    """A new workshop on this machine. It loads nothing until something is asked of it."""
    if machine.threads:
        torch.set_num_threads(machine.threads)
    return Workshop(machine.device, machine.offline, machine.cache)


def open_protocol(
    protocol: str | Path, epochs: int | None = None, changes: Mapping[str, Any] | None = None, **more: Any
) -> Protocol:
    """The protocol of this name or file, with other values for some of its fields.

    Args:
        protocol: the name of a shipped protocol, or a YAML file.
        epochs: training epochs instead of the protocol's own.
        changes: field -> value, such as {"size": 64}.
        more: further fields; a field whose value is None keeps the protocol's own value.

    Raises:
        DapError: there is no such protocol, field or value.
    """
    given = {name: value for name, value in {"epochs": epochs, **more}.items() if value is not None}
    return load_protocol(str(protocol), **{**given, **(changes or {})})


def judges(judging: Judging, machine: Machine, workshop: Workshop) -> JudgeFor:
    """Judges of sets, by the real data that the sets were made of; the data are loaded once for all sets of them.

    Raises:
        DapError: the protocol is unknown, or the file of the reference classifier cannot be used.
    """
    protocol = open_protocol(judging.protocol, judging.epochs, judging.changes)
    device = str(device_of(machine.device))
    if judging.reference:
        embedding("", protocol.size, judging.reference)  # a mistake is told now and not after an hour of training

    made: dict[Data, Judge] = {}

    def new(data: Data) -> Judge:
        def opened(split: Literal["train", "validation", "test"], size: int) -> Source:
            return workshop.source(data.model_copy(update={"size": size}), split, "crop-bilinear")

        return Judge(
            opened,
            protocol,
            range(judging.trials),
            embedding(data.path, protocol.size, judging.reference, device),
            judging.networks,
            device,
            teacher=judging.teacher,
            labels=judging.labels,
            offline=machine.offline,
            on=judging.on,
            every=checkpoint_seconds(),
            neighbours=judging.neighbours,
        )

    def judge_for(data: Data) -> Judge:
        sized = data.model_copy(update={"size": protocol.size})
        if sized not in made:
            made[sized] = new(sized)
        return made[sized]

    return judge_for
