"""IDX files of strangers: a sentence or the values, in the memory that the header promises."""

from __future__ import annotations

import gzip
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dap.base.errors import DapError
from dap.data.real.idx import read_idx
from dap.data.real.sources import open_source

GOOD = struct.pack(">HBBIII", 0, 8, 3, 2, 3, 3) + bytes(range(18))


@pytest.mark.parametrize(
    "pack", [lambda data: data, gzip.compress, lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:])]
)
def test_whole_files_are_read(pack, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(pack(GOOD))
    values = read_idx(tmp_path / "x")
    assert values.tolist() == np.arange(18).reshape(2, 3, 3).tolist() and values.dtype == np.uint8
    assert values.flags.writeable


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not an IDX file"),
        (b"\0\0", "not an IDX file"),
        (b"PK\3\4" + GOOD, "not an IDX file"),
        (b"\0\0\x07\1\0\0\0\1\0", "not an IDX file"),
        (GOOD[:9], "cut off inside its header"),
        (GOOD[:-1], "should hold 18 bytes .* but holds 17"),
        (GOOD + b"x", "should hold 18 bytes .* but holds more"),
        (struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), "promises .* it is damaged"),
        (struct.pack(">HBB", 0, 8, 255) + b"\xff" * 1020, "promises .* it is damaged"),
        (struct.pack(">HBBI", 0, 8, 1, 2**32 - 1), "but holds 0"),
        (b"\0\0\x08\0", "but holds 0"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_damaged_files_are_one_sentence(content: bytes, says: str, packed: bool, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(ValueError, match=says) as error:
        read_idx(tmp_path / "x")
    assert str(tmp_path / "x") in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [gzip.compress(GOOD, mtime=0)[:-6], gzip.compress(GOOD, mtime=0)[:15], b"\x1f\x8b" + b"\7" * 40],
    ids=["cut", "head", "no gzip"],
)
def test_damaged_gzip_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match="damaged gzip|not an IDX|should hold"):
        read_idx(tmp_path / "x")


def test_a_bomb_is_unpacked_no_further_than_its_header_says(tmp_path: Path) -> None:
    """6.5 MB of gzip unpacked to 6.7 GB. Here 1 MB to 1 GB, in a process that may not take 600 MB more."""
    with gzip.open(tmp_path / "x", "wb", compresslevel=1) as file:
        file.write(GOOD)
        for _ in range(64):
            file.write(bytes(2**24))
    code = (
        "import resource, sys\nfrom dap.data.real.idx import read_idx\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 600 * 2**20,) * 2)\n"
        "try: read_idx(sys.argv[1])\nexcept ValueError as error: print(error)\n"
    )
    assert resource.getrlimit(resource.RLIMIT_AS)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")], capture_output=True, text=True, timeout=60)
    assert "should hold 18 bytes" in done.stdout and "but holds more" in done.stdout, done.stderr


def test_special_files_and_mismatches_are_sentences(tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    images, labels = root / "train-images-idx3-ubyte", root / "train-labels-idx1-ubyte"
    os.mkfifo(images)
    labels.symlink_to("/dev/zero")
    with pytest.raises(DapError, match="train-images-idx3-ubyte is not a regular file"):
        open_source(root, size=4)
    images.unlink()
    images.write_bytes(GOOD)
    with pytest.raises(DapError, match="train-labels-idx1-ubyte is not a regular file"):
        open_source(root, size=4)
    labels.unlink()
    labels.write_bytes(struct.pack(">HBBI", 0, 8, 1, 3) + b"\0\1\1")
    with pytest.raises(DapError, match="should hold 2 labels"):
        open_source(root, size=4)


@pytest.mark.parametrize(
    "names", [b"[" * 5000, b'["a", 1]', b"{}", b"\xff", b"", b'["a"', b"9" * 5000, b'["a", "b"], 1']
)
def test_a_damaged_list_of_classes_is_one_sentence(names: bytes, tmp_path: Path) -> None:
    """Found by fuzzing: a RecursionError for deep nesting."""
    (tmp_path / "train-images-idx3-ubyte").write_bytes(GOOD)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, 2) + b"\0\1")
    (tmp_path / "classes.json").write_bytes(b'["a", "b"]')
    assert open_source(tmp_path, size=4).class_names == ("a", "b")
    (tmp_path / "classes.json").write_bytes(names)
    with pytest.raises(DapError, match="classes.json"):
        open_source(tmp_path, size=4)


def test_no_image_of_enormous_sides_is_one_sentence(tmp_path: Path) -> None:
    """Found by fuzzing: numpy's own message, which names no file."""
    (tmp_path / "x").write_bytes(struct.pack(">HBB4I", 0, 8, 4, 0, 2**31, 8, 2**31))
    with pytest.raises(ValueError, match="x has a header that promises 0 bytes of values, shape .*; it is damaged"):
        read_idx(tmp_path / "x")


def write_pair(folder: Path, stem: str, labels: list[int], gz: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for what, rank, values in (("images", 3, bytes(9 * len(labels))), ("labels", 1, bytes(labels))):
        sides = struct.pack(f">{rank}I", len(labels), *[3] * (rank - 1))
        data = struct.pack(">HBB", 0, 8, rank) + sides + values
        (folder / f"{stem}-{what}-idx{rank}-ubyte{gz}").write_bytes(gzip.compress(data) if gz else data)


def test_mnist_is_read_where_torchvision_leaves_it(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    for gz in ("", ".gz"):
        write_pair(raw, "train", [0, 1], gz)
        write_pair(raw, "t10k", [0, 1], gz)
    (tmp_path / "MNIST" / "train-images-idx3-ubyte").mkdir()  # as some archives unpack; no pair, as it is a folder
    for place in (tmp_path, raw.parent, raw):
        train, test = (open_source(place, split, size=3) for split in ("train", "test"))
        assert train.class_names == test.class_names == ("0", "1") and train.opened != test.opened
        assert any("raw/, so the data are read from there" in note for note in train.notes) == (place != raw)
    write_pair(tmp_path / "KMNIST" / "raw", "train", [0, 1])
    with pytest.raises(DapError, match=f"IDX files lie in KMNIST/raw, MNIST/raw: give {tmp_path}/KMNIST/raw"):
        open_source(tmp_path, size=3)


def test_emnist_is_read_with_its_labels_from_1_and_one_pair_a_split(tmp_path: Path) -> None:
    write_pair(tmp_path, "emnist-letters-train", [1, 2, 2], ".gz")
    write_pair(tmp_path, "emnist-letters-test", [1, 2], ".gz")
    for split, images in (("train", 3), ("test", 2)):
        source = open_source(tmp_path, split, size=3)
        assert source.class_names == ("1", "2") and f"2 classes, {images} images" in source.told(split)
        assert "stores its images transposed" in source.notes[0]
    write_pair(tmp_path, "emnist-digits-train", [0, 1])
    several = (
        "several .* train split: emnist-digits-train-images-idx3-ubyte, emnist-letters-train-images-idx3-ubyte.gz. Move"
    )
    with pytest.raises(DapError, match=several):
        open_source(tmp_path, size=3)
