"""Functions that all judging verbs share. They open the protocol, the data and the device that `Judging` and `Machine` name."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dap.backbones import device_of
from dap.base.errors import DapError
from dap.base.parsing import shown
from dap.data.real.finding.splits import Split
from dap.data.real.sources import EMBEDDED, Source
from dap.evaluation.measures.embedding import embedding, over_frames
from dap.evaluation.plan import JudgingPlan, Loaded
from dap.evaluation.suiting import suited_size, suited_values
from dap.evaluation.training.networks import check_name, check_width
from dap.evaluation.training.protocol import Protocol, load_protocol
from dap.recipe import Data
from dap.verbs.labelling.by_backbone import BackboneLabeller, is_backbone
from dap.verbs.options import Judging, Machine, images_budget
from dap.verbs.understood import check_apart
from dap.workshop import Workshop

LoadedFor = Callable[..., Loaded]
"""A function of real data, which returns what judging sets by them needs. Its second argument says whether the sets were drawn
from these data, so that their training images must be others than their test images; default: they were."""


@contextmanager
def naming(folder: Path, several: bool = True) -> Iterator[None]:
    """Name the set in this folder in what is raised here, so that a user with several sets knows which one is meant."""
    try:
        yield
    except DapError as error:
        if not several or str(error).startswith((f"{folder} ", f"The set {folder} ")):
            raise
        raise DapError(f"The set {shown(folder)} cannot be judged. {error}") from error


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


def suited_protocol(
    protocol: str | Path, epochs: int | None, given: Mapping[str, Any], size: int, source: Callable[[], Source]
) -> Protocol:
    """The protocol of this name or file at this size, with the mean and the standard deviation of the data where it takes
    them from the data. See `evaluation.suiting`.

    Args:
        protocol, epochs: as for `open_protocol`.
        given: the fields that the user gave.
        size: the size that suits the data.
        source: opens the training images at this size. It is called where their values are wanted.

    Raises:
        DapError: as for `open_protocol` and `suited_values`.
    """
    chosen = open_protocol(protocol, epochs, given)
    changes = {} if size == chosen.size else {"size": size}
    changes |= suited_values(chosen, given, source)
    return open_protocol(protocol, epochs, {**given, **changes}) if changes else chosen


def suited_plan(
    plan: JudgingPlan, judging: Judging, side: int | None, train: Callable[[int], Source] | None
) -> JudgingPlan:
    """The plan for sets of this side, whose protocol suits the data as `evaluation.suiting` says.

    Args:
        plan: the plan that `judging_plan` made of `judging`.
        side: as for `suited_size`.
        train: opens the training images at a size. None: there are none, and the mean and the standard deviation stay.
    """
    given = {**judging.changes}
    changes = suited_size(plan.protocol, given, side)
    size = changes.get("size", plan.protocol.size)
    if train is None:
        protocol = open_protocol(judging.protocol, judging.epochs, {**given, **changes})
    else:
        protocol = suited_protocol(judging.protocol, judging.epochs, given, size, lambda: train(size))
    return dataclasses.replace(plan, protocol=protocol)


def source_of(workshop: Workshop, data: Data, split: Split, size: int) -> Source:
    """The real images of a split at this size, as judging reads them."""
    return workshop.source(Data(**{**data.model_dump(), "size": size}), split, "crop-bilinear")


def judging_plan(judging: Judging, machine: Machine, workshop: Workshop | None = None) -> JudgingPlan:
    """The plan of how sets are judged. The protocol is opened, the names of the networks are looked up, and the device is chosen.

    Args:
        judging: how sets are judged.
        machine: the device.
        workshop: loads the backbone where one is the teacher; None where there are no real training images.

    Raises:
        DapError: the protocol or a network is unknown, there is no such device, or a backbone has no real training images.
    """
    labeller = None
    if is_backbone(judging.teacher):
        if workshop is None:
            raise DapError(
                f"The labels of {judging.teacher} need real training images to choose their temperature; give the data by name "
                "or folder."
            )
        labeller = BackboneLabeller(str(judging.teacher), workshop)
    plan = JudgingPlan(
        protocol=open_protocol(judging.protocol, judging.epochs, judging.changes),
        seeds=range(judging.trials),
        networks=judging.networks,
        device=str(device_of(machine.device)),
        teacher=judging.teacher,
        labeller=labeller,
        labels=judging.labels,
        offline=machine.offline,
        on=judging.on,
        neighbours=judging.neighbours,
        measures=judging.measures,
        flags=_flags(judging),
        budget=images_budget(machine),
    )
    for network in plan.all_networks:
        check_name(network)
    if "width" in judging.changes:
        check_width(plan.all_networks)
    return plan


def _flags(judging: Judging) -> list[str]:
    """The flags that give a protocol and its fields."""
    flags = ["--protocol", str(judging.protocol)]
    flags += [] if judging.epochs is None else ["--epochs", str(judging.epochs)]
    for field, value in judging.changes.items():
        flags += ["--set", f"{field}={value if isinstance(value, str) else json.dumps(value)}"]
    return flags


def _data_flags(data: Data) -> list[str]:
    places = [] if data.split is None else [f"{split}={place}" for split, place in data.split.given().items()]
    return ["--data", data.path, *(["--split", ",".join(places)] if places else [])]


def loader(judging: Judging, machine: Machine, workshop: Workshop) -> LoadedFor:
    """A function that gives what judging needs, for the real data of a set. All sets of the same data share one result.

    The size of the data is that of the sets. What the protocol takes from the data is said in `evaluation.suiting`.

    Raises:
        DapError: the protocol is unknown, or the file of the reference classifier cannot be used.
    """
    plan, made = judging_plan(judging, machine, workshop), dict[Data, Loaded]()
    given = {**judging.changes}
    if judging.reference:
        embedding("", plan.protocol.size, judging.reference)  # a mistake raises now, not after an hour of training

    def loaded_for(data: Data, drawn: bool = True) -> Loaded:
        own = data.path == EMBEDDED
        changes = {} if own else suited_size(plan.protocol, given, data.size)
        size = changes.get("size", plan.protocol.size)
        sized = Data(**{**data.model_dump(), "size": size})  # one key for data of a recipe and of a resolved one
        if drawn:
            check_apart(
                workshop, sized
            )  # lists the data, which are listed once, before anything else is done with them
        if sized not in made:
            suited = plan if drawn else dataclasses.replace(plan, flags=[*plan.flags, *_data_flags(data)])
            if not own:
                train = source_of(workshop, sized, "train", size)
                protocol = suited_protocol(judging.protocol, judging.epochs, given, size, lambda: train)
                suited = dataclasses.replace(suited, protocol=protocol)
            if data.frames and judging.reference:
                raise DapError(
                    f"{judging.reference} is a network of images, and {data.path} is read as clips; leave out --reference."
                )
            features = embedding(data.path, size, judging.reference, plan.device)
            features = over_frames(features) if data.frames else features
            made[sized] = Loaded(suited, functools.partial(source_of, workshop, sized), features)
        return made[sized]

    return loaded_for
