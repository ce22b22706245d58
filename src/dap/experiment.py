"""Many sets and their judgement: evaluate a set, sweep over recipes, and the demo. Every cell resumes by itself."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import logging
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
from dap.evaluation.fitting import seeded
from dap.evaluation.inspection import Inspector
from dap.evaluation.networks import Network, build
from dap.evaluation.protocol import Protocol
from dap.evaluation.reference import Reference, load_reference
from dap.evaluation.training import evaluate
from dap.evaluation.trials import Trial
from dap.files import drop_torn_line, read_lines, write_atomically
from dap.recipe import Data, Recipe

Features = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Judge:
    """What judges sets: held-out test data, a protocol, and features for the measures.

    Args:
        train: real training images at the protocol's size, which the measures compare with.
        test: real test images at the protocol's size, used for reporting alone.
        protocol: see `evaluation.protocol`.
        seeds: one training a seed.
        network: instead of the protocol's own.
        features: what to call them, and images -> (n, D), for the measures; see `embedding`.
        device: where to train.
        neighbours: real images of a class that are searched for near-copies; see `evaluation.inspection`.
    """

    train: Source
    test: Source
    protocol: Protocol
    seeds: Sequence[int]
    network: str | None
    features: tuple[str, Features]
    device: str = "cpu"
    neighbours: int | None = None

    def __post_init__(self) -> None:
        if self.test.class_names != self.train.class_names:
            raise DapError("The test data has other classes than the training data.")
        object.__setattr__(self, "_test", self.test.tensors())
        if isinstance(self.features[1], Reference):
            self.features[1].columns(self.train.class_names)

    def __call__(
        self,
        judged: DistilledSet,
        *,
        on_trial: Callable[[Trial], None] | None = None,
        on_epoch: Callable[[int, int, int], None] | None = None,
    ) -> list[Trial]:
        """All trials of a set; those already in its `trials.jsonl` are kept, new ones are appended.

        A recorded trial counts only for the same images, test data and protocol; others of the same name are dropped.

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
        images, labels = judged.tensors(self.protocol.size)
        mine = (images, labels.new_tensor([names.index(name) for name in judged.class_names])[labels])
        network = self.network or self.protocol.network
        images_key = _hash([[r["sha256"] for r in judged.records], self.test.fingerprint()])
        key = {"judged": images_key, "by": _hash(self.protocol.model_dump(mode="json"))}
        known = list(read_lines(into / "trials.jsonl"))
        same = [line for line in known if line.get("judged") == images_key]
        stale = [line for line in same if line["protocol"] == self.protocol.name and line["by"] != key["by"]]
        kept = [line for line in same if line not in stale]
        if kept != known:
            write_atomically(into / "trials.jsonl", "".join(json.dumps(line) + "\n" for line in kept).encode())
        drop_torn_line(into / "trials.jsonl")
        trials = {
            line["seed"]: Trial.from_json(json.dumps({k: v for k, v in line.items() if k not in key}))
            for line in kept
            if line["by"] == key["by"] and line["network"] == network and line["seed"] in self.seeds
        }
        todo = [seed for seed in self.seeds if seed not in trials]
        test: Any = getattr(self, "_test")  # noqa: B009 - a frozen dataclass keeps what it loaded
        for trial in evaluate(
            mine,
            test,
            self.protocol,
            todo,
            device=self.device,
            network=network,
            classes=len(names),
            progress=on_epoch,
        ):
            with (into / "trials.jsonl").open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({**json.loads(trial.to_json()), **key}) + "\n")
            trials[trial.seed] = trial
            if on_trial is not None:
                on_trial(trial)
        self._measure(judged, mine, images_key)
        return [trials[seed] for seed in sorted(trials)]

    def _measure(self, judged: DistilledSet, mine: tuple[Tensor, Tensor], key: str) -> None:
        inspector = self._inspector
        if inspector.done(judged, key):
            return
        try:
            inspector(judged, *mine, key)
        except DapError as error:  # of the features or of broken real images; the accuracies stand all the same
            logging.getLogger("dap").warning("no measures for %s: %s", judged.path, error)

    @functools.cached_property
    def _inspector(self) -> Inspector:
        return Inspector(self.train, getattr(self, "_test"), self.features, limit=self.neighbours)  # noqa: B009


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def embedding(
    data: str, size: int, reference: str | Path | None = None, device: str | torch.device = "cpu"
) -> tuple[str, Features]:
    """Features for the measures, and their name.

    A network trained on the real data, where one is given or, for the embedded data, ours (`starter.reference`): its
    features, and its predictions too. For other data a ConvNet with random weights of a fixed seed, whose features
    distribution matching (DM) shows to be useful; they compare sets of the same data, and nothing else. It has so many
    layers that 4 to 7 pixels a side are left of images of 32 px or more.

    Args:
        data: the name or path of the data.
        size: of the images, in pixels.
        reference: a file of `evaluation.reference.save_reference`, as `dap train-teacher` writes.
        device: where the network runs.

    Raises:
        DapError: the file is not there, is no reference network, or holds one of somebody's own without features.
    """
    if reference is None and data == "fashion-mnist":
        from dap.starter import REFERENCE

        reference = REFERENCE
    if reference is not None:
        if not Path(reference).is_file():
            raise DapError(f"There is no reference network {reference}; dap train-teacher writes one.")
        trained = load_reference(reference, device)
        if not isinstance(trained.network, Network):
            raise DapError(f"{reference} holds somebody's own network, which has no features to measure with.")
        name = {"convnet3": "ConvNet-3"}.get(trained.protocol.network, trained.protocol.network)
        return f"{name} trained on the real data ({trained.accuracy:.1%})", trained
    depth = min(8, max(3, size.bit_length() - 3))
    with seeded(0, torch.device("cpu")):
        network = build(f"convnet{depth}", classes=2, size=size).eval().requires_grad_(False).to(device)
    assert isinstance(network, Network)
    return f"ConvNet-{depth} with random weights", lambda images: network.features(images.to(device))


