"""Train networks on a small set and test them: `evaluate` yields one `Trial` a seed."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import torch
from torch import Tensor, nn

from dap.base.errors import DapError
from dap.data.real.stored.budget import Budget
from dap.evaluation.training.batches import (
    AHEAD,
    KEPT_BYTES,
    Images,
    Labelled,
    accuracy,
    check_labelled,
    confusion,
    gpu_room,
)
from dap.evaluation.training.fitting import (
    Checkpoint,
    Replay,
    Training,
    check_last_batch,
    new_network,
    run_with_checkpoint,
    seeded,
)
from dap.evaluation.training.in_step import Group
from dap.evaluation.training.labels import ClassifierLike, ImageLabels, Soft, Stored
from dap.evaluation.training.protocol import Protocol
from dap.evaluation.training.transforms import size_after, split
from dap.evaluation.training.trials import Trial

__all__ = ["Labelled", "Plan", "Trial", "evaluate", "train_and_test"]

log = logging.getLogger("dap")

Progress = Callable[[int, int, int], object]
"""Called after every epoch with the seed, the epochs finished and the epochs to run."""

LAYOUT = 4
"""The version of the contents of a checkpoint, and of what a training does with them; a checkpoint of another version is not
used."""
MOST_CLASSES = 100
"""With more classes a trial does not keep its confusion matrix."""


class Replayed(Interface):
    """Stored labels, as `stored_labels.StoredLabels` has them."""

    @property
    def teacher(self) -> str:
        """The name of the classifier that gave the labels."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes with everything that the labels depend on."""
        ...

    def replay(self, images: Images, temperature: float, weights: Tensor | None = None) -> Replay:
        """The batches for a training, whose images weigh `weights` (n,), or all the same."""
        ...


@dataclass(frozen=True)
class Plan:
    """The options of `evaluate` beside data, protocol and seeds; each has a default.

    Args:
        network: the network to train instead of the protocol's own.
        device: where to train.
        teacher: the classifier that gives soft labels, or the labels of the images, for a protocol that trains on them.
        stored: stored labels, for a protocol that trains on them; see `stored_labels.open_labels`.
        progress: called after every epoch.
        checkpoints: folder in which an unfinished training is kept, so that it continues after a kill; None keeps
            nothing.
        every: seconds between two checkpoints.
        tested_on: the split of the test images, "test" or "validation"; it is written into the trials.
        weights: (n,), the weight of each image of the training set, for a protocol that uses them.
        budget: how much memory transformed images may take; default: what is free, less a reserve.
        group: the processes that train each network in step; None: this process alone.
    """

    network: str | None = None
    device: str | torch.device = "cpu"
    teacher: ClassifierLike | ImageLabels | None = None
    stored: Replayed | None = None
    progress: Progress | None = None
    checkpoints: Path | None = None
    every: float = 60.0
    tested_on: str = "test"
    weights: Tensor | None = None
    budget: Budget | None = None
    group: Group | None = None


def evaluate(
    train: Labelled, test: Labelled, protocol: Protocol, seeds: Sequence[int], *, classes: int, **plan: Any
) -> Iterator[Trial]:
    """Train a network on `train` for every seed and test it on `test`. Everything is checked before the first epoch.

    The training never sees the test images. They pass through the network at the protocol's looks, without a gradient,
    and the training does not depend on the result.

    A trial is a function of its seed: initialisation, order and augmentation have their own generators, and torch's
    global generators are left as they were. On a CPU with the same number of threads a trial repeats bit for bit, also
    if the training was interrupted.

    Args:
        train: the distilled set.
        test: real images.
        protocol: the recipe; it is settled for this set.
        seeds: every seed gives one trial.
        classes: number of labels.
        plan: fields of `Plan`.

    Raises:
        DapError: a set is empty, images and labels disagree, a label is outside [0, classes), there are fewer than two
            classes, images are not in [0, 1] or too small, the network is unknown, a teacher is wanting; or, while it
            runs, the loss is no longer finite. Whoever then asks again gets the trial of the next seed.
    """
    ready = _Ready(train, test, protocol, classes, Plan(**plan))
    return map(lambda seed: ready.trial(seed)[1], seeds)  # a generator would end with the first training that fails


