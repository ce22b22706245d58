"""Images in memory: which forms are taken, what is refused, and that a picture is read as its file would be."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from dap.base.errors import DapError
from dap.data.real.decode import decode, fit_square, upright
from dap.data.real.held import OfClasses, Part
from dap.data.real.memory import MemorySource, by_class
from dap.objects import Objects
from dap.recipe import Data
from dap.verbs.memory import named

IMAGES = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Named(list):
    """A data set whose attribute `classes` names its labels."""

    def __init__(self, labels, classes):
        super().__init__(zip(IMAGES, labels, strict=False))
        self.classes = classes


def counts(images):
    return {name: len(mine) for name, mine in by_class(images).items()}


def test_names_and_labels_in_their_usual_forms():
    assert counts(Named([0, 0, 1, 1, 2, 2], ["b", "a", "c"])) == {"b": 2, "a": 2, "c": 2}
    assert counts(Named([1, 1, 1, 0, 0, 0], np.array(["x", "y"]))) == {"x": 3, "y": 3}
    assert counts(Named([2, 0, 0, 2, 2, 0], ["a", "a", "b"])) == {"a": 3, "b": 3}, (
        "only the names of images that are there"
    )
    for labels in ([0, 1] * 3, torch.tensor([0, 1] * 3), np.array([0.0, 1.0] * 3), ["0", "1"] * 3, [False, True] * 3):
        assert counts((IMAGES, labels)) == {"0": 3, "1": 3}


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (Named([0, 0, 1, 1, 2, 2], ["crane", "tench", "crane"]), "Several classes .* are called 'crane'"),
        (Named([0, 1] * 3, ["é", "e\u0301"]), "Several classes"),
        ({1: IMAGES[:2], "1": IMAGES[2:]}, "Several classes .* are called '1'"),
        (Named([-1, -1, 0, 0, 1, 1], ["a", "b"]), "The label -1 of an image in memory is no whole number from 0 on"),
        ((IMAGES, [-1, 0] * 3), "The label -1"),
        ((IMAGES, torch.tensor([0.25, 0.5, 0.75, 1.25, 1.75, 0])), "The label 0.25"),
        ((IMAGES, ["01", "1"] * 3), "The label 01"),
        ((IMAGES, ["cat", "dog"] * 3), "The label cat"),
        ((IMAGES, torch.eye(2)[[0, 1] * 3]), r"The label \[1.0, 0.0\]"),
        ((IMAGES, [float("nan")] * 6), "The label nan"),
        (Named([0, 0, 0, 0, 1, 5], ["a", "b"]), "the label 5, and .* names are those of the labels from 0 to 1"),
        (Named([0] * 6, {"a": 0}), "`classes` of the images in memory is a dict"),
        (Named([0] * 6, {0: "a", 2: "b"}), "`classes` of the images in memory is a dict"),
        (Named([0] * 6, 10), "`classes` of the images in memory is a int"),
        ((3, 4), "should be a mapping from class name to images"),
        ([IMAGES[:2], torch.tensor([0, 1])], "is no whole number"),
    ],
)
def test_what_would_lose_or_mix_images_is_refused(images, says):
    with pytest.raises(DapError, match=says):
        by_class(images)


def test_a_class_that_is_named_and_has_no_image_is_not_lost():
    images = Named([0, 0, 2, 2, 2, 2], ["a", "b", "c"])
    assert counts(images) == {"a": 2, "b": 0, "c": 4}
    with pytest.raises(
        DapError, match="no images in b of images in memory; add some, or leave it out by naming `classes`"
    ):
        MemorySource(by_class(images), size=8)
    source = Objects(source=images).images(Data(classes=("c", "a")), 8, "crop")
    assert source.class_names == ("c", "a") and source.count(0) == 4
    assert list(named(images, ("a", "c"))) == ["a", "c"], "test images of a set of two of the classes"


def test_rows_of_datasets_are_read_with_the_names_that_it_lists():
    datasets = pytest.importorskip("datasets")
    pictures = [Image.new("RGB", (8, 8), (20 * i, 0, 0)) for i in range(4)]
    for image, label in (("image", "label"), ("img", "labels")):
        kinds = {
            image: datasets.Image(),
            "id": datasets.Value("int64"),
            label: datasets.ClassLabel(names=["cat", "dog"]),
        }
        rows = datasets.Dataset.from_dict(
            {image: pictures, "id": range(4), label: [1, 0, 1, 1]}, datasets.Features(kinds)
        )
        assert counts(rows) == {"cat": 1, "dog": 3} and counts(torch.utils.data.Subset(rows, [0, 1])) == {
            "cat": 1,
            "dog": 1,
        }
    assert (MemorySource(by_class(rows), size=8).images(1, [2])[0, 0] == 60 / 255).all()
    assert counts([{"image": image, "label": 3} for image in IMAGES]) == {"3": 6}
    with pytest.raises(DapError, match="have no column of images among pixels, label. Call it 'image'"):
        by_class([{"pixels": IMAGES[0], "label": 0}])


def test_names_may_be_listed_by_their_labels():
    assert {name: len(mine) for name, mine in by_class(Named([0, 1] * 3, {0: "cat", 1: "dog"})).items()} == {
        "cat": 3,
        "dog": 3,
    }


def test_a_source_takes_no_name_twice():
    with pytest.raises(DapError, match="Several classes"):
        MemorySource({"é": IMAGES, "e\u0301": IMAGES}, size=8)


def pixels(picture, size=8):
    return MemorySource({"a": [picture]}, size=size).tensors()[0][0]


def fingerprint(picture):
    return MemorySource({"a": [picture]}, size=8).fingerprint()


def red(mode):
    plain = Image.new("RGB", (8, 8), (200, 40, 40))
    return plain.quantize() if mode == "P" else plain.convert(mode)  # a palette of its own colours


@pytest.mark.parametrize("mode", ["RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "P"])
def test_a_picture_of_any_mode_is_read(mode):
    assert (pixels(red(mode)) - pixels(red("RGB"))).abs().max() < 0.03


def test_grey_keeps_its_depth_and_lab_and_pa_are_read():
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    assert torch.equal(pixels(Image.fromarray(values))[1], torch.from_numpy(values))
    sixteen = Image.fromarray((values * 65535).astype(np.uint16))
    assert (pixels(sixteen)[1] - torch.from_numpy(values)).abs().max() < 1e-4
    whole = Image.fromarray((values * 65535).astype(np.int32))
    assert torch.equal(pixels(whole), pixels(sixteen))
    assert pixels(Image.new("LAB", (8, 8), (128, 128, 128))).shape == (3, 8, 8)
    assert pixels(red("P").convert("PA")).shape == (3, 8, 8)


def test_a_picture_is_turned_upright_as_its_file_is():
    picture = Image.new("RGB", (24, 16))
    picture.paste((255, 0, 0), (0, 0, 24, 4))
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    picture.save(file, "PNG", exif=exif)
    opened = Image.open(io.BytesIO(file.getvalue()))
    assert torch.equal(pixels(opened), decode(file.getvalue(), 8))
    assert MemorySource({"a": [opened]}, size=8).sizes() == [(16, 24)]
    assert fingerprint(opened) != fingerprint(picture)


def packed_grey(bits, hidden, shown):
    """The bytes of a grey PNG of few bits whose left half has the grey that it declares transparent."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    line = sum((hidden if place < 4 else shown) << bits * (7 - place) for place in range(8)).to_bytes(bits, "big")
    head, pixels = struct.pack(">IIBBBBB", 8, 8, bits, 0, 0, 0, 0), zlib.compress((b"\0" + line) * 8)
    parts = (b"IHDR", head), (b"tRNS", struct.pack(">H", hidden)), (b"IDAT", pixels), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts)


