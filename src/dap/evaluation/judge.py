"""How a distilled set is judged: networks are trained on it and tested on real images, and its images are measured.

All results are kept beside the images: trials, the protocols they followed, measures. A recorded trial counts only for the
same images, test data and protocol, so that a changed set is judged anew.

`JudgingPlan` says how to judge, `Loaded` holds what is loaded once for many sets, and `judge` judges one set.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from dap.base.errors import DapError
from dap.base.store import checkpoint_seconds
from dap.base.watch import Watcher
from dap.data.real.base import Source
from dap.data.sets.distilled import DistilledSet
from dap.evaluation.measures.embedding import Features
from dap.evaluation.measures.inspection import Inspector
from dap.evaluation.measures.own import own_measures
from dap.evaluation.recorded import RecordedTrials
from dap.evaluation.training.batches import Labelled
from dap.evaluation.training.classifier import Classifier, load_classifier
from dap.evaluation.training.evaluate import evaluate
from dap.evaluation.training.fitting import new_network, seeded
from dap.evaluation.training.labels import Soft, Stored
from dap.evaluation.training.protocol import Protocol
from dap.evaluation.training.steps import Resize, Step
from dap.evaluation.training.stored_labels import Labelling, StoredLabels, open_labels, write_labels
from dap.evaluation.training.trials import Trial

Open = Callable[[Literal["train", "validation", "test"], int], Source]
"""From a split and a size in pixels to the real images."""


@dataclass(frozen=True, kw_only=True)
class JudgingPlan:
    """How sets are judged.

    Attributes:
        protocol: how the networks are trained, see `evaluation.training.protocol`.
        seeds: every network is trained once with each of these seeds.
        networks: the networks to train; () for the protocol's own.
        device: where to train.
        teacher: the classifier whose labels a protocol with soft labels trains on, instead of the protocol's own teacher.
        labels: folder of the stored labels of a set, for a protocol that trains on stored labels; see `store_labels`.
        offline: the weights of a teacher come from the local cache alone.
        on: "validation" tests on held-out training images, to make choices by; the test images are then not opened.
        neighbours: how many real images of a class are searched for near-copies, see `evaluation.measures.inspection`.
        measures: names of measures of one's own, as `file.py:Name`; see `evaluation.measures.own`.
    """

    protocol: Protocol
    seeds: Sequence[int] = (0,)
    networks: Sequence[str] = ()
    device: str = "cpu"
    teacher: str | None = None
    labels: Path | None = None
    offline: bool = False
    on: Literal["test", "validation"] = "test"
    neighbours: int | None = None
    measures: Sequence[str] = ()

    @property
    def all_networks(self) -> Sequence[str]:
        """The networks that are trained."""
        return self.networks or (self.protocol.network,)


class Loaded:
    """The real images and the classifiers that judging needs, loaded once for all sets of one data set.

    Args:
        plan: how to judge.
        open: opens the real images. Networks are tested on those of `plan.on`, for reporting alone; the measures compare
            with the training images.
        features: the name of the features that the measures use, and a function images -> (n, D). None leaves the measures
            out, for real images without a training part.

    Attributes:
        plan, open, features: as given.
        test: the images that networks are tested on, at the protocol's size.
    """

    def __init__(self, plan: JudgingPlan, open: Open, features: tuple[str, Features] | None) -> None:
        self.plan, self.open, self.features = plan, open, features
        self.test = open(plan.on, plan.protocol.size)
        self._tensors: dict[int, Labelled] = {}
        self._teachers: dict[tuple[str, ...], Classifier] = {}
        self._inspector: Inspector | None = None

    def tensors(self, side: int, class_names: Sequence[str]) -> Labelled:
        """The images to test on, (n, 3, side, side) uint8, and their labels (n,) in the order of these class names."""
        if side not in self._tensors:
            self._tensors[side] = self.open(self.plan.on, side).tensors(dtype=torch.uint8)
        images, labels = self._tensors[side]
        return images, labels.new_tensor([class_names.index(name) for name in self.test.class_names])[labels]

    def teacher(self, class_names: Sequence[str]) -> Classifier | None:
        """The teacher, whose logits are in the order of these names; None for a protocol that needs no teacher.

        Raises:
            DapError: a teacher is needed and not given, or given and not needed, or does not know these classes.
        """
        plan, labels = self.plan, self.plan.protocol.labels
        if not isinstance(labels, Soft):
            if plan.teacher:
                raise DapError(f"{plan.protocol.name} trains on the set's own labels; it has no use for a teacher.")
            return None
        name, key = plan.teacher or labels.teacher, tuple(class_names)
        if name is None:
            raise DapError(f"{plan.protocol.name} trains on a teacher's labels; give one (--teacher).")
        if key not in self._teachers:
            self._teachers[key] = load_classifier(name, class_names, plan.device, offline=plan.offline)
        return self._teachers[key]

    def inspector(self) -> Inspector | None:
        """Measures the images of sets; None without features."""
        if self._inspector is None and self.features is not None:
            train, tested = self.open("train", self.plan.protocol.size), self.test.tensors()
            limit, own = self.plan.neighbours, own_measures(self.plan.measures)
            self._inspector = Inspector(train, tested, self.features, limit=limit, own=own)
        return self._inspector


def check(loaded: Loaded) -> None:
    """Whether sets that will be made from these real images can be judged, found out before the first one is made.

    Raises:
        DapError: a network is unknown or unfit, there is no teacher or it does not know the classes, the test images have
            other classes, the features are of other classes, or the protocol trains on the labels of one finished set.
    """
    plan, protocol = loaded.plan, loaded.plan.protocol
    if isinstance(protocol.labels, Stored):
        raise DapError(
            f"{protocol.name} trains on stored labels, which are made of one finished set: dap distill it, dap export "
            "SET --layout fkd --teacher NAME --out DIR, then dap evaluate SET --labels DIR."
        )
    if plan.labels is not None:
        raise DapError(f"{protocol.name} has no use for stored labels (--labels); fkd-soft has.")
    own_measures(plan.measures)  # a file that cannot be loaded is told now
    names = loaded.open("train", protocol.size).class_names
    _check_networks(plan, len(names))
    loaded.teacher(names)
    _check_classes(loaded, names, "The training data")
    if loaded.features is not None and isinstance(loaded.features[1], Classifier):
        loaded.features[1].select(names)


def judge(judged: DistilledSet, loaded: Loaded, watcher: Watcher = Watcher(), name: str | None = None) -> list[Trial]:
    """Train and test all networks of the plan on a set and measure its images; results that are there already are kept.

    Results are appended to the set's `trials.jsonl`. Recorded trials of the same protocol and network that are of other
    images or test data, or of the protocol as it was before a change, are dropped. A training that was interrupted goes on
    from its checkpoint.

    Args:
        judged: the set. Its class names are matched with those of the test data by name.
        loaded: how to judge, and the real images.
        watcher: told of every epoch and of every new trial.
        name: what the set is called to the watcher; by default the name of its folder.

    Raises:
        DapError: the set is not finished, or its classes are not those of the test data.
    """
    if (judged.path / "classes.json").is_file() and judged.missing():
        again = "run the dap distill that made it again" if judged.recipe else "make it again from where it came from"
        raise DapError(f"{judged.path} still lacks {len(judged.missing())} images; {again}.")
    _check_classes(loaded, judged.class_names, f"The set {judged.path}")
    if len(loaded.plan.networks) > 1:  # so that a misspelt second network is told before the first one is trained
        _check_networks(loaded.plan, len(judged.class_names))
    loaded.inspector()  # so that features of other classes are told before any training
    key = {"judged": _hash(_hashes(judged)), "tested": loaded.test.fingerprint(sized=False)[:16]}
    told = functools.partial(watcher.trial, name or judged.path.name)
    trials = [
        trial
        for network in loaded.plan.all_networks
        for trial in _trials_of(judged, loaded, network, key, watcher, told)
    ]
    _measure(judged, loaded, _hash([key, loaded.plan.protocol.size]))
    return trials


def _trials_of(
    judged: DistilledSet,
    loaded: Loaded,
    network: str,
    of_data: dict[str, str],
    watcher: Watcher,
    told: Callable[[Trial], object],
) -> list[Trial]:
    """The trials of one network, in the order of their seeds; those that are missing are made."""
    plan, recorded = loaded.plan, RecordedTrials(judged.path)
    protocol = plan.protocol.settled(ipc=_largest(judged), classes=len(judged.class_names), network=network)
    if plan.on == "validation":
        protocol = protocol.model_copy(update={"name": f"{protocol.name} on validation"})
    teacher, stored = loaded.teacher(judged.class_names), _stored_labels(judged, plan, protocol)
    facts = protocol.model_dump(mode="json")
    if stored is not None:
        facts["labels"] |= {"teacher": stored.teacher, "fingerprint": stored.fingerprint}
    if teacher is not None:
        facts["labels"] |= {"teacher": teacher.name, "fingerprint": teacher.fingerprint}
    key = {**of_data, "by": _hash(facts)}
    known = recorded.valid(key, protocol.name, network)
    found = {seed: known[seed] for seed in plan.seeds if seed in known}
    todo = [seed for seed in plan.seeds if seed not in found]
    unfinished = judged.path / "checkpoints" / key["by"]
    if todo:
        options = {"teacher": teacher, "stored": stored, "progress": watcher.epoch, "checkpoints": unfinished}
        training = _training(judged, loaded, protocol, todo, options)
        judged.note("protocols.json", {**(judged.noted("protocols.json") or {}), key["by"]: facts})
        for trial in training:
            recorded.add(trial, key)
            for left in unfinished.glob(f"*-{trial.seed}.pt"):
                left.unlink()
            found[trial.seed] = trial
            told(trial)
        for folder in (unfinished, unfinished.parent):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
    return [found[seed] for seed in sorted(found)]


def _training(
    judged: DistilledSet, loaded: Loaded, protocol: Protocol, seeds: Sequence[int], options: dict[str, Any]
) -> Iterator[Trial]:
    """Trials of these seeds, one after the other. Everything is checked before the first one begins."""
    side = _first_side(protocol.test_steps) or loaded.plan.protocol.size
    return evaluate(
        judged.tensors(_first_side(protocol.train_steps), fit="crop-bilinear", dtype=torch.uint8),
        loaded.tensors(side, judged.class_names),
        protocol,
        seeds,
        classes=len(judged.class_names),
        device=loaded.plan.device,
        every=checkpoint_seconds(),
        tested_on=loaded.plan.on,
        **options,
    )


def _measure(judged: DistilledSet, loaded: Loaded, key: str) -> None:
    """Write the measures of a set, unless they are there already."""
    inspector = loaded.inspector()
    if inspector is None or inspector.done(judged, key):
        return
    images, labels = judged.tensors(loaded.plan.protocol.size, fit="crop-bilinear")
    own = labels.new_tensor([loaded.test.class_names.index(name) for name in judged.class_names])
    try:
        inspector(judged, images, own[labels], key)
    except DapError as error:  # of the features or of broken real images; the accuracies stand all the same
        logging.getLogger("dap").warning("no measures for %s: %s", judged.path, error)


def _check_networks(plan: JudgingPlan, classes: int) -> None:
    for network in plan.all_networks:
        with seeded(0, torch.device("cpu")):
            new_network(network, plan.protocol.settled(ipc=1, classes=classes, network=network), 3, classes)


def _check_classes(loaded: Loaded, class_names: Sequence[str], whose: str) -> None:
    names = loaded.test.class_names
    if sorted(class_names) != sorted(names):
        raise DapError(
            f"{whose} has classes {', '.join(class_names)}; the test data has {', '.join(names)}. "
            "Choose the same with --classes."
        )


def _stored_labels(judged: DistilledSet, plan: JudgingPlan, protocol: Protocol) -> StoredLabels | None:
    if not isinstance(protocol.labels, Stored):
        if plan.labels is not None:
            raise DapError(f"{protocol.name} has no use for stored labels (--labels); fkd-soft has.")
        return None
    if plan.labels is None:
        raise DapError(
            f"{protocol.name} trains on stored labels; make them with dap export {judged.path} --layout fkd "
            "--teacher NAME --out DIR, and give --labels DIR."
        )
    return open_labels(plan.labels, _hashes(judged), judged.class_names, _labelling(protocol))


def store_labels(
    judged: DistilledSet,
    protocol: Protocol,
    out: Path,
    *,
    teacher: str,
    device: str = "cpu",
    offline: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> Path:
    """Write the logits that a teacher gives to every augmented batch of every epoch of a protocol.

    See `evaluation.training.stored_labels`.

    Args:
        judged: the set, whole.
        protocol: its steps, mixing, batch and epochs are taken, such as those of `fkd-soft`.
        out: folder; epochs that are there already are kept.
        teacher: see `evaluation.training.classifier.load_classifier`.
        device: where the teacher runs.
        offline: the weights of the teacher come from the local cache alone.
        seed: of order and augmentation.
        progress: told of the epochs done, and of all.

    Raises:
        DapError: the set is not whole, the teacher does not know its classes, or as `write_labels`.
    """
    judged.check_whole()
    settled = protocol.settled(ipc=_largest(judged), classes=len(judged.class_names))
    images, _ = judged.tensors(_first_side(settled.train_steps), fit="crop-bilinear", dtype=torch.uint8)
    said = load_classifier(teacher, judged.class_names, device, offline=offline)
    how = _labelling(settled, seed)
    return write_labels(out, images, _hashes(judged), how, said, protocol=settled.name, progress=progress)


def _labelling(protocol: Protocol, seed: int = 0) -> Labelling:
    return Labelling(protocol.train_steps, protocol.mix, protocol.batch, protocol.epochs, seed)


def _hashes(judged: DistilledSet) -> list[str]:
    return [record["sha256"] for record in judged.records]


def _first_side(steps: Sequence[Step]) -> int | None:
    """The side that images are resized to before any other step; that is best done while they are decoded."""
    return steps[0].side if steps and isinstance(steps[0], Resize) else None


def _largest(judged: DistilledSet) -> int:
    """Images of the largest class."""
    return max(Counter(record["label"] for record in judged.records).values(), default=0)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
