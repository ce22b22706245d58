"""Functions that all judging verbs share. They open the protocol, the data and the device that `Judging` and `Machine` name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from dap.backbones import device_of
from dap.data.real.sources import Source
from dap.evaluation.measures.embedding import embedding
from dap.evaluation.plan import JudgingPlan, Loaded
from dap.evaluation.training.protocol import Protocol, load_protocol
from dap.recipe import Data
from dap.verbs.options import Judging, Machine
from dap.verbs.understood import check_apart
from dap.workshop import Workshop

LoadedFor = Callable[[Data], Loaded]
"""A function of the real data that a set was made of. It returns what judging such sets needs."""


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
    """The plan of how sets are judged. The protocol is opened and the device is chosen.

    Raises:
        DapError: the protocol is unknown or there is no such device.
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
    """A function that gives what judging needs, for the real data of a set. All sets of the same data share one result.

    Raises:
        DapError: the protocol is unknown, or the file of the reference classifier cannot be used.
    """
    plan, made = judging_plan(judging, machine), dict[Data, Loaded]()
    size = plan.protocol.size
    if judging.reference:
        embedding("", size, judging.reference)  # a mistake raises now, not after an hour of training

    def loaded_for(data: Data) -> Loaded:
        sized = Data(**{**data.model_dump(), "size": size})  # one key for data of a recipe and of a resolved one

        def opened(split: Literal["train", "validation", "test"], side: int) -> Source:
            return workshop.source(sized.model_copy(update={"size": side}), split, "crop-bilinear")

        if sized not in made:
            check_apart(workshop, sized)
            made[sized] = Loaded(plan, opened, embedding(data.path, size, judging.reference, plan.device))
        return made[sized]

    return loaded_for