def train_and_test(
    train: Labelled, test: Labelled, protocol: Protocol, seed: int, *, classes: int, **plan: Any
) -> tuple[nn.Module, Trial]:
    """One trial of `evaluate`, and its network in evaluation mode."""
    return _Ready(train, test, protocol, classes, Plan(**plan)).trial(seed)


class _Ready:
    """Checked and transformed data, from which any number of trials can be made."""

    def __init__(self, train: Labelled, test: Labelled, protocol: Protocol, classes: int, plan: Plan) -> None:
        check_labelled("training set", train, classes)
        check_labelled("test set", test, classes)
        self.channels = train[0].shape[1]
        if test[0].shape[1] != self.channels:
            raise DapError(f"The training images have {self.channels} channels and the test images {test[0].shape[1]}.")
        device = torch.device(plan.device)
        ipc = int(train[1].bincount().max())
        self.protocol = protocol.settled(ipc=ipc, classes=classes, network=plan.network)
        self.classes, self.plan = classes, plan
        _check_labels(self.protocol, plan, len(train[0]))
        for what, steps, images in (
            ("training", self.protocol.train_steps, train[0]),
            ("test", self.protocol.test_steps, test[0]),
        ):
            found, size = size_after(steps, *images.shape[2:]), self.protocol.size
            if found != (size, size):
                raise DapError(
                    f"The steps of {self.protocol.name} leave the {what} images {found[0]} x {found[1]} px where its "
                    f"networks see {size} px; they need a crop, or other images."
                )
        with seeded(0, device):  # an unknown or unfit network shows here, not after an hour
            new_network(self.protocol.network, self.protocol, self.channels, classes)
        check_last_batch(self.protocol.network, self.protocol, self.channels, classes, len(train[0]))
        fixed, _ = split(self.protocol.train_steps)
        most = (plan.budget or Budget()).memory // 4
        room = gpu_room(device)
        self.train = Images(train, fixed, device, keep=most, room=room)
        self.plain, self.test = (
            Images(one, self.protocol.test_steps, device, keep=min(KEPT_BYTES, most), room=room)
            for one in (train, test)
        )
        self.replay = None
        if plan.stored is not None and isinstance(self.protocol.labels, Stored):
            weights = None if plan.weights is None else plan.weights.to(device)
            self.replay = plan.stored.replay(self.train, self.protocol.labels.temperature, weights)
        if plan.group is not None and self.replay is not None:
            raise DapError("Stored labels belong to whole batches, so one process trains on them; leave out --workers.")
        if plan.group is None:
            self.key = _key(train, self.protocol, plan)
        else:  # hashing reads all images, so one process does it for all
            self.key = plan.group.agreed(None if plan.group.number else _key(train, self.protocol, plan))

    def trial(self, seed: int) -> tuple[nn.Module, Trial]:
        """The network of a seed, trained, and its trial."""
        protocol, plan = self.protocol, self.plan
        first = protocol.first_epoch
        device = str(self.test.labels.device)
        notes: dict[str, Any] = {"curve": [], "seconds": 0.0, "devices": []}
        counts: list[Tensor] = []
        """Holds the confusion matrix of the last look, and is empty before the first look."""

        def after(epoch: int, net: nn.Module) -> None:
            if device not in notes["devices"]:
                notes["devices"].append(device)
            if epoch in protocol.look_epochs:
                counts[:] = [confusion(net, self.test, self.classes, plan.group)]
                notes["curve"].append([epoch, accuracy(counts[0])])
            if plan.progress is not None:
                plan.progress(seed, epoch - first + 1, protocol.passes)

        training = Training(
            self.train,
            protocol,
            seed,
            network=protocol.network,
            channels=self.channels,
            classes=self.classes,
            teacher=plan.teacher,
            replay=self.replay,
            weights=plan.weights,
            group=plan.group,
        )
        checkpoint = None
        if plan.checkpoints is not None:
            name = f"{self.key}-{seed}"
            checkpoint = Checkpoint(plan.checkpoints / f"{name}.pt", name, plan.every)
            if plan.group is None or plan.group.number == 0:
                _tell_of_others(plan.checkpoints / f"{name}.pt", seed)
        net = run_with_checkpoint(training, checkpoint, after, notes)
        if not counts:  # the checkpoint was written after the last look, and the trial was not
            counts = [confusion(net, self.test, self.classes, plan.group)]
        curve = tuple((epoch, value) for epoch, value in notes["curve"])
        trial = Trial(
            protocol=protocol.name,
            network=protocol.network,
            seed=seed,
            epochs=protocol.epochs,
            n_train=len(self.train),
            n_test=len(self.test),
            last=curve[-1][1],
            best=max(value for _, value in curve),
            headline=protocol.score,
            curve=curve,
            train_last=accuracy(confusion(net, self.plain, self.classes, plan.group)),
            seconds=round(notes["seconds"], 3),
            device=", ".join(notes["devices"] or [device]),
            torch=str(torch.__version__),
            tested_on=plan.tested_on,
            labels=_labels(protocol, plan),
            confusion=tuple(map(tuple, counts[0].tolist())) if self.classes <= MOST_CLASSES else (),
        )
        return net, trial


