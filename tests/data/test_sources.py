"""Real images: every mode and format decodes to the pixels it means; what is broken is named, counted and left out."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dap.base.errors import DapError
from dap.data.real.base import Source
from dap.data.real.decode import BrokenImage, Fit, decode
from dap.data.real.held import Part
from dap.data.real.idx import read_idx
from dap.data.real.recent import Recent
from dap.data.real.sources import FolderSource, IdxSource, ParquetSource, open_source
from dap.starter import CLASS_NAMES, DATA, SHA256

WHITE = (255, 255, 255)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def flat(color: tuple[int, int, int], size: tuple[int, int] = (6, 6)) -> Image.Image:
    return Image.new("RGB", size, color)


def halves(first: str = "red", second: str = "blue") -> Image.Image:
    """16 x 16 px, the left half of one colour and the right of another."""
    image = Image.new("RGB", (16, 16), second)
    image.paste(first, (0, 0, 8, 16))
    return image


def write_folder(root: Path, counts: dict[str, int]) -> Path:
    """Class folders of PNGs; image i of a class is grey of level i."""
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            flat((index, index, index)).save(root / folder / f"{index:03d}.png")
    return root


def levels(images: torch.Tensor) -> list[int]:
    """The grey levels that `write_folder` wrote."""
    assert (images == images[:, :1, :1, :1]).all()
    return [round(float(level) * 255) for level in images[:, 0, 0, 0]]


# ---- decode: modes, formats, orientation


@pytest.mark.parametrize(
    ("image", "format", "expected"),
    [
        (Image.new("1", (4, 4), 1), "PNG", (1, 1, 1)),
        (Image.new("L", (4, 4), 51), "PNG", (0.2, 0.2, 0.2)),
        (Image.new("L", (4, 4), 51), "TIFF", (0.2, 0.2, 0.2)),
        (Image.fromarray(np.full((4, 4), 65535, np.uint16)), "PNG", (1, 1, 1)),
        (Image.fromarray(np.full((4, 4), 32768, np.uint16)), "PNG", (32768 / 65535,) * 3),
        (Image.fromarray(np.full((4, 4), 13107, np.uint16)), "TIFF", (0.2, 0.2, 0.2)),
        (Image.fromarray(np.full((4, 4), 13107, ">u2")), "TIFF", (0.2, 0.2, 0.2)),
        (Image.fromarray(np.full((4, 4), 13107, np.int32)), "TIFF", (0.2, 0.2, 0.2)),
        (Image.fromarray(np.full((4, 4), 0.3, np.float32)), "TIFF", (0.3, 0.3, 0.3)),
        (Image.new("LA", (4, 4), (0, 255)), "PNG", (0, 0, 0)),
        (Image.new("LA", (4, 4), (0, 51)), "PNG", (0.8, 0.8, 0.8)),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "PNG", (1, 1, 1)),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 51)), "PNG", (1, 0.8, 0.8)),
        (Image.new("CMYK", (4, 4), (255, 0, 0, 0)), "TIFF", (0, 1, 1)),
        (Image.new("CMYK", (4, 4), (0, 0, 0, 204)), "TIFF", (0.2, 0.2, 0.2)),
        (flat((255, 102, 0)), "BMP", (1, 0.4, 0)),
        (flat((255, 102, 0)), "GIF", (1, 0.4, 0)),
        (flat((255, 102, 0)).quantize(4), "PNG", (1, 0.4, 0)),
    ],
)
def test_every_mode_decodes_to_the_colour_it_means(
    image: Image.Image, format: str, expected: tuple[float, ...]
) -> None:
    tensor = decode(encoded(image, format), 3)
    assert tensor.shape == (3, 3, 3) and tensor.dtype == torch.float32 and tensor.is_contiguous()
    assert torch.allclose(tensor, torch.tensor(expected, dtype=torch.float32)[:, None, None].expand(3, 3, 3), atol=1e-6)


@pytest.mark.parametrize(
    ("image", "format", "options", "expected"),
    [
        (flat((200, 100, 50)), "JPEG", {"quality": 95}, (200, 100, 50)),
        (Image.new("L", (8, 8), 77), "JPEG", {}, (77, 77, 77)),
        (Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", {}, (0, 255, 255)),
        (flat((200, 100, 50)), "WEBP", {"lossless": True}, (200, 100, 50)),
        (Image.new("RGBA", (8, 8), (9, 9, 9, 0)), "WEBP", {"lossless": True}, WHITE),
    ],
)
def test_lossy_and_web_formats(image: Image.Image, format: str, options: dict, expected: tuple[int, ...]) -> None:
    tensor = decode(encoded(image, format, **options), 4)
    assert torch.allclose(tensor.mean((1, 2)) * 255, torch.tensor(expected, dtype=torch.float32), atol=3)


def test_palette_transparency_shows_white_whether_one_index_or_an_alpha_table() -> None:
    image = Image.new("P", (4, 2))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 0, 1, 1] * 2)
    one = decode(encoded(image, transparency=0), 2)
    assert one[:, :, 0].eq(1).all() and one[:, 0, 1].tolist() == [0, 0, 1]
    table = decode(encoded(image, transparency=bytes([51, 255])), 2)
    assert torch.allclose(table[:, 0, 0], torch.tensor([1, 0.8, 0.8])) and table[:, 0, 1].tolist() == [0, 0, 1]


@pytest.mark.parametrize(("format", "options"), [("JPEG", {"subsampling": 0}), ("PNG", {}), ("TIFF", {}), ("WEBP", {})])
def test_exif_orientation_is_applied_once(format: str, options: dict) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise: what is stored left is seen on top
    tensor = decode(encoded(halves(), format, exif=exif, **options), 16)
    top, bottom = tensor[:, 2:6].mean((1, 2)), tensor[:, 10:14].mean((1, 2))
    assert torch.allclose(top, torch.tensor([1.0, 0, 0]), atol=0.03)
    assert torch.allclose(bottom, torch.tensor([0, 0, 1.0]), atol=0.03)


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [flat((255, 0, 0)), flat((0, 0, 255))]
    for format in ("GIF", "TIFF", "PNG"):
        tensor = decode(encoded(frames[0], format, save_all=True, append_images=frames[1:]), 2)
        assert tensor[:, 0, 0].tolist() == [1, 0, 0], format


# ---- decode: geometry


def test_crop_of_the_right_size_keeps_pixels_and_the_centre() -> None:
    pixels = np.arange(5 * 8 * 3, dtype=np.uint8).reshape(5, 8, 3)
    tensor = decode(encoded(Image.fromarray(pixels)), 5)
    assert torch.equal(tensor, torch.from_numpy(pixels[:, 1:6]).permute(2, 0, 1) / 255)


def test_crop_resizes_with_antialiasing() -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    tensor = decode(encoded(Image.fromarray(stripes)), 8)
    assert (tensor[:, 2:6, 2:6] - 0.5).abs().max() < 0.02


def test_sixteen_bits_keep_their_depth_through_a_resize() -> None:
    ramp = np.tile(np.arange(1000, 1032, dtype=np.uint16), (32, 1))
    tensor = decode(encoded(Image.fromarray(ramp)), 16) * 65535
    assert torch.allclose(tensor[0, 8, 3:13], torch.arange(1006.5, 1026, 2), atol=0.05)


def test_sharp_edges_do_not_overshoot() -> None:
    edge = np.zeros((8, 8), np.uint16)
    edge[:, 4:] = 65535
    tensor = decode(encoded(Image.fromarray(edge)), 32)
    assert tensor.min() == 0 and tensor.max() == 1


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_extreme_shapes(fit: Fit) -> None:
    assert torch.allclose(decode(encoded(flat(WHITE, (1, 1))), 1, fit), torch.ones(3, 1, 1))
    assert decode(encoded(flat(WHITE, (1, 1))), 8).eq(1).all()
    assert decode(encoded(flat(WHITE, (20000, 1))), 8, fit).eq(1).all()


def test_pad_surrounds_small_images_with_zeros_and_crops_large_ones() -> None:
    image = Image.fromarray(np.full((4, 6), 255, np.uint8))
    tensor = decode(encoded(image), 8, "pad")
    assert tensor[:, 2:6, 1:7].eq(1).all() and tensor.sum() == 3 * 4 * 6
    assert torch.equal(decode(encoded(image), 5, "pad"), decode(encoded(image), 5, "crop"))
    deep = decode(encoded(Image.fromarray(np.full((2, 2), 65535, np.uint16))), 4, "pad")
    assert deep[:, 1:3, 1:3].eq(1).all() and deep.sum() == 3 * 4


@pytest.mark.parametrize(("size", "fit", "said"), [(0, "crop", "at least 1"), (8, "stretch", "'crop', 'pad'")])
def test_senseless_sizes_and_fits_are_refused(size: int, fit: Any, said: str) -> None:
    with pytest.raises(DapError, match=said):
        decode(encoded(flat(WHITE)), size, fit)
    with pytest.raises(DapError, match=said):
        open_source("fashion-mnist", size=size, fit=fit)


# ---- decode: broken files


def noise(format: str) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    return encoded(Image.fromarray(values), format)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"this is not an image", "not an image"),
        (noise("JPEG")[:-200], "truncated"),
        (noise("PNG")[:-200], "truncated|cut"),
        (noise("GIF")[:300], "."),
        (noise("WEBP")[:-200], "."),
        (noise("BMP")[:-200], "truncated"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "."),
        (encoded(Image.fromarray(np.full((2, 2), 200.0, np.float32)), "TIFF"), r"rescale them to \[0, 1\]"),
        (encoded(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF"), r"rescale them to \[0, 1\]"),
        (encoded(Image.fromarray(np.full((2, 2), 70000, np.int32)), "TIFF"), r"rescale them to \[0, 65535\]"),
        (encoded(Image.fromarray(np.full((2, 2), -1, np.int32)), "TIFF"), r"rescale them to \[0, 65535\]"),
    ],
)
def test_broken_content_is_one_sentence_with_its_reason(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "it.jpg"
    path.write_bytes(content)
    with pytest.raises(BrokenImage, match=reason) as from_file:
        decode(path, 8)
    assert str(from_file.value) == f"cannot decode {path}: {from_file.value.reason}"
    assert "\n" not in str(from_file.value)
    with pytest.raises(BrokenImage, match=reason):
        decode(content, 8)


def test_a_missing_or_forbidden_file_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BrokenImage, match="no such file"):
        decode(tmp_path / "gone.png", 8)
    flat(WHITE).save(tmp_path / "a.png")
    forbid(monkeypatch, tmp_path / "a.png")
    with pytest.raises(BrokenImage, match="permission denied"):
        decode(tmp_path / "a.png", 8)


def forbid(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Refuse to read a file or folder, as the system does to a user without the right; holds for root too."""
    read, scan, opened = Path.read_bytes, os.scandir, Path.open

    def refuse(function: Callable) -> Callable:
        def checked(target: object, *args: object, **options: object) -> object:
            if Path(str(target)) == path:
                raise PermissionError(13, "Permission denied", str(path))
            return function(target, *args, **options)

        return checked

    monkeypatch.setattr(Path, "read_bytes", refuse(read))
    monkeypatch.setattr(Path, "open", refuse(opened))
    monkeypatch.setattr(os, "scandir", refuse(scan))


