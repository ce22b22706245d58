"""`dap train-teacher`: train a classifier on all real images. It gives soft labels, and its accuracy is a ceiling for sets."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dap.backbones import device_of
from dap.base.errors import DapError
from dap.base.files import check_file, expanded
from dap.base.store import checkpoint_seconds
from dap.base.watch import Watcher
from dap.data.real.finding.outputs import check_outside_source
from dap.data.real.sources import EMBEDDED, Source
from dap.engines.ranks import device_for, rank_of
from dap.evaluation.suiting import suited_size, suited_values
from dap.evaluation.training.in_step import Group, joined
from dap.evaluation.training.loading import save_classifier
from dap.evaluation.training.networks import check_name, check_width
from dap.evaluation.training.protocol import Protocol
from dap.evaluation.training.trained import train_classifier
from dap.evaluation.training.trials import Trial
from dap.recipe import Recipe
from dap.verbs.distill import open_workshop
from dap.verbs.judges import open_protocol
from dap.verbs.options import Engine, Machine, images_budget, kind_of, permitted
from dap.verbs.training.in_step import run_in_step, take_part
from dap.verbs.understood import check_apart, check_out


def check_new(out: Path) -> None:
    """Check that the file of a teacher can be written and is not there yet. Raises `DapError` if not."""
    if out.exists():
        raise DapError(f"{out} is there already; choose another --out.")
    check_file(out)


class Ready(NamedTuple):
    """What a teacher is trained on and tested on, and by which protocol."""

    train: Source
    test: Source
    protocol: Protocol


def opened(
    data: str | Path | tuple[Source, Source],
    out: Path,
    *,
    classes: Sequence[str] | None,
    max_bad_fraction: float | None,
    split: Any,
    network: str | None,
    protocol: str | Path,
    epochs: int | None,
    changes: Mapping[str, Any] | None,
    machine: Machine,
    watcher: Watcher,
) -> Ready:
    """Open what `train_teacher` needs, with the size and the normalisation that suit the data.

    Raises:
        DapError: there is no such data, protocol or network, or the file would lie among the images.
    """
    chosen = open_protocol(protocol, epochs, changes, network=network)
    check_name(chosen.network)  # before the data are looked through
    if "width" in (changes or {}):
        check_width([chosen.network])
    workshop = open_workshop(machine, watcher=watcher)
    if isinstance(data, tuple):
        train, test = data
        check_outside_source(out.parent, train)
    else:
        values = {"path": str(data), "classes": classes, "size": chosen.size, "split": split}
        values |= {} if max_bad_fraction is None else {"max_bad_fraction": max_bad_fraction}
        wanted = Recipe.parse({"data": values}).data
        check_apart(workshop, wanted)
        check_out(workshop, wanted, out.parent)
        if wanted.path != EMBEDDED:
            given = changes or {}
            side = workshop.source(wanted, "train").side()
            suited = suited_size(chosen, given, side)
            wanted = wanted.model_copy(update=suited)
            suited |= suited_values(chosen, given, lambda: workshop.source(wanted, "train"))
            chosen = open_protocol(protocol, epochs, {**given, **suited}, network=network)
        train, test = workshop.source(wanted, "train"), workshop.source(wanted, "test")
    return Ready(train, test, chosen)


@permitted
def train_teacher(
    data: str | Path | tuple[Source, Source],
    out: str | Path,
    *,
    classes: Sequence[str] | None = None,
    max_bad_fraction: float | None = None,
    split: Any = None,
    network: str | None = None,
    protocol: str | Path = "reference",
    epochs: int | None = None,
    changes: Mapping[str, Any] | None = None,
    seed: int = 0,
    machine: Machine = Machine(),
    watcher: Watcher = Watcher(),
    engine: Engine = Engine(),
) -> Trial:
    """Train a network on all real images, test it on the real test images, and write it to a file.

    An interrupted call goes on from its checkpoint when it is made again. The checkpoint lies beside `out`.

    Args:
        data: the real images: "fashion-mnist", a folder, or an opened training source and test source.
        out: the file to write, such as teacher.safetensors.
        classes: the classes to use, in label order, or the name of a subset of ImageNet. Default: all classes. Only for
            data that are given by name or folder.
        max_bad_fraction: the largest fraction of the real images that may be broken; by default 0.01.
        split: where the splits lie, as `data.split` of a recipe: "train=FOLDER,test=FOLDER".
        network: the network, instead of the protocol's own: resnet18, convnet3, file.py:build.
        protocol: the name of a shipped protocol, or a YAML file.
        epochs: the number of training epochs, instead of the protocol's own.
        changes: other values of the protocol's fields, such as {"size": 64}.
        seed: the seed of the training.
        machine: the device, the network, the cache and the CPU threads.
        watcher: is told of every epoch.
        engine: how several processes train the network in step, each on a part of every batch. `Engine(workers=N)` starts
            them on this machine, one on each GPU. `Engine(engine="shard")` is for processes that `torchrun` has started,
            also on several machines that see the folder of `out`. The data must then be a name or a folder. The result
            depends on the number of processes; see `dap.evaluation.training.in_step`.

    Returns:
        The training, with its accuracy on the test images.

    Raises:
        DapError: the file is there already, or there is no such data, protocol or network.
    """
    out, kind = Path(out), kind_of(engine)
    check_new(out)
    if kind == "ray":
        raise DapError(
            "The processes that train a teacher work in step, so they are started together: by --workers N on one machine, or by "
            "torchrun with --engine shard on several."
        )
    if kind != "alone" and isinstance(data, tuple):
        raise DapError("Several processes need data that each of them can find; give a folder or a name.")
    asked: dict[str, Any] = {
        "classes": classes,
        "max_bad_fraction": max_bad_fraction,
        "split": split,
        "network": network,
        "protocol": protocol,
        "epochs": epochs,
        "changes": changes,
    }
    kept = out.with_name(out.name + ".partial")
    if kind == "shard":
        rank = rank_of(engine.shard)
        machine = replace(machine, device=device_for(machine.device, rank, torch.cuda.device_count()))
        with joined(device_of(machine.device)) as group:
            ready = opened(data, out, **asked, machine=machine, watcher=watcher)
            return _train(ready, out, kept, seed, machine, watcher, group)
    ready = opened(data, out, **asked, machine=machine, watcher=watcher)
    if kind == "alone":
        return _train(ready, out, kept, seed, machine, watcher)
    settled = {"classes": [classes] if isinstance(classes, str) else classes, "protocol": str(protocol)}
    place = data if str(data) == EMBEDDED else expanded(str(data)).absolute()
    told = {**asked, **settled, "seed": seed, "data": place, "out": out.absolute(), "machine": machine}
    return run_in_step(told, out.absolute().parent, engine.workers or 1, watcher)


def _train(
    ready: Ready, out: Path, kept: Path, seed: int, machine: Machine, watcher: Watcher, group: Group | None = None
) -> Trial:
    """Train in this process, alone or in step with others. The first process of a group writes the file."""
    classifier, trial = train_classifier(
        ready.train,
        ready.test,
        ready.protocol,
        seed=seed,
        device=str(device_of(machine.device)),
        progress=watcher.epoch,
        checkpoints=kept,
        every=checkpoint_seconds(),
        budget=images_budget(machine),
        group=group,
    )
    if group is None or group.number == 0:
        save_classifier(classifier, out)
        shutil.rmtree(kept, ignore_errors=True)
    return trial


def work_on(job: Path, watcher: Watcher) -> None:
    """Take part in the training that a parent process wrote into the file `job`. The command `dap worker FILE` calls this."""
    del watcher  # the parent is told by a file
    take_part(job, train_teacher)
