"""Many sets and their judgement: a grid of recipes, each cell of which resumes by itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dap.engine import Progress, Workshop, distill
from dap.errors import DapError
from dap.evaluation.fitting import seeded
from dap.evaluation.networks import Network, build
from dap.evaluation.reference import load_reference
from dap.evaluation.trials import Trial
from dap.judge import Features, Judge
from dap.recipe import Data, Recipe


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
    tell: Callable[[str, int, int], object] | None = None,
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
        tell: told of long work before the first image of a cell.
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
        made = distill(recipe, out / name, workshop, progress=progress(name), tell=tell, command=command)
        told = None if on_trial is None else lambda trial, name=name: on_trial(name, trial)
        judge_for(workshop.task(recipe)[1].recipe.data)(made, on_trial=told, on_epoch=on_epoch)
    return [out / name for name, _ in cells]