def test_decompression_bombs_stay_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(flat(WHITE, (8, 8)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 33)  # Pillow warns from this number, and refuses from twice of it
    assert decode(content, 8).eq(1).all()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    with pytest.raises(BrokenImage, match="decompression bomb.*DAP_MAX_PIXELS"):
        decode(content, 8)


def test_running_out_of_memory_is_not_called_a_broken_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", exhausted)
    with pytest.raises(MemoryError):
        decode(b"something", 8)


# ---- folders


def test_folder_classes_keys_counts_and_pixels(tmp_path: Path) -> None:
    write_folder(tmp_path, {"dog": 3, "cat": 4})
    (tmp_path / ".cache").mkdir()
    (tmp_path / "README.md").write_text("not a class")
    source = open_source(tmp_path, size=6)
    assert isinstance(source, FolderSource)
    assert source.class_names == ("cat", "dog") and source.name == tmp_path.name and source.licence is None
    assert [source.count(0), source.count(1)] == [4, 3]
    assert source.keys(1, [2, 0]) == ["dog/002.png", "dog/000.png"]
    assert levels(source.images(0, [3, 0, 3])) == [3, 0, 3]
    assert source.images(0, []).shape == (0, 3, 6, 6)
    images, labels = source.tensors()
    assert levels(images) == [0, 1, 2, 3, 0, 1, 2] and labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert labels.dtype == torch.int64
    images, labels = source.tensors(2)
    assert levels(images) == [0, 1, 0, 1] and labels.tolist() == [0, 0, 1, 1]


def test_folder_takes_nested_files_of_every_known_suffix_in_any_case(tmp_path: Path) -> None:
    cat = tmp_path / "cat"
    (cat / "deep" / "er").mkdir(parents=True)
    formats = {"JPG": "JPEG", "jpeg": "JPEG", "PnG": "PNG", "webp": "WEBP", "bmp": "BMP", "gif": "GIF"}
    for suffix, format in {**formats, "tif": "TIFF", "TIFF": "TIFF"}.items():
        flat(WHITE).save(cat / "deep" / f"x.{suffix}", format)
    flat(WHITE).save(cat / "deep" / "er" / "y.png")
    (cat / ".hidden.png").write_bytes(b"")
    (cat / ".trash").mkdir()
    flat(WHITE).save(cat / ".trash" / "z.png")
    (cat / "notes.txt").write_text("no image")
    (cat / "folder.png").mkdir()
    os.mkfifo(cat / "pipe.png")
    source = open_source(tmp_path, size=2)
    keys = source.keys(0, range(source.count(0)))
    assert keys == sorted(keys) and source.count(0) == 9
    assert source.tensors()[0].min() > 0.98
    assert source.bad == []


def test_folder_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", {"cat": 2, "dog": 3})
    write_folder(tmp_path, {"elsewhere": 2})
    cat = tmp_path / "set" / "cat"
    (cat / "self").symlink_to(cat)
    (cat / "up").symlink_to(tmp_path / "set")  # would give cats the images of dogs
    (cat / "a.png").symlink_to(tmp_path / "elsewhere" / "001.png")
    (cat / "more").symlink_to(tmp_path / "elsewhere")
    (cat / "again").symlink_to(tmp_path / "elsewhere")
    (cat / "turn").symlink_to(cat / "turn")
    (tmp_path / "set" / "emu").symlink_to(tmp_path / "elsewhere")
    source = open_source(tmp_path / "set", size=4)
    assert source.class_names == ("cat", "dog", "emu")
    assert source.keys(0, range(source.count(0))) == [
        "cat/000.png", "cat/001.png", "cat/a.png", "cat/again/000.png", "cat/again/001.png",
    ]  # fmt: skip
    assert levels(source.images(2, [0, 1])) == [0, 1]


def test_folder_names_links_to_nowhere_as_broken(tmp_path: Path) -> None:
    write_folder(tmp_path, {"cat": 2})
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    source = open_source(tmp_path, size=4)
    assert source.count(0) == 3 and sorted(source.good(0, 2, seed=0)) == [0, 1]
    source.tensors()
    assert source.bad == [("cat/gone.png", "no such file or directory")]
    assert len(source.fingerprint()) == 64


def test_folder_with_names_that_are_not_utf8(tmp_path: Path) -> None:
    write_folder(tmp_path, {"cat": 1})
    os.rename(tmp_path / "cat" / "000.png", os.fsencode(tmp_path / "cat") + b"/\xff.png")
    source = open_source(tmp_path, size=4)
    assert source.keys(0, [0]) == ["cat/\\xff.png"] and levels(source.images(0, [0])) == [0]
    assert len(source.fingerprint()) == 64


def test_split_folders(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"cat": 3, "dog": 3})
    write_folder(tmp_path / "Val", {"cat": 1, "dog": 2})
    assert open_source(tmp_path, size=4).count(0) == 3
    assert open_source(tmp_path, "test", size=4).count(1) == 2
    assert open_source(tmp_path / "Val", "test", size=4).count(1) == 2
    assert open_source(tmp_path / "Val", size=4).fingerprint() == open_source(tmp_path, "test", size=4).fingerprint()
    write_folder(tmp_path / "test", {"cat": 4, "dog": 4})
    assert open_source(tmp_path, "test", size=4).count(0) == 4


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    write_folder(tmp_path, {"train": 2, "bus": 1})
    assert open_source(tmp_path, size=4).class_names == ("bus", "train")


