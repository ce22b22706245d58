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
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from dap.data.distilled import DistilledSet
from dap.data.sources import Source
from dap.errors import DapError
from dap.evaluation.batches import Labelled
from dap.evaluation.fitting import Labeller
from dap.evaluation.measures import measure
from dap.evaluation.protocol import Protocol
from dap.evaluation.steps import Resize, Step
from dap.evaluation.training import evaluate
from dap.evaluation.trials import Trial
from dap.files import drop_torn_line, read_lines, write_atomically

REAL_PER_CLASS = 500
"""Real images a class that the measures compare with."""

Features = Callable[[Tensor], Tensor]
"""Images (n, 3, h, w) in [0, 1] -> (n, D)."""

Open = Callable[[Literal["train", "validation", "test"], int], Source]
"""The real images of a split at a size."""


@dataclass(frozen=True)
class Judge:
    """Trains by a protocol, tests on real images, and measures.

    Args:
        open: gives the real images. Those of `on` are tested on, for reporting alone; training images are what the
            measures compare with.
        protocol: see `evaluation.protocol`.
        seeds: one training a seed.
        networks: one or more, instead of the protocol's own.
        features: images -> (n, D) for the measures, and what to call them.
        device: where to train.
        teacher: whose labels a protocol with soft labels trains on; made for the class names of the test data.
        on: "validation" tests on held-out training images, for choices; the test set is then not opened.
        every: seconds between two checkpoints of a training.
    """

    open: Open
    protocol: Protocol
    seeds: Sequence[int]
    features: tuple[str, Features]
    networks: Sequence[str] = ()
    device: str = "cpu"
    teacher: Labeller | None = None
    on: Literal["test", "validation"] = "test"
    every: float = 60.0
    _tests: dict[int, Labelled] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def test(self) -> Source:
        """The images tested on, at the protocol's size."""
        return self.open(self.on, self.protocol.size)

    @cached_property
    def real(self) -> Labelled:
        """Real training images that the measures compare with."""
        train = self.open("train", self.protocol.size)
        if train.class_names != self.test.class_names:
            raise DapError("The test data has other classes than the training data.")
        return train.tensors(limit_per_class=REAL_PER_CLASS)

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
        into, names = judged.path, self.test.class_names
        if judged.recipe is not None and judged.missing():
            raise DapError(
                f"{into} still lacks {len(judged.missing())} images; run the dap distill that made it again."
            )
        if sorted(judged.class_names) != sorted(names):
            raise DapError(
                f"The set {into} has classes {', '.join(judged.class_names)}; the test data has {', '.join(names)}. "
                "Choose the same with --classes."
            )
        images_key = _hash([[r["sha256"] for r in judged.records], self.test.fingerprint()])
        trials = [
            trial
            for network in self.networks or (self.protocol.network,)
            for trial in self._trials(judged, network, images_key, on_trial, on_epoch)
        ]
        self._measure(judged, images_key)
        return trials

    def _trials(
        self,
        judged: DistilledSet,
        network: str,
        images_key: str,
        on_trial: Callable[[Trial], None] | None,
        on_epoch: Callable[[int, int, int], None] | None,
    ) -> list[Trial]:
        into, classes = judged.path, len(judged.class_names)
        protocol = self.protocol.settled(ipc=_largest(judged), classes=classes, network=network)
        if self.on == "validation":
            protocol = protocol.model_copy(update={"name": f"{protocol.name} on validation"})
        said = {"protocol": protocol.model_dump(mode="json"), "teacher": self.teacher.name if self.teacher else None}
        key = {"judged": images_key, "by": _hash(said)}
        known = list(read_lines(into / "trials.jsonl"))
        same = [line for line in known if line.get("judged") == images_key]
        mine = [line for line in same if (line["protocol"], line["network"]) == (protocol.name, network)]
        kept = [line for line in same if line not in mine or line["by"] == key["by"]]
        if kept != known:
            write_atomically(into / "trials.jsonl", "".join(json.dumps(line) + "\n" for line in kept).encode())
        drop_torn_line(into / "trials.jsonl")
        trials = {
            line["seed"]: Trial.from_json(json.dumps({k: v for k, v in line.items() if k not in key}))
            for line in kept
            if line["by"] == key["by"] and line["network"] == network and line["seed"] in self.seeds
        }
        todo = [seed for seed in self.seeds if seed not in trials]
        if not todo:
            return [trials[seed] for seed in sorted(trials)]
        judged.note("protocols.json", {**(judged.noted("protocols.json") or {}), key["by"]: said})
        unfinished = into / "checkpoints" / key["by"]
        for trial in evaluate(
            self._images(judged, protocol.train_steps),
            self._tested(protocol.test_steps, protocol.size),
            protocol,
            todo,
            classes=classes,
            device=self.device,
            teacher=self.teacher,
            progress=on_epoch,
            checkpoints=unfinished,
            every=self.every,
            tested_on=self.on,
        ):
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

    def _images(self, judged: DistilledSet, steps: Sequence[Step]) -> Labelled:
        """The set's images, with the labels that the test data gives its classes."""
        names = self.test.class_names
        images, labels = judged.tensors(_first_side(steps), fit="crop-bilinear", dtype=torch.uint8)
        return images, labels.new_tensor([names.index(name) for name in judged.class_names])[labels]

    def _tested(self, steps: Sequence[Step], size: int) -> Labelled:
        side = _first_side(steps) or size
        if side not in self._tests:
            self._tests[side] = self.open(self.on, side).tensors(dtype=torch.uint8)
        return self._tests[side]

    def _measure(self, judged: DistilledSet, key: str) -> None:
        name, features = self.features
        written = judged.noted("measures.json") or {}
        if (written.get("judged"), written.get("features")) == (key, name):
            return
        steps = (Resize(side=self.protocol.size),)
        images, labels = self._images(judged, steps)
        try:
            values = measure((images / 255, labels), self.real, features, len(self.test.class_names))
        except DapError as error:  # too few real images of a class, say; the accuracies stand all the same
            logging.getLogger("dap").warning("no measures for %s: %s", judged.path, error)
            return
        judged.note("measures.json", {"features": name, **values, "judged": key})

    def with_teacher(self, load: Callable[[Sequence[str]], Labeller]) -> Judge:
        """This judge with a teacher for the class names of its test data."""
        return replace(self, teacher=load(self.test.class_names))


def _first_side(steps: Sequence[Step]) -> int | None:
    """What images are resized to before anything else, which is best done while they are decoded."""
    return steps[0].side if steps and isinstance(steps[0], Resize) else None


def _largest(judged: DistilledSet) -> int:
    """Images of the largest class."""
    return max(Counter(record["label"] for record in judged.records).values(), default=0)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
