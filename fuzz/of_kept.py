"""Readers of what a run keeps for later runs: the cache, checkpoints, stored labels, recorded trials, jobs and maps."""

from __future__ import annotations

import hashlib
import io
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dap.base.checksums import digest_of
from dap.base.store import Checkpoint, Store
from dap.data.real import identity
from dap.data.sets.cards import read_card
from dap.evaluation.apart import _lines_of  # pyright: ignore[reportPrivateUsage]
from dap.evaluation.image_labels import FILE, INDEX, how_made, image_labels, open_image_labels, write_image_labels
from dap.evaluation.recorded import BEFORE, RecordedTrials
from dap.evaluation.report.drawings.scatter import read_map, undrawn
from dap.evaluation.report.page import write_report
from dap.evaluation.training.batches import Images
from dap.evaluation.training.classifier import Classifier
from dap.evaluation.training.fitting import Training, run_with_checkpoint
from dap.evaluation.training.networks.zoo import _fetched
from dap.evaluation.training.protocol import load_protocol
from dap.evaluation.training.stored_labels import Labelling, open_labels, write_labels
from dap.evaluation.training.transforms import split
from dap.pretraining.networks import Sizes
from dap.pretraining.notes import Asked, Notes, Stage, read_notes
from dap.verbs.jobs import read_job, read_judging, read_teacher
from dap.verbs.options import Judging, Machine
from fuzz import forms
from fuzz.of_sets import NAMES, RECIPE_VALUES, TRIAL, make_set
from fuzz.target import Target

KEY = {"judged": "a" * 16, "tested": "b" * 16, "by": "c" * 16}
HASHES = [f"{number:064x}" for number in range(4)]
STAGE = Stage(planned=2, parameters=3, steps=2, best=2, turned=False, seconds=1.0, history=[[2, 0.5, 0.25]])
ASKED = Asked(
    kind="dit", size=16, minutes=1, autoencoder_steps=2, steps=2, seed=0, flip=True, classes=["a", "b"], data="0" * 64,
    images=8, held_out=2,
)  # fmt: skip
NOTES = (
    Notes(
        asked=ASKED,
        sizes=Sizes(size=16, levels=[8, 8], width=32, depth=1),
        autoencoder=STAGE,
        denoiser=STAGE,
        done=True,
    )
    .model_dump_json()
    .encode()
)
CARD = b"---\nlicense: mit\ntags: [images]\npretty_name: A set\n---\n\n# A set\n\nIts text.\n"


def saved(value: Any) -> bytes:
    """The bytes of a file of `torch.save`."""
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def targets(folder: Path) -> list[Target]:
    """The readers of what a run keeps."""
    found: list[Target] = []

    def add(name: str, kind: Any, file: str, seeds: Any, read: Callable[[Any], Any], **more: Any) -> Path:
        place = folder / name.replace(" ", "-").replace("/", "-").replace(":", "")
        place.mkdir(parents=True, exist_ok=True)
        found.append(Target(name, kind, place, file, tuple(seeds), read, **more))
        return place

    _add_store(add, folder)
    _add_labels(add, folder)
    _add_image_labels(add, folder)
    lines = json.dumps({**TRIAL, **KEY}).encode() + b"\n" + json.dumps({**TRIAL, **KEY, "seed": 1}).encode() + b"\n"
    for file in ("trials.jsonl", BEFORE):
        add(f"resume: {file}", "lines", file, [lines],
            lambda path: RecordedTrials(path.parent).valid(KEY, {"name": "small-hard"}, "convnet3"))  # fmt: skip

    def added(path: Any) -> None:
        """A set's trials go to the folder of its results, which has one of them."""
        kept = path.parent / "kept"
        kept.mkdir(exist_ok=True)
        (kept / "trials.jsonl").write_bytes(lines.splitlines(keepends=True)[0])
        RecordedTrials(kept).take(_lines_of(path.parent), ())

    add("added: trials.jsonl", "lines", "trials.jsonl", [lines], added)
    add("training.json of a backbone", "json", "training.json", [NOTES], lambda path: read_notes(path.parent))
    job = json.loads(json.dumps({
        "cells": [["a", RECIPE_VALUES]], "judging": vars(Judging()), "machine": vars(Machine()), "out": str(folder),
        "subsample": [1], "command": "dap compare",
    }, default=str))  # fmt: skip
    add("job of a grid", "json", "job.json", [json.dumps(job).encode()], read_job)
    job = {name: job[name] for name in ("judging", "machine", "out")} | {"sets": ["a"], "data": "b", "classes": ["c"]}
    job |= {"max_bad_fraction": 0.5, "split": "train=a,test=b"}
    add("job of an evaluation", "json", "judging.json", [json.dumps(job).encode()], read_judging)
    job = {"data": "a", "out": "b", "classes": ["c"], "max_bad_fraction": 0.5, "split": None, "network": "convnet3",
           "protocol": "reference", "epochs": 2, "changes": {"size": 16}, "machine": job["machine"]}  # fmt: skip
    add("job of a teacher", "json", "teacher.json", [json.dumps(job, default=str).encode()], read_teacher)
    generator = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for name, count in (("synthetic", 4), ("train", 6), ("test", 6)):
        arrays[name] = generator.normal(size=(count, 3)).astype(np.float32)
        arrays[f"{name}_label"] = np.arange(count) % 2
    arrays |= {"features": np.array("convnet3"), "data": np.array("0" * 16)}
    plain, packed = io.BytesIO(), io.BytesIO()
    np.savez(plain, **arrays)
    np.savez_compressed(packed, **arrays)
    maps = [plain.getvalue(), packed.getvalue()]
    add(
        "map.npz",
        "binary",
        "map.npz",
        maps,
        lambda path: (read_map(path.parent), undrawn(path.parent)),
        forms=forms.npz(arrays),
    )
    place = add("page: map.npz", "binary", "map.npz", maps,
                lambda path: write_report([path.parent], folder / "page", title="x"),
                forms=forms.npz(arrays), seconds=10)  # fmt: skip
    place.rmdir()
    make_set(place)
    (place / "trials.jsonl").write_bytes(lines)
    add("card README.md", "binary", "README.md", [CARD], lambda path: read_card(path.parent))
    weights = {"conv.weight": torch.zeros(2, 3, 1, 1), "fc.bias": torch.zeros(2)}
    add("weights in torch's cache", "binary", "resnet0.pth", [saved(weights)], lambda path: _fetched("", path, "resnet0"),
        forms=forms.torch_files([weights]))  # fmt: skip
    return found


