"""Herding, K-Center and RDED: against brute force, and as methods."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from dap.base.errors import DapError
from dap.base.seeding import seed_of
from dap.base.store import Store
from dap.data.real.sources import open_source
from dap.data.sets.distilled import DistilledSet
from dap.evaluation.training.classifier import Classifier
from dap.evaluation.training.steps import RandomResizedCrop
from dap.methods import Task, Unit, find
from dap.methods.base import Given
from dap.methods.selection import features as selecting
from dap.methods.selection import rded
from dap.methods.selection.herding import Herding
from dap.methods.selection.kcenter import KCenter
from dap.methods.selection.random import Random
from dap.methods.selection.rded import bordered, tiled
from dap.recipe import Recipe
from dap.verbs.distill import distill
from dap.workshop import Workshop
from watching import hearing

CLASSES = ["Trouser", "Bag"]
RED = 2  # label of the folder of that name; blue and green come before it


def recipe(method, ipc=3, **options):
    return Recipe.parse(
        {"method": method, "ipc": ipc, "data": {"classes": CLASSES, "size": 32}, "options": options, "backbone": None}
    )


class Seer:
    """A classifier of random weights: features (n, 5) of images (n, 3, 8, 8), and logits of three classes from them."""

    name, fingerprint = "seer", "0"

    def __init__(self):
        generator = torch.Generator().manual_seed(4)
        self.first, self.last = torch.randn(192, 5, generator=generator), torch.randn(5, 3, generator=generator)
        self.asked = []

    def features(self, images):
        self.asked.append(len(images))
        return (images.flatten(1) - 0.5) @ self.first

    def logits(self, images):
        return self.features(images).tanh() @ self.last


def seen(source, method, ipc, seed=0, store=None, **options):
    """A task of a method on a source, with a `Seer`."""
    wanted = Recipe.parse({"method": method, "ipc": ipc, "seed": seed}).resolved(None, None, 8)
    parsed = find(method).parse(options, method)
    return Task(wanted, source, Given(classifier=Seer()), options=parsed, store=store or Store())


def files(source, label):
    """File names of a class, by index."""
    return [key.rpartition("/")[2] for key in source.keys(label, range(source.count(label)))]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A network of one's own for the three colours, as --classifier takes it."""
    file = tmp_path_factory.mktemp("own") / "mine.py"
    file.write_text(
        "import torch\nfrom torch import nn\n\ndef net(names):\n"
        "    with torch.random.fork_rng():\n        torch.manual_seed(0)\n"
        "        return nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.ReLU(), nn.Linear(6, len(names)))\n"
    )
    return f"{file}:net"


def points(n=12, d=3):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_herding_by_hand_and_against_brute_force():
    # The mean is 2, and so is the first choice; then 1 and 3 leave the mean equally far, and the first of them is taken.
    assert Herding.choose(torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0]]).double(), 3) == [2, 1, 3]
    x = points()
    chosen = []
    for k in range(1, 6):
        left = [i for i in range(len(x)) if i not in chosen]
        chosen.append(min(left, key=lambda i, k=k: float((x[[*chosen, i]].sum(0) / k - x.mean(0)).norm())))
    assert Herding.choose(x, 5) == chosen
    assert sorted(Herding.choose(x, len(x))) == list(range(len(x)))


def test_k_center_against_brute_force():
    x = points()
    chosen = [int((x - x.mean(0)).norm(dim=1).argmin())]
    for _ in range(4):
        left = [i for i in range(len(x)) if i not in chosen]
        chosen.append(max(left, key=lambda i: min(float((x[i] - x[c]).norm()) for c in chosen)))
    assert KCenter.choose(x, 5) == chosen
    assert len(set(KCenter.choose(torch.zeros(4, 2), 4))) == 4, "duplicates are chosen once each"


def by_hand(method, x, k):
    """Rows of x that a method chooses, from its definition, one candidate at a time."""
    mean = [sum(column) / len(x) for column in zip(*x, strict=True)]
    chosen = []
    for step in range(1, k + 1):
        left = [i for i in range(len(x)) if i not in chosen]
        if method == "herding":
            sums = {i: [sum(x[j][d] for j in [*chosen, i]) for d in range(len(mean))] for i in left}
            chosen.append(min(left, key=lambda i, n=step, sums=sums: math.dist([n * m for m in mean], sums[i])))
        elif not chosen:
            chosen.append(min(left, key=lambda i: math.dist(x[i], mean)))
        else:
            chosen.append(max(left, key=lambda i: min(math.dist(x[i], x[c]) for c in chosen)))
    return chosen