@pytest.mark.parametrize(("bits", "hidden", "shown"), [(4, 3, 5), (4, 0, 5), (2, 1, 2), (8, 3, 51), (1, 0, 1)])
def test_transparent_grey_of_few_bits_is_white_in_memory_as_in_a_file_and_the_picture_stays(bits, hidden, shown):
    data = packed_grey(bits, hidden, shown)
    opened = Image.open(io.BytesIO(data))
    for _ in range(2):
        assert torch.equal(pixels(opened), decode(data, 8))
        assert torch.equal(fit_square(upright(opened, data), 8, "crop"), decode(data, 8)), (
            "as each frame of a clip is read"
        )
    assert opened.info["transparency"] == hidden and (decode(data, 8)[:, :, :4] == 1).all()


def test_a_cut_picture_is_broken_and_no_trace():
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(file, "PNG")
    cut = Image.open(io.BytesIO(file.getvalue()[:2000]))
    source = MemorySource({"a": [cut, red("RGB"), red("L")]}, size=8)
    assert len(source.tensors()[0]) == 2 and [name for name, _ in source.bad] == ["a/0"]
    assert len(source.fingerprint()) == 64


def test_other_pictures_have_other_fingerprints():
    def palette(*colour):
        made = Image.new("P", (8, 8))
        made.putpalette([*colour, *([0] * 765)])
        return made

    hidden = Image.new("RGB", (8, 8), (1, 2, 3))
    hidden.info["transparency"] = (1, 2, 3)
    pictures = [
        palette(255, 0, 0),
        palette(0, 255, 0),
        Image.new("L", (4, 16), 7),
        Image.new("L", (16, 4), 7),
        Image.new("L", (8, 8), 7),
        Image.new("RGB", (8, 8), (1, 2, 3)),
        hidden,
        *(torch.full(shape, 0.5) for shape in ((1, 4, 16), (1, 16, 4), (1, 8, 8))),
    ]
    assert len(set(map(fingerprint, pictures))) == len(pictures)


