"""Near-copies of real training images are found, and fresh real images are flagged about as rarely as promised."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional as F

from dap.base.errors import DapError
from dap.data.real.memory import MemorySource
from dap.data.real.sources import open_source
from dap.evaluation.measures import neighbours
from dap.evaluation.measures.measures import extract
from dap.evaluation.measures.neighbours import Search
from dap.evaluation.measures.pictures import Pictures

CLASSES = ["Dress", "Bag", "Ankle boot"]


def features(images: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(images[:, :1], 10).flatten(1)


@pytest.fixture(scope="module")
def reals() -> Pictures:
    source = open_source("fashion-mnist", "train", size=32, classes=CLASSES)
    return Pictures(source, features, limit=1000, compared=150)


@pytest.fixture(scope="module")
def search(reals) -> Search:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "CALIBRATION", 300)
        search = Search(reals)
        assert search.thresholds.calibrated_on == 300
    return search


def found(search: Search, images: Tensor, labels: Tensor):
    return search(images, labels, extract(features, images))


def originals(reals: Pictures, each: int) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
    """Real images across the pictures searched, also such without features."""
    where = [(label, reals.indices[label][100 * i + 5]) for label in range(len(CLASSES)) for i in range(each)]
    return reals.images(where), torch.arange(len(CLASSES)).repeat_interleave(each), where


def through_pillow(images: Tensor, change) -> Tensor:
    changed = [change(Image.fromarray(i.mul(255).round().byte().permute(1, 2, 0).numpy())) for i in images]
    bytes_of = [torch.frombuffer(bytearray(i.tobytes()), dtype=torch.uint8).view(32, 32, 3) for i in changed]
    return torch.stack(bytes_of).permute(0, 3, 1, 2).float() / 255


def as_jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


CHANGES = {
    "byte for byte": lambda x: x,
    "JPEG": lambda x: through_pillow(x, as_jpeg),
    "slightly blurred": lambda x: through_pillow(x, lambda i: i.filter(ImageFilter.GaussianBlur(0.5))),
    "shifted": lambda x: x.roll((1, 1), (2, 3)),
    "mirrored": lambda x: x.flip(3),
    "mirrored, shifted, JPEG": lambda x: through_pillow(x.flip(3).roll(-1, 2), as_jpeg),
    "noisy": lambda x: (x + 0.02 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_copies_are_flagged_and_traced_to_their_original(search, reals, change):
    images, labels, where = originals(reals, 8)
    near = found(search, CHANGES[change](images), labels)
    traced = [
        n.original is not None and (n.original.label, n.original.index) == w for n, w in zip(near, where, strict=True)
    ]
    assert sum(traced) >= len(traced) - 1, "at most one of 24 may slip through"
    if change == "byte for byte":
        assert all(traced)
        assert all(n.pixel.distance == 0 and n.feature.distance < 1e-5 for n in near)
        assert all(n.feature.index == n.pixel.index == w[1] for n, w in zip(near, where, strict=True))


def test_a_copy_under_another_label_is_found_too(search, reals):
    images, labels, where = originals(reals, 4)
    near = found(search, images, (labels + 1) % 3)
    assert all((n.original.label, n.original.index) == w for n, w in zip(near, where, strict=True) if n.original)
    assert all(n.original for n in near)
    for n, label in zip(near, labels.tolist(), strict=True):
        assert n.pixel_any.label == n.feature_any.label == label and n.pixel.label == n.feature.label != label
        assert n.pixel_any.distance == 0 < n.pixel.distance


def test_fresh_real_images_are_flagged_about_as_often_as_promised(search):
    source = open_source("fashion-mnist", "test", size=32, classes=CLASSES)
    images = torch.cat([source.images(label, range(100)) for label in range(3)])
    near = found(search, images, torch.arange(3).repeat_interleave(100))
    assert sum(n.original is not None for n in near) <= 0.03 * len(images), "1 % are promised"
    assert sum(n.closeness[0] <= search.thresholds.pixel for n in near) > 0, "the threshold is not simply too low"


def test_neighbours_are_those_of_a_plain_search(search, reals):
    source = open_source("fashion-mnist", "test", size=32, classes=CLASSES)
    images, labels = source.images(1, range(10)), torch.ones(10, dtype=torch.int64)
    near = found(search, images, labels)
    inner = (reals.pictures[1].float() / 255)[:, :, 1:-1, 1:-1].flatten(1)
    places = [(i, j) for i in range(3) for j in range(3)]
    windows = [m[:, :, i : 30 + i, j : 30 + j].flatten(1) for m in (images, images.flip(3)) for i, j in places]
    table = torch.stack([torch.cdist(w, inner) for w in windows]).amin(0) / inner.shape[1] ** 0.5
    assert [n.pixel.distance for n in near] == pytest.approx(
        [table[i, reals.indices[1].index(n.pixel.index)].item() for i, n in enumerate(near)], abs=1e-4
    )
    exact = sum(n.pixel.distance < table[i].min().item() + 1e-4 for i, n in enumerate(near))
    assert exact >= 8, "16 candidates at 8 px hold the nearest, but for a few"
    distances = torch.cdist(features(images), reals.features[1])
    for i, n in enumerate(near):
        assert n.feature.distance <= distances[i].min() + 1e-5


def test_a_limit_draws_the_same_images_each_time(reals):
    again = Pictures(reals.source, features, limit=1000, compared=10)
    assert list(map(sorted, again.indices)) == list(map(sorted, reals.indices)) and max(again.indices[0]) > 3000
    assert (again.searched, again.available) == (3000, 18000)
    assert [len(part) for part in again.features] == [10, 10, 10]


def test_few_images_and_small_ones(colours):
    source = open_source(colours, "train", size=8)
    reals = Pictures(source, lambda x: x.flatten(1))
    search = Search(reals)
    images, labels = source.tensors()
    near = found_of(search, images, labels)
    assert all(n.original is not None for n in near), "exact copies are found however few images there are"
    test = open_source(colours, "test", size=8)
    assert sum(n.original is not None for n in found_of(search, *test.tensors())) <= 1
    assert search.thresholds.calibrated_on == 36


def found_of(search: Search, images: Tensor, labels: Tensor):
    return search(images, labels, extract(lambda x: x.flatten(1), images))


def test_two_images_are_too_few(colours, tmp_path):
    import shutil

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(2 if name == "b" else 3):
            shutil.copy(colours / "train" / "red" / f"{i}.png", tmp_path / name)
    with pytest.raises(DapError, match="Class 'b' has 2 real images; the search for copies needs at least 3"):
        Search(Pictures(open_source(tmp_path, "train", size=8), lambda x: x.flatten(1)))


def test_larger_images_are_compared_as_small_pictures(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(20):
            coarse = torch.rand(1, 3, 6, 6, generator=generator)
            pixels = F.interpolate(coarse, (96, 96), mode="bicubic").clamp(0, 1)[0].permute(1, 2, 0)
            Image.fromarray(pixels.mul(255).byte().numpy()).save(tmp_path / name / f"{i:02}.png")
    source = open_source(tmp_path, "train", size=96)
    search = Search(Pictures(source, features))
    images = source.images(1, range(5)).flip(3).roll((3, -3), (2, 3))
    near = found(search, images, torch.ones(5, dtype=torch.int64))
    assert [n.original.index if n.original else None for n in near] == list(range(5))
    assert search.reals.pictures[0].shape == (20, 3, 32, 32)


def test_broken_images_are_left_out(colours, tmp_path):
    import shutil

    shutil.copytree(colours, tmp_path / "data")
    (tmp_path / "data" / "train" / "green" / "3.png").write_text("not an image")
    reals = Pictures(open_source(tmp_path / "data", "train", size=8), lambda x: x.flatten(1))
    green = reals.source.class_names.index("green")
    assert len(reals.indices[green]) == 11 == len(reals.features[green])
    assert "green/3.png" not in [reals.key(green, index) for index in reals.indices[green]]


def test_many_classes_are_compared_together_with_the_same_result(tmp_path, monkeypatch):
    """A thousand classes in a few products each; the rivals are those of the loop over classes."""
    generator = torch.Generator().manual_seed(5)
    images = {f"{label:03d}": torch.rand(5, 3, 8, 8, generator=generator) for label in range(9)}
    search = Search(Pictures(MemorySource(images, size=8), lambda x: x.flatten(1)))
    shown, labels = torch.rand(20, 3, 8, 8, generator=generator), torch.arange(20) % 9
    alone = search._rivals(shown, labels)
    assert [len(pools) for _, pools in search._together] == [1] * 9
    for together, sizes in ((20, [4, 4, 1]), (10**6, [9]), (1, [1] * 9)):
        monkeypatch.setattr(neighbours, "MANY", 3)
        monkeypatch.setattr(neighbours, "TOGETHER", together)
        del search.__dict__["_together"]
        assert search._rivals(shown, labels).equal(alone) and [len(pools) for _, pools in search._together] == sizes


def test_measures_compare_with_images_from_the_whole_of_a_class(tmp_path):
    """Files may be sorted by what they show, such as the day of the photograph."""
    (tmp_path / "train" / "a").mkdir(parents=True)
    for i in range(60):
        Image.new("RGB", (8, 8), (4 * i,) * 3).save(tmp_path / "train" / "a" / f"{i:02d}.png")
    source = open_source(tmp_path, "train", size=8)
    shades = Pictures(source, lambda x: x.flatten(1)[:, :1], compared=20).features[0][:, 0].sort().values * 255
    assert len(shades) == 20 and shades.min() < 60 and shades.max() > 180
    every = Pictures(source, lambda x: x.flatten(1)[:, :1], compared=20)
    assert sorted(every.indices[0]) == list(range(60))
    few = Pictures(source, lambda x: x.flatten(1)[:, :1], compared=20, only_compared=True)
    assert few.indices[0][:20] == every.indices[0][:20], "the same ones, whatever number is searched"
