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
from dap.evaluation.report.records import load
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
    assert [
        told for told in load([made.path])[0].outdated if "The set was made of other real images than photos" in told
    ]
    judged(made, data=here / "photos")
    assert not load([made.path])[0].outdated, "judged by its own images again"


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


def by_name(source):
    return {name: source.images(label, range(source.count(label))) for label, name in enumerate(source.class_names)}


def labelled(images, numbers):
    """A pair of images and labels: the images of each class with its number."""
    labels = [number for mine, number in zip(images.values(), numbers, strict=True) for _ in mine]
    return torch.cat(list(images.values())), torch.tensor(labels)


@pytest.fixture
def two(colours):
    """Ten training and six test images of two classes, by class name."""
    train, test = by_name(open_source(colours, size=8)), by_name(open_source(colours, "test", size=8))
    names = sorted(train)[:2]
    return {name: train[name][:10] for name in names}, {name: test[name] for name in names}


def test_a_distilled_set_as_test_data_is_matched_by_class_name(two, tmp_path):
    train, test = two
    one, other = drawn(tmp_path / "one", train, size=8), drawn(tmp_path / "other", dict(reversed(test.items())), size=8)
    assert one.class_names == tuple(reversed(other.class_names))
    (named,) = judged(one, data=by_name_of(other))
    (given,) = judged(one, data=other)
    assert given.curve == named.curve
    again = drawn(tmp_path / "again", other, size=8)
    assert again.class_names == other.class_names
    (theirs,) = judged(labelled(train, (1, 0)), data=other)
    assert theirs.curve == judged(dict(reversed(train.items())), data=other)[0].curve, (
        "numbers are positions in the names of the test data"
    )


def by_name_of(made):
    images, labels = made.tensors()
    return {name: images[labels == label] for label, name in enumerate(made.class_names)}


@pytest.mark.parametrize("numbers", [(0, 1), (1, 2), (3, 7), (10, 2), (1, 0)])
def test_labels_that_nobody_named_are_matched_by_their_value(two, tmp_path, numbers):
    train, test = two
    (right,) = judged(labelled(train, numbers), data=labelled(test, numbers))
    (wrong,) = judged(labelled(train, numbers), data=labelled(test, numbers[::-1]))
    assert right.n_test == 12 and right.accuracy == pytest.approx(1 - wrong.accuracy)
    made = drawn(tmp_path / "set", labelled(train, numbers), size=8)
    source = MemorySource({str(number): one for number, one in zip(numbers, test.values(), strict=True)}, size=8)
    for sets, data in ((made, labelled(test, numbers)), (labelled(train, numbers), source), (made, source)):
        assert judged(sets, data=data)[0].n_test == 12
    others = tuple(number + 1 for number in numbers)
    if set(others) != set(numbers):
        for sets in (made, labelled(train, numbers)):
            with pytest.raises(dap.DapError, match=r"have the label \d+, and the 2 classes are called"):
                judged(sets, data=labelled(test, others))


def test_a_number_that_could_mean_two_classes_is_refused(two):
    train, test = two
    called = dict(zip(("1", "0"), test.values(), strict=True))
    for data in (called, Named(called)):
        with pytest.raises(dap.DapError, match="The label . of the images in memory may mean the class ., or .,"):
            judged(labelled(train, (0, 1)), data=data)
    assert judged(labelled(train, (0, 1)), data=called, classes=["1", "0"])[0].n_test == 12
    high = dict(zip(("3", "7"), test.values(), strict=True))
    curves = {tuple(judged(labelled(train, numbers), data=high)[0].curve) for numbers in ((0, 1), (3, 7))}
    assert len(curves) == 1, "where only one meaning is possible, it is taken"


