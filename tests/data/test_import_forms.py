"""Sets of others in every form: what is read, what is said, and what stops an import."""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dap.base.errors import DapError
from dap.data.real.captions import read_captions
from dap.data.real.sources import open_source
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.imports import import_set

IMAGES = torch.arange(4 * 3 * 4 * 4).reshape(4, 3, 4, 4).to(torch.uint8)
LABELS = torch.tensor([0, 1, 0, 1])


def png(value: int = 0, side: int = 4) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side), (value, 1, 2)).save(out, "PNG")
    return out.getvalue()


def put(*files: Path) -> None:
    for place, file in enumerate(files):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(place))


def notes(made: DistilledSet) -> str:
    return "\n".join(json.loads((made.path / "import.json").read_text(encoding="utf-8"))["notes"])


# ---- class folders


def test_class_folders_at_any_depth(tmp_path: Path) -> None:
    """Case D1: as distill reads them; nothing is dropped."""
    d = tmp_path / "d"
    put(d / "cat" / "0.png", d / "cat" / "more" / "1.png", d / "dog" / "big" / "0.png", d / "dog" / "big" / "1.png")
    put(d / "eel" / "images" / "a" / "0.png", d / "eel" / "images" / "1.png")
    made = import_set(d, tmp_path / "o")
    assert made.class_names == ("cat", "dog", "eel") == open_source(d, size=4).class_names and made.ipc == 2
    assert [record["source"] for record in made.records][:2] == ["cat/0.png", "cat/more/1.png"]
    assert len(DistilledSet.from_folder(d)) == 6
    all_nested = tmp_path / "n"
    put(all_nested / "cat" / "images" / "0.png", all_nested / "dog" / "images" / "0.png")
    assert import_set(all_nested, tmp_path / "p").class_names == ("cat", "dog")


@pytest.mark.parametrize("layer", [["photos"], ["train", "test"], ["Training", "Testing"], ["seg_train", "seg_test"]])
def test_a_layer_above_the_classes_is_no_class(layer: list[str], tmp_path: Path) -> None:
    d = tmp_path / "d"
    for folder in layer:
        put(d / folder / "cat" / "0.png", d / folder / "dog" / "0.png")
    for reading in (lambda: import_set(d, tmp_path / "o"), lambda: DistilledSet.from_folder(d)):
        with pytest.raises(DapError, match="holds the folders cat, dog. If these are the classes, give") as error:
            reading()
    advised = str(error.value).partition(", give ")[2].partition(";")[0]
    assert import_set(advised, tmp_path / "o").class_names == ("cat", "dog")  # the advice can be followed
    named = str(error.value).rpartition("--classes ")[2].rstrip(".").split()
    assert set(import_set(d, tmp_path / "p", class_names=named).class_names) == set(layer)


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    """Cases A10b, A11, A12: an empty class, the litter of a Mac, files that are no images."""
    d = tmp_path / "d"
    put(d / "ant" / "0.png", d / "cow" / "0.png", d / "__MACOSX" / "ant" / "0.png")
    (d / "bee").mkdir()
    for name in ("a.heic", "b.HEIC", "c.txt", ".DS_Store", "README"):
        (d / "ant" / name).write_bytes(b"x")
    made = import_set(d, tmp_path / "o")
    assert made.class_names == ("ant", "cow")
    assert "Empty, and so no class of the set: bee." in notes(made)
    assert "Skipped: 4 files that are no images (2 .heic, 1 .txt, 1 no ending)." in notes(made)
    (d / "bee").rmdir()
    assert open_source(d, size=4).class_names == ("ant", "cow")


@pytest.mark.parametrize("empty", ["00001", "00003"])
def test_numbered_folders_without_images_are_named(empty: str, tmp_path: Path) -> None:
    """Case D2."""
    for number in range(4):
        (tmp_path / "d" / f"{number:05d}").mkdir(parents=True)
        if f"{number:05d}" != empty:
            put(tmp_path / "d" / f"{number:05d}" / "0.png")
    with pytest.raises(DapError, match=f"no images in {empty}"):
        import_set(tmp_path / "d", tmp_path / "o", layout="rded", class_names=list("abcd"))
    if empty == "00003":
        with pytest.raises(DapError, match=f"no images in {empty}"):
            import_set(tmp_path / "d", tmp_path / "o", class_names=list("abcd"))


