"""Test images that would be the training images are refused for the true reason, and each piece of advice works to the letter."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from dap.base.errors import DapError
from dap.choices import Data
from dap.verbs.understood import check_apart, tell_of
from dap.workshop import Workshop


def splits(path: Path, colours: Path, train: str = "train", test: str = "val") -> Path:
    for split, name in (("train", train), ("test", test)):
        shutil.copytree(colours / split, path / name)
    return path


def tables(path: Path) -> Path:
    """The images of a folder beside tables of their labels."""
    for split in ("train", "val"):
        lines = []
        for file in sorted((path / split).rglob("*.png")):
            file.rename(path / (name := f"{split}-{file.parent.name}-{file.name}"))
            lines.append(f"{name},{file.parent.name}\n")
        shutil.rmtree(path / split)
        (path / f"{split}.csv").write_text("file_name,label\n" + "".join(lines))
    return path


def refused(path: Path, split: str | None) -> str | None:
    """The refusal; None where the two splits are others."""
    data = Data.model_validate({"path": str(path), "size": 8, "split": _places(split)})
    try:
        check_apart(Workshop("cpu"), data)
    except DapError as error:
        return str(error)
    return None


def _places(split: str | None) -> dict[str, str] | None:
    return None if split is None else dict(part.split("=", 1) for part in split.split(","))


def same(path: Path, split: str) -> bool:
    """Whether both splits are read, and are the same images."""
    data, workshop = Data.model_validate({"path": str(path), "size": 8, "split": _places(split)}), Workshop("cpu")
    return workshop.whole(data).place == workshop.whole(data, "test").place


@pytest.mark.parametrize(
    ("given", "reason", "left_out"),
    [
        ("test=train", "--split test=train names its training images", "the test images in val"),
        ("test={path}/train", "names its training images", "the test images in val"),
        ("test=./train", "names its training images", "the test images in val"),
        ("test=training", "names its training images", "the test images in val"),
        ("train=val", "--split train=val names its test images", "the training images in train"),
        ("train=validation", "names its test images", "the training images in train"),
    ],
)
def test_a_split_that_names_the_other_one(given, reason, left_out, colours, tmp_path):
    path = splits(tmp_path / "photos", colours)
    given = given.format(path=path)
    said = refused(path, given)
    assert said is not None and reason in said and "holds no splits" not in said
    assert f"Leave --split out, which finds {left_out}. " in said and refused(path, None) is None
    _followed(path, said, colours, tmp_path)


def test_without_a_place_of_its_own_nothing_is_left_out(colours, tmp_path):
    path = tmp_path / "val"
    shutil.copytree(colours / "test", path)
    for given in (None, "test=.", "train=."):
        said = refused(path, given)
        assert said is not None and "Leave --split out" not in said
        assert ("the folder is called as a test split" in said) == (given is None)
        _followed(path, said, colours, tmp_path / str(given))


def test_a_link_is_named_as_such(colours, tmp_path):
    path = splits(tmp_path / "photos", colours)
    os.symlink(path / "train", path / "more")
    said = refused(path, "test=more")
    assert said is not None and "more and train are one and the same, because a link leads" in said
    _followed(path, said, colours, tmp_path)


def test_tables_are_named_as_folders_are(colours, tmp_path):
    path = tables(splits(tmp_path / "photos", colours))
    said = refused(path, "test=train.csv")
    assert said is not None and "--split test=train.csv names its training images" in said
    _followed(path, said, colours, tmp_path)


def _followed(path: Path, said: str, colours: Path, new: Path) -> None:
    """Do what the message says, either way."""
    (both,) = re.findall(r"all the same, give --split (\S+)\.$", said)
    assert same(path, both) and refused(path, both) is None
    (split,) = re.findall(r"with --split (train|test)=FOLDER", said)
    other = shutil.copytree(colours / split, new / "others" / f"some-{split}")
    assert refused(path, f"{split}={os.path.relpath(other, path)}") is None


def test_test_images_that_are_training_images_are_refused_by_their_paths(colours, tmp_path):
    """Before, only two splits that were the same as a whole were refused."""
    path = shutil.copytree(colours / "train", tmp_path / "photos")
    files = [file.relative_to(path).as_posix() for file in sorted(path.rglob("*.png"))]
    lists = {"train": files[1::2], "test": files[::2]}
    for split, listed in lists.items():
        lines = [f"{name},{name.split('/')[0]}\n" for name in listed]
        (path / f"{split}.csv").write_text("file,label\n" + "".join(lines))
    for train in (".", "../link"):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to("photos")
        said = refused(path, f"train={train},test=test.csv")
        assert (
            said is not None
            and f"{len(files[::2])} test images of {path}, such as {files[0]}, are training images" in said
        )
        data = Data.model_validate({"path": str(path), "size": 8, "split": {"train": train, "test": "test.csv"}})
        with pytest.raises(DapError, match="are training images too"):  # distill too
            tell_of(Workshop("cpu"), data)
    for split in ("train=train.csv,test=test.csv", "train=test.csv,test=test.csv"):  # the second is the user's own word
        assert refused(path, split) is None