@pytest.mark.parametrize("method", ["herding", "k-center"])
@pytest.mark.parametrize("pool", [None, 7])
def test_selection_is_the_definition_on_the_class_s_images(source, method, pool, monkeypatch):
    monkeypatch.setattr(selecting, "CHUNK", 5)
    for seed in (0, 1):
        task = seen(source, method, ipc=4, seed=seed, pool=pool)
        among = list(range(12))
        if pool is not None:
            among = torch.randperm(12, generator=torch.Generator().manual_seed(seed_of(seed, "blue", "pool")))
            among = sorted(among[:pool].tolist())
        chosen = [among[i] for i in by_hand(method, task.classifier.features(source.images(0, among)).tolist(), 4)]
        make = find(method).prepare(task)
        made = [make(Unit(0, slots)) for slots in ((2, 3), (0, 1))]
        keys = [record["real"] for part in reversed(made) for record in part.records]
        assert keys == [f"blue/{files(source, 0)[index]}" for index in chosen]
        assert torch.equal(torch.cat([made[1].images, made[0].images]), source.images(0, chosen))
        assert sum(task.classifier.asked) == len(among) * 2, "once here and once by the method, for all units"


class Blind(Seer):
    """A classifier that says no number of images that are bright on the left."""

    name = "blind"

    def features(self, images):
        found = super().features(images)
        return found.where(images[..., :4].mean((1, 2, 3), keepdim=False)[:, None] < images.mean(), torch.nan)


@pytest.mark.parametrize("method", ["herding", "k-center", "rded"])
def test_a_classifier_that_says_no_number_chooses_no_images(source, method, monkeypatch):
    """A comparison with a value that is no number is never true, so that such an image came first or last."""
    task = seen(source, method, ipc=2)
    task = replace(task, given=Given(classifier=Blind()))
    what = "logits" if method == "rded" else "features"
    with pytest.raises(DapError, match=rf"classifier blind gives {what} of '\w+' that are not finite, for \d+ of \d+"):
        find(method).prepare(task)(Unit(0, (0, 1)))


@pytest.mark.parametrize("kind", [Herding, KCenter, Random])
def test_a_subclass_promises_growth_for_itself_alone(kind, source):
    """Its own choice may depend on the number of images, as that of medoids does."""
    task = seen(source, "herding", ipc=2)
    assert kind().grows(task) and not type("Mine", (kind,), {})().grows(task)


def test_only_a_pool_makes_several_sets(source, tmp_path):
    def keys(method, seed, **options):
        shared = Store(tmp_path / "cache")  # in which one set's pool must not pass for another's
        made = find(method).prepare(seen(source, method, ipc=3, seed=seed, store=shared, **options))(Unit(0, (0, 1, 2)))
        return [record["real"] for record in made.records]

    for method in ("herding", "k-center"):
        assert keys(method, 0) == keys(method, 1) == keys(method, 0, pool=99)
        assert len({tuple(keys(method, seed, pool=5)) for seed in range(4)}) == 4


def test_broken_images_are_left_out_and_too_many_are_said(colours, tmp_path):
    """Of twelve red images three are broken: nine can be chosen, once each, and no tenth."""
    shutil.copytree(colours / "train", tmp_path / "train")
    for name in ("0.png", "5.png", "11.png"):
        (tmp_path / "train" / "red" / name).write_bytes(b"torn")
    broken = open_source(tmp_path, "train", size=8, max_bad_fraction=0.5)
    good = {f"red/{file}" for file in files(broken, RED)} - {"red/0.png", "red/5.png", "red/11.png"}
    for method, options in (("herding", {}), ("k-center", {}), ("herding", {"pool": 11}), ("rded", {"factor": 1})):
        made = find(method).prepare(seen(broken, method, ipc=9, **options))(Unit(RED, tuple(range(9))))
        named = [key for record in made.records for key in np.atleast_1d(record["real"]).tolist()]
        assert len(named) == 9 and set(named) == good
        with pytest.raises(
            DapError, match="'red' .* has only 9 decodable images of 12 to choose from, and 10 are needed"
        ):
            find(method).prepare(seen(broken, method, ipc=10, **options))(Unit(RED, (0,)))


@pytest.mark.parametrize("method", ["herding", "k-center", "rded"])
def test_a_class_without_any_decodable_image_is_said(colours, tmp_path, method):
    shutil.copytree(colours / "train", tmp_path / "train")
    for file in (tmp_path / "train" / "red").iterdir():
        file.write_bytes(b"torn")
    broken = open_source(tmp_path, "train", size=8, max_bad_fraction=1.0)
    with pytest.raises(DapError, match="only 0 decodable images of 12 to choose from"):
        find(method).prepare(seen(broken, method, ipc=1))(Unit(RED, (0,)))