@pytest.mark.parametrize("folder", ["", "train"])
def test_a_missing_split_says_how_to_give_it(folder: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "set" / folder, {"cat": 1})
    with pytest.raises(
        DapError, match=f"no test split; .*put .* into {tmp_path}/set/test, or .*say .* --split test=FOLDER"
    ):
        open_source(tmp_path / "set", "test", size=4)


def test_unknown_split_lists_the_known_ones(tmp_path: Path) -> None:
    for path in (tmp_path, "fashion-mnist"):
        with pytest.raises(DapError, match="unknown split 'val'; known are 'train', 'test'"):
            open_source(path, "val", size=4)


def test_a_path_that_does_not_exist_shows_what_is_there(tmp_path: Path) -> None:
    write_folder(tmp_path / "pictures", {"cat": 1})
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DapError) as error:
        open_source(tmp_path / "picturs" / "train", size=4)
    assert f"{tmp_path}/picturs/train does not exist; did you mean {tmp_path}/pictures?" in str(error.value)
    assert f"{tmp_path} holds notes.txt, pictures/" in str(error.value) and "fashion-mnist" in str(error.value)
    with pytest.raises(DapError, match="is a file, not a folder"):
        open_source(tmp_path / "notes.txt", size=4)


def test_folders_without_what_is_needed_say_so(tmp_path: Path) -> None:
    with pytest.raises(DapError, match="holds no class folders; accepted are one folder of images for each class"):
        open_source(tmp_path, size=4)
    flat(WHITE).save(tmp_path / "loose.png")
    with pytest.raises(DapError, match="holds 1 image but no class folders; accepted"):
        open_source(tmp_path, size=4)
    (tmp_path / "cat").mkdir()
    with pytest.raises(DapError, match="holds 1 image but no class folders; accepted"):
        open_source(tmp_path, size=4)
    write_folder(tmp_path, {"dog": 1})
    with pytest.raises(DapError, match="no images in cat of .*; add some, or leave it out"):
        open_source(tmp_path, size=4)
    assert open_source(tmp_path, size=4, classes=["dog"]).class_names == ("dog",)


