"""One decoder for every image: encodings against the true picture, files that are no files, and sets judged directly."""

from __future__ import annotations

import io
import logging
import os
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from dap.base.errors import DapError
from dap.data.real import depth
from dap.data.real.decode import BrokenImage, as_png, decode, pixels, read_file
from dap.data.real.sources import open_source
from dap.data.real.suffixes import FORMATS, IMAGE_SUFFIXES, REFUSED
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.imports import import_set
from dap.data.sets.sheet import contact_sheet
from dap.evaluation.report.gallery import embedded
from pictures import chunk

SIDE = 24
y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1)
RGB = np.stack([255 * x, 255 * y, 255 * (1 - x)], -1).round().astype(np.uint8)
GREY = (255 * x).round().astype(np.uint8)
RGB[2:8, 2:8], GREY[2:8, 2:8] = 250, 250
HOLE = slice(10, 14)  # the rows that are transparent
ALPHA = np.full((SIDE, SIDE), 255, np.uint8)
ALPHA[HOLE] = 0
PICTURE, SHADES = Image.fromarray(RGB), Image.fromarray(GREY)
TURNED = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


def on_white(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values[HOLE] = 255
    return values


def file(image: Image.Image, format: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.copy().save(out, format, **options)
    return out.getvalue()


def png(values: np.ndarray, bits: int, colour: int, *extra: bytes) -> bytes:
    """A PNG of these values, which Pillow itself cannot write."""
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour, 0, 0, 0)
    values = values.astype(">u2") if bits == 16 else values.astype(np.uint8)
    rows = values.reshape(len(values), -1)
    if bits in (2, 4):
        part = 8 // bits
        places = rows.reshape(len(rows), -1, part) << (np.arange(part)[::-1] * bits).astype(np.uint8)
        rows = places.sum(-1).astype(np.uint8)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(extra) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def tiff(values: np.ndarray, photometric: int, bits: int, order: str = "<") -> bytes:
    """A TIFF of one strip, without compression."""
    data, samples = values.tobytes(), 1 if values.ndim == 2 else values.shape[2]
    start = 8 + 2 + 10 * 12 + 4
    tags = [(256, 4, values.shape[1]), (257, 4, values.shape[0]), (258, 3, bits), (259, 3, 1), (262, 3, photometric)]
    tags += [(273, 4, start), (277, 3, samples), (278, 4, values.shape[0]), (279, 4, len(data)), (284, 3, 1)]
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(tags))
    for tag, kind, value in tags:
        count = samples if tag == 258 else 1
        if count > 1:
            kind, out = 3, out + struct.pack(order + "HHII", tag, 3, count, start + len(data))
            continue
        out += struct.pack(order + "HHI", tag, kind, count)
        out += struct.pack(order + "HH", value, 0) if kind == 3 else struct.pack(order + "I", value)
    return out + struct.pack(order + "I", 0) + data + struct.pack(order + f"{samples}H", *[bits] * samples)


def exif(orientation: int) -> Image.Exif:
    said = Image.Exif()
    said[0x0112] = orientation
    return said


def with_hole(values: np.ndarray, hidden) -> np.ndarray:
    values = values.astype(np.int64).copy()
    values[HOLE] = hidden
    return values


PALETTE = PICTURE.quantize(255)
PALETTED = Image.fromarray(with_hole(np.asarray(PALETTE), 255).astype(np.uint8))
PALETTED.putpalette([*(PALETTE.getpalette() or [])[:765], 255, 0, 0])
LOOKED_UP = np.asarray(PALETTE.convert("RGB"))
DEEP, DEEP_RGB = GREY.astype(np.int64) * 257, RGB.astype(np.int64) * 257
HIDDEN = with_hole(RGB, (255, 0, 0)).astype(np.uint8)
STEPS = GREY // 17  # grey of 4 bits
LAB = ImageCms.profileToProfile(
    PICTURE, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
)
SMOOTH = {"quality": 98, "subsampling": 0}

