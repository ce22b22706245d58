"""Herding, K-Center and RDED: against brute force, and as methods."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from dap.data.distilled import DistilledSet
from dap.engine import Workshop, distill
from dap.errors import DapError
from dap.methods.herding import Herding
from dap.methods.kcenter import KCenter
from dap.methods.rded import bordered, tiled
from dap.recipe import Recipe

CLASSES = ["Trouser", "Bag"]


def recipe(method, ipc=3, **options):
    return Recipe.parse(
        {"method": method, "ipc": ipc, "data": {"classes": CLASSES, "size": 32}, "options": options, "backbone": None}
    )


def points(n=12, d=3):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_herding_by_hand_and_against_brute_force():
    # Mean 2: the nearest point is 2; of the two that leave the mean of two at 2 exactly there is none, so 1 before 4.
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


@pytest.mark.parametrize("method", ["herding", "k-center"])
def test_real_images_are_chosen_by_the_starter_s_features(method, tmp_path):
    made = distill(recipe(method, pool=30), tmp_path / "a", Workshop("cpu"))
    keys = [record["real"] for record in made.records]
    assert len(set(keys)) == 6 and all(key.startswith("train/") for key in keys)
    source = Workshop("cpu").source(recipe(method).data)
    images, labels = DistilledSet.open(tmp_path / "a").tensors()
    for image, label, key in zip(images, labels.tolist(), keys, strict=True):
        index = source.keys(label, range(source.count(label))).index(key)
        torch.testing.assert_close(source.images(label, [index])[0], image)
    other = Recipe.model_validate({**recipe(method, pool=30).model_dump(), "seed": 1})
    assert [r["real"] for r in distill(other, tmp_path / "b", Workshop("cpu")).records] != keys


def test_unmet_needs_are_said_before_any_work(colours, tmp_path):
    for method in ("herding", "k-center", "rded"):
        wanted = Recipe.parse({"method": method, "data": {"path": str(colours), "size": 8}})
        with pytest.raises(
            DapError, match=f"'{method}' needs a network trained on the real data: make one with dap train"
        ):
            distill(wanted, tmp_path / method)
    with pytest.raises(DapError, match="3 images of class 'Trouser' cannot be chosen among 2"):
        distill(recipe("herding", pool=2), tmp_path / "few", Workshop("cpu"))
    with pytest.raises(DapError, match="take 8000 crops"):
        distill(recipe("rded", ipc=2000), tmp_path / "many", Workshop("cpu"))
    with pytest.raises(DapError, match="no use for a classifier"):
        distill(
            Recipe.parse({"method": "random", "classifier": "torchvision:resnet18", "data": {"size": 8}}),
            tmp_path / "r",
        )
    assert not list(tmp_path.iterdir())


def test_rded_tiles_the_surest_crops(tmp_path):
    """Scores, choice and tiles against a plain loop, from the crops the method keeps."""
    store = Workshop("cpu", cache=tmp_path / "cache")
    made = distill(recipe("rded", ipc=2, images=12, crops=3), tmp_path / "a", store)
    images, labels = made.tensors()
    from safetensors.torch import load_file

    classifier = store.task(recipe("rded"))[1].classifier
    for label, name in enumerate(CLASSES):
        (file,) = (tmp_path / "cache").glob(f"crops of {name}-*.safetensors")
        kept = load_file(file)
        assert kept["crops"].shape == (8, 3, 16, 16)
        found = images[labels == label]
        for slot in range(2):
            for k, (y, x) in enumerate([(0, 0), (0, 16), (16, 0), (16, 16)]):
                tile = found[slot][:, y : y + 16, x : x + 16]
                torch.testing.assert_close(tile, kept["crops"][slot + 2 * k], atol=1 / 255, rtol=0)
        source = store.source(recipe("rded").data)
        drawn = torch.stack([source.images(label, [int(i)])[0] for i in kept["indices"]])
        scores = []
        for crop in kept["crops"]:
            padded = (
                F.pad(crop - drawn.mean((0, 2, 3))[:, None, None], (8, 8, 8, 8)) + drawn.mean((0, 2, 3))[:, None, None]
            )
            scores.append(float(F.cross_entropy(classifier.logits(padded[None]), torch.tensor([label]))))
        # The border's colour is the mean over the images of its chunk, here all twelve, so the order is near, not exact.
        assert sum(a <= b + 0.2 for a, b in pairwise(scores)) >= 6
    assert json.loads((tmp_path / "a" / "recipe.json").read_text())["classifier"] == "starter"


def test_rded_of_whole_images_are_real_images(tmp_path):
    """Its neutral setting: one crop of everything, one tile."""
    made = distill(recipe("rded", factor=1, crops=1, smallest=1.0, images=5), tmp_path / "a", Workshop("cpu"))
    source = Workshop("cpu").source(recipe("rded").data)
    images, labels = made.tensors()
    for image, label, record in zip(images, labels.tolist(), made.records, strict=True):
        index = source.keys(label, range(source.count(label))).index(record["real"])
        assert torch.equal((source.images(label, [index])[0] * 255).round(), (image * 255).round())


def test_tiles_that_do_not_divide_the_image():
    crops = torch.arange(9.0)[:, None, None, None].expand(9, 3, 3, 3) / 9
    image = tiled(crops, 3, 11)
    assert image.shape == (3, 11, 11)
    assert image[0, :4, :4].unique().numel() == 1 and image[0, 0, 4] == image[0, 3, 7] != image[0, 0, 8]
    framed = bordered(torch.ones(2, 3, 4, 4), 8, torch.tensor([0.1, 0.2, 0.3]))
    assert framed[:, 1].sum() == pytest.approx(2 * (16 + 48 * 0.2)) and framed[0, 0, 2, 2] == 1
