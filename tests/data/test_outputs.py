"""What is written does not go among images: not into the classes of any split, and not into a finished set."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from dap.base.errors import DapError
from dap.base.files import check_output
from dap.data.real.finding.outputs import check_outside, check_outside_made
from dap.data.sets.distilled import DistilledSet
from dap.recipe import Data
from dap.verbs.placing import check_page, place, real_of


def images(*folders: Path) -> None:
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / "0.png")


@pytest.fixture
def data(tmp_path) -> Path:
    """Three splits in one folder, and a test split in another one."""
    for split in ("train", "test", "val", "../else"):
        images(tmp_path / "d" / split / "cat", tmp_path / "d" / split / "dog")
    return tmp_path / "d"


@pytest.mark.parametrize("split", ["train", "test", "val"])
@pytest.mark.parametrize("inner", ["new", "cat", "cat/new", "new/a/b"])
@pytest.mark.parametrize("way", ["straight", "by a link of the split", "by a link of the data"])
def test_no_class_of_any_split_is_written(data, split, inner, way, tmp_path):
    if way == "by a link of the split":
        (data / split).rename(tmp_path / "away")
        (data / split).symlink_to(tmp_path / "away")
        out = tmp_path / "away" / inner
    elif way == "by a link of the data":
        (tmp_path / "link").symlink_to(data)
        out = tmp_path / "link" / split / inner
    else:
        out = data / split / inner
    for flag in ("--out", "--cache"):
        with pytest.raises(DapError, match=f"with {flag}"):
            check_outside(out, data, flag=flag)


@pytest.mark.parametrize("root", [".", "train"])
@pytest.mark.parametrize("inner", ["", "x", "x/y"])
def test_the_folder_that_a_link_shows_as_a_class_is_not_written(root, inner, tmp_path):
    """By the link and by its own name, in a flat folder and in a split."""
    images(tmp_path / "d" / root / "dog", tmp_path / "away" / "cat")
    if root == "train":
        images(tmp_path / "d" / "test" / "cat", tmp_path / "d" / "test" / "dog")
    (tmp_path / "d" / root / "cat").symlink_to(tmp_path / "away" / "cat")
    for out in (tmp_path / "d" / root / "cat" / inner, tmp_path / "away" / "cat" / inner):
        with pytest.raises(DapError, match="lies in .*cat.* give a folder elsewhere"):
            check_outside(out, tmp_path / "d")
    check_outside(tmp_path / "away" / "x", tmp_path / "d")


def test_a_link_that_leads_to_itself_is_named(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DapError, match="loop.* leads back to itself; give another place with --out"):
        check_output(tmp_path / "loop" / "set")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "ring").symlink_to("ring")
    with pytest.raises(DapError, match="ring is a link out of the set"):
        DistilledSet.create(tmp_path / "set", ["a"], {"ipc": 1}, {})


def test_a_split_in_another_folder_is_read_too(data, tmp_path):
    chosen = {"train": "train", "test": str(tmp_path / "else")}
    check_outside(tmp_path / "else" / "new", data)
    with pytest.raises(DapError, match=r"else/new lies in .*else, where it would be read as one of its classes"):
        check_outside(tmp_path / "else" / "new", data, chosen)
    with pytest.raises(DapError, match="val/new lies in"):
        check_outside(data / "val" / "new", data, chosen)


@pytest.mark.parametrize("inner", ["new", "train/.hidden/new", "train", "", "../new"])
def test_what_no_run_reads_may_be_written(data, inner):
    """Beside the splits, in hidden folders, and a page beside the classes."""
    check_outside(data / inner, data)


def test_a_cache_makes_folders_where_it_lies(data):
    check_outside(data, data, flag="--cache")
    with pytest.raises(DapError, match="train holds the folders of classes"):
        check_outside(data / "train", data, flag="--cache")


def test_classes_that_hold_the_splits_and_images_of_a_table(tmp_path):
    images(*(tmp_path / "in" / name / split for name in ("cat", "dog") for split in ("train", "test")))
    images(tmp_path / "table" / "img")
    (tmp_path / "table" / "labels.csv").write_text("file,label\n0.png,cat\n")
    for out in (tmp_path / "in" / "new", tmp_path / "in" / "cat" / "new"):
        with pytest.raises(DapError, match="lies in"):
            check_outside(out, tmp_path / "in")
    with pytest.raises(DapError, match="lies in"):
        check_outside(tmp_path / "table" / "new", tmp_path / "table")


def test_only_the_data_of_a_set_count_and_not_what_else_has_their_path(data, monkeypatch):
    recipe = {"data": {"path": "."}}
    monkeypatch.chdir(data)
    with pytest.raises(DapError, match="train/new lies in train"):
        check_outside_made(Path("train/new"), recipe, ["cat"])
    for other in (["bird"], []):
        check_outside_made(Path("train/new"), recipe, other)
    for nothing in (None, {}, {"data": None}, {"data": {"path": 3}}, {"data": {"path": "gone", "split": 4}}):
        check_outside_made(Path("train/new"), nothing, ["cat"])


@pytest.mark.parametrize("marker", ["classes.json", "recipe.json"])
def test_the_images_of_a_set_stay_what_they_are(tmp_path, marker):
    images(tmp_path / "set" / "images" / "cat", tmp_path / "other" / "images" / "cat")
    (tmp_path / "set" / marker).write_text("{}")
    check_output(tmp_path / "set" / "page")
    check_output(tmp_path / "other" / "images" / "new")  # a folder of others that is called so
    (tmp_path / "link").symlink_to(tmp_path / "set" / "images")
    for out in ("set/images", "set/images/new/a", "set/images/cat", "link/new"):
        with pytest.raises(DapError, match="would be taken for a class of the set"):
            check_output(tmp_path / out)


def test_results_and_pages_on_sets_of_others_do_not_become_their_classes(data, tmp_path, monkeypatch):
    theirs = tmp_path / "else"
    made, real = DistilledSet.from_folder(theirs), real_of(str(data))
    assert isinstance(real, Data)
    for out in (theirs / "new", theirs / "cat", data / "train", data / "test" / "cat"):
        with pytest.raises(DapError, match="lies in"):
            place([made], out, real)
    with pytest.raises(DapError, match="lies in"):
        check_page([theirs], theirs / "cat" / "page.html")
    monkeypatch.chdir(theirs)  # where the results of others go by themselves: NAME-judged in the current folder
    with pytest.raises(DapError, match="lies in"):
        place([made], None, real)
    assert sorted(path.name for path in theirs.iterdir()) == ["cat", "dog"]
    place([made], tmp_path / "results", real)
    check_page([theirs], theirs / "page.html")
