"""A source is what its images hold: a pixel, a label or a name that changes changes its fingerprint. Cases A25, H3."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from pathlib import Path

import pytest
from PIL import Image
from test_layouts import opened, pair, rows, write_parquet

from dap.base.errors import DapError
from dap.data.real import identity
from dap.data.sets.distilled import DistilledSet
from dap.recipe import Recipe
from dap.workshop import Workshop


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DAP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "files.sqlite"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read to be hashed."""
    found: list[str] = []
    real = identity._sha256
    monkeypatch.setattr(identity, "_sha256", lambda path: (found.append(path), real(path))[1])
    return found


def bmp(file: Path, value: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, 0, 0)).save(file)


def settle(folder: Path) -> None:
    """Let the files look as if they had been changed long ago, as far as mtime says it; ctime cannot be set."""
    for file in folder.rglob("*.*"):
        os.utime(file, (1e9, 1e9))


def test_cases_a25_h3_images_replaced_by_others_of_equal_name_and_size(tmp_path: Path) -> None:
    for name, value in (("cat", 10), ("dog", 200)):
        for i in range(3):
            bmp(tmp_path / "d" / name / f"{i}.bmp", value + i)
    before = opened(tmp_path / "d").fingerprint(sized=False)
    assert opened(tmp_path / "d").fingerprint(sized=False) == before
    cat, dog = (tmp_path / "d" / name / "0.bmp" for name in ("cat", "dog"))
    first, second, when = cat.read_bytes(), dog.read_bytes(), cat.stat()
    assert len(first) == len(second)
    cat.write_bytes(second)
    dog.write_bytes(first)
    for file in (cat, dog):
        os.utime(file, ns=(when.st_atime_ns, when.st_mtime_ns))  # a copy that keeps the time
    assert opened(tmp_path / "d").fingerprint(sized=False) != before


def test_a_label_that_changes_changes_the_identity(tmp_path: Path) -> None:
    pair(tmp_path / "d")
    before = opened(tmp_path / "d").fingerprint()
    os.rename(tmp_path / "d" / "cat" / "im000.png", tmp_path / "d" / "dog" / "im009.png")
    assert opened(tmp_path / "d").fingerprint() != before
    labels = [0, 1] * 5
    write_parquet(tmp_path / "p" / "train.parquet", {"image": rows(), "label": labels})
    one = opened(tmp_path / "p").fingerprint()
    write_parquet(tmp_path / "p" / "train.parquet", {"image": rows(), "label": labels[::-1]})
    assert opened(tmp_path / "p").fingerprint() != one


def test_files_are_read_once_and_only_changed_ones_again(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "SETTLED", 0)  # else nothing would be remembered within the seconds of a test
    pair(tmp_path / "d")
    first = opened(tmp_path / "d").fingerprint()
    assert len(reads) == 6
    assert opened(tmp_path / "d").fingerprint() == first and len(reads) == 6
    opened(tmp_path / "d", classes=["cat"]).fingerprint()
    assert len(reads) == 6
    Image.new("RGB", (8, 8), "white").save(tmp_path / "d" / "cat" / "im001.png")
    assert opened(tmp_path / "d").fingerprint() != first and len(reads) == 7
    shutil.copytree(tmp_path / "d", tmp_path / "e")
    assert opened(tmp_path / "e").fingerprint() == opened(tmp_path / "d").fingerprint()


def test_fresh_files_are_not_trusted(tmp_path: Path, reads: list[str]) -> None:
    pair(tmp_path / "d")
    for _ in range(2):
        opened(tmp_path / "d").fingerprint()
    assert len(reads) == 12


