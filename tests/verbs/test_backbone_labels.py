"""A backbone as the teacher: its labels of a set, against the posterior itself, by command, and what is refused."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from torchvision.transforms.functional import to_pil_image

from dap.backbones.mixture import Mixture
from dap.base.errors import DapError
from dap.base.watch import Watcher
from dap.cli.main import main
from dap.data.real.sources import open_source
from dap.data.sets.distilled import DistilledSet
from dap.evaluation.image_labels import how_made
from dap.objects import Objects
from dap.posterior import Levels, fitted_temperature, gaps
from dap.recipe import Recipe
from dap.verbs.distill import distill
from dap.verbs.labelling.by_backbone import Asked, BackboneLabeller, draw
from dap.verbs.labelling.labels import store_labels
from dap.workshop import Workshop


@pytest.fixture(scope="module")
def train(colours):
    return open_source(colours, "train", size=8)


@pytest.fixture(scope="module")
def coloured(train):
    means = [train.images(label, range(12)).mean(0) for label in range(3)]
    return Mixture(torch.stack(means)[:, None] * 2 - 1, std=0.5, class_names=train.class_names)


@pytest.fixture
def made(colours, tmp_path):
    recipe = {"method": "random", "ipc": 2, "data": {"path": str(colours), "size": 8}}
    return distill(Recipe.parse(recipe), tmp_path / "a")


class Told(Watcher):
    def __init__(self):
        self.worked, self.notes = [], []

    def work(self, what, done, total):
        self.worked.append(what)

    def note(self, text):
        self.notes.append(text)


def labeller(coloured, **asked):
    asked = {"levels": Levels(3), "reals": 12, **asked}
    return BackboneLabeller("backbone:mine", Workshop("cpu", objects=Objects(backbone=coloured)), Asked(**asked))


def test_labels_are_the_posterior_at_the_temperature_of_real_images(coloured, made, train):
    told = Told()
    found = labeller(coloured)(made, lambda split, size: train, told)
    used = [{line["real"] for line in made.records if line["label"] == label} for label in range(3)]
    drawn = draw(train, made.class_names, 12, used)
    assert [label for label, _ in drawn] == [0] * 4 + [1] * 4 + [2] * 4
    for label, image in drawn:
        mine = [record for record in made.records if record["label"] == label]
        assert all((made[made.records.index(one)][0] - image[0]).abs().max() > 0.01 for one in mine), (
            "drawn from the set"
        )
    of_reals = gaps(coloured, coloured.encode(torch.cat([i for _, i in drawn])), made.class_names, Levels(3))
    known = torch.tensor([label for label, _ in drawn])
    tau = fitted_temperature(of_reals[::2], known[::2])
    images = torch.stack([image for image, _ in made])
    wanted = -gaps(coloured, coloured.encode(images), made.class_names, Levels(3)) / tau
    torch.testing.assert_close(found.values, wanted.float(), rtol=1e-3, atol=1e-3)
    (folder,) = (made.path / "labels").iterdir()
    how = how_made(folder)
    rows = zip(of_reals[1::2].tolist(), known[1::2].tolist(), strict=True)
    plain = [math.log(math.exp(-row[k] / tau) / sum(math.exp(-g / tau) for g in row)) for row, k in rows]
    assert how["temperature"] == pytest.approx(tau) and how["log_likelihood"] == pytest.approx(sum(plain) / 6, rel=1e-4)
    assert (how["fitted_on"], how["tested_on"], how["passes"]) == (6, 6, (6 + 12) * 3 * 3)
    assert f"{how['passes']} passes took" in told.notes[0] and not (made.path / ".labels").exists()


def test_sets_of_the_same_data_share_what_was_found_of_real_images(coloured, made, train, tmp_path):
    told, one = Told(), labeller(coloured)
    for name in "bc":  # sets that name no real image
        other = DistilledSet.create(tmp_path / name, made.class_names, 1, {"method": "x"})
        for label in range(3):
            other.add(label, 0, torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(label + ord(name))))
        told.worked.clear()
        shared = one(other, lambda split, size: train, told)
        assert ("real" in told.worked) == (name == "b") and f"{name} red" in told.worked
    shutil.rmtree(other.path / "labels")
    alone = labeller(coloured)(other, lambda split, size: train)
    assert alone.fingerprint == shared.fingerprint


def test_labels_are_made_once_for_the_same_images(coloured, made, train):
    told = Told()
    first = labeller(coloured)(made, lambda split, size: train, told)
    told.worked.clear()
    assert (
        labeller(coloured)(made, lambda split, size: train, told).fingerprint == first.fingerprint and not told.worked
    )
    other = labeller(coloured, levels=Levels(4))(made, lambda split, size: train, told)
    assert told.worked and other.fingerprint != first.fingerprint
    made.add(0, 0, torch.rand(3, 8, 8))
    told.worked.clear()
    labeller(coloured)(DistilledSet.open(made.path), lambda split, size: train, told)
    assert told.worked, "an image of the set has changed"


def test_what_takes_too_long_is_said_before_the_work(coloured, made, train):
    told = Told()
    with pytest.raises(DapError, match=r"passes of .*hours on cpu, and the limit is 0 hours.*--keep 100,10"):
        labeller(coloured, hours=0)(made, lambda split, size: train, told)
    assert not told.worked and not (made.path / "labels").exists()
    with pytest.raises(DapError, match="at least 2 real images, not 1"):
        Asked(reals=1)
    everything = [set(train.keys(label, range(train.count(label)))) for label in range(3)]
    with pytest.raises(DapError, match="too few images that are not in the set"):
        draw(train, made.class_names, 12, everything)


def test_fewer_real_images_than_classes_are_of_different_classes(train):
    labels = [label for label, _ in draw(train, train.class_names, 2, [set()] * 3)]
    assert len(set(labels)) == 2
    assert [label for label, _ in draw(train, train.class_names, 5, [set()] * 3)].count(labels[0]) == 2


SMALL = ["--set", "width=4", "--networks", "convnet2", "--epochs", "1"]


@pytest.fixture(scope="module")
def trousers(tmp_path_factory):
    """A set of two classes of the starter, of a folder with a few of its images: all 12,000 would be read for the measures."""
    folder = tmp_path_factory.mktemp("trousers")
    for split in ("train", "test"):
        few = open_source("fashion-mnist", split, size=32, classes=["Trouser", "Bag"])
        for label, name in enumerate(few.class_names):
            (folder / "data" / split / name).mkdir(parents=True)
            for index, image in enumerate(few.images(label, range(20))):
                to_pil_image(image).save(folder / "data" / split / name / f"{index:02}.png")
    out = folder / "a"
    values = {"method": "random", "ipc": 2, "data": {"path": str(folder / "data"), "size": 32}}
    distill(Recipe.parse(values), out, workshop=Workshop("cpu"))
    return out


def test_by_command_labels_are_exported_trained_on_and_stored_for_batches(trousers, tmp_path, capsys, monkeypatch):
    made, labels = shutil.copytree(trousers, tmp_path / "a"), tmp_path / "labels"
    given = ["--teacher", "backbone:starter", "--times", "2", "--reals", "8"]
    assert main([str(a) for a in ("export", made, "--layout", "labels", *given, "--out", labels)]) == 0
    told = capsys.readouterr().out
    assert "of 8 real training images" in told and "--protocol quick-soft --teacher" in told
    run = ["evaluate", str(made), "--protocol", "quick-soft", *SMALL]
    assert main([*run, "--teacher", str(labels)]) == 0
    (trial,) = [json.loads(line) for line in (made / "trials.jsonl").read_text().splitlines()]
    assert trial["labels"] == "backbone:starter"
    (facts,) = json.loads((made / "protocols.json").read_text()).values()
    assert facts["labels"]["teacher"] == "backbone:starter" and len(facts["labels"]["fingerprint"]) == 16
    assert facts["labels"]["of"] == "images" and len(facts["labels"]["origin"]) == 16
    fkd = ["--set", "size=32", *SMALL[:2], "--epochs", "1"]
    stored = ["export", str(made), "--layout", "fkd", *fkd, "--teacher", str(labels), "--out", str(tmp_path / "fkd")]
    assert main(stored) == 0
    replay = ["evaluate", str(made), "--protocol", "fkd-soft", *fkd, "--networks", "convnet2"]
    assert main([*replay, "--labels", str(tmp_path / "fkd")]) == 0
    trials = [json.loads(line) for line in (made / "trials.jsonl").read_text().splitlines()]
    assert [one["labels"] for one in trials] == ["backbone:starter"] * 2
    whose = {one["labels"]["origin"] for one in json.loads((made / "protocols.json").read_text()).values()}
    assert whose == {facts["labels"]["origin"]}, "both are the labels of one backbone"
    monkeypatch.setattr("dap.verbs.labelling.by_backbone._Work.labels", lambda *a: pytest.fail("images were labelled"))
    given[given.index("--times") + 1] = "3"
    for more in ([], ["--dry-run"]):
        assert main([str(a) for a in ("export", made, "--layout", "labels", *given, "--out", labels, *more)]) == 1
        assert "holds other labels (times: 2 -> 3)" in capsys.readouterr().err


def test_the_backbone_is_a_teacher_by_name(trousers, tmp_path, monkeypatch, capsys):
    """With few real images and levels; the labels are then among the results, and a second trial makes none."""
    monkeypatch.setattr("dap.verbs.labelling.by_backbone.usual_levels", lambda classes: Levels(2))
    monkeypatch.setattr(Asked, "__init__", lambda self: vars(self).update(levels=None, reals=8, hours=24.0))
    monkeypatch.setattr("dap.verbs.judges.BackboneLabeller", lambda *given: BackboneLabeller(*given, Asked()))
    made = shutil.copytree(trousers, tmp_path / "a")
    run = ["evaluate", str(made), "--protocol", "quick-soft", *SMALL, "--teacher", "backbone:starter"]
    assert main(run) == 0
    assert "its diffusion classifier is right on" in capsys.readouterr().err
    assert main([*run, "--trials", "2"]) == 0
    assert "its diffusion classifier is right on" not in capsys.readouterr().err
    assert len(list((made / "labels").iterdir())) == 1
    assert len((made / "trials.jsonl").read_text().splitlines()) == 2


def test_a_trained_teacher_labels_images_too(trousers, tmp_path):
    from dap.evaluation.image_labels import open_image_labels
    from dap.evaluation.labelling import image_hashes
    from dap.evaluation.training.loading import load_classifier
    from dap.starter import REFERENCE

    made = DistilledSet.open(trousers)
    out = tmp_path / "labels"
    assert main(["export", str(trousers), "--layout", "labels", "--teacher", str(REFERENCE), "--out", str(out)]) == 0
    found = open_image_labels(out, image_hashes(made), made.class_names)
    wanted = load_classifier(REFERENCE, made.class_names).logits(torch.stack([image for image, _ in made]))
    torch.testing.assert_close(found.values, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--protocol", "quick-hard", "--teacher", "backbone:starter"], "has no use for a teacher"),
        (
            ["--protocol", "quick-soft", "--teacher", "backbone:"],
            "was made without a backbone; name the one that labels it",
        ),
        (["--protocol", "quick-soft", "--teacher", "backbone:nowhere"], "There is no backbone at 'nowhere'"),
        (["--protocol", "quick-soft", "--teacher", "."], "holds no labels of images"),
        (["--protocol", "quick-soft"], "trains on a teacher's labels; give one"),
    ],
)
def test_what_cannot_label_is_said(given, says, trousers, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made = shutil.copytree(trousers, tmp_path / "a")
    assert main(["evaluate", str(made), *SMALL, *given]) == 1
    assert says in capsys.readouterr().err


def test_test_images_in_memory_choose_no_temperature(trousers):
    import dap
    from dap.verbs.options import Judging

    judging = Judging(protocol="quick-soft", teacher="backbone:starter", epochs=1)
    images = torch.rand(4, 3, 32, 32)
    with pytest.raises(DapError, match="need real training images to choose their temperature"):
        dap.evaluate(str(trousers), data=(images, torch.tensor([0, 0, 1, 1])), judging=judging)


def test_labels_of_one_set_are_no_teacher_of_sets_to_be_made(trousers, tmp_path, capsys):
    out = str(tmp_path / "c")
    folder = tmp_path / "labels"
    folder.mkdir()
    given = ["compare", "--methods", "random", "--ipc", "1", "--classes", "Trouser", "Bag", "--out", out]
    assert main([*given, "--protocol", "quick-soft", *SMALL, "--teacher", str(folder)]) == 1
    assert "holds labels of one finished set" in capsys.readouterr().err
    with pytest.raises(DapError, match="Stored labels need a teacher"):
        store_labels(str(trousers), tmp_path / "x", teacher=None)
