"""Situations that people reported with real images, each as a whole: from what lies in a folder to what the command says."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_layouts import DOGS, opened, pair, put, rows, write_parquet

from dap.cli.main import main
from dap.data.real import identity
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.export import LAYOUTS, fingerprint

RANDOM = ["distill", "--method", "random", "--ipc", "1", "--size", "8"]
SMALL = ["--networks", "convnet1", "--set", "size=8", "--set", "width=2", "--set", "mean=[0.5]", "--set", "std=[0.25]"]


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = main([str(word) for word in words])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return status, printed.out, printed.err


def made(capsys: pytest.CaptureFixture[str], data: Path, out: Path, *more: object) -> Path:
    status, _, err = call(capsys, *RANDOM, "--data", data, "--out", out, *more)
    assert status == 0, err
    return out


# ---- folders


@pytest.mark.parametrize("there", [("cat", "eel"), ("cat", "dog", "eel"), ("cat",)])
def test_case_a15_a_test_split_of_other_classes_is_refused_by_name(
    there: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair(tmp_path / "d" / "train")
    put(tmp_path / "d" / "train" / "ant", 3)
    for name in ("ant", *there):
        put(tmp_path / "d" / "test" / name, 3, start=50)
    found = made(capsys, tmp_path / "d", tmp_path / "s")
    status, _, err = call(capsys, "evaluate", found, *SMALL, "--epochs", 1)
    assert status == 1 and not (found / "trials.jsonl").exists()
    assert ("has the class dog, which the test data has not" in err) == ("dog" not in there)
    assert ("the class eel, which the set" in err) == ("eel" in there)
    found = made(capsys, tmp_path / "d", tmp_path / "t", "--classes", "ant", "cat")  # the advice
    status, _, err = call(capsys, "evaluate", found, *SMALL, "--epochs", 1)
    assert status == 0, err


def test_case_a17b_an_image_named_in_latin_1_goes_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair(tmp_path / "d" / "train")
    pair(tmp_path / "d" / "test", 50)
    for split, name in (("train", "im000.png"), ("test", "im050.png")):
        folder = tmp_path / "d" / split / "cat"
        os.rename(folder / name, os.fsencode(folder) + b"/gar\xe7on.png")
    found = made(capsys, tmp_path / "d", tmp_path / "s", "--seed", 1)
    status, _, err = call(capsys, "evaluate", found, *SMALL, "--epochs", 1)
    assert status == 0 and "test: 2 classes, 6 images" in err
    assert call(capsys, "import", tmp_path / "d" / "train", "--out", tmp_path / "o")[0] == 0
    assert call(capsys, "verify", tmp_path / "o")[0] == 0


AWKWARD = ["Cat", "cat", "two words ", "a<b>&c", "ends.", "x" * 200, "狗" * 60, "50% off", "con", "-rf", "a\nb"]


@pytest.fixture(scope="module")
def awkward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("awkward")
    for split, start in (("train", 0), ("test", 50)):
        for k, name in enumerate(AWKWARD):
            put(root / "d" / split / name, 2, (20 * k, 0, 0), start)
    assert main([*RANDOM, "--data", str(root / "d"), "--out", str(root / "s")]) == 0
    return root / "s"


def test_case_a19_awkward_names_are_judged_and_shown(
    awkward: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sorted(DistilledSet.open(awkward).class_names) == sorted(AWKWARD)
    assert call(capsys, "verify", awkward)[0] == 0
    status, _, err = call(capsys, "evaluate", awkward, *SMALL, "--epochs", 1, "--out", tmp_path / "o")
    assert status == 0, err
    page = (tmp_path / "o" / "report.html").read_text(encoding="utf-8")
    assert "a&lt;b&gt;&amp;c" in page and "a<b>&c" not in page and "狗" * 60 in page
    assert "<b>" not in (tmp_path / "o" / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "ddranking"])
def test_case_a19_awkward_names_go_there_and_back(
    layout: str, awkward: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = call(capsys, "export", awkward, "--layout", layout, "--out", tmp_path / "e")
    assert status == 0, err
    status, _, err = call(capsys, "import", tmp_path / "e", "--out", tmp_path / "i")
    assert status == 0, err
    ours, back = DistilledSet.open(awkward), DistilledSet.open(tmp_path / "i")
    assert back.class_names == ours.class_names and fingerprint(back) == fingerprint(ours)


def swapped(folder: Path) -> None:
    """Let every image of one class take the name, the size and the time of one of the other."""
    for file in sorted((folder / "cat").iterdir()):
        other = folder / "dog" / file.name
        first, second, when = file.read_bytes(), other.read_bytes(), file.stat()
        assert len(first) == len(second)
        file.write_bytes(second)
        other.write_bytes(first)
        for one in (file, other):
            os.utime(one, ns=(when.st_atime_ns, when.st_mtime_ns))


def shown(found: Path) -> list[float]:
    """The accuracies in the report of a set."""
    with open(found / "report.csv", newline="", encoding="utf-8") as file:
        return [float(line["last_mean"]) for line in csv.DictReader(file)]


def test_case_a25_images_replaced_between_two_judgements_are_judged_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The record said 100 % where 0 % was true; a measure of the replaced images must not stay either."""
    for split, start in (("train", 0), ("test", 50)):
        for name, colour in (("cat", (200, 30, 30)), ("dog", DOGS)):
            put(tmp_path / "d" / split / name, 6, colour, start, ext="bmp")
    found = made(capsys, tmp_path / "d", tmp_path / "s", "--ipc", 4)
    run = ["evaluate", found, *SMALL, "--epochs", 60]
    assert call(capsys, *run)[0] == 0
    first, measures = (
        json.loads((found / "trials.jsonl").read_text()),
        json.loads((found / "measures.json").read_text()),
    )
    assert first["last"] == 1 and shown(found) == [1.0]
    swapped(tmp_path / "d" / "test")
    assert call(capsys, *run)[0] == 0
    (line,) = (found / "trials.jsonl").read_text().splitlines()
    again = json.loads(line)
    assert again["last"] == 0 and again["tested"] != first["tested"], "the trial on the old images is shown no more"
    assert shown(found) == [0.0]
    assert json.loads((found / "measures.json").read_text())["judged"] != measures["judged"]
    old = (found / "measures.json").read_bytes()
    swapped(tmp_path / "d" / "train")  # the set was drawn from these; the measures compare it with them
    status, _, err = call(capsys, *run)
    assert status == 0, err
    new = json.loads((found / "measures.json").read_text())
    assert (
        new["judged"] != json.loads(old)["judged"] and new["representativeness"] > json.loads(old)["representativeness"]
    )