def test_numbered_folders_with_a_gap_are_refused(tmp_path: Path) -> None:
    """Case D3."""
    put(*(tmp_path / "d" / f"{number:05d}" / "0.png" for number in (0, 1, 3)))
    with pytest.raises(DapError, match="are numbers, but not 0 to 2"):
        import_set(tmp_path / "d", tmp_path / "o", class_names=list("abc"))


# ---- text of the real world


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bom.txt", "cat\r\ndog\r\n".encode("utf-8-sig")),
        ("space.txt", b"cat \n\n  dog\t\n\n"),
        ("mac.txt", b"cat\rdog"),
        ("bom.json", json.dumps(["cat", " dog "]).encode("utf-8-sig")),
    ],
)
def test_a_list_of_classes_from_any_editor(name: str, content: bytes, tmp_path: Path) -> None:
    """Case D4."""
    put(tmp_path / "d" / "00000" / "0.png", tmp_path / "d" / "00001" / "0.png")
    (tmp_path / name).write_bytes(content)
    made = import_set(tmp_path / "d", tmp_path / "o", class_names=[str(tmp_path / name)])
    assert made.class_names == ("cat", "dog")
    assert sorted(folder.name for folder in (made.path / "images").iterdir()) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("u16.txt", "cat\r\ndog\r\n".encode("utf-16"), "line 1: the byte 0xff is not UTF-8. Save the file as UTF-8"),
        ("latin.txt", "café\nthé\n".encode("latin-1"), "line 1: the byte 0xe9 is not UTF-8"),
        ("index.json", b'{"0": "cat", "1": "dog"}', "must hold a list of class names"),
        ("deep.json", b"[" * 9000, "nested|not JSON"),
    ],
)
def test_a_list_of_classes_that_cannot_be_read(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    put(tmp_path / "d" / "00000" / "0.png", tmp_path / "d" / "00001" / "0.png")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DapError, match=says):
        import_set(tmp_path / "d", tmp_path / "o", class_names=[str(tmp_path / name)])


def test_composed_and_decomposed_names_are_one(tmp_path: Path) -> None:
    """Case A13: the folders of a Mac, and what is typed."""
    single, composed = unicodedata.normalize("NFD", "café"), unicodedata.normalize("NFC", "café")
    put(tmp_path / "d" / single / "0.png", tmp_path / "d" / "dog" / "0.png")
    for opened in (
        import_set(tmp_path / "d", tmp_path / "o", class_names=["dog", composed]),
        open_source(tmp_path / "d", size=4, classes=["dog", composed]),
    ):
        assert opened.class_names == ("dog", composed)
    assert open_source(tmp_path / "d", size=4).class_names == (composed, "dog")


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    """Cases A17 and A17b: a class folder and an image named in Latin-1."""
    put(Path(os.fsdecode(os.fsencode(tmp_path) + b"/d/caf\xe9/gar\xe7on.png")), tmp_path / "d" / "dog" / "0.png")
    made = import_set(tmp_path / "d", tmp_path / "o")
    assert made.class_names == ("caf\\xe9", "dog")
    with pytest.raises(DapError, match="is not UTF-8; rename it"):
        open_source(tmp_path / "d", size=4)
    assert made.records[0]["source"] == "caf\\xe9/gar\\xe7on.png" and made.verify() == []
    assert DistilledSet.from_folder(tmp_path / "d").class_names == ("caf\\xe9", "dog")
    assert import_set(tmp_path / "d", tmp_path / "p", class_names=["dog", "caf\\xe9"]).ipc == 1


# ---- archives and other containers


