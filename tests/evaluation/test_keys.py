"""Results are made anew where something changed that their keys have to tell: code, labels, names of classes, references."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import dap
from dap.base.permission import allow_code
from dap.base.watch import Watcher
from dap.data.real.sources import open_source
from dap.evaluation.measures.embedding import embedding
from dap.evaluation.training.classifier import Classifier
from dap.evaluation.training.evaluate import train_and_test
from dap.evaluation.training.loading import load_trained, save_classifier
from dap.evaluation.training.protocol import load_protocol
from dap.evaluation.training.trained import train_on_tensors
from dap.verbs.options import Judging, Machine
from trainings import stripes, tiny

CHANGES = {"mean": [0.5], "std": [0.25], "size": 8, "width": 4}
FAST = Judging(networks=("convnet1",), epochs=2, changes=CHANGES)
CPU = Machine(device="cpu")
LEARNS = """from torch import nn


def build(**how):
    return nn.Sequential(nn.Flatten(), nn.Linear(how["channels"] * how["size"] ** 2, how["classes"]), *())
"""
DEAD = LEARNS.replace("*()", "nn.Threshold(1e9, 0.0)")
"""The same weights by the same names, and logits that are all 0."""


@pytest.fixture
def theirs(colours, tmp_path) -> Path:
    """A folder that others made, whose class folders are numbers: blue, green and red."""
    for label, name in enumerate(sorted(folder.name for folder in (colours / "train").iterdir())):
        (tmp_path / "theirs" / str(label)).mkdir(parents=True)
        for i in range(2):
            shutil.copy(colours / "train" / name / f"{i}.png", tmp_path / "theirs" / str(label) / f"{i + 4}.png")
    return tmp_path / "theirs"


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


def judged(given: Any, out: Path, **options: Any) -> dict[str, Any]:
    """The only trial that is recorded after a set was judged."""
    found = dap.evaluate(given, judging=FAST, machine=CPU, out=out, **options)
    (line,) = lines(found.sets[0])
    return line


def test_an_edited_network_is_trained_anew(theirs, colours, tmp_path):
    file = tmp_path / "mine.py"
    judging = Judging(networks=(f"{file}:build",), epochs=8, changes={**CHANGES, "lr": 0.05})
    seen = []
    for text in (LEARNS, LEARNS, DEAD):
        file.write_text(text)
        options = {"classes": ["blue", "green", "red"], "judging": judging, "machine": CPU, "out": tmp_path / "out"}
        found = dap.evaluate(theirs, data=colours, **options)
        seen += lines(found.sets[0])
    assert seen[0] == seen[1], "code that did not change is not run again"
    assert len(seen) == 3 and seen[2]["by"] != seen[0]["by"]
    assert seen[2]["last"] == pytest.approx(1 / 3) and seen[0]["last"] > 0.4
    assert load_protocol("quick-hard").facts().keys() == load_protocol("quick-hard").model_dump().keys() - {"weights"}


def test_a_training_of_an_edited_network_does_not_go_on(tmp_path):
    file, data = tmp_path / "mine.py", stripes(12)
    protocol, begun = tiny(network=f"{file}:build"), []
    for text in (LEARNS, LEARNS, DEAD):
        file.write_text(text)
        epochs: list[int] = []
        how = {"checkpoints": tmp_path / "kept", "every": 0.0, "progress": lambda s, e, n, to=epochs: to.append(e)}
        train_and_test(data, data, protocol, 0, classes=2, **how)
        begun.append(epochs[:1])
    assert begun == [[1], [], [1]]


def test_the_fingerprint_of_a_teacher_changes_with_the_code_of_its_network(tmp_path):
    file, data = tmp_path / "mine.py", stripes(12)
    file.write_text(LEARNS)
    made, _ = train_on_tensors(data, data, tiny(network=f"{file}:build"), 2, class_names=("a", "b"))
    save_classifier(made, tmp_path / "net.safetensors")
    with allow_code():
        before = load_trained(tmp_path / "net.safetensors")
        file.write_text(DEAD)
        after = load_trained(tmp_path / "net.safetensors")
    assert made.fingerprint == before.fingerprint != after.fingerprint
    assert not torch.equal(before.logits(data[0]), after.logits(data[0]))


def test_other_names_of_the_classes_are_another_trial(theirs, colours, tmp_path):
    test = open_source(colours, "test", size=8)
    pictures = {name: list(test.images(k, range(6))) for k, name in enumerate(test.class_names)}
    for number, data in enumerate((test, pictures)):
        for names in (["green", "blue", "red"], ["blue", "green", "red"]):
            fresh = judged(theirs, tmp_path / f"fresh{number}{names[0]}", data=data, classes=names)
            line = judged(theirs, tmp_path / f"out{number}", data=data, classes=names)
            assert line["confusion"] == fresh["confusion"], names


def test_other_names_of_a_set_in_memory_are_another_trial(theirs, colours, tmp_path):
    test = open_source(colours, "test", size=8)
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    keys = [
        judged(dict(zip(names, images.split(2), strict=True)), tmp_path / "out", data=test)["judged"]
        for names in (("green", "blue", "red"), ("blue", "green", "red"))
    ]
    assert keys[0] != keys[1]


def test_an_image_that_moves_to_the_next_class_makes_another_trial(theirs, colours, tmp_path):
    options = {"data": colours, "classes": ["blue", "green", "red"]}
    even = judged(theirs, tmp_path / "out", **options)
    hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(theirs.rglob("*.png"))]
    shutil.move(theirs / "0" / "5.png", theirs / "1" / "3.png")
    assert [hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(theirs.rglob("*.png"))] == hashes
    moved = judged(theirs, tmp_path / "out", **options)
    shutil.move(theirs / "1" / "5.png", theirs / "2" / "3.png")
    assert len({line["judged"] for line in (even, moved, judged(theirs, tmp_path / "out", **options))}) == 3


def test_trials_of_earlier_versions_stay_valid_where_they_are_right(theirs, colours, tmp_path):
    """Sets of this library, and folders of others that are tested on data by name: the key is the images' hashes alone."""
    recipe = dap.Recipe.parse({"method": "random", "ipc": 2, "data": {"path": str(colours), "size": 8}})
    made = dap.distill(recipe, tmp_path / "set", machine=CPU)
    test = open_source(colours, "test", size=8)
    ours = [record["sha256"] for record in made.records]
    others = [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(theirs.rglob("*.png"))]
    given = [(made.path, None, ours), (made.path, test, ours), (theirs, colours, others)]
    for number, (one, data, hashes) in enumerate(given):
        line = judged(one, tmp_path / f"out{number}", data=data, classes=["blue", "green", "red"])
        assert line["judged"] == hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()[:16]
        assert line["data"] == Path(colours).name, "a report names the test images"