def _add_store(add: Callable[..., Path], folder: Path) -> None:
    """Entries of the cache, checkpoints of long work, and the index of the files' hashes."""
    tensors = {"w": torch.arange(6.0).reshape(2, 3), "n": torch.arange(3)}
    store = Store(folder / "made")
    store.get("weights", {"seed": 1}, lambda: tensors)
    entry = next((folder / "made").glob("*.safetensors"))

    def kept(path: Path) -> Any:
        got = Store(path.parent).get("weights", {"seed": 1}, lambda: tensors)
        assert all(torch.equal(got[name], value) for name, value in tensors.items()), "other tensors than those kept"
        return got

    add("cache entry", "binary", entry.name, [entry.read_bytes()], kept, forms=forms.safetensors((entry.read_bytes(),)))
    state = {"step": 3, "values": {"a": torch.zeros(2)}, "losses": [1.0, 2.0], "name": "x"}
    written = Checkpoint(folder / "half.pt", "k")
    written.write(state)
    whole = torch.load(folder / "half.pt", weights_only=True)
    add("checkpoint of long work", "binary", "half.pt", [(folder / "half.pt").read_bytes()],
        lambda path: Checkpoint(path, "k").read(), forms=forms.torch_files([whole]))  # fmt: skip

    unsigned = {name: value for name, value in whole.items() if name != "sha256"}

    def signed(data: bytes) -> bytes:
        """The checkpoint with a right checksum."""
        if not data:
            return data
        value = torch.load(io.BytesIO(data), weights_only=False)  # made here and by nobody else
        try:
            return saved({**value, "sha256": digest_of(value)})
        except (TypeError, RuntimeError):  # no mapping, or tensors that have no checksum
            return data

    add("checkpoint with a right checksum", "binary", "half.pt", [(folder / "half.pt").read_bytes()],
        lambda path: Checkpoint(path, "k").read(), forms=forms.torch_files([unsigned]).map(signed))  # fmt: skip

    protocol = load_protocol("small-hard", epochs=2, size=8, width=4, batch=4, looks=1).settled(ipc=2, classes=2)
    images = torch.arange(4 * 3 * 64).reshape(4, 3, 8, 8).remainder(255) / 255

    ready = Images((images, torch.tensor([0, 1, 0, 1])), split(protocol.train_steps)[0], torch.device("cpu"))

    def training() -> Training:
        return Training(ready, protocol, 0, network="convnet1", channels=3, classes=2)

    def resumed(path: Path) -> Any:
        return run_with_checkpoint(training(), Checkpoint(path, "k", every=1e9), lambda epoch, net: None, {})

    begun = training()
    run_with_checkpoint(
        begun, Checkpoint(folder / "training.pt", "k", every=0.0), lambda epoch, net: None, {"curve": []}
    )
    seed = (folder / "training.pt").read_bytes()
    whole = torch.load(folder / "training.pt", weights_only=True)
    add("resume: checkpoint of a training", "binary", "training.pt", [seed], resumed, forms=forms.torch_files([whole]))
    _add_index(add, folder)