def test_features_are_shared_by_sets_and_a_larger_one_still_checks(colours, tmp_path):
    shutil.copytree(colours / "train", tmp_path / "train")
    (tmp_path / "train" / "red" / "3.png").write_bytes(b"torn")
    broken, store = open_source(tmp_path, "train", size=8, max_bad_fraction=0.5), Store(tmp_path / "cache")
    first = seen(broken, "herding", ipc=2, store=store)
    find("herding").prepare(first)(Unit(RED, (0, 1)))
    assert first.classifier.asked == [11]
    other = seen(broken, "k-center", ipc=12, seed=5, store=Store(tmp_path / "cache"))
    with pytest.raises(DapError, match="only 11 decodable images of 12 to choose from, and 12 are needed"):
        find("k-center").prepare(other)(Unit(RED, (0,)))
    assert other.classifier.asked == []


@pytest.mark.parametrize("method", ["herding", "k-center"])
def test_real_images_are_chosen_by_the_starter_s_features(method, tmp_path):
    made = distill(recipe(method, pool=30), tmp_path / "a", workshop=Workshop("cpu"))
    keys = [record["real"] for record in made.records]
    assert len(set(keys)) == 6 and all(key.startswith("train/") for key in keys)
    source = Workshop("cpu").source(recipe(method).data)
    images, labels = DistilledSet.open(tmp_path / "a").tensors()
    for image, label, key in zip(images, labels.tolist(), keys, strict=True):
        index = source.keys(label, range(source.count(label))).index(key)
        torch.testing.assert_close(source.images(label, [index])[0], image)
    other = Recipe.model_validate({**recipe(method, pool=30).model_dump(), "seed": 1})
    assert [r["real"] for r in distill(other, tmp_path / "b", workshop=Workshop("cpu")).records] != keys