def test_classes_are_selected_and_ordered(tmp_path: Path) -> None:
    write_folder(tmp_path, {"ant": 1, "bee": 2, "cow": 3})
    source = open_source(tmp_path, size=4, classes=["cow", "ant"])
    assert source.class_names == ("cow", "ant") and [source.count(0), source.count(1)] == [3, 1]
    assert source.keys(1, [0]) == ["ant/000.png"] and source.tensors()[1].tolist() == [0, 0, 0, 1]
    for classes, said in [
        (["cow", "Bea"], "unknown class 'Bea' in .*; known classes: bee, ant, cow$"),
        (["cow", "ant", "cow"], "cow named more than once"),
        ([], "must be a list of class names"),
        ("cow", "must be a list of class names"),
    ]:
        with pytest.raises(DapError, match=said):
            open_source(tmp_path, size=4, classes=classes)


def test_unreadable_folders_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, {"cat": 1, "dog": 1})
    forbid(monkeypatch, tmp_path / "dog")
    with pytest.raises(DapError, match=f"cannot read {tmp_path}/dog: permission denied"):
        open_source(tmp_path, size=4)
    forbid(monkeypatch, tmp_path)
    with pytest.raises(DapError, match=f"cannot read {tmp_path}: permission denied"):
        open_source(tmp_path, size=4)


def test_a_folder_that_cannot_even_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(DapError, match=f"cannot read {tmp_path}: permission denied"):
        open_source(tmp_path, size=4)


# ---- draws and broken images


def spoil(root: Path, label: str, indices: list[int]) -> None:
    for index in indices:
        path = root / label / f"{index:03d}.png"
        path.write_bytes(path.read_bytes()[:45])  # four bytes into the pixels


def test_draws_are_seeded_distinct_nested_and_cover_the_class(tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path, {"cat": 30}), size=2)
    draw = source.good(0, 12, seed=5)
    assert draw == open_source(tmp_path, size=2).good(0, 12, seed=5) == source.good(0, 12, seed=5)
    assert len(set(draw)) == 12 and source.good(0, 7, seed=5) == draw[:7] and source.good(0, 12, seed=6) != draw
    assert sorted(source.good(0, 30, seed=1)) == list(range(30)) and source.good(0, 0, seed=1) == []
    assert levels(source.images(0, draw)) == draw


def test_draws_are_uniform(tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path, {"cat": 5}), size=2)
    hits = np.bincount([index for seed in range(2000) for index in source.good(0, 2, seed)], minlength=5)
    assert abs(hits - 800).max() < 110  # five standard deviations of a binomial (2000, 2/5)


def test_a_draw_goes_around_broken_images_and_keeps_its_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = open_source(write_folder(tmp_path, {"cat": 20}), size=2).good(0, 20, seed=3)
    broken = [whole[0], whole[4]]
    spoil(tmp_path, "cat", broken)
    source = open_source(tmp_path, size=2, max_bad_fraction=0.5)
    with caplog.at_level(logging.WARNING, "dap"):
        draw = source.good(0, 10, seed=3)
        source.good(0, 18, seed=3)
        source.tensors()
    assert draw == [index for index in whole if index not in broken][:10]
    assert sorted(key for key, _ in source.bad) == sorted(f"cat/{index:03d}.png" for index in broken)
    assert len(caplog.records) == 2 and all("left out cat/0" in record.getMessage() for record in caplog.records)
    assert all("\n" not in record.getMessage() for record in caplog.records)
    with pytest.raises(DapError, match=f"cat/{whole[4]:03d}.png .* is broken"):
        source.images(0, [whole[1], whole[4]])
    assert len(source.tensors()[0]) == 18
    with pytest.raises(DapError, match="class 'cat' .* only 18 decodable images of 20, but 19 are asked for"):
        source.good(0, 19, seed=3)
    with pytest.raises(DapError, match="has 20 images, not the 21 asked for"):
        source.good(0, 21, seed=3)


