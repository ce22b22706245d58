"""What judges a distilled set: networks trained on it and tested on real images, and measures of its images.

Everything is kept beside the images: trials, the protocols they followed, measures. A recorded trial counts only for the
same images, test data and protocol.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from dap.base.errors import DapError
from dap.base.files import drop_torn_line, read_lines, write_atomically
from dap.data.real.sources import Source
from dap.data.sets.distilled import DistilledSet
from dap.evaluation.measures.embedding import Features
from dap.evaluation.measures.inspection import Inspector
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
"""The real images of a split at a size."""


@dataclass(frozen=True)
class Judge:
    """Trains by a protocol, tests on real images, and measures.

    Args:
        open: gives the real images. Those of `on` are tested on, for reporting alone; training images are what the
            measures compare with.
        protocol: see `evaluation.training.protocol`.
        seeds: one training a seed.
        networks: one or more, instead of the protocol's own.
        features: images -> (n, D) for the measures, and what to call them.
        device: where to train.
        teacher: whose labels a protocol with soft labels trains on, instead of its own: see `evaluation.training.classifier`.
        labels: folder of a set's stored labels, for a protocol that trains on them; see `store_labels`.
        offline: a teacher's weights come from the local cache alone.
        on: "validation" tests on held-out training images, for choices; the test set is then not opened.
        neighbours: real images of a class that are searched for near-copies; see `evaluation.measures.inspection`.
        every: seconds between two checkpoints of a training.
        together: how many seeds to train in one pass; see `evaluation.training.evaluate.Plan`.
    """

    open: Open
    protocol: Protocol
    seeds: Sequence[int]
    features: tuple[str, Features]
    networks: Sequence[str] = ()
    device: str = "cpu"
    teacher: str | None = None
    labels: Path | None = None
    offline: bool = False
    on: Literal["test", "validation"] = "test"
    neighbours: int | None = None
    every: float = 60.0
    together: int = 1
    _tests: dict[int, Labelled] = field(default_factory=dict, init=False, repr=False, compare=False)
    _classifiers: dict[tuple[str, ...], Classifier] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def test(self) -> Source:
        """The images tested on, at the protocol's size."""
        return self.open(self.on, self.protocol.size)

    def classifier(self, class_names: Sequence[str]) -> Classifier | None:
        """The teacher, whose logits are in the order of these names; None for a protocol that needs none.

        Raises:
            DapError: one is needed and not given, or given and not needed, or it does not know these classes.
        """
        labels = self.protocol.labels
        if not isinstance(labels, Soft):
            if self.teacher:
                raise DapError(f"{self.protocol.name} trains on the set's own labels; it has no use for a teacher.")
            return None
        name, key = self.teacher or labels.teacher, tuple(class_names)
        if name is None:
            raise DapError(f"{self.protocol.name} trains on a teacher's labels; give one (--teacher).")
        if key not in self._classifiers:
            self._classifiers[key] = load_classifier(name, class_names, self.device, offline=self.offline)
        return self._classifiers[key]

    def check(self) -> None:
        """Whether sets made from these real images can be judged, found out before one is made.

        Raises:
            DapError: an unknown or unfit network, no teacher or one that does not know the classes, no images to test on or
                other classes there, features of other classes, or a protocol that trains on labels of one finished set.
        """
        if isinstance(self.protocol.labels, Stored):
            raise DapError(
                f"{self.protocol.name} trains on stored labels, which are made of one finished set: dap distill it, dap export "
                "SET --layout fkd --teacher NAME --out DIR, then dap evaluate SET --labels DIR."
            )
        if self.labels is not None:
            raise DapError(f"{self.protocol.name} has no use for stored labels (--labels); fkd-soft has.")
        names = self.open("train", self.protocol.size).class_names
        self._check_networks(len(names))
        self.classifier(names)
        self._check_classes(names, "The training data")
        if isinstance(self.features[1], Classifier):
            self.features[1].select(names)

    def _check_networks(self, classes: int) -> None:
        for network in self.networks or (self.protocol.network,):
            with seeded(0, torch.device("cpu")):
                new_network(network, self.protocol.settled(ipc=1, classes=classes, network=network), 3, classes)

    def _check_classes(self, class_names: Sequence[str], whose: str) -> None:
        names = self.test.class_names
        if sorted(class_names) != sorted(names):
            raise DapError(
                f"{whose} has classes {', '.join(class_names)}; the test data has {', '.join(names)}. "
                "Choose the same with --classes."
            )

    def __call__(
        self,
        judged: DistilledSet,
        *,
        on_trial: Callable[[Trial], None] | None = None,
        on_epoch: Callable[[int, int, int], None] | None = None,
    ) -> list[Trial]:
        """All trials of a set; those already in its `trials.jsonl` are kept, new ones are appended.

        A recorded trial counts only for the same images, test data and protocol; others of the same name are dropped. A
        training that was interrupted goes on from its checkpoint.

        Args:
            judged: the set. Its class names are matched with the test data's by name.
            on_trial: told of every new trial.
            on_epoch: told of every epoch: seed, epochs done, epochs to do.

        Raises:
            DapError: the set is not finished, or its classes are not the test data's.
        """
        into = judged.path
        if (into / "classes.json").is_file() and judged.missing():
            again = (
                "run the dap distill that made it again" if judged.recipe else "make it again from where it came from"
            )
            raise DapError(f"{into} still lacks {len(judged.missing())} images; {again}.")
        self._check_classes(judged.class_names, f"The set {into}")
        if len(self.networks) > 1:  # a misspelt second one shows before the first is trained
            self._check_networks(len(judged.class_names))
        _ = self._inspector  # features of other classes show before any training
        key = {"judged": _hash(_hashes(judged)), "tested": self.test.fingerprint(sized=False)[:16]}
        trials = [
            trial
            for network in self.networks or (self.protocol.network,)
            for trial in self._trials(judged, network, key, on_trial, on_epoch)
        ]
        self._measure(judged, _hash([key, self.protocol.size]))
        return trials

    def _trials(
        self,
        judged: DistilledSet,
        network: str,
        of_data: dict[str, str],
        on_trial: Callable[[Trial], None] | None,
        on_epoch: Callable[[int, int, int], None] | None,
    ) -> list[Trial]:
        into, classes = judged.path, len(judged.class_names)
        protocol = self.protocol.settled(ipc=_largest(judged), classes=classes, network=network)
        if self.on == "validation":
            protocol = protocol.model_copy(update={"name": f"{protocol.name} on validation"})
        classifier = self.classifier(judged.class_names)
        said = protocol.model_dump(mode="json")
        stored = self._stored(judged, protocol)
        if stored is not None:
            said["labels"] |= {"teacher": stored.teacher, "fingerprint": stored.fingerprint}
        if classifier is not None:
            said["labels"] |= {"teacher": classifier.name, "fingerprint": classifier.fingerprint}
        key = {**of_data, "by": _hash(said)}
        known = list(read_lines(into / "trials.jsonl"))
        # Of images that are no longer there, or of this very protocol and network as they were before a change.
        kept = [
            line
            for line in known
            if line.get("judged") == key["judged"]
            and ((line["protocol"], line["network"]) != (protocol.name, network) or key.items() <= line.items())
        ]
        if kept != known:
            write_atomically(into / "trials.jsonl", "".join(json.dumps(line) + "\n" for line in kept).encode())
        drop_torn_line(into / "trials.jsonl")
        trials = {
            line["seed"]: Trial.from_record(line)
            for line in kept
            if key.items() <= line.items() and line["network"] == network and line["seed"] in self.seeds
        }
        todo = [seed for seed in self.seeds if seed not in trials]
        if not todo:
            return [trials[seed] for seed in sorted(trials)]
        unfinished = into / "checkpoints" / key["by"]
        training = evaluate(
            judged.tensors(_first_side(protocol.train_steps), fit="crop-bilinear", dtype=torch.uint8),
            self._tested(protocol, judged.class_names),
            protocol,
            todo,
            classes=classes,
            device=self.device,
            teacher=classifier,
            stored=stored,
            progress=on_epoch,
            checkpoints=unfinished,
            every=self.every,
            together=self.together,
            tested_on=self.on,
        )
        judged.note("protocols.json", {**(judged.noted("protocols.json") or {}), key["by"]: said})
        for trial in training:
            with (into / "trials.jsonl").open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({**json.loads(trial.to_json()), **key}) + "\n")
            for left in unfinished.glob(f"*-{trial.seed}.pt"):
                left.unlink()
            trials[trial.seed] = trial
            if on_trial is not None:
                on_trial(trial)
        for folder in (unfinished, unfinished.parent):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        return [trials[seed] for seed in sorted(trials)]

    def _stored(self, judged: DistilledSet, protocol: Protocol) -> StoredLabels | None:
        if not isinstance(protocol.labels, Stored):
            if self.labels is not None:
                raise DapError(f"{protocol.name} has no use for stored labels (--labels); fkd-soft has.")
            return None
        if self.labels is None:
            raise DapError(
                f"{protocol.name} trains on stored labels; make them with dap export {judged.path} --layout fkd "
                "--teacher NAME --out DIR, and give --labels DIR."
            )
        return open_labels(self.labels, _hashes(judged), judged.class_names, _labelling(protocol))

    def _tested(self, protocol: Protocol, class_names: Sequence[str]) -> Labelled:
        """The images to test on, labelled in the order of the set's class names."""
        side = _first_side(protocol.test_steps) or protocol.size
        if side not in self._tests:
            self._tests[side] = self.open(self.on, side).tensors(dtype=torch.uint8)
        images, labels = self._tests[side]
        return images, labels.new_tensor([class_names.index(name) for name in self.test.class_names])[labels]

    def _measure(self, judged: DistilledSet, key: str) -> None:
        if self._inspector.done(judged, key):
            return
        images, labels = judged.tensors(self.protocol.size, fit="crop-bilinear")
        own = labels.new_tensor([self.test.class_names.index(name) for name in judged.class_names])
        try:
            self._inspector(judged, images, own[labels], key)
        except DapError as error:  # of the features or of broken real images; the accuracies stand all the same
            logging.getLogger("dap").warning("no measures for %s: %s", judged.path, error)

    @cached_property
    def _inspector(self) -> Inspector:
        images, labels = self.test.tensors()
        train = self.open("train", self.protocol.size)
        return Inspector(train, (images, labels), self.features, limit=self.neighbours)


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
    """Write down what a teacher says of every augmented batch of every epoch of a protocol.

    See `evaluation.training.stored_labels`.

    Args:
        judged: the set, whole.
        protocol: whose steps, mixing, batch and epochs are taken, such as `fkd-soft`.
        out: folder; epochs that are there already are kept.
        teacher: see `evaluation.training.classifier.load_classifier`.
        device: where it runs.
        offline: its weights come from the local cache alone.
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
    """What images are resized to before anything else, which is best done while they are decoded."""
    return steps[0].side if steps and isinstance(steps[0], Resize) else None


def _largest(judged: DistilledSet) -> int:
    """Images of the largest class."""
    return max(Counter(record["label"] for record in judged.records).values(), default=0)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