def test_unmet_needs_are_said_before_any_work(colours, tmp_path):
    for method in ("herding", "k-center", "rded"):
        wanted = Recipe.parse({"method": method, "data": {"path": str(colours), "size": 8}})
        with pytest.raises(
            DapError, match=f"'{method}' needs a network trained on the real data: make one with dap train"
        ):
            distill(wanted, tmp_path / method)
    with pytest.raises(DapError, match="3 images of class 'Trouser' cannot be chosen among 2"):
        distill(recipe("herding", pool=2), tmp_path / "few", workshop=Workshop("cpu"))
    with pytest.raises(DapError, match="take 8000 crops"):
        distill(recipe("rded", ipc=2000, factor=2), tmp_path / "many", workshop=Workshop("cpu"))
    with pytest.raises(DapError, match="no use for a classifier"):
        distill(
            Recipe.parse({"method": "random", "classifier": "torchvision:resnet18", "data": {"size": 8}}),
            tmp_path / "r",
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("chunk", [64, 5])
@pytest.mark.parametrize(("factor", "ipc"), [(2, 2), (1, 3), (3, 1)])
def test_rded_against_a_plain_loop(source, monkeypatch, factor, ipc, chunk):
    """One crop at a time by torchvision, judged, chosen and tiled from the real images on, however they are chunked."""
    from torchvision.transforms.functional import resized_crop

    monkeypatch.setattr(rded, "CHUNK", chunk)
    options = {"factor": factor, "images": 11, "crops": 4}
    task = seen(source, "rded", ipc=ipc, **options)
    side, (label, name) = 8 // factor, (1, "green")
    drawn = torch.randperm(12, generator=torch.Generator().manual_seed(seed_of(0, name, "rded")))[:11].tolist()
    reals = source.images(label, drawn)
    step = RandomResizedCrop(size=side, scale=(0.08, 1.0), ratio=(1.0, 1.0))
    boxes = step.draw(44, 8, 8, torch.Generator().manual_seed(seed_of(0, name, "crops")))["box"].view(11, 4, 4)
    assert (boxes[..., 2] == boxes[..., 3]).all() and boxes[..., 2].min() < 4 < boxes[..., 2].max()
    ranked = []
    for real, mine, index in zip(reals, boxes.tolist(), drawn, strict=True):
        judged = []
        for box in mine:
            crop = resized_crop(real, *box, [side, side], antialias=True)
            canvas = reals.mean((0, 2, 3))[:, None, None].repeat(1, 8, 8)
            first = (8 - side) // 2
            canvas[:, first : first + side, first : first + side] = crop
            judged.append((-task.classifier.logits(canvas[None])[0].log_softmax(0)[label].item(), crop))
        loss, crop = min(judged, key=lambda pair: pair[0])
        ranked.append((loss, index, crop))
    ranked.sort(key=lambda found: found[0])
    made = find("rded").prepare(task)(Unit(label, tuple(range(ipc))))
    for slot in range(ipc):
        parts = ranked[slot::ipc][: factor**2]
        assert made.records[slot]["real"] == [f"green/{files(source, label)[index]}" for _, index, _ in parts]
        for place, (_, _, crop) in enumerate(parts):
            top, left = (at * side + min(at, 8 % factor) for at in divmod(place, factor))
            if 8 % factor == 0:
                tile = made.images[slot, :, top : top + side, left : left + side]
                torch.testing.assert_close(tile, crop, atol=1e-5, rtol=0)
    assert made.images.shape == (ipc, 3, 8, 8)


def test_rded_looks_at_enough_images_and_says_what_does_not_fit(source):
    """A small `images` is raised to the crops that are needed, here all twelve of the class."""
    made = find("rded").prepare(seen(source, "rded", ipc=3, images=1, factor=2))(Unit(0, (0, 1, 2)))
    assert len({key for record in made.records for key in record["real"]}) == 12
    with pytest.raises(DapError, match=r"take 16 crops .* it has 12; give --option factor=1 or a smaller ipc"):
        find("rded").prepare(seen(source, "rded", ipc=4, factor=2))
    with pytest.raises(DapError, match=r"take 13 crops .* it has 12; give a smaller ipc"):
        find("rded").prepare(seen(source, "rded", ipc=13, factor=1))
    with pytest.raises(DapError, match="8 px cannot be cut into 9 tiles a side"):
        find("rded").prepare(seen(source, "rded", ipc=1, factor=9))
    small = find("rded").prepare(seen(source, "rded", ipc=12))(Unit(0, (0,)))
    assert len(small.records[0]["real"]) == 1, "small images are one crop each, as in the paper"


@pytest.mark.parametrize("method", ["herding", "k-center", "rded"])
def test_an_interrupted_set_goes_on_to_the_same_bytes_without_the_work_done(
    colours, own, tmp_path, monkeypatch, method
):
    wanted = Recipe.parse(
        {
            "method": method,
            "ipc": 3,
            "block": 1,
            "data": {"path": str(colours), "size": 8},
            "classifier": own,
            "backbone": None,
            "options": {"images": 12, "factor": 2} if method == "rded" else {"pool": 7},
        }
    )
    whole = distill(wanted, tmp_path / "whole", workshop=Workshop("cpu"))

    def killed(name, done, total, what=""):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(wanted, tmp_path / "torn", workshop=Workshop("cpu"), watcher=hearing(images=killed))
    asked = []
    for name in ("features", "logits"):
        usual = getattr(Classifier, name)
        monkeypatch.setattr(
            Classifier, name, lambda self, images, usual=usual: (asked.append(len(images)), usual(self, images))[1]
        )
    torn = distill(wanted, tmp_path / "torn", workshop=Workshop("cpu"))
    assert [r["sha256"] for r in torn.records] == [r["sha256"] for r in whole.records]
    assert [r["real"] for r in torn.records] == [r["real"] for r in whole.records]
    # Green had begun, so its work was kept; only blue's is left. RDED judges five crops of each of its twelve.
    assert asked == ([60] if method == "rded" else [7])


def test_rded_of_whole_images_are_real_images(tmp_path):
    """Its neutral setting: one crop of everything, one tile; bit for bit before it is written."""
    made = distill(recipe("rded", factor=1, crops=1, smallest=1.0, images=5), tmp_path / "a", workshop=Workshop("cpu"))
    source = Workshop("cpu").source(recipe("rded").data)
    images, labels = made.tensors()
    for image, label, record in zip(images, labels.tolist(), made.records, strict=True):
        (key,) = record["real"]
        index = source.keys(label, range(source.count(label))).index(key)
        assert torch.equal((source.images(label, [index])[0] * 255).round(), (image * 255).round())


def test_tiles_that_do_not_divide_the_image():
    crops = torch.arange(9.0)[:, None, None, None].expand(9, 3, 3, 3) / 9
    image = tiled(crops, 3, 11)
    assert image.shape == (3, 11, 11)
    assert image[0, :4, :4].unique().numel() == 1 and image[0, 0, 4] == image[0, 3, 7] != image[0, 0, 8]
    framed = bordered(torch.ones(2, 3, 4, 4), 8, torch.tensor([0.1, 0.2, 0.3]))
    assert framed[:, 1].sum() == pytest.approx(2 * (16 + 48 * 0.2)) and framed[0, 0, 2, 2] == 1