def grid(base: Mapping[str, Any], vary: Mapping[str, Sequence[Any]], sets: int) -> Iterator[tuple[str, Recipe]]:
    """A folder name and a recipe for every combination of the varied fields and `sets` run seeds.

    Args:
        base: values of a recipe, nested.
        vary: dotted field ("guidance.scale", "method") -> its values.
        sets: how many run seeds, from the base's seed on.
    """
    first = Recipe.parse(base).seed
    if "seed" in vary:
        raise DapError("The seed is varied by --sets, from --seed on; leave it out of --vary.")
    for values in itertools.product(*vary.values()):
        chosen = dict(zip(vary, values, strict=True))
        name = "_".join(f"{field.split('.')[-1]}={value}" for field, value in chosen.items()) or "set"
        for seed in range(first, first + sets):
            nested: dict[str, Any] = {
                k: dict(v) if isinstance(v, Mapping) else v for k, v in base.items() if v is not None
            }
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
    judge_for: Callable[[Data], Judge],
    *,
    shard: tuple[int, int] = (0, 1),
    progress: Callable[[str], Progress | None] = lambda name: None,
    on_trial: Callable[[str, Trial], None] | None = None,
    on_epoch: Callable[[int, int, int], None] | None = None,
    command: str | None = None,
) -> list[Path]:
    """Distil and judge every cell; finished ones are kept, so the same call goes on after an interruption.

    Args:
        cells: folder names and recipes, see `grid`.
        out: where the folders go.
        workshop: loaded backbones and data.
        judge_for: the judge of sets made from these data.
        shard: (i, n): this process does every n-th cell from i on. Processes meet on the file system alone.
        progress: given a cell's name, returns what is told of its images.
        on_trial: told of every training.
        on_epoch: told of every epoch of a training.
        command: the shell command to record.

    Returns:
        The folders of all cells, also those of other shards.

    Raises:
        DapError: every recipe is checked before the first one is run.
    """
    for _, recipe in cells:
        method, task = workshop.task(recipe)
        method.prepare(task)
    for name, recipe in cells[shard[0] :: shard[1]]:
        made = distill(recipe, out / name, workshop, progress=progress(name), command=command)
        told = None if on_trial is None else lambda trial, name=name: on_trial(name, trial)
        judge_for(workshop.task(recipe)[1].recipe.data)(made, on_trial=told, on_epoch=on_epoch)
    return [out / name for name, _ in cells]
