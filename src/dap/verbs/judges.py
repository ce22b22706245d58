"""What the verbs that judge share: they open what `Judging` and `Machine` name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from dap.backbones import device_of
from dap.data.real.sources import Source
from dap.evaluation.judge import JudgingPlan, Loaded
from dap.evaluation.measures.embedding import embedding
from dap.evaluation.training.protocol import Protocol, load_protocol
from dap.recipe import Data
from dap.verbs.options import Judging, Machine
from dap.workshop import Workshop

LoadedFor = Callable[[Data], Loaded]
"""From the real data that a set was made of to what judging such sets needs."""


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


def judging_plan(judging: Judging, machine: Machine) -> JudgingPlan:
    """How sets are judged, with the protocol opened and the device chosen.

    Raises:
        DapError: the protocol is unknown or the device is not there.
    """
    return JudgingPlan(
        protocol=open_protocol(judging.protocol, judging.epochs, judging.changes),
        seeds=range(judging.trials),
        networks=judging.networks,
        device=str(device_of(machine.device)),
        teacher=judging.teacher,
        labels=judging.labels,
        offline=machine.offline,
        on=judging.on,
        neighbours=judging.neighbours,
        measures=judging.measures,
    )


def loader(judging: Judging, machine: Machine, workshop: Workshop) -> LoadedFor:
    """What judging needs, by the real data that sets were made of; it is loaded once for all sets of the same data.

    Raises:
        DapError: the protocol is unknown, or the file of the reference classifier cannot be used.
    """
    plan, made = judging_plan(judging, machine), dict[Data, Loaded]()
    size = plan.protocol.size
    if judging.reference:
        embedding("", size, judging.reference)  # a mistake is told now and not after an hour of training

    def loaded_for(data: Data) -> Loaded:
        sized = Data(**{**data.model_dump(), "size": size})  # the same data, whether a recipe or a resolved one says so

        def opened(split: Literal["train", "validation", "test"], side: int) -> Source:
            return workshop.source(sized.model_copy(update={"size": side}), split, "crop-bilinear")

        if sized not in made:
            made[sized] = Loaded(plan, opened, embedding(data.path, size, judging.reference, plan.device))
        return made[sized]

    return loaded_for