def test_broken_images_are_found_by_images_and_tensors_as_well(tmp_path: Path) -> None:
    write_folder(tmp_path, {"cat": 3})
    spoil(tmp_path, "cat", [0])
    with pytest.raises(DapError, match=r"cat/000.png .* is broken \("):
        open_source(tmp_path, size=2).images(0, [0])
    source = open_source(tmp_path, size=2)
    assert levels(source.tensors(2)[0]) == [1, 2] and [key for key, _ in source.bad] == ["cat/000.png"]


@pytest.mark.parametrize("read", [lambda source: source.good(0, 40, 0), lambda source: source.tensors()])
def test_the_limit_of_broken_images_has_two_sides(tmp_path: Path, read: Callable[[Source], object]) -> None:
    write_folder(tmp_path, {"cat": 50})
    spoil(tmp_path, "cat", [3])
    read(open_source(tmp_path, size=2, max_bad_fraction=0))  # one always may
    spoil(tmp_path, "cat", [11, 20, 44])
    read(open_source(tmp_path, size=2, max_bad_fraction=1))
    with pytest.raises(DapError) as error:
        read(open_source(tmp_path, size=2))
    assert "broken images among the " in str(error.value) and "above the limit of 1.00%: cat/0" in str(error.value)
    assert "truncated" in str(error.value) and "raise max_bad_fraction" in str(error.value)


def test_the_limit_is_exact_and_names_three(tmp_path: Path) -> None:
    write_folder(tmp_path, {"cat": 50})
    spoil(tmp_path, "cat", [46, 47, 48, 49])
    assert len(open_source(tmp_path, size=2, max_bad_fraction=0.08).tensors()[0]) == 46  # 4 of 50
    with pytest.raises(
        DapError, match="4 broken images among the 50 to read .* limit of 7.90%: cat/046.* cat/047.* cat/048"
    ) as error:
        open_source(tmp_path, size=2, max_bad_fraction=0.079).tensors()
    assert "049" not in str(error.value)


def test_a_class_of_which_nothing_is_left(tmp_path: Path) -> None:
    write_folder(tmp_path, {"cat": 1, "dog": 2})
    spoil(tmp_path, "cat", [0])
    with pytest.raises(DapError, match=r"all images of class 'cat' of .* are broken: cat/000.png \("):
        open_source(tmp_path, size=2).tensors()


def test_senseless_requests_are_refused(tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path, {"cat": 2}), size=2)
    for request, said in [
        (lambda: source.count(1), "labels 0 to 0, not 1"),
        (lambda: source.good(-1, 1, 0), "labels 0 to 0, not -1"),
        (lambda: source.images(0, [2]), "images 0 to 1, not 2"),
        (lambda: source.keys(0, [-1]), "images 0 to 1, not -1"),
        (lambda: source.good(0, -1, 0), "not the -1 asked for"),
        (lambda: source.tensors(0), "at least 1"),
        (lambda: open_source(tmp_path, size=2, max_bad_fraction=1.5), r"in \[0, 1\], not 1.5"),
    ]:
        with pytest.raises(DapError, match=said):
            request()


def test_what_was_drawn_is_not_decoded_again(tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path, {"cat": 5}), size=2)
    draw = source.good(0, 3, seed=0)
    shutil.rmtree(tmp_path / "cat")
    first = source.images(0, draw)
    assert levels(first) == draw
    first.zero_()
    assert levels(source.images(0, draw)) == draw  # what is handed out is a copy


def test_reading_everything_does_not_push_out_what_was_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dap.data.real.base.CACHE_BYTES", 3 * 3 * 2 * 2 * 4)  # three images
    source = open_source(write_folder(tmp_path, {"cat": 9}), size=2)
    draw = source.good(0, 3, seed=0)
    assert levels(source.tensors()[0]) == list(range(9))
    shutil.rmtree(tmp_path / "cat")
    assert levels(source.images(0, draw)) == draw


def test_recent_forgets_the_oldest_within_its_budget() -> None:
    recent: Recent[str] = Recent(10)
    for key in "abc":
        recent.put(key, key, 5)
    assert recent.get("a") is None and recent.get("b") == "b"
    recent.put("d", "d", 5)
    assert recent.get("c") is None and recent.get("b") == "b"
    recent.put("huge", "huge", 100)
    assert recent.get("huge") == "huge" and recent.get("b") is None


# ---- fingerprints