def _add_index(add: Callable[..., Path], folder: Path) -> None:
    place = folder / "index-of-files"
    place.mkdir(parents=True)
    (place / "a").write_bytes(b"a")
    base = sqlite3.connect(place / "files.sqlite")
    base.execute("CREATE TABLE folders (path BLOB PRIMARY KEY, files BLOB) WITHOUT ROWID")
    base.execute("INSERT INTO folders VALUES (?, ?)", (str(place).encode(), bytes(64)))
    base.commit()
    base.close()

    def known(path: Path) -> Any:
        before, identity.folder = identity.folder, lambda: path.parent
        try:
            got = identity.hashes(path.parent, ["a"])
        finally:
            identity.folder = before
        assert got == [hashlib.sha256(b"a").hexdigest()], "another hash than that of the file"
        return got

    add("index of files", "binary", "files.sqlite", [(place / "files.sqlite").read_bytes()], known)


def _add_labels(add: Callable[..., Path], folder: Path) -> None:
    """Stored soft labels: their index, that of a labelling that is not finished, and an epoch."""
    protocol = load_protocol("fkd-soft", epochs=2, size=8, batch=2).settled(ipc=2, classes=2)
    how = Labelling(protocol.train_steps, protocol.mix, batch=2, epochs=2)
    images = torch.arange(4 * 3 * 64).reshape(4, 3, 8, 8).remainder(255) / 255
    torch.manual_seed(0)
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    teacher = Classifier("x", tuple(NAMES), net, "f" * 16, torch.device("cpu"), 2, (0, 1))
    made = write_labels(folder / "labels", images, HASHES, how, teacher, protocol="fkd-soft")
    ready = Images((images, torch.zeros(4, dtype=torch.int64)), split(how.steps)[0], torch.device("cpu"))

    def opened(path: Path) -> Any:
        labels = open_labels(path.parent, HASHES, NAMES, how)
        return labels.fingerprint, labels.teacher

    def replayed(path: Path) -> Any:
        batches = open_labels(path.parent, HASHES, NAMES, how).replay(ready, 4.0)
        return [loss(net(seen), slice(None)) for seen, loss in batches(0)]

    def continued(path: Path) -> Any:
        return write_labels(path.parent, images, HASHES, how, teacher, protocol="fkd-soft")

    index, epoch = (made / "index.json").read_bytes(), (made / "epoch-00000.safetensors").read_bytes()
    facts = json.loads(index)
    begun = json.dumps(
        {name: facts[name] for name in ("format", "steps", "mix", "batch", "seed", "classes", "teacher", "images")}
    )
    for name, kind, file, data, read in (
        ("labels: index.json", "json", "index.json", index, opened),
        ("labels: epoch", "binary", "epoch-00000.safetensors", epoch, replayed),
        ("resume: labels, index.json", "json", "index.json", index, continued),
        ("resume: labels, begun.json", "json", "begun.json", begun.encode(), continued),
        ("resume: labels, epoch", "binary", "epoch-00000.safetensors", epoch, continued),
    ):
        more = {"forms": forms.safetensors((epoch,))} if kind == "binary" else {}
        place = add(name, kind, file, [data], read, **more)
        for other in made.iterdir():
            if other.suffix in (".json", ".safetensors") and (other.name != "index.json" or "begun" not in name):
                (place / other.name).write_bytes(other.read_bytes())


def _add_image_labels(add: Callable[..., Path], folder: Path) -> None:
    """Soft labels of the images of a set: their index and their values."""
    given = image_labels("x", NAMES, torch.eye(2)[[0, 0, 1, 1]] * 3, 0.9)
    made = write_image_labels(folder / "image labels", given, HASHES, {"protocol": "none"})

    def opened(path: Path) -> Any:
        labels = open_image_labels(path.parent, HASHES, NAMES)
        assert labels.values.shape == (4, 2) and labels.values.isfinite().all(), "other labels than were asked for"
        return labels.fingerprint, how_made(path.parent)

    for file, kind in ((INDEX, "json"), (FILE, "binary")):
        data = (made / file).read_bytes()
        more = {"forms": forms.safetensors((data,))} if kind == "binary" else {}
        place = add(f"image labels: {file}", kind, file, [data], opened, **more)
        for other in (INDEX, FILE):
            if other != file:
                (place / other).write_bytes((made / other).read_bytes())