class Named(list):
    """A torch data set whose attribute `classes` names its labels."""

    def __init__(self, images):
        super().__init__((one, label) for label, mine in enumerate(images.values()) for one in mine)
        self.classes = list(images)


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        ("ab", "`classes` must be a list of class names or the name of a subset .imagenette"),
        (["a", "a"], "'a' stands several times in classes"),
        (["é", "e\u0301"], "stands several times in classes"),
        (["a", "b", "c"], "classes names 3 classes, and the images in memory have only 2: a, b"),
        (["a"], "have the label 1, and the 1 classes are numbered from 0 to 0: a"),
        ("imagenette", "classes names 10 classes, and the images in memory have only 2: n01440764"),
        ([0, 1], "classes takes a list of class names, .* not 0"),
        (3, "classes takes a list of class names"),
        ([], "classes takes a list of class names"),
    ],
)
def test_names_for_labels_that_would_lose_or_mix_images_are_refused(two, classes, says):
    train, test = two
    pair = labelled(train, (0, 1))
    for data in (test, labelled(test, (0, 1))):
        with pytest.raises(dap.DapError, match=says):
            judged(pair, data=data, classes=classes)


def test_the_name_of_a_subset_stands_for_its_classes(two):
    from dap import imagenet

    many = torch.rand(10, 3, 8, 8), torch.arange(10)
    for classes in ("imagenette", ["imagenette"], (name for name in imagenet.subset("imagenette"))):
        found = dap.evaluate(many, data=many, classes=classes, judging=FAST, machine=CPU)
        names = json.loads((found.sets[0] / "classes.json").read_text())["names"]
        assert names == list(imagenet.subset("imagenette"))


def test_classes_choose_among_images_that_have_names(two):
    train, test = two
    more = {**train, "z": torch.rand(10, 3, 8, 8)}
    (chosen,) = judged(more, data={**test, "z": torch.rand(6, 3, 8, 8)}, classes=list(reversed(train)))
    assert chosen.n_test == 12
    with pytest.raises(dap.DapError, match="unknown class 'y' in the images in memory"):
        judged(more, data=test, classes=["y"])


@pytest.mark.parametrize("side", [20, 32])
def test_objects_are_judged_by_the_protocol_that_suits_them(tmp_path, side, caplog):
    """As data by name are: the size of the sets, and the mean and the standard deviation of the training images."""
    from PIL import Image

    generator = torch.Generator().manual_seed(side)
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(3):
                pixels = torch.randint(0, 60 if name == "a" else 90, (side, side, 3), generator=generator).byte()
                Image.fromarray(pixels.numpy()).save(tmp_path / "data" / split / name / f"{i}.png")
    made = dap.distill(
        out=tmp_path / "set", method="random", ipc=2, data=str(tmp_path / "data"), size=side, machine=CPU
    )
    quick = Judging(networks=("convnet1",), epochs=1, changes={"width": 2})
    (named,) = judged(made, judging=quick)
    assert "mean=" in named.protocol and ("size=20" in named.protocol) == (side == 20)
    for opened in (open_source(tmp_path / "data", "test", size=size) for size in (side, 8)):
        for data in (opened, OfClasses(opened, ["b", "a"])):
            (same,) = judged(made, data=data, judging=quick)
            assert (same.protocol, same.curve if opened.size == side else None) == (
                named.protocol, named.curve if opened.size == side else None
            )  # fmt: skip
    assert "standard deviation" not in caplog.text
    tensors = by_name(open_source(tmp_path / "data", "test", size=side))
    (kept,) = judged(made, data=tensors, judging=quick)
    assert "mean=" not in kept.protocol and ("size=20" in kept.protocol) == (side == 20)
    assert caplog.text.count("the mean and the standard deviation of") == 1 and "Judging(changes=" in caplog.text


def test_the_embedded_data_as_objects_keep_the_protocol_s_values(tmp_path, caplog):
    made = dap.distill(out=tmp_path / "set", method="random", ipc=1, classes=["Bag", "Dress"], size=16, machine=CPU)
    quick = Judging(networks=("convnet1",), epochs=1, changes={"width": 2, "looks": 1})
    test = open_source("fashion-mnist", "test", size=32, classes=["Bag", "Dress"])
    (opened,) = judged(made, judging=quick, data=test)
    assert opened.n_test == 2000 and "mean=" not in opened.protocol and "size=" not in opened.protocol
    judged(made, judging=quick, data=MemorySource(by_name_few(test), size=32))
    assert "standard deviation" not in caplog.text


def by_name_few(source):
    return {name: source.images(label, range(4)) for label, name in enumerate(source.class_names)}