def test_fingerprint_survives_a_copy_and_notices_changes(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", {"cat": 2, "dog": 2})
    shutil.copytree(tmp_path / "a", tmp_path / "b" / "renamed")
    os.utime(tmp_path / "b" / "renamed" / "cat" / "000.png", (0, 0))
    first = open_source(tmp_path / "a", size=4).fingerprint()
    assert first == open_source(tmp_path / "b" / "renamed", size=4).fingerprint()

    others = [
        open_source(tmp_path / "a", size=5).fingerprint(),
        open_source(tmp_path / "a", size=4, fit="pad").fingerprint(),
        open_source(tmp_path / "a", size=4, classes=["dog", "cat"]).fingerprint(),
        open_source(tmp_path / "a", size=4, classes=["dog"]).fingerprint(),
    ]
    file = tmp_path / "a" / "cat" / "001.png"
    file.rename(file.with_name("002.png"))
    others.append(open_source(tmp_path / "a", size=4).fingerprint())
    file.with_name("002.png").rename(file)
    assert open_source(tmp_path / "a", size=4).fingerprint() == first
    file.write_bytes(file.read_bytes() + b"x")
    others.append(open_source(tmp_path / "a", size=4).fingerprint())
    assert len({first, *others}) == 7


# ---- parquet


def parquet_rows(levels: list[int]) -> list[bytes]:
    return [encoded(flat((level, level, level))) for level in levels]


def write_parquet(path: Path, columns: dict[str, Any], names: list[str] | None = None, **options: Any) -> Path:
    """A parquet file as Hugging Face datasets writes it, with its metadata where `names` are given."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(columns)
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


def hf_images(levels: list[int]) -> list[dict[str, object]]:
    return [{"bytes": data, "path": f"{level}.png"} for level, data in zip(levels, parquet_rows(levels), strict=True)]


def test_parquet_with_hugging_face_metadata_over_several_files_and_row_groups(tmp_path: Path) -> None:
    names = ["dog", "cat"]
    for part, start in enumerate((0, 5)):
        columns = {"image": hf_images(list(range(start, start + 5))), "label": [0, 1, 0, 1, 1], "coarse": [7] * 5}
        write_parquet(tmp_path / "data" / f"train-0000{part}-of-00002.parquet", columns, names, row_group_size=2)
    columns = {"image": hf_images([9, 8]), "label": [1, 0]}
    write_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", columns, names)
    source = open_source(tmp_path, size=6)
    assert isinstance(source, ParquetSource) and source.class_names == ("dog", "cat") and source.name == tmp_path.name
    assert levels(source.images(0, range(4))) == [0, 2, 5, 7]
    assert levels(source.images(1, [5, 0, 3])) == [9, 1, 6]
    assert source.keys(1, [0, 5]) == ["train-00000-of-00002.parquet#1", "train-00001-of-00002.parquet#4"]
    swapped = open_source(tmp_path, size=6, classes=["cat"])
    assert levels(swapped.tensors()[0]) == [1, 3, 4, 6, 8, 9]
    assert levels(open_source(tmp_path, "test", size=6).tensors()[0]) == [8, 9]

    shutil.copytree(tmp_path / "data", tmp_path / "copy" / "data")
    assert open_source(tmp_path / "copy", size=6).fingerprint() == source.fingerprint() != swapped.fingerprint()


def test_parquet_row_groups_are_read_again_when_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dap.data.real.parquet.CACHE_BYTES", 1)
    monkeypatch.setattr("dap.data.real.base.CACHE_BYTES", 1)
    columns = {"image": hf_images(list(range(9))), "label": [0] * 9}
    write_parquet(tmp_path / "x.parquet", columns, ["all"], row_group_size=2)
    source = open_source(tmp_path, size=6)
    draw = source.good(0, 9, seed=0)
    assert levels(source.images(0, draw)) == draw


def test_parquet_plain_binary_and_label_kinds(tmp_path: Path) -> None:
    import pyarrow as pa

    rows = parquet_rows([0, 1, 2])
    for name, labels, expected in [
        ("ints", [2, 0, 1], ("0", "1", "2")),
        ("names", ["b", "a", "c"], ("a", "b", "c")),
        ("dictionary", pa.array(["b", "a", "c"]).dictionary_encode(), ("a", "b", "c")),
    ]:
        write_parquet(tmp_path / name / "train" / "0000.parquet", {"picture": rows, "kind": labels})
        source = open_source(tmp_path / name, size=6)
        assert source.class_names == expected
        assert levels(source.images(0, [0])) == [1]
    with pytest.raises(DapError, match="no test split"):
        open_source(tmp_path / "ints", "test", size=6)
    with pytest.raises(DapError, match="no test split; put images to test on in the same form"):
        open_source(tmp_path / "ints" / "train", "test", size=6)


def test_parquet_broken_rows_are_left_out(tmp_path: Path) -> None:
    images = hf_images([0, 1, 2, 3])
    images[1]["bytes"] = None
    images[2]["bytes"] = b"junk"
    write_parquet(tmp_path / "x.parquet", {"image": images, "label": ["a"] * 4})
    source = open_source(tmp_path, size=6, max_bad_fraction=0.5)
    assert levels(source.tensors()[0]) == [0, 3]
    assert source.bad == [
        ("x.parquet#1", "its row holds no image bytes, and its file '1.png' is not beside x.parquet"),
        ("x.parquet#2", "it is not an image in a format Pillow reads"),
    ]
    with pytest.raises(DapError, match=r"above the limit of 1.00%: x.parquet#1 \(its row holds no"):
        open_source(tmp_path, size=6).tensors()


def test_parquet_problems_are_one_sentence(tmp_path: Path) -> None:
    rows = parquet_rows([0, 1])
    cases: dict[str, tuple[dict[str, object], list[str] | None, str]] = {
        "no-image": (
            {"label": [0, 1]},
            None,
            "no column of images among label; write the images as bytes of image files",
        ),
        "no-label": ({"image": rows, "x": [0.5, 1.0]}, None, "no column of labels among image, x"),
        "two": (
            {"image": rows, "x": [0, 1], "y": [0, 1]},
            None,
            "several columns that could be the labels: x, y; call the right one 'label'",
        ),
        "null": ({"image": rows, "label": [0, None]}, None, "1 row without a label"),
        "negative": (
            {"image": rows, "label": [-1, -1]},
            ["a", "b"],
            "has no labels: all of them are below 0",
        ),
        "unnamed": ({"image": rows, "label": [0, 3]}, ["a", "b"], "labels from 0 to 3, but classes only for 0 to 1"),
        "huge": ({"image": rows, "label": [0, 10**12]}, None, "labels from 0 to 1000000000000"),
        "stranger": ({"image": rows, "label": ["a", "c"]}, ["a", "b"], "has c, not among the names"),
        "repeated": ({"image": rows, "label": [0, 1]}, ["a", "a"], "a named more than once"),
        "empty-class": ({"image": rows, "label": [0, 2]}, ["a", "b", "c"], "no images in b of"),
        "unknown": ({"image": rows, "label": ["cat", "dog"]}, None, "unknown class 'cow' in .*; known classes: "),
    }
    for name, (columns, names, said) in cases.items():
        write_parquet(tmp_path / name / "train-0.parquet", columns, names)
        with pytest.raises(DapError, match=said):
            open_source(tmp_path / name, size=6, classes=["cow"] if name == "unknown" else None)


def test_parquet_damage_is_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    good = write_parquet(tmp_path / "a" / "x.parquet", {"image": parquet_rows([0, 1]), "label": ["u", "v"]})
    whole = good.read_bytes()
    good.write_bytes(b"not parquet at all")
    with pytest.raises(DapError, match=r"x.parquet cannot be read as parquet: \S"):
        open_source(tmp_path / "a", size=6)
    good.write_bytes(whole)
    source = open_source(tmp_path / "a", size=6)
    good.unlink()
    with pytest.raises(DapError, match="There is no file .*x.parquet"):
        source.images(0, [0])
    (tmp_path / "b").mkdir()
    table = pa.table({"image": parquet_rows([0]), "label": [0]}).replace_schema_metadata({"huggingface": "{"})
    pq.write_table(table, tmp_path / "b" / "x.parquet")
    with pytest.raises(
        DapError, match="'huggingface' metadata of .*, line 1: this is not JSON .* Write the file again"
    ):
        open_source(tmp_path / "b", size=6)
    write_parquet(tmp_path / "c" / "a.parquet", {"image": parquet_rows([0]), "label": [0]})
    write_parquet(tmp_path / "c" / "b.parquet", {"image": parquet_rows([0]), "other": [0]})
    with pytest.raises(DapError, match="b.parquet cannot be read as parquet: .*label"):
        open_source(tmp_path / "c", size=6)


@pytest.mark.parametrize("names", ["cat", 3, {"a": 0}, [["a"], ["b"]], ["a", 1], [None]])
def test_parquet_with_damaged_names_is_one_sentence(names, tmp_path: Path) -> None:
    """Found by fuzzing: TypeError for names that are lists."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    said = json.dumps({"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}})
    for labels in ([0, 1], ["a", "b"]):
        table = pa.table({"image": parquet_rows([0, 1]), "label": labels}).replace_schema_metadata(
            {"huggingface": said}
        )
        pq.write_table(table, tmp_path / "train.parquet")
        with pytest.raises(DapError, match="metadata of .*train.parquet lists .* as class names; write"):
            open_source(tmp_path, size=4)
    table = pa.table({"image": parquet_rows([0, 1]), "label": [0, 1]}).replace_schema_metadata(
        {"huggingface": "[" * 99999}
    )
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(
        DapError, match="metadata of .*train.parquet: it is nested more than 64 deep. Write the file again"
    ):
        open_source(tmp_path, size=4)
    table = pa.table({"image": parquet_rows([0, 1]), "label": pa.array([0, 2**64 - 1], pa.uint64())})
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(DapError, match="has 18446744073709551615, which is no label"):
        open_source(tmp_path, size=4)