def _tell_of_others(mine: Path, seed: int) -> None:
    """Warn where an unfinished training of this seed lies there that is not gone on with, and none that is."""
    others = [file for file in mine.parent.glob(f"*-{seed}.pt") if file != mine]
    if others and not mine.exists():
        log.warning(
            "%s holds an unfinished training of other images, by another version or by another number of processes, so this "
            "one begins anew; stop now and run the same command as before to go on with that one",
            mine.parent,
        )


def _check_labels(protocol: Protocol, plan: Plan, images: int) -> None:
    if isinstance(protocol.labels, Soft) and plan.teacher is None:
        raise DapError(f"{protocol.name} trains on a teacher's labels; give a teacher (--teacher).")
    if isinstance(protocol.labels, Stored) and plan.stored is None:
        raise DapError(
            f"{protocol.name} trains on stored labels; make them with `dap export SET --layout fkd` and give --labels."
        )
    if (protocol.weights == "manifest") != (plan.weights is not None):
        raise DapError(
            f"{protocol.name} has weights: {protocol.weights}; give weights with weights: manifest and only there."
        )
    if isinstance(plan.teacher, ImageLabels) and len(plan.teacher.values) != images:
        raise DapError(
            f"{plan.teacher.name} has labels of {len(plan.teacher.values)} images, and the set has {images}."
        )
    if plan.weights is not None and plan.weights.shape != (images,):
        raise DapError(f"There are weights {tuple(plan.weights.shape)} for {images} images.")


def _labels(protocol: Protocol, plan: Plan) -> str:
    """The name of the classifier that gave the labels, or "hard"."""
    if isinstance(protocol.labels, Soft) and plan.teacher is not None:
        return plan.teacher.name
    if isinstance(protocol.labels, Stored) and plan.stored is not None:
        return plan.stored.teacher
    return protocol.labels.kind


def _key(train: Labelled, protocol: Protocol, plan: Plan) -> str:
    """A hash of everything that a training depends on, except its seed."""
    digest = hashlib.sha256()
    for part in chain(train[0].split(AHEAD), [train[1]]):  # pyright: ignore[reportCallIssue]
        digest.update(part.contiguous().numpy(force=True).tobytes())
    said = [one.fingerprint for one in (plan.teacher, plan.stored) if one is not None]
    if plan.weights is not None:
        digest.update(plan.weights.cpu().double().numpy().tobytes())
    facts = [protocol.facts(exclude={"name", "source"}), *said, str(torch.__version__), LAYOUT]
    if plan.group is not None:  # each process draws for its own part, so their number is a part of the result
        facts.append({"processes": plan.group.of})
    digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()[:16]
