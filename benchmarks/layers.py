"""Compares the criteria of `layer: auto` with the accuracies of sets that were made with each layer.

    python benchmarks/layers.py --backbone starter      # scores, the accuracies of docs/layer-trials.csv, how they agree
    python benchmarks/layers.py --add runs/layers-dit   # adds the sets of a `dap sweep --vary refine-layers=…`, each once

Accuracies are those of the last epoch on training images that distillation never saw (`--on validation`). The criteria see
the other training images alone. Agreement is Spearman's rank correlation over the layers that have an accuracy, and what the
layer that the criterion chooses loses against the best one.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from scipy.stats import rankdata

LEDGER = Path(__file__).parents[1] / "docs" / "layer-trials.csv"
COLUMNS = (
    "backbone",
    "method",
    "layers",
    "ipc",
    "set_seed",
    "protocol",
    "network",
    "trial_seed",
    "n_test",
    "last_percent",
)

Line = dict[str, str]


def lines_of(folder: Path) -> list[Line]:
    """The lines of all sets of a sweep over `refine-layers` that have been judged."""
    found: list[Line] = []
    for file in sorted(folder.glob("*/seed*/trials.jsonl")):
        recipe = json.loads((file.parent / "recipe.json").read_text(encoding="utf-8"))
        known = {"backbone": recipe["backbone"]["path"], "method": recipe["method"]}
        known |= {"layers": " ".join(recipe["refine"]["layers"]), "ipc": recipe["ipc"], "set_seed": recipe["seed"]}
        for trial in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            known |= {"protocol": trial["protocol"], "network": trial["network"], "trial_seed": trial["seed"]}
            known |= {"n_test": trial["n_test"], "last_percent": f"{100 * trial['last']:.2f}"}
            found.append({name: str(known[name]) for name in COLUMNS})
    return found


def add(folders: Sequence[Path], ledger: Path) -> None:
    """Add the sets of these folders to the ledger, each once."""
    kept = read(ledger) if ledger.exists() else []
    kept += [line for folder in folders for line in lines_of(folder) if line not in kept]
    with ledger.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list[str](COLUMNS), lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)


def read(ledger: Path) -> list[Line]:
    """The lines of the ledger."""
    with ledger.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def accuracies(lines: Sequence[Line], backbone: str) -> dict[str, float]:
    """The mean accuracy of the sets of each layer, in percent."""
    found: dict[str, list[float]] = {}
    for line in lines:
        if line["backbone"] == backbone:
            found.setdefault(line["layers"], []).append(float(line["last_percent"]))
    return {layer: fmean(values) for layer, values in found.items()}


def agreement(scores: Mapping[str, float], truth: Mapping[str, float]) -> tuple[float, str, float]:
    """Spearman's correlation, the layer of the best score among those with an accuracy, and what it loses to the best one."""
    layers = [layer for layer in scores if layer in truth]
    chosen = max(layers, key=lambda layer: scores[layer])
    rank = math.nan
    if len(layers) > 2:
        ranks = [rankdata([values[one] for one in layers]) for values in (scores, truth)]
        rank = np.corrcoef(ranks)[0, 1]
    return float(rank), chosen, max(truth[one] for one in layers) - truth[chosen]


def table(scores: Mapping[str, Mapping[str, float]], truth: Mapping[str, float]) -> str:
    """A table of layers by criteria, with the accuracies, and below it how each criterion agrees with them."""
    layers = list(next(iter(scores.values())))
    rows = [f"| layer | accuracy, % | {' | '.join(scores)} |", "|---" * (len(scores) + 2) + "|"]
    for layer in layers:
        told = f"{truth[layer]:.1f}" if layer in truth else "–"
        rows.append(f"| `{layer}` | {told} | {' | '.join(f'{row[layer]:.3f}' for row in scores.values())} |")
    if any(layer in truth for layer in layers):
        found = [agreement(row, truth) for row in scores.values()]
        rows.append(
            f"| Spearman's ρ (n = {sum(one in truth for one in layers)} layers) | | "
            + " | ".join(f"{r:+.2f}" for r, _, _ in found)
            + " |"
        )
        rows.append(
            "| chooses, and loses | | " + " | ".join(f"`{layer}`, {loss:.1f}" for _, layer, loss in found) + " |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="starter", help="starter or starter-unet (%(default)s)")
    parser.add_argument(
        "--held-out", type=float, default=0.05, help="of the training images, as in the trials (%(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="draws the images and their noise (%(default)s)")
    parser.add_argument("--add", type=Path, nargs="+", default=[], metavar="DIR", help="folders of dap sweep")
    parser.add_argument("--ledger", type=Path, default=LEDGER, help="the file of the trials (%(default)s)")
    args = parser.parse_args()
    if args.add:
        add(args.add, args.ledger)
        return
    import torch

    from dap.choosing.criteria import CRITERIA
    from dap.choosing.layers import curve
    from dap.recipe import BackboneChoice, Data
    from dap.workshop import Workshop

    torch.set_num_threads(args.threads)
    shop = Workshop("cpu")
    backbone = shop.backbone(BackboneChoice(path=args.backbone))
    source = shop.source(Data(size=backbone.card.size, held_out=args.held_out))
    began = time.process_time()
    found = curve(backbone, source, tuple(CRITERIA), seed=args.seed)
    scores = {name: dict(zip(found.layers, row, strict=True)) for name, row in found.scores.items()}
    truth = accuracies(read(args.ledger), args.backbone) if args.ledger.exists() else {}
    print(table(scores, truth))
    spent = time.process_time() - began
    print(
        f"\n{found.images} images, {found.held} held out, t = {found.times} of the schedule; {spent:.0f} processor seconds"
    )


if __name__ == "__main__":
    main()