ENCODINGS: dict[str, tuple[bytes, np.ndarray, int]] = {
    # name: the file, the true picture, and how far a value may be off
    "png rgb": (file(PICTURE), RGB, 0),
    "png grey": (file(SHADES), GREY, 0),
    "png 16-bit grey": (png(DEEP, 16, 0), GREY, 0),
    "png 16-bit rgb": (png(DEEP_RGB, 16, 2), RGB, 0),
    "png 16-bit rgba": (png(np.dstack([DEEP_RGB, ALPHA.astype(np.int64) * 257]), 16, 6), on_white(RGB), 0),
    "png 16-bit la": (png(np.dstack([DEEP, ALPHA.astype(np.int64) * 257]), 16, 4), on_white(GREY), 0),
    "png rgba, colours below transparency": (file(Image.fromarray(np.dstack([HIDDEN, ALPHA]))), on_white(RGB), 0),
    "png la": (file(Image.merge("LA", (SHADES, Image.fromarray(ALPHA)))), on_white(GREY), 0),
    "png palette with tRNS": (file(PALETTED, transparency=255), on_white(LOOKED_UP), 0),
    "png rgb with tRNS": (png(with_hole(RGB, (1, 2, 3)), 8, 2, chunk(b"tRNS", b"\0\1\0\2\0\3")), on_white(RGB), 0),
    "png 16-bit rgb with tRNS": (
        png(with_hole(DEEP_RGB, (257, 514, 771)), 16, 2, chunk(b"tRNS", struct.pack(">3H", 257, 514, 771))),
        on_white(RGB),
        0,
    ),
    "case B3: png 16-bit grey with tRNS": (
        png(with_hole(DEEP, 777), 16, 0, chunk(b"tRNS", struct.pack(">H", 777))),
        on_white(GREY),
        0,
    ),
    "case B3: png 4-bit grey with tRNS": (
        png(with_hole(np.maximum(STEPS, 1), 0), 4, 0, chunk(b"tRNS", b"\0\0")),
        on_white(np.maximum(STEPS, 1) * 17),
        0,
    ),
    "case B3: png 4-bit grey, a middle value transparent": (
        png(with_hole(np.where(STEPS == 5, 4, STEPS), 5), 4, 0, chunk(b"tRNS", b"\0\5")),
        on_white(np.where(STEPS == 5, 4, STEPS) * 17),
        0,
    ),
    "case B4: png 12 of 16 bits, sBIT": (
        png(GREY.astype(np.int64) * 4095 // 255, 16, 0, chunk(b"sBIT", b"\x0c")),
        GREY,
        1,
    ),
    "case B4: png 10 of 16 bits, sBIT": (
        png(GREY.astype(np.int64) * 1023 // 255, 16, 0, chunk(b"sBIT", b"\x0a")),
        GREY,
        1,
    ),
    "case B4: png 12 bits scaled to 16, sBIT": (
        png((GREY.astype(np.int64) * 4095 // 255) << 4, 16, 0, chunk(b"sBIT", b"\x0c")),
        GREY,
        1,
    ),
    "png 1-bit": (file(SHADES.point(lambda v: 255 * (v > 127)).convert("1")), 255 * (GREY > 127), 0),
    "png exif 6": (file(PICTURE.transpose(TURNED[6]), exif=exif(6)), RGB, 0),
    "png icc (case B5: not applied)": (
        file(PICTURE, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()),
        RGB,
        0,
    ),
    "apng": (file(PICTURE, save_all=True, append_images=[SHADES.convert("RGB")], duration=50), RGB, 0),
    "jpeg": (file(PICTURE, "JPEG", **SMOOTH), RGB, 9),
    "jpeg grey": (file(SHADES, "JPEG", quality=98), GREY, 9),
    "jpeg cmyk": (file(PICTURE.convert("CMYK"), "JPEG", quality=98), RGB, 9),
    **{
        f"jpeg exif {turn}": (file(PICTURE.transpose(TURNED[turn]), "JPEG", exif=exif(turn), **SMOOTH), RGB, 9)
        for turn in TURNED
    },
    "mpo": (file(PICTURE, "MPO", save_all=True, append_images=[SHADES.convert("RGB")], **SMOOTH), RGB, 9),
    "webp": (file(PICTURE, "WEBP", lossless=True, exif=exif(1)), RGB, 0),
    "webp exif 6": (file(PICTURE.transpose(TURNED[6]), "WEBP", lossless=True, exif=exif(6)), RGB, 0),
    "webp animated": (
        file(PICTURE, "WEBP", lossless=True, save_all=True, append_images=[SHADES.convert("RGB")], duration=50),
        RGB,
        0,
    ),
    "gif with transparency": (file(PALETTED, "GIF", transparency=255), on_white(LOOKED_UP), 0),
    "gif animated": (
        file(PALETTE, "GIF", save_all=True, append_images=[SHADES.convert("P")], duration=50),
        LOOKED_UP,
        0,
    ),
    "tiff pages": (file(PICTURE, "TIFF", save_all=True, append_images=[SHADES.convert("RGB")]), RGB, 0),
    "tiff float": (file(Image.fromarray(GREY.astype(np.float32) / 255), "TIFF"), GREY, 0),
    "tiff 16-bit": (tiff(DEEP.astype("<u2"), 1, 16), GREY, 0),
    "tiff 16-bit, big end first": (tiff(DEEP.astype(">u2"), 1, 16, ">"), GREY, 0),
    "tiff 16-bit rgb": (tiff(DEEP_RGB.astype("<u2"), 2, 16), RGB, 0),
    "tiff 8-bit, white is zero": (tiff(255 - GREY, 0, 8), GREY, 0),
    "case B2: tiff 16-bit, white is zero": (tiff((65535 - DEEP).astype("<u2"), 0, 16), GREY, 0),
    "tiff cmyk": (file(PICTURE.convert("CMYK"), "TIFF"), RGB, 0),
    "tiff lab": (file(LAB, "TIFF"), RGB, 36),
    "bmp": (file(PICTURE, "BMP"), RGB, 0),
    "avif": (file(PICTURE, "AVIF", quality=100, subsampling="4:4:4"), RGB, 12),
    "jpeg 2000": (file(PICTURE, "JPEG2000", irreversible=False), RGB, 0),
    "ppm": (file(PICTURE, "PPM"), RGB, 0),
    "tga": (file(PICTURE, "TGA"), RGB, 0),
    "qoi": (file(PICTURE, "QOI"), RGB, 0),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_encoding_is_the_true_picture(name: str, tmp_path: Path) -> None:
    """Case B1: whatever the file is called, and whoever opens it: sources, imports, sets judged directly."""
    content, true, off = ENCODINGS[name]
    true = np.repeat(true[..., None], 3, 2) if true.ndim == 2 else true
    path = tmp_path / "cat" / "a.jpg"
    path.parent.mkdir()
    path.write_bytes(content)
    stored = pixels(as_png(path)[0])
    assert stored.shape == true.shape and np.abs(stored.astype(int) - true).max() <= off
    assert (pixels(content) == stored).all()
    assert (decode(path, SIDE) * 255).round().permute(1, 2, 0).numpy().astype(int).tolist() == stored.tolist()
    direct, _ = DistilledSet.from_folder(tmp_path).tensors()
    assert (direct[0] * 255).round().permute(1, 2, 0).numpy().astype(int).tolist() == stored.tolist()


def test_the_bytes_of_a_plain_png_are_kept_and_those_of_no_other() -> None:
    kept = {name for name, (content, _, _) in ENCODINGS.items() if as_png(content) == (content, True)}
    assert kept == {"png rgb", "png icc (case B5: not applied)", "apng"}


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (3, 600), (6000, 4000)])
def test_every_size_is_read(size: tuple[int, int], tmp_path: Path) -> None:
    """Case B1: one pixel, a strip and a photograph of 24 million pixels."""
    content = file(Image.new("RGB", size, (200, 100, 50)))
    assert pixels(content).shape == (size[1], size[0], 3)
    assert (decode(content, 16) * 255).round().mean((1, 2)).tolist() == [200, 100, 50]


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(depth, "_told", set())
    caplog.set_level(logging.WARNING, "dap")
    return caplog


@pytest.mark.parametrize(("bits", "peak"), [(12, 4095), (10, 1023), (8, 255), (14, 16383)])
def test_values_of_fewer_bits_are_said_once(bits: int, peak: int, warned: pytest.LogCaptureFixture) -> None:
    """Case B4, without sBIT."""
    content = png(GREY.astype(np.int64) * peak // 255, 16, 0)
    for _ in range(2):
        decode(content, 8)
    assert len(warned.records) == 1
    assert f"the largest value seen in an image of 16 bits is {peak}: looks like {bits} bits" in warned.text


def test_values_of_fewer_bits_in_colours(warned: pytest.LogCaptureFixture) -> None:
    """Case B4 in RGB: Pillow keeps 8 of 16 bits, so the lower bits are lost and the values cannot be scaled."""
    few = RGB.astype(np.int64) * 4095 // 255
    decode(png(few, 16, 2), 8)
    assert "looks like 12 bits" in warned.text
    with pytest.raises(BrokenImage, match="use only 12 of them.*scale them by 16"):
        decode(png(few, 16, 2, chunk(b"sBIT", b"\x0c\x0c\x0c")), 8)
    whole = png(few << 4, 16, 2, chunk(b"sBIT", b"\x0c\x0c\x0c"))
    assert np.abs(pixels(whole).astype(int) - RGB).max() <= 1


def test_ordinary_images_of_16_bits_warn_of_nothing(warned: pytest.LogCaptureFixture) -> None:
    for name in ("png 16-bit grey", "png 16-bit rgb", "tiff 16-bit", "case B4: png 12 of 16 bits, sBIT"):
        decode(ENCODINGS[name][0], 8)
    decode(png(np.zeros((4, 4)), 16, 0), 4)
    assert not warned.records


def test_a_large_image_is_read_and_the_limit_can_be_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Case B7: 144 million pixels are read. Only the limit is tried at its true size, by a header."""
    assert decode(png(np.zeros((12000, 1500), np.uint8), 8, 0), 2).eq(0).all()
    large = png(np.zeros((1, 1)), 8, 0).replace(
        chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)),
        chunk(b"IHDR", struct.pack(">IIBBBBB", 14000, 14000, 1, 0, 0, 0, 0)),
    )
    with pytest.raises(BrokenImage, match="decompression bomb, as the limit is 178,956,970 pixels.*DAP_MAX_PIXELS"):
        decode(large, 2)
    monkeypatch.setenv("DAP_MAX_PIXELS", "196000000")
    with pytest.raises(BrokenImage, match="truncated"):  # the limit is passed, and the pixels lack
        decode(large, 2)
    monkeypatch.setenv("DAP_MAX_PIXELS", "100")
    with pytest.raises(BrokenImage, match="it has 576 pixels .*limit is 100 pixels"):
        decode(file(PICTURE), 2)
    for wrong in ("many", "-1", "0", "1" * 30):
        monkeypatch.setenv("DAP_MAX_PIXELS", wrong)
        with pytest.raises(DapError, match="DAP_MAX_PIXELS must be a whole number"):
            decode(file(PICTURE), 2)


def test_a_program_called_an_image_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands EPS to Ghostscript, whatever the file is called."""
    eps = file(PICTURE, "EPS")
    (tmp_path / "a.png").write_bytes(eps)
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was run"))
    with pytest.raises(BrokenImage, match="not an image"):
        decode(tmp_path / "a.png", 8)


def special(folder: Path) -> dict[str, Path]:
    """Things that are called images and are no files."""
    folder.mkdir(parents=True, exist_ok=True)
    os.mkfifo(folder / "fifo.png")
    (folder / "link.png").symlink_to(folder / "fifo.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "nowhere.png").symlink_to(folder / "gone")
    here = os.getcwd()
    os.chdir(folder)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("socket.png")
    os.chdir(here)
    return {name: folder / f"{name}.png" for name in ("fifo", "link", "zero", "nowhere", "socket")}


def test_special_files_are_named_and_never_wait(tmp_path: Path) -> None:
    for name, path in special(tmp_path / "set" / "cat").items():
        for read in (lambda at: decode(at, 8), as_png, pixels, read_file):
            with pytest.raises(BrokenImage, match="pipe, a socket or a device|no such file") as error:
                read(path)
            assert str(path) in str(error.value), name
        assert embedded(path) == (None, False) if path.exists() else True
    Image.new("RGB", (4, 4)).save(tmp_path / "set" / "cat" / "good.png")
    source = open_source(tmp_path / "set", size=4, max_bad_fraction=1)
    assert source.good(0, 1, 0) and source.count(0) == 4  # a pipe and a socket themselves are left out, and counted
    source.readable(0, range(4))
    assert len(source.bad) == 3 and "2 files that are no images (.png 2)" in source.notes[0]
    with pytest.raises(DapError, match="link.png.*pipe"):
        DistilledSet.from_folder(tmp_path / "set")
    record = {"label": 0, "path": "cat/link.png"}
    assert "<table>" in contact_sheet(tmp_path / "set", ["cat"], [record], "x")
    with pytest.raises(DapError, match="link.png.*pipe"):
        import_set(tmp_path / "set", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_of_terabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as opened:
        opened.truncate(2**40)
    with pytest.raises(BrokenImage, match="larger than 1,073,741,824 bytes"):
        decode(tmp_path / "a.png", 8)


def test_the_list_of_suffixes_is_pillow_s(tmp_path: Path) -> None:
    """Case A12: every suffix that Pillow reads by itself, and no other."""
    Image.init()
    known = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}
    refused = {suffix for suffix, name in Image.registered_extensions().items() if name in REFUSED}
    assert known - refused == IMAGE_SUFFIXES - {".mpo"}
    assert not refused & IMAGE_SUFFIXES and not REFUSED & FORMATS.keys()


def test_other_suffixes_are_read(tmp_path: Path) -> None:
    """Case A12 in distill and import."""
    names = {"a.jfif": "JPEG", "b.JPE": "JPEG", "c.avif": "AVIF", "d.ppm": "PPM", "e.pgm": "PPM", "f.jp2": "JPEG2000"}
    names |= {"g.tga": "TGA", "h.mpo": "MPO", "i.qoi": "QOI", "j.dib": "DIB", "k.ico": "ICO", "l.apng": "PNG"}
    for folder in ("cat", "dog"):
        (tmp_path / "d" / folder).mkdir(parents=True)
        for name, format in names.items():
            PICTURE.resize((16, 16)).save(tmp_path / "d" / folder / name, format)
    source = open_source(tmp_path / "d", size=8)
    assert source.count(0) == source.count(1) == len(names)
    source.tensors()
    assert not source.bad
    made = import_set(tmp_path / "d", tmp_path / "o")
    assert made.class_names == ("cat", "dog") and made.ipc == len(names)


@pytest.mark.parametrize("sides", [(16, 16), (16, 20)])
def test_a_folder_judged_directly_is_the_imported_set(sides: tuple[int, int], tmp_path: Path) -> None:
    """Cases B10 and B12: 16-bit grey, and mixed sizes, under a protocol that does not resize first."""
    for name in ("cat", "dog"):
        (tmp_path / "d" / name).mkdir(parents=True)
        for place, side in enumerate(sides):
            values = (np.mgrid[0:side, 0:side][0] * 4000 // side + 20000 + 9000 * place).astype(np.int64)
            (tmp_path / "d" / name / f"{place}.png").write_bytes(png(values, 16, 0))
    direct, imported = DistilledSet.from_folder(tmp_path / "d"), import_set(tmp_path / "d", tmp_path / "o")
    images = [made.tensors(mixed=12, fit="crop-bilinear")[0] for made in (direct, imported)]
    assert images[0].shape == (4, 3, *([16, 16] if sides == (16, 16) else [12, 12]))
    assert float((images[0] - images[1]).abs().max()) <= 1 / 255 and 0.2 < float(images[0].mean()) < 0.6
    if sides != (16, 16):
        with pytest.raises(DapError, match="differ in size .16x16, 20x20.; give a size") as error:
            direct.tensors()
        assert "size=" not in str(error.value)


def test_a_damaged_image_of_a_folder_is_named(tmp_path: Path) -> None:
    """Case B13, and case B6 for the reasons."""
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_bytes(file(PICTURE)[:-40])
    made = DistilledSet.from_folder(tmp_path)
    for read in (made.tensors, lambda: made.tensors(8), lambda: made[0]):
        with pytest.raises(BrokenImage, match="cat/a.png: .*truncated"):
            read()
    for content, reason in {
        b"": "it is empty",
        b"<!DOCTYPE html><html></html>": "not an image",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n": "not the image; fetch it",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 200: ".",
        b"\xff\x0a" + bytes(range(200)): ".",
    }.items():
        with pytest.raises(BrokenImage, match=reason):
            pixels(content)


@pytest.mark.parametrize("value", [255.0, 4294967295])
def test_values_without_an_agreed_scale_are_refused(value: float) -> None:
    """Case B8."""
    kind = np.float32 if isinstance(value, float) else np.uint32
    with pytest.raises(BrokenImage, match="rescale them to"):
        decode(file(Image.fromarray(np.full((2, 2), value).astype(kind)), "TIFF"), 8)


def test_small_and_large_pictures_of_a_page_come_from_the_one_decoder(tmp_path: Path) -> None:
    deep = np.full((200, 200), 200 * 257)
    (tmp_path / "deep.png").write_bytes(png(deep, 16, 0))
    url, reduced = embedded(tmp_path / "deep.png")
    assert url is not None and reduced
    import base64

    shown = pixels(base64.b64decode(url.partition(",")[2]))
    assert abs(int(shown.mean()) - 200) <= 2


def test_a_damaged_length_is_a_broken_image_and_no_lack_of_memory(tmp_path, monkeypatch):
    """Found by fuzzing: Pillow asks for as many bytes as the length of a chunk says."""
    from PIL import Image

    from dap.data.real.sizes import size_of

    def greedy(*args, **kwargs):
        raise MemoryError

    (tmp_path / "a.png").write_bytes(b"x")
    monkeypatch.setattr(Image, "open", greedy)
    assert size_of(tmp_path / "a.png") is None