@pytest.mark.parametrize("what", ["damaged", "swapped", "a folder", "no place", "read only"])
def test_an_index_that_cannot_be_used_costs_time_and_nothing_else(
    what: str, tmp_path: Path, cache: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "SETTLED", 0)
    pair(tmp_path / "d")
    first = opened(tmp_path / "d").fingerprint()
    if what == "damaged":
        cache.write_bytes(b"no database" * 1000)
    elif what == "swapped":  # a row of another folder, or a flipped bit
        with sqlite3.connect(cache) as base:
            rows_ = base.execute("SELECT path, files FROM folders ORDER BY path").fetchall()
            base.execute("UPDATE folders SET files = ? WHERE path = ?", (rows_[1][1], rows_[0][0]))
            flipped = bytes([rows_[0][1][20] ^ 1])
            data = rows_[0][1][:20] + flipped + rows_[0][1][21:]
            base.execute("UPDATE folders SET files = ? WHERE path = ?", (data, rows_[1][0]))
    elif what == "a folder":
        cache.unlink()
        cache.mkdir()
    elif what == "no place":
        monkeypatch.setenv("DAP_CACHE", str(tmp_path / "d" / "cat" / "im000.png" / "x"))
    else:
        monkeypatch.setenv("DAP_CACHE", "/proc/nowhere")
    assert opened(tmp_path / "d").fingerprint() == first and len(reads) == 12


def test_several_processes_may_write_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setattr(identity, "SETTLED", 0)
    pair(tmp_path / "d")
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _: opened(tmp_path / "d").fingerprint(), range(12)))) == 1


def test_special_files_and_missing_files_do_not_stop_the_hash(tmp_path: Path) -> None:
    pair(tmp_path / "d")
    os.mkfifo(tmp_path / "d" / "pipe")
    (tmp_path / "d" / "cat" / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "d" / "cat" / "pipe.png").symlink_to(tmp_path / "d" / "pipe")
    (tmp_path / "d" / "cat" / "gone.png").symlink_to(tmp_path / "nowhere")
    began = time.monotonic()
    assert "9 images, 8 × 8" in opened(tmp_path / "d").told("train")
    assert len(opened(tmp_path / "d").fingerprint()) == 64 and time.monotonic() - began < 5


def test_a_set_begun_with_other_images_says_so(tmp_path: Path) -> None:
    pair(tmp_path / "d")
    recipe = Recipe.parse({"method": "random", "ipc": 1, "data": {"path": str(tmp_path / "d")}})
    task = Workshop("cpu").task(recipe)[1]
    names, values = task.source.class_names, task.recipe.values()
    DistilledSet.create(tmp_path / "s", names, 1, values, {**task.store.inputs, "data": "0" * 64})
    with pytest.raises(
        DapError, match="fingerprint of the data differs if an image .* names and sizes alone.*another --out"
    ):
        DistilledSet.create(tmp_path / "s", names, 1, values, task.store.inputs)


def test_the_embedded_data_keep_their_fingerprint() -> None:
    source = opened(Path("fashion-mnist"), "test")
    assert source.fitted(32, "crop").fingerprint(sized=False) == EMBEDDED


EMBEDDED = "bc47c1b4858013b76ae9d378e79c312f9d937bfd8ee8e769b845451e87315f06"


@pytest.mark.parametrize("shards", [True, False])
def test_what_lies_in_one_folder_is_read_once_too(
    shards: bool, tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parquet files side by side, and a flat folder whose table gives each class a few of its images."""
    monkeypatch.setattr(identity, "SETTLED", 0)
    if shards:
        for k in range(6):
            write_parquet(tmp_path / "d" / f"train-{k}.parquet", {"image": rows(4), "label": [0, 0, 1, 1]})
        files = 6
    else:
        files = 20
        for k in range(files):
            bmp(tmp_path / "d" / f"{k}.bmp", 10 * k)
        lines = "".join(f"{k}.bmp,{'abcdefghij'[k % 10]}\n" for k in range(files))
        (tmp_path / "d" / "labels.csv").write_text(f"file_name,label\n{lines}")
    first = opened(tmp_path / "d").fingerprint()
    assert len(reads) == files
    assert opened(tmp_path / "d").fingerprint() == first and len(reads) == files


def test_an_index_whose_names_are_no_text_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sqlite tells the damaged name in its message, and Python cannot decode the message."""
    monkeypatch.setattr(identity, "folder", lambda: tmp_path)
    with identity._index():
        pass
    file = tmp_path / "files.sqlite"
    file.write_bytes(file.read_bytes().replace(b"CREATE TABLE folders", b"CREATE T\xff\xfeLE f\xffld\xfes"))
    with identity._index() as index:
        assert index._base is not None
