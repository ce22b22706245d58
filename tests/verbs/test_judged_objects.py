"""Real images that are objects are judged as what they are: their place, class names, size and bytes are those of the object."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch

import dap
from dap.data.real.held import OfClasses
from dap.data.real.memory import MemorySource
from dap.data.real.sources import open_source
from dap.verbs.options import Judging, Machine

FAST = Judging(networks=("convnet1",), epochs=2, changes={"mean": [0.5], "std": [0.25], "size": 8, "width": 4})
CPU = Machine(device="cpu")


def judged(sets, **options):
    found = dap.evaluate(sets, **{"judging": FAST, "machine": CPU, **options})
    return [trial for trials in found.trials.values() for trial in trials]


def drawn(out, source, **fields):
    return dap.distill(out=out, method="random", ipc=2, source=source, machine=CPU, **fields)


@pytest.fixture
def twins(colours, tmp_path):
    """Two folders called photos: one of the three colours, and one in which each class has the colour of another."""
    names = sorted(one.name for one in (colours / "train").iterdir())
    shutil.copytree(colours, tmp_path / "here" / "photos")
    for split in ("train", "test"):
        for name, other in zip(names, names[1:] + names[:1], strict=True):
            shutil.copytree(colours / split / other, tmp_path / "there" / "photos" / split / name)
    return tmp_path / "here", tmp_path / "there"


def test_a_source_is_judged_on_its_own_folder_from_wherever(twins, tmp_path, monkeypatch, caplog):
    here, there = twins
    monkeypatch.chdir(here)
    opened = open_source("photos", size=8)
    made = drawn(tmp_path / "set", opened)
    assert made.recipe["data"]["path"] == str(here / "photos")
    chosen = drawn(tmp_path / "two", OfClasses(opened, opened.class_names[:2]))
    later = drawn(tmp_path / "later", opened, classes=opened.class_names[:2], held_out=0.25)
    assert chosen.recipe["data"]["path"] == later.recipe["data"]["path"] == str(here / "photos")
    (named,) = judged(dap.distill(out=tmp_path / "named", method="random", ipc=2, data=str(here / "photos"), size=8))
    monkeypatch.chdir(there)
    (one,) = judged(made)
    assert (one.curve, one.n_test) == (named.curve, 18)
    assert [trial.n_test for trial in judged([chosen, later])] == [12, 12]
    assert "other real images" not in caplog.text


def test_a_folder_that_is_called_as_the_embedded_data_is_no_embedded_data(colours, tmp_path, monkeypatch):
    shutil.copytree(colours, tmp_path / "fashion-mnist")
    monkeypatch.chdir(tmp_path)
    made = drawn("set", open_source("./fashion-mnist", size=8))
    assert judged(made)[0].n_test == 18
    embedded = drawn("embedded", open_source("fashion-mnist", size=8, classes=["Bag", "Dress"]))
    assert embedded.recipe["data"]["path"] == "fashion-mnist"


def test_where_the_splits_lie_is_recorded_with_the_place(twins, tmp_path):
    here, _ = twins
    (here / "photos" / "test").rename(here / "photos" / "others")
    made = drawn(tmp_path / "set", open_source(here / "photos", size=8, chosen={"train": "train", "test": "others"}))
    assert judged(made)[0].n_test == 18


@pytest.mark.parametrize("kind", ["memory", "mapping", "test split", "one's own", "earlier"])
def test_images_without_a_place_are_asked_for(kind, twins, tmp_path, monkeypatch):
    """A folder of their name is not taken, whatever lies in the current folder."""
    here, _ = twins
    opened = open_source(here / "photos", "test" if kind == "test split" else "train", size=8)
    images = {name: opened.images(label, range(4)) for label, name in enumerate(opened.class_names)}
    given = {"memory": MemorySource(images, size=8), "mapping": images, "test split": opened, "earlier": opened}
    given["one's own"] = MemorySource(images, size=8, name="photos")
    made = drawn(tmp_path / "set", given[kind], **({"size": 8} if kind == "mapping" else {}))
    if kind == "earlier":  # which wrote the name of the folder
        file = tmp_path / "set" / "recipe.json"
        said = json.loads(file.read_text())
        said["data"]["path"] = "photos"
        file.write_text(json.dumps(said))
        made = dap.DistilledSet.open(tmp_path / "set")
    shutil.copytree(here / "photos", here / "images in memory")
    monkeypatch.chdir(here)
    with pytest.raises(dap.DapError, match="does not say where its real images lie.*--data"):
        judged(made)
    assert judged(made, data="photos")[0].n_test == 18


def test_other_images_at_the_same_place_are_said(twins, tmp_path, monkeypatch, caplog):
    here, there = twins
    monkeypatch.chdir(here)
    made = dap.distill(out=tmp_path / "set", method="random", ipc=2, data="photos", size=8, machine=CPU)
    padded = drawn(tmp_path / "padded", open_source("photos", size=8, fit="pad"))
    part = dap.distill(out=tmp_path / "part", method="random", ipc=2, data="photos", size=8, held_out=0.25)
    judged([made, padded, part])
    assert "other real images" not in caplog.text, "neither the fit nor a held-out part is a difference"
    monkeypatch.chdir(there)
    judged(made, data=here / "photos")
    assert "other real images" not in caplog.text
    judged(made)
    known = json.loads((made.path / "inputs.json").read_text())["data"]
    assert f"{made.path} was made of other real images than photos holds" in caplog.text and known[:12] in caplog.text
    assert not [record for record in caplog.records if record.levelno > logging.WARNING]


def test_test_images_that_are_changed_in_place_are_tested_on_anew(colours, tmp_path):
    made = dap.distill(out=tmp_path / "set", method="random", ipc=2, data=str(colours), size=8, machine=CPU)
    opened = open_source(colours, "test", size=8)
    images = {name: opened.images(label, range(6)) for label, name in enumerate(opened.class_names)}
    for source in (MemorySource(images, size=8), OfClasses(MemorySource(images, size=8), opened.class_names)):
        (first,) = judged(made, data=source)
        red, green = (images[name] for name in opened.class_names[:2])
        kept = red.clone()
        red.copy_(green)
        green.copy_(kept)
        (second,) = judged(made, data=source)
        assert first.curve != second.curve


def test_a_workshop_notices_images_in_memory_that_have_changed(tmp_path):
    from dap.objects import Objects
    from dap.workshop import Workshop

    images = {name: torch.rand(4, 3, 8, 8) for name in ("a", "b")}
    for number, source in enumerate((images, MemorySource(images, size=8))):
        workshop, known = Workshop("cpu", objects=Objects(source=source)), set()
        for again in range(2):
            values = {"method": "random", "ipc": 4, "seed": 0, "data": {"path": "x", "classes": ["a", "b"], "size": 8}}
            made = dap.distill(dap.Recipe.parse(values), tmp_path / f"{number}{again}", workshop=workshop)
            known.add(json.loads((made.path / "inputs.json").read_text())["data"])
            ours = {tuple(one.flatten().round(decimals=2).tolist()) for one in made.tensors()[0]}
            assert len(ours) == 8
            assert sorted(made.tensors()[0].mean((1, 2, 3)).tolist()) == pytest.approx(
                sorted(torch.cat(list(images.values())).mean((1, 2, 3)).tolist()), abs=0.01
            )
            images["a"].mul_(0.5)
        assert len(known) == 2
