"""A damaged set goes on or says so; a folder belongs to one class and to one writer; success is claimed only of files that are
there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dap.base.alone import locked
from dap.base.errors import DapError
from dap.base.files import building
from dap.base.store import Store
from dap.cost import Meter
from dap.data.sets import export as exports
from dap.data.sets import imports
from dap.data.sets.contents import MOST_IMAGES
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.export import export
from dap.data.sets.folders import folders_of
from dap.data.sets.imports import import_set
from dap.evaluation.report import records as report

RECIPE = {"method": "x", "ipc": 2}
NAMES = ("cat", "dog")
LATIN = os.fsdecode(b"caf\xe9")


def pixels(label: int, slot: int) -> torch.Tensor:
    return torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(10 * label + slot))


def distilled(path: Path) -> DistilledSet:
    """What `dap distill` does: begin or go on, and make what is missing."""
    made = DistilledSet.create(path, NAMES, 2, RECIPE)
    for label, slot in made.missing():
        made.add(label, slot, pixels(label, slot), seed=label)
    return DistilledSet.open(path)


def text(data: bytes) -> bytes:
    return data[: len(data) // 2]


DAMAGES = {
    "empty": lambda data: b"",
    "half": text,
    "no text": lambda data: b"\xff\xfe" + data,
    "no object": lambda data: b"[1, 2]\n",
    "empty object": lambda data: b"{}\n",
    "deep": lambda data: b"[" * 5000 + b"]" * 5000 + b"\n",
    "NUL": lambda data: b"\0" + data,
    "flipped": lambda data: data.replace(b"cat", b"c\x01t", 1),
    "twice": lambda data: data + data,
    "labels as text": lambda data: data.replace(b'"label": 0', b'"label": "0"').replace(b'"ipc": 2', b'"ipc": "2"'),
    "numbers": lambda data: data.replace(b": 2", b": NaN").replace(b'"slot": 1', b'"slot": 1e999'),
    "long path": lambda data: data.replace(b"images/cat", b"images/" + b"c" * 5000),
    "out": lambda data: data.replace(b"images/cat", b"../cat").replace(b'"cat"', b'".."'),
}


@pytest.mark.parametrize(
    "name", ["manifest.jsonl", "classes.json", "recipe.json", "inputs.json", "images/cat/00000.png"]
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_to_go_on_over_damage_works_or_says_so(name, damage, tmp_path):
    whole = distilled(tmp_path / "s")
    hashes = [record["sha256"] for record in whole.records]
    file = tmp_path / "s" / name
    before = file.read_bytes()
    file.write_bytes(DAMAGES[damage](before))
    try:
        again = distilled(tmp_path / "s")
    except DapError as error:
        assert name in ("recipe.json", "inputs.json") and "Traceback" not in str(error)
        assert name in str(error) or "another recipe" in str(error)
        file.write_bytes(before)  # the advice: restore the file from a copy
        again = distilled(tmp_path / "s")
    assert [record["sha256"] for record in again.records] == hashes and again.verify() == []


@pytest.mark.parametrize("kind", ["folder", "pipe", "link out", "link to nothing"])
@pytest.mark.parametrize("name", ["manifest.jsonl", "classes.json", "recipe.json", "images", "images/cat", ".lock"])
def test_special_files_in_place_of_ours_are_told_and_nothing_is_written_through_a_link(name, kind, tmp_path):
    distilled(tmp_path / "s")
    place, aside = tmp_path / "s" / name, tmp_path / "aside"
    shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    if kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "link out":
        aside.mkdir() if name.startswith("images") else aside.write_text("precious")
        place.symlink_to(aside)
    else:
        place.symlink_to(tmp_path / "none")
    try:
        with locked(tmp_path / "s"):
            made = distilled(tmp_path / "s")
        assert made.verify() == []
    except (DapError, OSError) as error:
        assert str(tmp_path / "s") in str(error) or "manifest.jsonl" in str(error) or name in str(error)
    if aside.is_file():
        assert aside.read_text() == "precious"
    assert not aside.is_dir() or list(aside.iterdir()) == []


def test_a_damaged_cost_is_a_sentence_with_what_to_do(tmp_path):
    made = distilled(tmp_path / "s")
    (tmp_path / "s" / "cost.json").write_text('{"seconds": "long"}')
    with pytest.raises(DapError, match=r"cost.json, line 1: seconds: .* or remove it"):
        Meter(made, (), Store())
    (tmp_path / "s" / "cost.json").unlink()
    Meter(made, (), Store())


# Folders


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("recipe.json", {"method": "x", "ipc": 2, "backbone": "a word"}),
        ("recipe.json", {"method": "x", "ipc": 2, "seed": "a word"}),
        ("recipe.json", {"method": "x", "ipc": 2, "note": 1e300}),
        ("recipe.json", {"method": "", "ipc": 2}),
        ("import.json", {"ipc": 2}),
        ("import.json", {"classes": ["cat"], "ipc": 2, "notes": "a word"}),
        ("import.json", {"classes": ["cat"], "ipc": 2, "recipe": {"ipc": 0}}),
    ],
)
def test_whoever_asks_for_a_file_of_a_set_reads_it_alike(name, value, tmp_path):
    """Opening, verifying, importing and a report: what one of them refuses, none takes."""
    made = distilled(tmp_path / "s")
    report.load_set(tmp_path / "s")
    if name == "import.json":
        (tmp_path / "s" / "recipe.json").unlink()
    (tmp_path / "s" / name).write_text(json.dumps(value))
    assert any(name in problem for problem in made.verify())
    asks = [lambda: report.load_set(tmp_path / "s"), lambda: made.noted(name)]
    if name == "recipe.json":
        asks += [lambda: DistilledSet.open(tmp_path / "s"), lambda: import_set(tmp_path / "s", tmp_path / "out")]
    for ask in asks:
        with pytest.raises(DapError, match=name):
            ask()


def test_no_file_of_a_set_is_read_through_a_link_out_of_it(tmp_path):
    distilled(tmp_path / "s")
    (tmp_path / "secret.json").write_text('{"seconds": 3.0}')
    (tmp_path / "s" / "cost.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(DapError, match="cost.json leads out of"):
        report.load_set(tmp_path / "s")


def alike(folder: str) -> str:
    return unicodedata.normalize("NFC", folder).casefold().rstrip(". ")


TRICKY = st.text(alphabet="aA~0123. éÉe\u0301ßẞſİ/%%", min_size=1, max_size=6)


@settings(max_examples=300, deadline=None)
@given(st.lists(TRICKY | st.text(min_size=1, max_size=130), min_size=1, max_size=12, unique=True))
def test_no_two_classes_share_a_folder_on_any_file_system(names):
    folders = folders_of(names)
    assert len({alike(folder) for folder in folders}) == len(names)
    assert all(folder.isascii() and "/" not in folder and folder.strip(". ") for folder in folders)


def test_the_three_classes_that_shared_a_folder_have_one_each(tmp_path):
    """Classes a~2, A and a: 6 images were said, 4 were on disk."""
    made = DistilledSet.create(tmp_path / "s", ["a~2", "A", "a"], 2, RECIPE)
    for label, slot in made.missing():
        made.add(label, slot, pixels(label, slot))
    assert len(list((tmp_path / "s").glob("images/*/*.png"))) == 6
    assert DistilledSet.open(tmp_path / "s").verify() == []
    assert folders_of(["a~2", "A", "a"]) == ["a~2", "A", "a~2~"]


def test_a_set_keeps_the_folders_that_it_was_begun_with(tmp_path):
    """An earlier version named folders by another rule."""
    distilled(tmp_path / "s")
    said = json.loads((tmp_path / "s/classes.json").read_text())
    (tmp_path / "s/classes.json").write_text(json.dumps({**said, "folders": ["c", "dog"]}))
    (tmp_path / "s/images/cat").rename(tmp_path / "s/images/c")
    lines = (tmp_path / "s/manifest.jsonl").read_text().replace("images/cat", "images/c")
    (tmp_path / "s/manifest.jsonl").write_text(lines)
    assert DistilledSet.create(tmp_path / "s", NAMES, 2, RECIPE).missing() == []


# Text


@pytest.mark.parametrize("names", [[LATIN, "b"], ["a\0", "b"], ["", "b"], ["a", "a"], ["a" * 1001], []])
def test_names_that_no_file_can_hold_are_told_before_anything_is_written(names, tmp_path):
    """Case A17: a class folder named in Latin-1."""
    for begin in (
        lambda: DistilledSet.create(tmp_path / "s", names, 1, RECIPE),
        lambda: DistilledSet.check_begun(tmp_path / "s", names, RECIPE),
        lambda: DistilledSet.blank(tmp_path / "s", names, 1),
    ):
        with pytest.raises(DapError) as told:
            begin()
        str(told.value).encode()
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("ipc", [0, -1, 10**9])
def test_an_absurd_number_of_images_is_told_before_anything_is_written(ipc, tmp_path):
    with pytest.raises(DapError, match=f"at most {MOST_IMAGES:,} images"):
        DistilledSet.create(tmp_path / "s", ["a"], ipc, RECIPE)
    assert not (tmp_path / "s").exists()


def test_a_path_in_latin_1_in_the_recipe_is_told_before_anything_is_written(tmp_path):
    """A sibling of case A17: the folder of the real images."""
    with pytest.raises(DapError, match=r"not UTF-8: .*caf\\xe9"):
        DistilledSet.create(tmp_path / "s", ["a"], 1, {"data": {"path": f"/data/{LATIN}"}})
    assert not (tmp_path / "s").exists()


# Success is claimed only of files that are there


@pytest.mark.parametrize("layout", exports.LAYOUTS)
def test_an_export_whose_folder_is_emptied_meanwhile_fails(layout, tmp_path):
    made = distilled(tmp_path / "s")

    def emptied(done, total, name):
        del total, name
        if done == 3:
            shutil.rmtree(tmp_path / ".out.partial")

    with pytest.raises((DapError, OSError)):
        export(
            made,
            tmp_path / "out",
            layout,
            shard_size=1 if layout in ("parquet", "webdataset") else None,
            progress=emptied,
        )
    assert not (tmp_path / "out").exists()


def test_an_import_whose_folder_is_emptied_meanwhile_fails(tmp_path):
    distilled(tmp_path / "s")

    def emptied(done, total, name):
        del total, name
        if done == 3:
            shutil.rmtree(tmp_path / ".out.partial" / "images" / "cat")

    with pytest.raises(DapError, match="has 2 of the 4 images"):
        import_set(tmp_path / "s", tmp_path / "out", progress=emptied)
    assert not (tmp_path / "out").exists()


def test_an_import_of_a_damaged_image_never_counts_it(tmp_path, monkeypatch):
    distilled(tmp_path / "s")
    store = imports._store

    def stored(made, *rest):
        told = store(made, *rest)
        (made.path / made.records[0]["path"]).write_bytes(b"")
        return told

    monkeypatch.setattr(imports, "_store", stored)
    with pytest.raises(DapError, match="has 3 of the 4 images"):
        import_set(tmp_path / "s", tmp_path / "out")


# One writer


def test_a_second_export_that_checked_early_does_not_mix_into_the_first(tmp_path, monkeypatch):
    """Two exports into one new folder: both found it empty, and the second wrote over the first."""
    made = distilled(tmp_path / "s")
    check = DistilledSet.check_whole

    def overtaken(self, decode=True):
        check(self, decode)
        monkeypatch.setattr(DistilledSet, "check_whole", check)
        export(made, tmp_path / "out", "pt")

    monkeypatch.setattr(DistilledSet, "check_whole", overtaken)
    with pytest.raises(DapError, match="holds another export"):
        export(made, tmp_path / "out", "imagefolder")
    said = json.loads((tmp_path / "out/export.json").read_text())
    assert said["layout"] == "pt" and not list((tmp_path / "out").glob("*/*.png"))


EXPORTER = """
import sys
from dap.base.errors import DapError
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.export import export

