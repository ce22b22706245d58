"""Each piece of advice on a missing split is followed to the letter, and the folder is then read as it was meant."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from test_layouts import contents, opened, pair, put, rows, write_parquet

import clips
from dap.base.errors import DapError
from dap.cli.main import main


def refused(path: Path, split: str = "test", **more: object) -> str:
    with pytest.raises(DapError) as error:
        opened(path, split, **more)
    return str(error.value)


def folders(path: Path) -> None:
    pair(path)


def folders_in_a_folder(path: Path) -> None:
    pair(path / "photos")


def a_class_called_train(path: Path) -> None:
    pair(path, names=("bus", "train"))


def table(path: Path) -> None:
    put(path, 4)
    (path / "labels.csv").write_text("id,label\n" + "".join(f"im{i:03d}.png,{'ab'[i % 2]}\n" for i in range(4)))


def parquet(path: Path) -> None:
    write_parquet(path / "all.parquet", {"image": rows(), "label": ["a", "b"] * 5})


def parquet_in_data(path: Path) -> None:
    parquet(path / "data")


WHOLE = [folders, folders_in_a_folder, a_class_called_train, table, parquet, parquet_in_data]


@pytest.mark.parametrize("made", WHOLE)
def test_a_folder_without_splits_gets_a_test_split_by_either_advice(
    made: Callable[[Path], None], tmp_path: Path
) -> None:
    """Before, the test images became one more class, or the training images were not found any more."""
    data, other = tmp_path / "set", tmp_path / "new"
    made(data)
    made(other)
    before = opened(data)
    was = (before.class_names, contents(before), before.fingerprint())
    said = refused(data)
    assert f"put them outside of {data} and say where they lie with --split test=FOLDER, a path relative to it" in said
    chosen = {"test": "../new/data" if made is parquet_in_data else "../new"}
    assert opened(data, chosen=chosen).fingerprint() == opened(data, "test", chosen=chosen).fingerprint()
    found = re.search(r"; move (?:its )?(.*) into (\S*) and put images to test on.* into (\S*), or", said)
    assert found is not None, said
    home, place = Path(found[2]), Path(found[3])
    names = found[1].replace("/", "").split(", ")
    moved = [path for path in home.parent.iterdir() if path.name in names or path.is_file()]
    assert moved
    home.mkdir()
    for path in moved:
        path.rename(home / path.name)
    for path in [path for path in home.parent.iterdir() if path != home]:
        pytest.fail(f"{path} was not named")
    (other / home.parent.relative_to(data)).rename(place)
    for split in ("train", "test"):
        source = opened(data, split)
        assert (source.class_names, contents(source), source.fingerprint()) == was
    assert opened(data).root != opened(data, "test").root


@pytest.mark.parametrize("made", [folders, table, parquet])
def test_a_folder_that_is_the_train_part_gets_the_test_part_beside_it(
    made: Callable[[Path], None], tmp_path: Path
) -> None:
    made(tmp_path / "train")
    (tmp_path / "mine").symlink_to("train")
    for data in (tmp_path / "train", tmp_path / "mine"):
        assert f"into {tmp_path / 'test'} and give --split test=../test, or" in refused(data)
    made(tmp_path / "test")
    for data in (tmp_path / "train", tmp_path / "mine", tmp_path):
        chosen = None if data == tmp_path else {"test": "../test"}
        assert opened(data, chosen=chosen).fingerprint() == opened(data, "test", chosen=chosen).fingerprint()


def test_parquet_files_called_for_their_split_get_a_file_of_the_other(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-00000-of-00001.parquet", {"image": rows(), "label": [0, 1] * 5})
    assert f"put its images into {tmp_path / 'test.parquet'}" in refused(tmp_path)
    write_parquet(tmp_path / "test.parquet", {"image": rows(4), "label": [0, 1] * 2})
    assert [opened(tmp_path, split).count(0) for split in ("train", "test")] == [5, 2]


def test_splits_inside_class_folders_get_one_in_each(tmp_path: Path) -> None:
    for place in ("cat/train", "cat/test", "dog/train", "dog/val"):
        put(tmp_path / place)
    assert f"put its images into a folder test/ in each class folder, as in {tmp_path}/cat/test" in refused(tmp_path)
    put(tmp_path / "dog" / "test")
    assert [opened(tmp_path, split).count(1) for split in ("train", "test")] == [3, 3]


@pytest.mark.parametrize("there", ["train", "test"])
def test_a_folder_of_one_split_gets_the_other_beside_it(there: str, tmp_path: Path) -> None:
    pair(tmp_path / there)
    lacking = "test" if there == "train" else "train"
    said = refused(tmp_path, lacking)
    assert f"into {tmp_path / lacking}, or say where they lie with --split {lacking}=FOLDER" in said
    pair(tmp_path / lacking, 50)
    assert opened(tmp_path, lacking).keys(0, [0]) == ["cat/im050.png"]


@pytest.mark.parametrize("inner", ["", "photos"])
def test_class_folders_beside_a_test_split_are_moved_into_train(inner: str, tmp_path: Path) -> None:
    """Before, neither of the two readings that were named had the training images without the test images."""
    home = tmp_path / inner
    pair(home)
    pair(home / "test", 50)
    for split in ("train", "test"):
        said = refused(tmp_path, split)
        assert f"(then move cat/, dog/ into {home}/train, or give --split train=FOLDER,test=test)" in said
    if not inner:
        said = refused(tmp_path, chosen={"test": "test"}, split="train")
        assert f"--split test=test,train=FOLDER, or move cat/, dog/ into {home}/train" in said
    pair(tmp_path / "held" / "train", 50)
    given = {"train": str(tmp_path / "held" / "train"), "test": "test"}
    assert opened(tmp_path if not inner else home, chosen=given).count(0) == 3
    (tmp_path / "held").rename(tmp_path.parent / f"{tmp_path.name}-held")
    (home / "train").mkdir()
    for name in ("cat", "dog"):
        (home / name).rename(home / "train" / name)
    for chosen in (None, {"test": "test"}):
        assert opened(tmp_path, chosen=chosen).keys(0, [0]) == ["cat/im000.png"]
        assert opened(tmp_path, "test", chosen=chosen).keys(0, [0]) == ["cat/im050.png"]


@pytest.mark.parametrize(
    ("chosen", "at"),
    [
        ({"train": ".", "test": "test"}, "test"),
        ({"train": ".", "test": "testing"}, "test"),
        ({"train": "train", "test": "."}, "train"),
        ({"train": ".", "test": "cat/new"}, "cat"),
        ({"test": "cat/new"}, "cat"),
    ],
)
def test_a_split_that_would_be_a_class_of_the_other_is_refused(chosen: dict[str, str], at: str, tmp_path: Path) -> None:
    """Before, the test images were training images of a class called test."""
    pair(tmp_path)
    inner = tmp_path / (chosen["test"].replace("testing", "test") if chosen["test"] != "." else "train")
    pair(inner, 50)
    split = next(kind for kind, place in chosen.items() if place != ".")
    for opening in ("train", *(["test"] if len(chosen) > 1 else [])):
        said = refused(tmp_path, opening, chosen=chosen)
        assert (
            said.startswith(f"{inner}, the {split} split, lies in {tmp_path}, the ")
            and f"of the class {at} there" in said
        )
    if inner.parent == tmp_path:  # the second advice
        for opening in ("train", "test"):
            assert opened(tmp_path, opening, chosen=chosen, classes=["cat", "dog"]).class_names == ("cat", "dog")
    inner.rename(tmp_path.parent / f"{tmp_path.name}-new")  # the first one
    moved = {**chosen, split: f"../{tmp_path.name}-new"}
    for opening in ("train", "test"):
        assert opened(tmp_path, opening, chosen=moved).class_names == ("cat", "dog")


def test_a_link_hides_no_split_and_one_folder_may_be_both_splits(tmp_path: Path) -> None:
    pair(tmp_path / "set")
    pair(tmp_path / "new", 50)
    (tmp_path / "set" / "more").symlink_to("../new")
    assert "of the class more there" in refused(tmp_path / "set", chosen={"train": ".", "test": "../new"})
    (tmp_path / "set" / "more").unlink()
    assert opened(tmp_path / "set", "test", chosen={"train": ".", "test": "."}).count(0) == 3
    assert opened(tmp_path / "set", "test", chosen={"train": "train", "test": "../new"}).count(0) == 3


def test_clips_without_splits_get_a_test_split(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for place in ("set", "new"):
            (tmp_path / place / name).mkdir(parents=True)
            (tmp_path / place / name / "1.gif").write_bytes(clips.animated(clips.moving(0, 0, 2), "GIF"))
    data = tmp_path / "set"
    said = refused(data, frames=2)
    assert f"; move cat/, dog/ into {data}/train and put clips to test on" in said
    assert opened(data, "test", frames=2, chosen={"test": "../new"}).count(0) == 1
    chosen = {"train": ".", "test": "test"}
    (tmp_path / "new").rename(data / "test")
    assert f"(then move cat/, dog/ into {data}/train, or give" in refused(data, frames=2)
    assert "of the class test there" in refused(data, "train", frames=2, chosen=chosen)
    (data / "train").mkdir()
    for name in ("cat", "dog"):
        (data / name).rename(data / "train" / name)
    assert [opened(data, split, frames=2).count(0) for split in ("train", "test")] == [1, 1]


def test_the_commands_go_on_where_the_advice_was_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A set that was made before its folder had a test split is judged when the folder has one."""
    data, made = tmp_path / "set", tmp_path / "made"
    pair(data)
    assert (
        main(["distill", "--method", "random", "--ipc", "1", "--size", "8", "--data", str(data), "--out", str(made)])
        == 0
    )
    assert f"move cat/, dog/ into {data}/train" in capsys.readouterr().err
    pair(data / "test", 50)
    assert main(["look", str(data)]) == 1
    assert f"move cat/, dog/ into {data}/train" in capsys.readouterr().err
    assert main(["look", str(data), "--split", "train=.,test=test"]) == 1
    assert f"{data}/test, the test split, lies in {data}" in capsys.readouterr().err
    (data / "train").mkdir()
    for name in ("cat", "dog"):
        (data / name).rename(data / "train" / name)
    fast = ["size=8", "width=2", "epochs=1", "mean=[0.5]", "std=[0.25]"]
    judged = ["evaluate", str(made), "--networks", "convnet1", *(word for one in fast for word in ("--set", one))]
    assert main(judged) == 0, capsys.readouterr().err