def shard(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


SAMPLES = {"0.png": png(5), "0.cls": b"0", "1.png": png(6), "1.cls": b"1\n"}


@pytest.mark.parametrize(
    "litter",
    [
        {"./._0.png": b"\0\5\x16\7", "./.DS_Store": b"Bud1"},
        {"._0.png": b"\0\5\x16\7", "._0.cls": b"\0\5\x16\7"},
        {"__MACOSX/0.png": b"\0\5\x16\7"},
    ],
)
def test_a_tar_made_on_a_mac(litter: dict[str, bytes], tmp_path: Path) -> None:
    """Case D5m, before and after the samples."""
    for place, files in enumerate(({**litter, **SAMPLES}, {**SAMPLES, **litter})):
        shard(tmp_path / f"{place}.tar", files)
        made = import_set(tmp_path / f"{place}.tar", tmp_path / f"o{place}", class_names=["cat", "dog"])
        assert len(made) == 2 and made.class_names == ("cat", "dog")


def test_samples_of_other_suffixes(tmp_path: Path) -> None:
    """Case A12 in shards."""
    image = io.BytesIO()
    Image.new("RGB", (4, 4)).save(image, "PPM")
    shard(tmp_path / "a.tar", {"0.ppm": image.getvalue(), "0.cls": b"0", "1.JFIF": png(), "1.cls": b"1"})
    assert len(import_set(tmp_path / "a.tar", tmp_path / "o", class_names=["cat", "dog"])) == 2


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("set.zip", "is an archive, which is not read; unpack it"),
        ("set.tar.gz", "is a compressed archive, which is not read; unpack it"),
        ("set.npz", "is a file of numpy arrays, which is not read; save it with torch.save"),
        ("data.mdb", "is an LMDB database, which is not read; write its images"),
        ("x.arrow", "is an Arrow file .* to_parquet"),
    ],
)
def test_containers_that_are_not_read_are_named(name: str, says: str, tmp_path: Path) -> None:
    """Case D6: as a file, and alone in a folder."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / name).write_bytes(b"\0" * 100)
    for given in (tmp_path / "d", tmp_path / "d" / name):
        with pytest.raises(DapError, match=says):
            import_set(given, tmp_path / "o")
    with pytest.raises(DapError, match=says):
        DistilledSet.from_folder(tmp_path / "d")


def test_the_advice_for_numpy_arrays_can_be_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "set.npz", x=IMAGES.numpy(), y=LABELS.numpy())
    with pytest.raises(DapError, match="save it with") as error:
        import_set(tmp_path / "set.npz", tmp_path / "o")
    line = str(error.value).partition("save it with ")[2].partition(", and give")[0]
    monkeypatch.chdir(tmp_path)
    with np.load(tmp_path / "set.npz") as held:
        exec(line, {"torch": torch, "x": held["x"], "y": held["y"]})
    assert len(import_set(tmp_path / "set.pt", tmp_path / "o", class_names="2")) == 4


# ---- tensors


def save(tmp_path: Path, held: object, name: str = "x.pt") -> Path:
    torch.save(held, tmp_path / name)
    return tmp_path / name


ONE_HOT = torch.nn.functional.one_hot(LABELS)


@pytest.mark.parametrize(
    "labels",
    [
        LABELS, LABELS.numpy(), LABELS.tolist(), tuple(LABELS.tolist()), list(LABELS), list(LABELS.numpy()), LABELS.float(),
        LABELS.to(torch.uint8), LABELS[:, None], LABELS.bool(), ONE_HOT, ONE_HOT.float(), ONE_HOT.numpy(), ONE_HOT.tolist(),
        LABELS.numpy().astype(np.int32), ONE_HOT * 0.8 + 0.1,
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["dictionary", "pair", "two files"])
def test_labels_in_every_form(labels, form: str, tmp_path: Path) -> None:
    """Kind 6."""
    more = {}
    if form == "two files":
        save(tmp_path, labels, "labels.pt")
        source, more = save(tmp_path, IMAGES), {"labels": tmp_path / "labels.pt"}
    else:
        source = save(tmp_path, {"images": IMAGES, "labels": labels} if form == "dictionary" else (IMAGES, labels))
    made = import_set(source, tmp_path / "o", class_names="2", **more)
    images, found = made.tensors(dtype=torch.uint8)
    assert found.tolist() == [0, 0, 1, 1] and torch.equal(images, IMAGES[[0, 2, 1, 3]])


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (torch.rand(4, 2, 3), "'labels' is a tensor .4, 2, 3., not labels"),
        (["a", "b", "a", "b"], "'labels' is a list .* not labels"),
        ({"of": LABELS}, "'labels' is a dict, not labels"),
        ("0101", "'labels' is a str, not labels"),
        ([], "'labels' is a list, not labels"),
        (torch.tensor(3), "'labels' is a tensor .., not labels"),
        (np.array(["a"] * 4), "array of <U1; numbers are needed|cannot be read|holds more than"),
        (torch.tensor([0, 1, 0]), "4 images but 3 labels"),
        (torch.full((4, 2), torch.nan), "not finite"),
        (torch.rand(4) + 0.1, "not whole numbers"),
        (LABELS.to(torch.complex64), "not labels"),
        (LABELS.to_sparse(), "a tensor that is sparse_coo"),
        (torch.tensor([0, 1, 0, 10**15]), "numbers its classes"),
    ],
)
def test_labels_that_cannot_be_understood_stop_the_import(labels, says: str, tmp_path: Path) -> None:
    """Kind 6: what is there is never dropped, even where --ipc could stand in for labels."""
    with pytest.raises(DapError, match=says):
        import_set(save(tmp_path, {"images": IMAGES, "labels": labels}), tmp_path / "o", class_names="2", ipc=2)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("names", [["cat", "dog"], ("cat ", "dog"), {0: "cat", 1: "dog"}])
def test_class_names_in_every_form(names, tmp_path: Path) -> None:
    made = import_set(save(tmp_path, {"images": IMAGES, "labels": LABELS, "class_names": names}), tmp_path / "o")
    assert made.class_names == ("cat", "dog")


@pytest.mark.parametrize("names", [[1, 2], {"a": "cat"}, ["cat", None]])
def test_class_names_that_cannot_be_understood(names, tmp_path: Path) -> None:
    with pytest.raises(DapError, match="'class_names' that is .* not a list of the names of classes"):
        import_set(save(tmp_path, {"images": IMAGES, "labels": LABELS, "class_names": names}), tmp_path / "o")


@pytest.mark.parametrize(
    "images", [IMAGES[:, 0], IMAGES[:, 0].numpy(), list(IMAGES[:, 0]), torch.zeros(4, 28, 28, dtype=torch.uint8)]
)
def test_grey_arrays_have_one_channel(images, tmp_path: Path) -> None:
    """Cases D7g and 38: (n, h, w)."""
    made = import_set(save(tmp_path, {"images": images, "labels": LABELS}), tmp_path / "o", class_names="2")
    stored, _ = made.tensors(dtype=torch.uint8)
    grey = torch.as_tensor(np.stack([np.asarray(image) for image in images]))
    assert torch.equal(stored[:, 1], grey[[0, 2, 1, 3]]) and torch.equal(stored[:, 0], stored[:, 2])


@pytest.mark.parametrize("images", [IMAGES[None], IMAGES[:, 0, 0], [*IMAGES[:3], IMAGES[0, :, :2]], {"a": IMAGES}, 7])
def test_images_that_cannot_be_understood(images, tmp_path: Path) -> None:
    """Case 38: 5-D images and others."""
    with pytest.raises(DapError, match=r"The images in .* \(n, c, h, w\)|differ in shape"):
        import_set(save(tmp_path, {"images": images, "labels": LABELS}), tmp_path / "o", class_names="2")


def test_bytes_of_zero_and_one_are_noted(tmp_path: Path) -> None:
    """Case D7b."""
    source = save(tmp_path, {"images": (IMAGES > 90).to(torch.uint8), "labels": LABELS})
    assert "all are 0 or 1, so the images are nearly black" in notes(
        import_set(source, tmp_path / "o", class_names="2")
    )


def test_the_same_import_of_floats_a_second_time_is_the_finished_one(tmp_path: Path) -> None:
    """It was refused: what 8 bits do to the values was compared before a value was read."""
    held = {
        "images": torch.rand(4, 3, 8, 8) * 1.2 - 0.1,
        "labels": torch.tensor([0, 0, 1, 1]),
        "class_names": ["a", "b"],
    }
    source, clipped = save(tmp_path, held), {"mean": [0.0], "std": [1.0]}
    first = import_set(source, tmp_path / "set", **clipped)
    assert first.noted("import.json")["facts"]["clipped_values"] > 0
    before = {file: file.stat().st_mtime_ns for file in first.path.rglob("*")}
    assert import_set(source, tmp_path / "set", **clipped).records == first.records
    assert {file: file.stat().st_mtime_ns for file in first.path.rglob("*")} == before
    save(tmp_path, held | {"images": held["images"].flip(0)})
    with pytest.raises(DapError, match="holds another import. What changed: 4 of 4 images of the source"):
        import_set(source, tmp_path / "set", **clipped)


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16, torch.double, torch.float8_e4m3fn])
def test_floats_of_every_size(dtype, tmp_path: Path) -> None:
    """Case D7."""
    source = save(tmp_path, {"images": (IMAGES / 255).to(dtype), "labels": LABELS})
    assert len(import_set(source, tmp_path / "o", class_names="2")) == 4


# ---- files of tensors of strangers


def repacked(source: Path, out: Path, change=lambda name, data: data, packing=zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(out, "w", packing) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return out


@pytest.mark.filterwarnings("ignore:torch.quantize")
def test_hostile_files_of_tensors_are_sentences(tmp_path: Path) -> None:
    whole = save(tmp_path, {"images": IMAGES, "labels": LABELS})
    cases = {
        "is packed": repacked(whole, tmp_path / "packed.pt", packing=zipfile.ZIP_DEFLATED),
        "repeats its values": save(tmp_path, {"images": torch.zeros(1).expand(10**6, 3, 512, 512)}, "repeat.pt"),
        "a tensor that is meta": save(tmp_path, {"images": torch.zeros(9, 3, 4, 4, device="meta")}, "meta.pt"),
        "a tensor that is quantised": save(
            tmp_path, {"images": torch.quantize_per_tensor(torch.rand(4, 3, 4, 4), 0.1, 0, torch.quint8)}, "quant.pt"
        ),
        "cannot be read as tensors": repacked(
            whole, tmp_path / "size.pt", lambda name, data: data[:7] if name.endswith("data/0") else data
        ),
    }
    looped: list = []
    looped.append(looped)
    cases["not images"] = save(tmp_path, looped, "loop.pt")
    deep: list = []
    for _ in range(60):
        deep = [deep, deep]
    cases["a list of a list, a list, not images"] = save(tmp_path, deep, "deep.pt")
    for says, file in cases.items():
        with pytest.raises(DapError, match=says) as error:
            import_set(file, tmp_path / "o")
        assert len(str(error.value)) < 600 and "\n" not in str(error.value)


def test_damaged_files_of_tensors_are_sentences(tmp_path: Path) -> None:
    whole = save(tmp_path, {"images": IMAGES, "labels": LABELS}).read_bytes()
    head = json.dumps(
        {"images": {"dtype": "U8", "shape": [10**12, 3, 4, 4], "data_offsets": [0, 48 * 10**12]}}
    ).encode()
    contents = {
        "cut.pt": whole[: len(whole) // 2],
        "empty.pt": b"",
        "text.pt": b"version https://git-lfs.github.com/spec/v1\n",
        "zip.pt": b"PK\3\4" + b"\0" * 50,
        "huge.safetensors": struct.pack("<Q", 2**62) + b"{}",
        "claims.safetensors": struct.pack("<Q", len(head)) + head + b"\0" * 64,
        "noise.safetensors": bytes(range(200)),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(
            DapError, match="cannot be read as tensors|could run any code|is a Git LFS pointer"
        ) as error:
            import_set(tmp_path / name, tmp_path / "o")
        assert name in str(error.value) and "\n" not in str(error.value)
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(DapError, match="pipe"):
        import_set(tmp_path / "pipe.pt", tmp_path / "o", layout="tensors")


# ---- captions


def test_captions_of_strangers(tmp_path: Path) -> None:
    put(tmp_path / "d" / "cat" / "0.png")
    source, file = open_source(tmp_path / "d", size=4), tmp_path / "c.jsonl"
    good = '{"path": "cat/0.png", "caption": "a cat", "extra": [1]}'
    for wrong in (
        '{"path": "cat/0.png", "path": "x", "caption": "y"}',
        "[" * 3000,
        '{"path": "cat/0.png", "caption": NaN}',
    ):
        file.write_text(f"{good}\n{wrong}\n", encoding="utf-8")
        with pytest.raises(DapError, match=r"c.jsonl, line 2: "):
            read_captions(file, source)
    file.write_bytes(b"\xef\xbb\xbf" + good.encode() + b"\r\n" + b'{"file_name": "../../etc/passwd", "text": "x"}\r\n')
    assert dict(read_captions(file, source)) == {"cat/0.png": "a cat"}
    file.write_bytes(good.encode() + b"\n\xff\xfe\n")
    with pytest.raises(DapError, match="c.jsonl, line 2: the byte 0xff is not UTF-8"):
        read_captions(file, source)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(DapError, match="pipe"):
        read_captions(file, source)
