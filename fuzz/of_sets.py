"""Readers of what lies in the folder of a distilled set."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dap.base.documents import read_json, read_lines
from dap.base.files import dump, write_atomically
from dap.data.sets.beginning import cuts, gather, grow
from dap.data.sets.contents import INPUTS, RECIPE, part_of
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.export import export
from dap.data.sets.folders import exported, listed
from dap.data.sets.imports import import_set
from dap.data.sets.notes import NOTES, read_note
from dap.evaluation.report.page import write_report
from dap.evaluation.report.records import load_set
from dap.evaluation.training.trials import TrialLine
from dap.verbs.placing import _images_in, _set_of
from dap.verbs.planning.status import status
from fuzz.forms import pngs
from fuzz.pictures import picture, pictures
from fuzz.target import Target

NAMES = ["cat", "dog, wild"]
RECIPE_VALUES = {
    "method": "dap", "ipc": 2, "seed": 1, "block": 10, "data": {"path": "fashion-mnist", "classes": NAMES, "size": 8},
    "backbone": {"path": "starter", "dtype": "float32"}, "sampling": {"steps": 50, "solver": "ddpm", "cfg": 1.5},
    "guidance": {"scale": 0.05, "unit": "step", "layer": "4", "targets": "class", "repulsion": 0.0, "reals": 64},
}  # fmt: skip
TRIAL = {
    "protocol": "small-hard", "network": "convnet3", "seed": 0, "epochs": 300, "n_train": 4, "n_test": 100, "last": 0.5,
    "best": 0.6, "headline": "last", "curve": [[100, 0.4], [300, 0.5]], "train_last": 1.0, "seconds": 42.0, "device": "cpu",
    "torch": "2.11.0", "confusion": [[30, 20], [10, 40]],
}  # fmt: skip
NEAR = {"key": "cat/1.png", "label": 0, "distance": 0.5, "file": "images/cat/00000.png"}
SEEDS: dict[str, Any] = {
    "cost.json": {"seconds": 8.0, "images": 4, "peak_memory_gb": 0.9, "needs": ["backbone"], "prepared": {}},
    "measures.json": {
        "features": "convnet3", "representativeness": 3.0, "diversity": 5.0, "coverage": 0.4,
        "by_class": {"coverage": {"cat": 0.5, "dog, wild": 0.3}}, "notes": {"coverage": "of 64"},
        "own": {"m.py:M": {"values": {"sharp": 1.0}, "better": {"sharp": "higher"}, "text": "", "code": ""}},
        "confusion": [[1, 1], [0, 2]],
    },
    "images.json": {
        "features": "convnet3", "copies": 1, "share": 0.25, "worst": ["images/cat/00000.png"],
        "rule": {"pixel": {"at_most": 0.1, "rate": 0.01}, "feature": None, "calibrated_on": 100},
        "images": [{
            "path": "images/cat/00000.png", "label": 0, "slot": 0, "nearest": {"pixel": NEAR, "feature": None},
            "closeness": {"pixel": 0.3}, "copy": True, "predicted": 1, "probability": 0.7,
        }],
    },
    "zeroshot.json": {
        "backbone": "starter", "times": 10, "keep": [5, 2], "seed": 0, "real": {"accuracy": 0.9, "images": 10, "seconds": 1.0},
        "agreement": 0.75, "seconds": 3.0, "images": [{"path": "images/cat/00000.png", "label": 0, "slot": 0, "predicted": 0}],
    },
    "env.json": {"versions": {"torch": "2.11.0"}, "device": "cpu", "weights": "ab" * 8},
    "protocols.json": {"small-hard": {"epochs": 300, "network": "convnet3", "size": 32, "lr": 0.01}},
    "ranking.json": {"network": "convnet3", "hlr": 3.0, "ior": 1.0, "classes": 2},
    "import.json": {"source": "x", "layout": "folders", "classes": NAMES, "recipe": RECIPE_VALUES, "ipc": 2, "notes": ["a"]},
    "growth.json": {"ipc": [1, 2]},
    "recipe.json": RECIPE_VALUES,
    "chosen.json": {"choices": [{
        "field": "guidance.scale", "value": 0.02, "by": "trust region", "candidates": ["0.01", "0.02"],
        "scores": {"probe": [0.5, None], "change of the log error": [-0.1, -0.2]}, "limit": 0.3, "images": 12,
        "seconds": 3.5, "warning": "Warning: x", "key": "k"}]},
}  # fmt: skip


BESIDE = (
    ("imagefolder", "soft_labels.npy"),
    ("imagefolder", "manifest.jsonl"),
    ("fiftyone", "labels.json"),
    ("parquet", "data/train-00000-of-00001.parquet"),
    ("webdataset", "shard-000000.tar"),
    ("pt", "images.pt"),
)
"""Files of exports with weights and soft labels, by their layouts."""


def make_set(folder: Path, weights: bool = False) -> DistilledSet:
    """A whole set of two classes with two images of 8 px each, as `dap distill` writes it."""
    folder.mkdir(parents=True)
    made = DistilledSet.create(folder, NAMES, 2, RECIPE_VALUES, {"data": {"train": "0" * 16}})
    for label in range(2):
        for slot in range(2):
            more = {"weight": 0.5 + slot} if weights else {}
            made.add(label, slot, torch.full((3, 8, 8), 0.2 + 0.3 * label), seed=slot, **more)
    return made


def judged(folder: Path) -> Any:
    """All that judging and exporting read of the images of a set: they are checked, decoded, and written elsewhere."""
    made = DistilledSet.from_folder(folder)
    problems = made.verify()
    shutil.rmtree(folder.parent / "exported", ignore_errors=True)
    return problems, made.tensors(8), export(made, folder.parent / "exported")


def targets(folder: Path) -> list[Target]:
    """The readers, each with a folder of its own."""
    found = []

    def add(
        name: str,
        kind: Any,
        file: str,
        seeds: list[bytes],
        read: Callable[[Any], Any],
        noted: bool = False,
        **more: Any,
    ) -> None:
        place = folder / name.replace(" ", "-").replace("/", "-")
        make_set(place)
        for other in ("trials.jsonl", *SEEDS):
            if other not in ("recipe.json", "import.json") and noted:
                data = json.dumps(TRIAL if other == "trials.jsonl" else SEEDS[other]) + "\n"
                (place / other).write_text(data)
        found.append(Target(name, kind, place, file, tuple(seeds or [(place / file).read_bytes()]), read, **more))

    def opened(path: Path) -> Any:
        return DistilledSet.open(path.parent).records

    def verified(path: Path) -> Any:
        return DistilledSet.open(path.parent).verify()

    def resumed(path: Path) -> Any:
        inputs = {"data": {"train": "0" * 16}}
        return DistilledSet.check_begun(path.parent, NAMES, RECIPE_VALUES, inputs)

    def grown(path: Path) -> Any:
        if path.name != "recipe.json":  # the last input may have let the set grow
            write_atomically(path.parent / "recipe.json", dump(RECIPE_VALUES))
        larger = {**RECIPE_VALUES, "ipc": 7}
        sizes = cuts(path.parent, larger, can_grow=True)
        grow(path.parent, larger, sizes, "a command")
        return sizes

    for file in ("manifest.jsonl", "classes.json", "recipe.json"):
        add(f"set: {file}", "lines" if file.endswith("l") else "json", file, [], opened)

    def parted(path: Path) -> Any:
        """A set that several processes make: the input is the part of the manifest for a unit."""
        part = part_of(path.parent, 0, 0)
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(path.read_bytes())
        found = DistilledSet.open(path.parent).records, load_set(path.parent).images
        gather(path.parent)
        return found

    whole = (folder / "set:-manifest.jsonl" / "manifest.jsonl").read_bytes()
    add("set: part of the manifest", "lines", "part.jsonl", [whole], parted)
    for file in ("manifest.jsonl", "classes.json", "recipe.json", "inputs.json"):
        add(f"verify: {file}", "lines" if file.endswith("l") else "json", file, [], verified)
    add("resume: recipe.json", "json", "recipe.json", [], resumed)
    add("resume: inputs.json", "json", "inputs.json", [], resumed)

    add("results apart: manifest.jsonl", "lines", "manifest.jsonl", [], lambda path: _images_in(path.parent))
    add("results apart: of.json", "json", "of.json", [b'{"set": "/sets/mine"}'], lambda path: _set_of(path.parent))

    def again(path: Path) -> Any:
        return import_set(folder / "source of import", path.parent)

    source = folder / "source of import"
    if not source.exists():
        shutil.copytree(make_set(folder / "to import").path / "images", source)
        import_set(source, folder / "import")
    kept = (folder / "import" / "import.json").read_bytes()
    found.append(Target("import again: import.json", "json", folder / "import", "import.json", (kept,), again))
    for file in ("recipe.json", "growth.json"):
        add(f"grow: {file}", "json", file, [], grown, noted=True)
    add("grow: command.txt", "binary", "command.txt", [b"dap distill --out x\n"], grown, noted=True)
    plan: dict[str, Any] = {"folder": "images", "images": 4, "trainings": 2}
    named = {"folder": ".", "protocol": "small-hard", "networks": ["convnet3"], "seeds": [0, 1]}
    planned = [json.dumps({"sets": [one]}).encode() for one in (plan, plan | named)]
    add("status: grid.json", "json", "grid.json", planned, lambda path: status(path.parent), noted=True)
    failed = json.dumps({"label": 1, "class_name": "x", "slots": [0, 1], "reason": "no numbers"}).encode() + b"\n"
    add("status: failed.jsonl", "lines", "failed.jsonl", [failed], lambda path: status(path.parent), noted=True)
    for file in ("manifest.jsonl", "trials.jsonl"):
        add(f"status: {file}", "lines", file, [], lambda path: status(path.parent), noted=True)
    add("document: recipe.json", "json", "recipe.json", [], lambda path: read_json(path, RECIPE))
    add("document: inputs.json", "json", "inputs.json", [], lambda path: read_json(path, INPUTS))
    lines = json.dumps(TRIAL).encode() + b"\n" + json.dumps(TRIAL | {"seed": 1}).encode() + b"\n"
    add("lines: trials.jsonl", "lines", "trials.jsonl", [lines], lambda path: list(read_lines(path, TrialLine)))
    add("report: trials.jsonl", "lines", "trials.jsonl", [lines], lambda path: load_set(path.parent), noted=True)
    add("report: classes.json", "json", "classes.json", [], lambda path: load_set(path.parent), noted=True,
        allowed=(FileNotFoundError,))  # fmt: skip
    add("report: manifest.jsonl", "lines", "manifest.jsonl", [], lambda path: load_set(path.parent), noted=True)
    add(
        "report: command.txt",
        "binary",
        "command.txt",
        [b"dap distill --out x\n"],
        lambda path: load_set(path.parent),
        noted=True,
    )
    for file in NOTES:
        seeds = [json.dumps(SEEDS[file]).encode()]
        add(f"note: {file}", "json", file, seeds, lambda path: read_note(path.parent, path.name))
        add(f"report: {file}", "json", file, seeds, lambda path: load_set(path.parent), noted=True)
        if file in ("measures.json", "images.json", "zeroshot.json", "ranking.json", "recipe.json", "chosen.json"):
            out = folder / "page"
            add(
                f"page: {file}",
                "json",
                file,
                seeds,
                lambda path, out=out: write_report([path.parent], out, title="x"),
                noted=True,
            )
    add(
        "page: trials.jsonl",
        "lines",
        "trials.jsonl",
        [lines],
        lambda path: write_report([path.parent], folder / "p", title="x"),
        noted=True,
    )
    image = "images/cat/00000.png"
    add("set: image", "binary", image, [], lambda path: judged(path.parents[2]), forms=pngs())
    place = folder / "folder-of-images"
    for name in ("cat", "dog"):
        (place / name).mkdir(parents=True)
        (place / name / "0.png").write_bytes(picture())
    found.append(Target("folder of images", "binary", place, "cat/0.png", pictures(), lambda path: judged(path.parents[1]),
                        seconds=20, forms=pngs()))  # fmt: skip
    add("export.json", "json", "export.json", [json.dumps({"class_names": NAMES, "layout": "parquet"}).encode()],
        lambda path: exported(path.parent))  # fmt: skip
    for layout, file in BESIDE:
        there = folder / f"beside-{layout}-{Path(file).stem}"
        if not there.exists():
            source = make_set(folder / f"weighed-{layout}-{Path(file).stem}", weights=True)
            export(source, there, layout, logits=np.ones((4, 2), np.float32))

        def brought(path: Path, there: Path = there) -> Any:
            shutil.rmtree(folder / "brought", ignore_errors=True)
            return import_set(there, folder / "brought")

        seeds = ((there / file).read_bytes(),)
        kind = {".json": "json", ".jsonl": "lines"}.get(Path(file).suffix, "binary")
        found.append(Target(f"import {layout}: {file}", kind, there, file, seeds, brought, seconds=20))
    add("class list .json", "json", "names.json", [json.dumps(NAMES).encode()], lambda path: listed(str(path)))
    add("class list .txt", "binary", "names.txt", [b"cat\ndog\n\xef\xbb\xbfbird\n"], lambda path: listed(str(path)))
    return found
