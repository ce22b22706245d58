"""Many sets and their judgement: evaluate a set, sweep over recipes, and the demo. Every cell resumes by itself."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dap.data.distilled import DistilledSet
from dap.data.sources import Source
from dap.engine import Progress, Workshop, distill
from dap.errors import DapError
from dap.evaluation.measures import measure
from dap.evaluation.networks import Network, build
from dap.evaluation.protocol import Protocol
from dap.evaluation.training import Trial, evaluate, seeded
from dap.recipe import Recipe

REAL_PER_CLASS = 500
"""Real images a class that the measures compare with."""

Features = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Judge:
    """What judges sets: held-out test data, a protocol, and features for the measures.

    Args:
        train: real training images, which the measures compare with.
        test: real test images, used for reporting alone.
        protocol: see `evaluation.protocol`.
        seeds: one training a seed.
        network: instead of the protocol's own.
        features: images -> (n, D) for the measures, and what to call them.
        device: where to train.
    """

    train: Source
    test: Source
    protocol: Protocol
    seeds: Sequence[int]
    network: str | None
    features: tuple[str, Features]
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.test.class_names != self.train.class_names:
            raise DapError("The test data has other classes than the training data.")
        object.__setattr__(self, "_test", self.test.tensors())
        object.__setattr__(self, "_real", self.train.tensors(limit_per_class=REAL_PER_CLASS))

    def __call__(
        self, judged: DistilledSet, into: Path | None = None, progress: Callable[[Trial], None] | None = None
    ) -> list[Trial]:
        """All trials of a set, those already recorded included; new ones are appended to `trials.jsonl`.

        Args:
            judged: the set. Its class names are matched with the test data's by name.
            into: folder for trials.jsonl and measures.json; default: the set's own.
            progress: told of every new trial.

        Raises:
            DapError: the set's classes are not the test data's.
        """
        into = judged.path if into is None else into
        into.mkdir(parents=True, exist_ok=True)
        unknown = [name for name in judged.class_names if name not in self.test.class_names]
        if unknown or len(judged.class_names) != len(self.test.class_names):
            raise DapError(
                f"The set {judged.path} has classes {', '.join(judged.class_names)}; the test data has "
                f"{', '.join(self.test.class_names)}. Choose the same with --classes."
            )
        images, labels = judged.tensors()
        order = [self.test.class_names.index(name) for name in judged.class_names]
        mine = (images, labels.new_tensor(order)[labels])
        network, file = self.network or self.protocol.network, into / "trials.jsonl"
        trials = [t for t in _trials(file) if (t.protocol, t.network) == (self.protocol.name, network)]
        trials = [t for t in trials if t.seed in self.seeds and t.epochs == self.protocol.epochs]
        todo = [seed for seed in self.seeds if seed not in {t.seed for t in trials}]
        classes = len(self.test.class_names)
        test: Any = getattr(self, "_test")  # noqa: B009 - a frozen dataclass keeps what it loaded
        for trial in evaluate(mine, test, self.protocol, todo, device=self.device, network=network, classes=classes):
            with file.open("a", encoding="utf-8") as lines:
                lines.write(trial.to_json() + "\n")
            trials.append(trial)
            if progress is not None:
                progress(trial)
        if not (into / "measures.json").exists():
            name, features = self.features
            values = measure(mine, getattr(self, "_real"), features, classes)  # noqa: B009
            (into / "measures.json").write_text(json.dumps({"features": name, **values}, indent=1) + "\n")
        return sorted(trials, key=lambda t: t.seed)


def embedding(data: str, size: int) -> tuple[str, Features]:
    """Features for the measures, and their name.

    For the embedded data, a ConvNet-3 trained on all of it (`starter.reference`). For other data no trained network is at
    hand, so a ConvNet-3 with random weights of a fixed seed, whose features distribution matching (DM) shows to be
    useful; they compare sets of the same data, and nothing else.
    """
    from dap.evaluation.reference import load_reference

    if data == "fashion-mnist":
        from dap.starter import REFERENCE

        reference = load_reference(REFERENCE)
        return f"ConvNet-3 trained on the real data ({reference.accuracy:.1%})", reference
    with seeded(0, torch.device("cpu")):
        network = build("convnet3", classes=2, size=size).eval().requires_grad_(False)
    assert isinstance(network, Network)
    return "ConvNet-3 with random weights", network.features


def _trials(file: Path) -> Iterator[Trial]:
    if file.is_file():
        for line in file.read_text(encoding="utf-8").split("\n")[:-1]:
            yield Trial.from_json(line)


def grid(base: Mapping[str, Any], vary: Mapping[str, Sequence[Any]], sets: int) -> Iterator[tuple[str, Recipe]]:
    """A folder name and a recipe for every combination of the varied fields and `sets` run seeds.

    Args:
        base: values of a recipe, nested.
        vary: dotted field ("guidance.scale", "method") -> its values.
        sets: how many run seeds, from the base's seed on.
    """
    first = int(base.get("seed", 0))
    for values in itertools.product(*vary.values()):
        chosen = dict(zip(vary, values, strict=True))
        name = "_".join(f"{field.split('.')[-1]}={value}" for field, value in chosen.items()) or "set"
        for seed in range(first, first + sets):
            nested: dict[str, Any] = {k: dict(v) if isinstance(v, Mapping) else v for k, v in base.items()}
            for field, value in {**chosen, "seed": seed}.items():
                *parents, leaf = field.split(".")
                inside = nested
                for parent in parents:
                    inside = inside.setdefault(parent, {})
                inside[leaf] = value
            yield f"{name}/seed{seed}", Recipe.parse(nested)


def sweep(
    cells: Sequence[tuple[str, Recipe]],
    out: Path,
    workshop: Workshop,
    judge: Judge | None,
    *,
    shard: tuple[int, int] = (0, 1),
    progress: Callable[[str], Progress | None] | None = None,
    on_trial: Callable[[str, Trial], None] | None = None,
    command: str | None = None,
) -> list[Path]:
    """Distil and judge every cell; finished ones are kept, so the same call goes on after an interruption.

    Args:
        cells: folder names and recipes, see `grid`.
        out: where the folders go.
        workshop: loaded backbones and data.
        judge: None only distils.
        shard: (i, n): this process does every n-th cell from i on. Processes meet on the file system alone.
        progress: given a cell's name, returns what is told of its images.
        on_trial: told of every training.
        command: the shell command to record.

    Returns:
        The folders of all cells, also those of other shards.

    Raises:
        DapError: every recipe is checked before the first one is run.
    """
    for _, recipe in cells:
        workshop.task(recipe)
    for name, recipe in cells[shard[0] :: shard[1]]:
        made = distill(recipe, out / name, workshop, progress=progress(name) if progress else None, command=command)
        if judge is not None:
            judge(made, progress=None if on_trial is None else lambda trial, name=name: on_trial(name, trial))
    return [out / name for name, _ in cells]