def test_square_pictures_and_tensors_keep_the_fingerprint_of_earlier_versions():
    """Sets that were made of such images are still gone on with."""
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    colours = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    steps = torch.arange(192).reshape(3, 8, 8) / 255
    assert [fingerprint(one)[:12] for one in (grey, colours, steps, steps[:1])] == KEPT


KEPT = ["61320158824c", "666921593662", "f0a733d7c110", "4f15d9be80db"]


@pytest.mark.parametrize("kind", ["tensor", "array", "bytes", "picture"])
def test_images_that_are_changed_in_place_count_as_other_images(kind):
    """Judging and making a set ask for the fingerprint: neither an old hash nor an old decoded image may be left."""
    values = IMAGES.clone()
    as_pictures = [Image.fromarray((one.permute(1, 2, 0).numpy() * 255).astype(np.uint8)) for one in values]
    images = {"tensor": values, "array": values.numpy(), "bytes": (values * 255).byte(), "picture": as_pictures}[kind]
    source = MemorySource({"a": images[:3], "b": images[3:]}, size=8)
    every = [source, source.fitted(16, "crop"), OfClasses(source, ["b", "a"]), Part(source, "train", 0.3)]
    before = [(one.fingerprint(), one.fingerprint(sized=False), one.tensors()[0]) for one in every]
    chosen = [one.good(0, 1, seed=0) for one in every]
    shown = [one.images(0, places) for one, places in zip(every, chosen, strict=True)]
    assert [one.fingerprint() for one in every] == [mark for mark, _, _ in before]
    for one in images:
        one.paste((0, 0, 0), (0, 0, 8, 8)) if kind == "picture" else one.__setitem__(slice(None), 0)
    for one, (mark, unsized, pixels), places, old in zip(every, before, chosen, shown, strict=True):
        assert one.fingerprint() != mark and one.fingerprint(sized=False) != unsized
        assert old.any() and not one.images(0, places).any()
        assert pixels.any() and not one.tensors()[0].any()


class Listed(list):
    """A data set whose attribute `class_names` names its labels, as a distilled set has it."""

    class_names = ("b", "a")


def test_labels_are_named_by_either_attribute_and_a_subset_has_the_names_of_the_whole():
    pairs = list(zip(IMAGES, [0, 1] * 3, strict=True))
    assert counts(Listed(pairs)) == {"b": 3, "a": 3}
    assert counts(torch.utils.data.Subset(Listed(pairs), [0, 1, 2])) == {"b": 2, "a": 1}
    assert counts(torch.utils.data.Subset(torch.utils.data.Subset(Named([0, 1] * 3, ["x", "y"]), [1, 3, 5]), [0])) == {
        "x": 0,
        "y": 1,
    }
    with pytest.raises(DapError, match="the label 2, and their 2 class names are those of the labels from 0 to 1"):
        by_class(Listed(zip(IMAGES, [0, 1, 2] * 2, strict=True)))


def test_arrays_count_by_their_values_alone():
    """Whatever their strides and the order of their bytes are: torch takes neither a flipped array nor one of another machine."""
    values = np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)
    wanted = MemorySource({"a": values}, size=8).images(0, [0, 1])
    flipped = np.ascontiguousarray(values[:, ::-1, :, ::-1])[:, ::-1, :, ::-1]
    turned = np.ascontiguousarray(values.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for other in (flipped, turned, values.astype(">f4"), np.asfortranarray(values)):
        source = MemorySource({"a": other}, size=8)
        assert torch.equal(source.images(0, [0, 1]), wanted)
        assert source.fingerprint() == MemorySource({"a": values}, size=8).fingerprint()
    for wrong in (values.astype(object), values.astype(str), values.astype(complex)):
        with pytest.raises(DapError, match=r"is an array of .*; it should have floats in \[0, 1\] or bytes"):
            MemorySource({"a": wrong}, size=8)