# ---- IDX


@pytest.fixture(scope="module")
def fashion_test() -> Source:
    return open_source("fashion-mnist", "test", size=32)


def test_embedded_fashion_mnist(fashion_test: Source) -> None:
    assert isinstance(fashion_test, IdxSource)
    assert fashion_test.class_names == CLASS_NAMES and fashion_test.name == "fashion-mnist"
    assert fashion_test.licence == "MIT (Zalando SE, 2017)"
    assert [fashion_test.count(label) for label in range(10)] == [1000] * 10
    raw = read_idx(DATA / "t10k-images-idx3-ubyte.gz")
    assert fashion_test.keys(9, [0]) == ["test/0"]  # the first test image is an ankle boot
    image = fashion_test.images(9, [0])[0]
    assert torch.equal(image[:, 2:30, 2:30], torch.from_numpy(raw[0] / 255).float().expand(3, 28, 28))
    image[:, 2:30, 2:30] = 0
    assert image.eq(0).all()
    rows = [int(key.split("/")[1]) for key in fashion_test.keys(3, fashion_test.good(3, 5, seed=1))]
    assert (read_idx(DATA / "t10k-labels-idx1-ubyte.gz")[rows] == 3).all()


def test_embedded_train_split_and_classes() -> None:
    source = open_source("fashion-mnist", size=32, classes=["Bag", "Coat"])
    assert source.class_names == ("Bag", "Coat") and [source.count(0), source.count(1)] == [6000, 6000]
    images, labels = source.tensors(limit_per_class=3)
    assert images.shape == (6, 3, 32, 32) and labels.tolist() == [0, 0, 0, 1, 1, 1]
    numbers = read_idx(DATA / "train-labels-idx1-ubyte.gz")
    assert source.keys(0, [0, 1]) == [f"train/{row}" for row in np.flatnonzero(numbers == 8)[:2]]
    with pytest.raises(DapError, match="unknown class 'bags' in .*; known classes: Bag, .*Ankle boot"):
        open_source("fashion-mnist", size=32, classes=["bags"])


def test_embedded_data_that_was_tampered_with_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dap.data.real import sources

    sources._starter_data.cache_clear()
    monkeypatch.setitem(SHA256, "t10k-labels-idx1-ubyte.gz", "0" * 64)
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte.gz is missing or damaged"):
        open_source("fashion-mnist", size=32)