BROKEN = {
    "cut.jpg": "truncated",
    "cut.png": "truncated",
    "crc.png": "not an image",
    "empty.png": "it is empty",
    "page.png": "not an image",
    "pointer.jpg": "not the image; fetch it",
    "drawing.png": "not an image",
    "photo.heic.jpg": "not an image|HEI",
    "photo.jxl.png": "not an image|JPEG XL",
}


def broken(name: str) -> bytes:
    out = {}
    for format in ("JPEG", "PNG"):
        file = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(file, format)
        out[format] = file.getvalue()
    png = out["PNG"]
    return {
        "cut.jpg": out["JPEG"][:-300],
        "cut.png": png[:-500],
        "crc.png": png[:20] + bytes([png[20] ^ 1]) + png[21:],
        "empty.png": b"",
        "page.png": b"<!DOCTYPE html><html></html>",
        "pointer.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "photo.heic.jpg": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 200,
        "photo.jxl.png": b"\xff\x0a" + bytes(range(200)),
    }[name]


@pytest.mark.parametrize("name", BROKEN)
def test_case_b6_what_is_no_image_is_named_with_its_reason(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By distill and import, beside a good image, and alone in its class."""
    import re

    pair(tmp_path / "d")
    for file in (tmp_path / "d" / "dog").glob("*1.png"):
        file.unlink()
    (tmp_path / "d" / "dog" / name).write_bytes(broken(name))
    for command in ([*RANDOM[:3], "--ipc", 3, "--size", 8, "--data"], ["import"]):
        status, _, err = call(capsys, *command, tmp_path / "d", "--out", tmp_path / command[0])
        assert status == 1 and name in err and re.search(BROKEN[name], err), err
    assert not (tmp_path / "import").exists()
    for file in (tmp_path / "d" / "dog").glob("im*.png"):
        file.unlink()
    status, _, err = call(capsys, *RANDOM, "--data", tmp_path / "d", "--out", tmp_path / "p")
    assert status == 1 and name in err and re.search(BROKEN[name], err), err


def test_cases_f1_many_files_are_listed_and_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of thousands of files a few are decoded, each is hashed once, and the second time none."""
    put(tmp_path / "d" / "c0", 1)
    content = (tmp_path / "d" / "c0" / "im000.png").read_bytes()
    for k in range(5):
        (tmp_path / "d" / f"c{k}").mkdir(exist_ok=True)
        for i in range(800):
            (tmp_path / "d" / f"c{k}" / f"im{i:03d}.png").write_bytes(content)
    monkeypatch.setattr(identity, "SETTLED", 0)
    monkeypatch.setenv("DAP_CACHE", str(tmp_path / "cache"))
    hashed, decoded = list[object](), list[object]()
    real_hash, real_open = identity._sha256, Image.open
    monkeypatch.setattr(identity, "_sha256", lambda path: (hashed.append(path), real_hash(path))[1])
    monkeypatch.setattr(Image, "open", lambda *given, **more: (decoded.append(given), real_open(*given, **more))[1])
    assert main([*RANDOM, "--data", str(tmp_path / "d"), "--out", str(tmp_path / "s")]) == 0
    assert len(hashed) == 4000 and len(decoded) < 150
    assert main([*RANDOM, "--seed", "1", "--data", str(tmp_path / "d"), "--out", str(tmp_path / "t")]) == 0
    assert len(hashed) == 4000


def test_case_h3_the_cache_of_features_knows_replaced_images(
    pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, cache = tmp_path / "data", tmp_path / "cache"
    for name, colour in (("red", (200, 30, 30)), ("blue", DOGS)):
        put(data / name, 6, colour, ext="bmp")
    run = ["distill", "--method", "dap", "--ipc", 1, "--steps", 3, "--reals", 4, "--scale", 0.5, "--data", data]
    run += ["--backbone", pipeline_folder, "--device", "cpu"]

    def images(out: str, *more: object) -> list[bytes]:
        status, _, err = call(capsys, *run, *more, "--out", tmp_path / out)
        assert status == 0, err
        return [file.read_bytes() for file in sorted((tmp_path / out / "images").rglob("*.png"))]

    before = images("a", "--cache", cache)
    assert images("b", "--cache", cache) == before
    for file in sorted((data / "red").iterdir()):
        other = data / "blue" / file.name
        first, second, when = file.read_bytes(), other.read_bytes(), file.stat()
        file.write_bytes(second)
        other.write_bytes(first)
        for one in (file, other):
            os.utime(one, ns=(when.st_atime_ns, when.st_mtime_ns))
    after = images("c", "--cache", cache)
    assert after == images("d") != before, "as without a cache"


def test_case_h4_a_class_of_one_image(
    pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Too few to draw two, to hold some out, and to give each of two slots its own."""
    put(tmp_path / "d" / "red", 1)
    put(tmp_path / "d" / "blue", 30)
    data = ["--data", tmp_path / "d", "--out"]
    status, _, err = call(capsys, *RANDOM[:3], "--ipc", 2, "--size", 8, *data, tmp_path / "a")
    assert status == 1 and "2 images of class 'red' cannot be chosen among 1; take a smaller ipc" in err
    status, _, err = call(capsys, *RANDOM, "--held-out", 0.1, *data, tmp_path / "b")
    assert status == 1 and "held_out 0.1 leaves class 'red' of d (1 image) with an empty part" in err
    slots = ["distill", "--method", "dap", "--targets", "slot", "--ipc", 2, "--steps", 2, "--backbone", pipeline_folder]
    status, _, err = call(capsys, *slots, "--device", "cpu", *data, tmp_path / "c")
    assert status == 1 and "Class 'red' has 1 real image, too few for 2 targets, one a slot; lower ipc" in err
    assert not (tmp_path / "c").exists(), "before any work"
    assert call(capsys, *RANDOM, *data, tmp_path / "e")[0] == 0, "one image a class is there"


# ---- parquet


def named_parquet(file: Path, labels: list[int], names: int) -> None:
    """A file as `datasets` writes it: the names of the labels lie in its metadata."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file.parent.mkdir(parents=True, exist_ok=True)
    kinds = {"image": {"_type": "Image"}, "label": {"names": [f"name{i}" for i in range(names)], "_type": "ClassLabel"}}
    table = pa.table({"image": rows(len(labels)), "label": labels})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": kinds}})}), file)


def test_case_h5_a_thousand_names_of_which_two_are_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named_parquet(tmp_path / "d" / "train.parquet", [3] * 5 + [7] * 5, 1000)
    status, _, err = call(capsys, *RANDOM, "--data", tmp_path / "d", "--out", tmp_path / "s")
    assert status == 1 and "no images in name0, name1, name2 and 995 more of d" in err and len(err) < 300
    found = made(capsys, tmp_path / "d", tmp_path / "s", "--classes", "name3", "name7")
    assert DistilledSet.open(found).class_names == ("name3", "name7")


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (np.array([0, 1] * 5, "uint8"), ("0", "1")),
        (["1", "10"] * 5, ("1", "10")),
        (["b", "a"] * 5, ("a", "b")),
        ("dictionary", ("a", "b")),
        ("ClassLabel", ("name0", "name1")),
        ([0, None] * 5, "has 5 rows without a label"),
        ([1, 2] * 5, "no images in 0 of d"),
    ],
    ids=["uint8", "numbers as text", "text", "dictionary", "ClassLabel", "null", "from 1"],
)
def test_case_c3_labels_are_read_or_told(
    labels: Any, names: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pa = pytest.importorskip("pyarrow")
    file = tmp_path / "d" / "train.parquet"
    if isinstance(labels, str) and labels == "ClassLabel":
        named_parquet(file, [0, 1] * 5, 2)
    else:
        column = pa.array(["b", "a"] * 5).dictionary_encode() if isinstance(labels, str) else labels
        write_parquet(file, {"image": rows(), "label": column})
    status, _, err = call(capsys, *RANDOM, "--data", tmp_path / "d", "--out", tmp_path / "s")
    if isinstance(names, str):
        assert status == 1 and names in err
    else:
        assert status == 0 and DistilledSet.open(tmp_path / "s").class_names == names, err


def test_case_c3_another_order_in_the_test_file_is_matched_by_name(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", {"image": rows(), "label": ["cat", "dog"] * 5})
    write_parquet(tmp_path / "test.parquet", {"image": rows(), "label": ["dog", "cat"] * 5})
    assert opened(tmp_path).class_names == opened(tmp_path, "test").class_names == ("cat", "dog")
    assert opened(tmp_path, "test").keys(0, [0]) == ["test.parquet#1"]


@pytest.mark.parametrize("damage", ["cut", "a pointer of git-lfs", "a page", "rows"])
def test_case_c10_damaged_parquet_is_named(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "d" / "train.parquet"
    images = rows()
    if damage == "rows":
        images[3], images[4] = b"no image", images[4][:40]
    write_parquet(file, {"image": images, "label": [0, 1] * 5})
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "a pointer of git-lfs":
        file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    elif damage == "a page":
        file.write_bytes(content[:4] + bytes(255 ^ value for value in content[4:40]) + content[40:])
    status, _, err = call(
        capsys, *RANDOM[:3], "--ipc", 5, "--size", 8, "--data", tmp_path / "d", "--out", tmp_path / "s"
    )
    assert status == 1 and "train.parquet" in err, err
    if damage == "rows":
        assert "train.parquet#4 (it is not an image" in err or "train.parquet#3 (it is not an image" in err
        made(capsys, tmp_path / "d", tmp_path / "t", "--max-bad-fraction", 0.5, "--ipc", 3)
    else:
        pointer = damage == "a pointer of git-lfs"
        assert ("is a Git LFS pointer and not the file itself" if pointer else "cannot be read as parquet: ") in err


# ---- sets of others


def test_case_d5n_a_folder_of_img2dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shards beside tables of their captions: which is meant is asked, and then what lacks is said."""
    folder = tmp_path / "d"
    folder.mkdir()
    with tarfile.open(folder / "00000.tar", "w") as shard:
        for i, image in enumerate(rows(3)):
            said = json.dumps({"caption": "a cat", "url": "somewhere", "status": "success", "width": 8})
            for end, content in (("jpg", image), ("txt", b"a cat"), ("json", said.encode())):
                member = tarfile.TarInfo(f"{i:09d}.{end}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
    write_parquet(
        folder / "00000.parquet", {"caption": ["a cat"] * 3, "url": ["somewhere"] * 3, "key": ["0", "1", "2"]}
    )
    (folder / "00000_stats.json").write_text("{}")
    run = ["import", folder, "--out", tmp_path / "o"]
    status, _, err = call(capsys, *run)
    assert status == 1 and "could be read as parquet or as webdataset; say which with --layout" in err
    status, _, err = call(capsys, *run, "--layout", "webdataset")
    assert status == 1 and "00000.tar gives no label for sample '000000000' in a .cls or .json file" in err
    status, _, err = call(capsys, *run, "--layout", "parquet")
    assert status == 1 and "00000.parquet has no column of images among caption, url, key" in err
    assert not (tmp_path / "o").exists()


def shard_of(file: Path, samples: list[tuple[str, bytes]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as opened_:
        for name, content in samples:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened_.addfile(member, io.BytesIO(content))


def sample(i: int, label: str, ext: str = "png") -> list[tuple[str, bytes]]:
    return [(f"{i:05d}.{ext}", rows(i + 1)[i]), (f"{i:05d}.cls", label.encode())]


D5: dict[str, tuple[list[list[tuple[str, bytes]]], str | None]] = {
    "several shards": ([sample(0, "0") + sample(1, "1"), sample(2, "0") + sample(3, "1")], None),
    "upper case": ([sample(0, "0", "PNG") + sample(1, "1", "PNG")], None),
    "a newline in .cls": ([sample(0, "0\n") + sample(1, "1\r\n")], None),
    "from 1": ([sample(0, "1") + sample(1, "2")], "has the labels 1, 2, not all from 0 to the largest"),
    "labels as text": ([sample(0, "cat") + sample(1, "dog")], "label|whole number"),
    "no labels": ([sample(0, "0")[:1] + sample(1, "1")[:1]], "gives no label for sample '00000'"),
    "cut": ([sample(0, "0") + sample(1, "1")], "not a whole, uncompressed tar"),
    "cut in a name": ([sample(0, "0") + sample(1, "1")], "it is cut or damaged after 2,048 bytes"),
    "class folders": ([[("cat/0.png", rows(1)[0]), ("dog/0.png", rows(2)[1])]], "gives no label for sample 'cat/0'"),
}


@pytest.mark.parametrize("name", D5)
def test_case_d5_shards_of_many_hands_are_read_or_told(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    shards, says = D5[name]
    for k, samples in enumerate(shards):
        shard_of(tmp_path / "d" / f"{k}.tar", samples)
    if name.startswith("cut"):  # the second was read as a shard of one sample, and nothing was said
        file = tmp_path / "d" / "0.tar"
        file.write_bytes(file.read_bytes()[: 700 if name == "cut" else 2200])
    status, _, err = call(capsys, "import", tmp_path / "d", "--classes", "cat", "dog", "--out", tmp_path / "o")
    if says is None:
        assert status == 0, err
        found = DistilledSet.open(tmp_path / "o")
        assert found.class_names == ("cat", "dog") and found.ipc == len(shards)
        assert [record["label"] for record in found.records] == [0] * len(shards) + [1] * len(shards)
    else:
        assert status == 1 and re.search(says, err) and not (tmp_path / "o").exists(), err


PIXELS = torch.arange(4 * 3 * 4 * 4).reshape(4, 3, 4, 4).to(torch.uint8)
LABELS = torch.tensor([0, 1, 0, 1])
HALVES = ["--mean", "0.5", "--std", "0.5"]


@pytest.mark.parametrize(
    ("images", "labels", "more", "says"),
    [
        (PIXELS.float(), LABELS, [], None),
        (PIXELS / 127.5 - 1, LABELS, HALVES, None),
        (PIXELS / 127.5 - 1, LABELS, [], "give --mean and --std"),
        (PIXELS.float() * 0.999, LABELS, [], "give --mean and --std|whole numbers"),
        (torch.cat([PIXELS, PIXELS[:, :1]], 1), LABELS, [], "c 1 or 3|not images"),
        (PIXELS[:3], LABELS[:3], [], "differ in size|has 1 image,"),
        (PIXELS, LABELS + 1, [], "but 2 classes are named|no images in|labels"),
        (PIXELS, LABELS - 1, [], "labels from -1"),
        (torch.where(PIXELS > 90, float("nan"), PIXELS / 255), LABELS, [], "non-finite"),
    ],
    ids=["0 to 255", "-1 to 1", "-1 to 1 unsaid", "0 to 254.7", "RGBA", "uneven", "from 1", "from -1", "NaN"],
)
def test_cases_d7_and_38_ranges_and_labels_of_tensors_are_read_or_told(
    images: torch.Tensor,
    labels: torch.Tensor,
    more: list[str],
    says: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import re

    torch.save({"images": images, "labels": labels}, tmp_path / "set.pt")
    run = ["import", tmp_path / "set.pt", "--classes", "cat", "dog", *more, "--out", tmp_path / "o"]
    status, _, err = call(capsys, *run)
    if says is None:
        assert status == 0, err
        stored, found = DistilledSet.open(tmp_path / "o").tensors(dtype=torch.uint8)
        assert torch.equal(stored, PIXELS[[0, 2, 1, 3]]) and found.tolist() == [0, 0, 1, 1]
    else:
        assert status == 1 and re.search(says, err) and not (tmp_path / "o").exists(), err


def test_case_39_equal_seeds_and_data_that_do_not_fit(
    colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same seed gives the same bytes; no test split, an absent class and other letters are refused."""
    one, two, other = (
        made(capsys, colours, tmp_path / name, "--seed", seed) for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    hashes = [[record["sha256"] for record in DistilledSet.open(path).records] for path in (one, two, other)]
    assert hashes[0] == hashes[1] != hashes[2]
    for names, says in ((("red", "yellow"), "unknown class 'yellow'"), (("Red",), "unknown class 'Red'")):
        status, _, err = call(capsys, *RANDOM, "--data", colours, "--classes", *names, "--out", tmp_path / "d")
        assert status == 1 and says in err and "red" in err, err
    untested = Path(shutil.copytree(colours / "train", tmp_path / "untested"))
    status, _, err = call(capsys, "evaluate", one, "--data", untested, *SMALL, "--epochs", 1)
    assert status == 1 and "no test split" in err and "--split test=FOLDER" in err


# ---- sets of ours that were changed


def renamed(folder: Path) -> None:
    (folder / "images" / "cat").rename(folder / "images" / "kitten")


def flipped(folder: Path) -> None:
    file = next((folder / "images" / "cat").glob("*.png"))
    content = file.read_bytes()
    file.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])


def recompressed(folder: Path) -> None:
    file = next((folder / "images" / "cat").glob("*.png"))
    with Image.open(file) as image:
        image.load()
    image.save(file, compress_level=0)


def missing(folder: Path) -> None:
    next((folder / "images" / "cat").glob("*.png")).unlink()


@pytest.mark.parametrize("damage", [renamed, flipped, recompressed, missing])
def test_cases_e_a_changed_image_is_told_by_every_verb(
    damage: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair(tmp_path / "d" / "train")
    pair(tmp_path / "d" / "test", 50)
    found = made(capsys, tmp_path / "d", tmp_path / "s")
    damage(found)
    for command in (["verify"], ["evaluate", *SMALL, "--epochs", 1], ["export", "--layout", "pt"], ["import"]):
        out = [] if command[0] in ("verify", "evaluate") else ["--out", tmp_path / "o"]
        status, _, err = call(capsys, command[0], found, *command[1:], *out)
        assert status == 1 and ("images/cat/00000.png" in err or "lacks 1 image" in err), err
    assert not (tmp_path / "o").exists()


def test_cases_e_lines_of_windows_and_litter_change_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair(tmp_path / "d")
    found = made(capsys, tmp_path / "d", tmp_path / "s")
    manifest = found / "manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes().replace(b"\n", b"\r\n"))
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (found / "images" / "cat" / name).write_bytes(b"x")
    status, printed, err = call(capsys, "verify", found)
    assert status == 0 and "is whole: 2 images" in printed, err
    assert call(capsys, "import", found, "--out", tmp_path / "o")[0] == 0
    assert call(capsys, "export", found, "--layout", "imagefolder", "--out", tmp_path / "e")[0] == 0