def test_test_images_made_square_in_another_way_are_others(theirs, colours, tmp_path):
    names = {"classes": ["blue", "green", "red"]}
    tests = [open_source(colours, "test", size=8, fit=fit) for fit in ("crop-bilinear", "crop", "pad")]
    found = [judged(theirs, tmp_path / "out", data=test, **names)["tested"] for test in tests]
    assert len(set(found)) == 3
    assert judged(theirs, tmp_path / "named", data=colours, **names)["tested"] == found[0], (
        "data by name keep their key"
    )


def test_another_reference_makes_measures_anew(theirs, colours, tmp_path):
    real = [open_source(colours, split, size=8).tensors() for split in ("train", "test")]
    longer = load_protocol("reference", **CHANGES, network="convnet2", epochs=10, looks=1, batch=12)
    names, files = ("blue", "green", "red"), [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for seed, file in enumerate(files):
        network, _ = train_on_tensors(real[0], real[1], longer, 3, seed=seed, class_names=names)
        save_classifier(network, file)

    def measured(file: Path, out: str) -> dict[str, Any]:
        judging = Judging(networks=("convnet1",), epochs=2, changes=CHANGES, reference=file)
        options = {"classes": list(names), "judging": judging, "machine": CPU, "out": tmp_path / out}
        found = dap.evaluate(theirs, data=colours, **options)
        return json.loads((found.sets[0] / "measures.json").read_text())

    first, second = (measured(file, "out") for file in files)
    assert first["features"] == second["features"], "the name does not tell the two networks apart"
    assert second == measured(files[1], "fresh") != first
    (_, shipped), (_, given) = embedding("fashion-mnist", 28), embedding("fashion-mnist", 28, files[0])
    assert isinstance(shipped, Classifier) and isinstance(given, Classifier)
    assert given.fingerprint and not shipped.fingerprint, "measures by the shipped network keep their key"


def test_a_training_that_goes_on_keeps_no_look_at_other_test_images(theirs, colours, tmp_path, monkeypatch):
    monkeypatch.setenv("DAP_CHECKPOINT_SECONDS", "0")
    test = open_source(colours, "test", size=8)
    right = {name: test.images(k, range(6)) for k, name in enumerate(test.class_names)}
    wrong = dict(zip(right, reversed(right.values()), strict=True))
    judging = Judging(networks=("convnet1",), epochs=6, changes={**CHANGES, "looks": 6})

    class Killing(Watcher):
        def epoch(self, seed: int, done: int, total: int) -> None:
            if done == 4:
                raise KeyboardInterrupt

    def curve(data: Any, out: str, watcher: Watcher) -> Any:
        options = {"classes": list(right), "judging": judging, "machine": CPU, "watcher": watcher}
        found = dap.evaluate(theirs, data=data, out=tmp_path / out, **options)
        return lines(found.sets[0])[0]["curve"]

    with pytest.raises(KeyboardInterrupt):
        curve(wrong, "out", Killing())
    assert len(list((tmp_path / "out").rglob("checkpoints/*/*.pt"))) == 1
    assert curve(right, "out", Watcher()) == curve(right, "fresh", Watcher())