def idx_bytes(array: np.ndarray, kind: int = 0x08) -> bytes:
    return bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(root: Path, stem: str, labels: list[int], separator: str = "-", zipped: bool = False) -> Path:
    """Grey 6 x 6 images, number i of level i."""
    root.mkdir(parents=True, exist_ok=True)
    pixels = np.broadcast_to(np.arange(len(labels), dtype=np.uint8)[:, None, None], (len(labels), 6, 6))
    for what, array in (("images", pixels), ("labels", np.array(labels, np.uint8))):
        name = f"{stem}-{what}{separator}idx{array.ndim}-ubyte"
        content = idx_bytes(array)
        (root / (name + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)
    return root


@pytest.mark.parametrize(("separator", "zipped"), [("-", False), ("-", True), (".", False)])
def test_idx_folders(separator: str, zipped: bool, tmp_path: Path) -> None:
    write_idx(tmp_path, "train", [1, 0, 1, 1], separator, zipped)
    source = open_source(tmp_path, size=6)
    assert source.class_names == ("0", "1") and source.licence is None
    assert levels(source.images(1, [2, 0])) == [3, 0] and source.keys(0, [0]) == ["train/1"]
    assert open_source(tmp_path, size=8, fit="pad").images(1, [2]).sum() == pytest.approx(3 * 36 * 3 / 255)
    with pytest.raises(DapError, match="no test split; add t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte"):
        open_source(tmp_path, "test", size=6)
    write_idx(tmp_path, "t10k", [0, 1], separator, zipped)
    (tmp_path / "classes.json").write_text('["zero", "one"]')
    test = open_source(tmp_path, "test", size=6)
    assert test.class_names == ("zero", "one") and test.keys(1, [0]) == ["test/1"]
    shutil.copytree(tmp_path, tmp_path / "copy")
    assert open_source(tmp_path / "copy", "test", size=6).fingerprint() == test.fingerprint()
    write_idx(tmp_path / "copy", "t10k", [1, 0], separator, zipped)
    assert open_source(tmp_path / "copy", "test", size=6).fingerprint() != test.fingerprint()


def test_idx_equals_the_embedded_data_when_padded(fashion_test: Source, tmp_path: Path) -> None:
    for name in SHA256:
        (tmp_path / name).symlink_to(DATA / name)
    other = open_source(tmp_path, "test", size=32, fit="pad", classes=["9", "0"])
    assert torch.equal(other.images(0, range(20)), fashion_test.images(9, range(20)))


def test_idx_problems_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content, said in [
        ('{"a": 1}', "must hold a list of class names"),
        ("[1, 2]", "must hold a list of class names"),
        ("[", "classes.json, line 1: this is not JSON"),
        ('["zero", "\\u0000"]', "half of a character"),
        ('["zero", "a' + " " * 70_000_000 + '"]', "classes.json is larger than 67,108,864 bytes"),
        ("[" * 9000, "classes.json.* nested"),
        ('["zero"]', "labels from 0 to 1, but classes only for 0 to 0"),
        ('["zero", "one", "two"]', "no images in two of"),
    ]:
        write_idx(tmp_path / "names", "train", [0, 1])
        (tmp_path / "names" / "classes.json").write_text(content)
        with pytest.raises(DapError, match=said):
            open_source(tmp_path / "names", size=6)
    root = write_idx(tmp_path / "set", "train", [0, 1])
    images, labels = root / "train-images-idx3-ubyte", root / "train-labels-idx1-ubyte"
    whole = images.read_bytes()
    images.write_bytes(whole[:-5])
    with pytest.raises(DapError, match="should hold 72 bytes"):
        open_source(root, size=6)
    images.write_bytes(idx_bytes(np.zeros((2, 6), np.uint8)))
    with pytest.raises(DapError, match=r"should hold bytes of shape \(n, h, w\), not uint8 \(2, 6\)"):
        open_source(root, size=6)
    images.write_bytes(idx_bytes(np.zeros((2, 6, 6), ">f4"), 0x0D))
    with pytest.raises(DapError, match="should hold bytes of shape .* not float32"):
        open_source(root, size=6)
    images.write_bytes(whole)
    labels.write_bytes(idx_bytes(np.zeros(3, np.uint8)))
    with pytest.raises(DapError, match=r"should hold 2 labels, not uint8 \(3,\)"):
        open_source(root, size=6)
    write_idx(root, "train", [])
    with pytest.raises(DapError, match="no images found in set"):
        open_source(root, size=6)
    forbid(monkeypatch, images)
    with pytest.raises(DapError, match=f"cannot read {images}: permission denied"):
        open_source(root, size=6)


def test_the_same_images_at_another_size_are_not_listed_again(colours, monkeypatch):
    whole = open_source(colours, "train", size=8)
    anew = open_source(colours, "train", size=5, fit="crop-bilinear")
    held = {size: Part(open_source(colours, "train", size=size), "train", 0.3) for size in (8, 5)}
    monkeypatch.setattr("dap.data.real.sources.image_files", lambda *args: pytest.fail("listed again"))
    smaller = whole.fitted(5, "crop-bilinear")
    assert torch.equal(smaller.images(1, [0, 3]), anew.images(1, [0, 3])) and whole.images(1, [0]).shape[-1] == 8
    assert smaller.fingerprint() == anew.fingerprint() != whole.fingerprint()
    assert whole.fitted(8, "crop") is whole
    part = held[8].fitted(5, "crop")
    assert torch.equal(part.images(2, [1]), held[5].images(2, [1])) and part.fingerprint() == held[5].fingerprint()


def test_what_was_read_is_counted_once(tmp_path: Path) -> None:
    spoil(write_folder(tmp_path, {"cat": 20, "dog": 20}), "cat", [3, 4])
    source = open_source(tmp_path, size=2, max_bad_fraction=0.5)
    for read in (
        lambda: source.good(0, 10, seed=1),
        lambda: source.good(0, 12, seed=2),
        lambda: source.readable(0, list(range(20))),
        lambda: source.images(1, [5, 5, 6]),
        lambda: source.tensors(),
    ):
        read()
        assert source._goods == sum(map(sum, source._good)), "the sum is kept, as it is asked for at every reading"
    assert source._goods == 38 and source.fitted(3, "crop")._goods == 0
    assert source._seen_after([(0, 3), (1, 0)]) == 40