made = DistilledSet.open(sys.argv[1])
sys.stdin.readline()
try:
    export(made, sys.argv[2], sys.argv[3])
    print("done")
except DapError as error:
    print("refused:", error)
"""


def test_two_processes_that_export_into_one_new_folder_never_mix(tmp_path):
    distilled(tmp_path / "s")
    layouts = ("imagefolder", "webdataset")
    command = [sys.executable, "-P", "-c", EXPORTER, str(tmp_path / "s"), str(tmp_path / "out")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = [subprocess.Popen([*command, layout], **pipes) for layout in layouts]
    for one in running:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    said = [one.communicate(timeout=120)[0] for one in running]
    assert sorted(text.split(":")[0].strip() for text in said) == ["done", "refused"]
    winner = layouts[[text.strip() == "done" for text in said].index(True)]
    files = {f.relative_to(tmp_path / "out").as_posix() for f in (tmp_path / "out").rglob("*") if f.is_file()}
    held = json.loads((tmp_path / "out" / "export.json").read_text())
    assert held["layout"] == winner and files == {*held["files"], "export.json"}


def test_who_waited_for_a_folder_that_was_moved_away_does_not_hold_the_lock(tmp_path):
    with building(tmp_path / "out", "marker") as folder:
        (folder / "marker").write_text("1")
        with pytest.raises(DapError, match="Another process"), building(tmp_path / "out", "marker"):
            pass
        assert (folder / "marker").read_text() == "1", "who is refused removes nothing"
    assert (tmp_path / "out" / "marker").read_text() == "1" and not (tmp_path / ".out.partial").exists()
