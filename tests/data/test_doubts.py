"""Readings that are doubtful stop and name what to give: no test image may be taken for a training image without a word."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_layouts import contents, opened, pair, put, rows, write_parquet

from dap.base.errors import DapError


def listed(file: Path, names: list[str], *more: str, labels: str = "cat dog", heading: str = "id,label") -> None:
    """A table that gives the images in turn each of the labels, and in further columns each of some words."""
    given = [labels.split(), *(words.split() for words in more)]
    cells = [[name, *(words[i % len(words)] for words in given)] for i, name in enumerate(names)]
    file.write_text("\n".join([heading, *map(",".join, cells)]) + "\n")


def numbered(start: int, stop: int, before: str = "") -> list[str]:
    return [f"{before}im{i:03d}" for i in range(start, stop)]


# ---- a table above the folders of the splits


@pytest.mark.parametrize("name", ["labels.csv", "metadata.csv", "annotations.csv"])
def test_a_table_whose_numbers_begin_anew_in_each_split_stops(name: str, tmp_path: Path) -> None:
    """Before, the test images 1 to 6 got the labels of the training images 1 to 6, which are other pictures."""
    put(tmp_path / "train", 6)
    put(tmp_path / "test", 8)
    listed(tmp_path / name, numbered(0, 6))
    for split in ("train", "test"):
        with pytest.raises(
            DapError, match=r"read in two ways: .*train/.*test/|read in two ways: .*test/.*train/"
        ) as error:
            opened(tmp_path, split)
        assert "Move it into the folder whose images it labels" in str(error.value)
    (tmp_path / name).rename(tmp_path / "train" / name)  # the first advice
    assert opened(tmp_path).told("train").startswith("train: 2 classes, 6 images")
    with pytest.raises(DapError, match="test holds 8 images that are not sorted .*, and no table labels them"):
        opened(tmp_path, "test")
    listed(tmp_path / name, numbered(0, 6, "train/"))  # the second one
    (tmp_path / "train" / name).unlink()
    assert contents(opened(tmp_path))["cat"][0] == "train/im000.png"
    with pytest.raises(DapError, match="no table labels them"):
        opened(tmp_path, "test")


def test_a_table_above_the_splits_that_fits_one_of_them_is_read(tmp_path: Path) -> None:
    put(tmp_path / "train", 8)
    put(tmp_path / "test", 5)
    listed(tmp_path / "labels.csv", numbered(0, 8))
    assert opened(tmp_path).told("train").startswith("train: 2 classes, 8 images")
    with pytest.raises(DapError, match="no table labels them .labels.csv names the images of train/"):
        opened(tmp_path, "test")
    listed(tmp_path / "test.csv", numbered(0, 5), labels="dog cat")
    assert contents(opened(tmp_path, "test"))["dog"][0] == "im000.png"  # a table that is called for its split


def test_a_table_that_says_the_split_of_each_row_is_read_above_the_splits_too(tmp_path: Path) -> None:
    put(tmp_path / "train", 6)
    put(tmp_path / "test", 6)
    both = [*numbered(0, 6), *numbered(0, 6)]
    splits = " ".join(["train"] * 6 + ["test"] * 6)
    listed(tmp_path / "labels.csv", both, splits, labels="cat dog " * 3 + "dog cat " * 3, heading="id,label,split")
    assert contents(opened(tmp_path))["cat"][0] == "im000.png"
    assert contents(opened(tmp_path, "test"))["dog"][0] == "im000.png"
    listed(tmp_path / "labels.csv", numbered(0, 6), "train", heading="id,label,split")
    assert opened(tmp_path).count(0) == 3
    with pytest.raises(DapError, match="gives no image of the test split a label, as its column 'split' has it"):
        opened(tmp_path, "test")


# ---- two tables, and a table that says splits


def test_tables_that_contradict_each_other_stop_and_the_flag_decides(tmp_path: Path) -> None:
    put(tmp_path, 6)
    listed(tmp_path / "labels.csv", numbered(0, 6))
    listed(tmp_path / "metadata.csv", numbered(0, 6), labels="cat cat dog")
    with pytest.raises(DapError, match="metadata.csv gives im001.png the label 'cat', and labels.csv gives 'dog'"):
        opened(tmp_path)
    assert contents(opened(tmp_path, chosen={"train": "labels.csv"}))["dog"][0] == "im001.png"
    assert contents(opened(tmp_path, chosen={"train": "metadata.csv"}))["dog"] == ["im002.png", "im005.png"]
    listed(tmp_path / "metadata.csv", numbered(0, 6), labels="0 1")  # the same parts under other names
    assert opened(tmp_path).class_names == ("0", "1")
    listed(tmp_path / "metadata.csv", numbered(0, 6), labels="3 3 4", heading="id,weight")  # not called as labels
    (tmp_path / "labels.csv").rename(tmp_path / "a-labels.csv")
    (tmp_path / "metadata.csv").rename(tmp_path / "images.csv")
    assert opened(tmp_path).class_names == ("cat", "dog")


@pytest.mark.parametrize("heading", ["id,label,split", "id,label,Subset", "id,label,fold"])
def test_a_column_of_splits_parts_the_images(heading: str, tmp_path: Path) -> None:
    """Before, all rows were training images, those of the test split too."""
    put(tmp_path, 9)
    splits = "train train Train val val val test test test"
    listed(tmp_path / "labels.csv", numbered(0, 9), splits, heading=heading)
    train, test = opened(tmp_path), opened(tmp_path, "test")
    assert contents(train) == {"cat": ["im000.png", "im002.png"], "dog": ["im001.png"]}
    assert contents(test) == {"cat": ["im006.png", "im008.png"], "dog": ["im007.png"]}
    assert "the labels are those of labels.csv, in the rows of the train split" in train.told("train")
    assert train.place != test.place and "left out" not in train.told("train")
    lines = (tmp_path / "labels.csv").read_text().splitlines()
    unlabelled = [f"{line.split(',')[0]},,test" if line.endswith("test") else line for line in lines]
    (tmp_path / "labels.csv").write_text("\n".join(unlabelled))
    assert contents(opened(tmp_path, "test"))["dog"] == ["im003.png", "im005.png"]  # the validation images have labels
    assert opened(tmp_path, chosen={"train": "labels.csv"}).count(0) == 2


def test_a_column_of_splits_with_other_words_stops_and_one_of_numbers_is_none(tmp_path: Path) -> None:
    put(tmp_path, 6)
    for last in ("extra", ""):
        listed(tmp_path / "labels.csv", numbered(0, 6), f"train train test test test {last}", heading="id,label,split")
        if not last:
            (tmp_path / "labels.csv").write_text(
                "id,label,split\nim000,a,train\nim001,b,train\nim002,b,test\nim003,a,\n"
            )
        with pytest.raises(
            DapError, match=f"column 'split' says test, train of other images, and '{last}' of this one"
        ):
            opened(tmp_path)
    listed(tmp_path / "labels.csv", numbered(0, 6), "0 1 2", heading="id,label,fold")
    assert opened(tmp_path).count(0) == 3
    listed(tmp_path / "labels.csv", numbered(0, 6), "train", heading="id,label,split")  # it parts nothing
    assert opened(tmp_path).count(0) == 3
    listed(tmp_path / "labels.csv", numbered(0, 6), labels="train test", heading="id,split")
    with pytest.raises(DapError, match="has no column of labels among id"):
        opened(tmp_path)


def test_class_folders_beside_a_table_with_other_words_name_the_way_out(tmp_path: Path) -> None:
    pair(tmp_path)
    (tmp_path / "metadata.csv").write_text("file,dataset\ncat/im000.png,train\ndog/im000.png,extra\n")
    with pytest.raises(DapError, match="or give --split train=. for all images of the folders"):
        opened(tmp_path)
    assert opened(tmp_path, chosen={"train": "."}).count(0) == 3


@pytest.mark.parametrize("labelled", [True, False])
def test_class_folders_that_a_table_parts_into_splits_stop(labelled: bool, tmp_path: Path) -> None:
    pair(tmp_path)
    names = [f"{name}/im00{i}.png" for i in range(3) for name in ("cat", "dog")]
    heading = "file,label,split" if labelled else "file,split"
    splits = ["train"] * 4 + ["test"] * 2
    labels = [f",{name[:3]}" if labelled else "" for name in names]
    cells = [f"{name}{label},{split}" for name, label, split in zip(names, labels, splits, strict=True)]
    (tmp_path / "metadata.csv").write_text("\n".join([heading, *cells]))
    with pytest.raises(
        DapError, match="column 'split' of metadata.csv parts them into splits.*--split train=."
    ) as error:
        opened(tmp_path)
    assert "--split train=metadata.csv,test=metadata.csv" in str(error.value)
    assert opened(tmp_path, chosen={"train": "."}).count(0) == 3
    chosen = {"train": "metadata.csv", "test": "metadata.csv"}  # without labels the folders are the labels
    assert opened(tmp_path, chosen=chosen).count(0) == 2 and opened(tmp_path, "test", chosen=chosen).count(1) == 1


def test_a_column_of_splits_in_a_parquet_file_stops(tmp_path: Path) -> None:
    columns = {"image": rows(), "label": [0, 1] * 5, "split": ["train"] * 8 + ["test"] * 2}
    write_parquet(tmp_path / "all.parquet", columns)
    with pytest.raises(
        DapError, match="column 'split' .* to the split test and others to train.*--split train=all.parquet"
    ):
        opened(tmp_path)
    assert opened(tmp_path, chosen={"train": "all.parquet"}).count(0) == 5
    write_parquet(tmp_path / "all.parquet", {**columns, "split": ["train"] * 10})
    assert opened(tmp_path).count(0) == 5


# ---- splits inside the classes, and classes called as splits


@pytest.mark.parametrize("odd", ["masks", "a stray image", "no training images"])
def test_splits_inside_some_class_folders_stop(odd: str, tmp_path: Path) -> None:
    """Before, one odd class made training images of the test images of all classes."""
    for name in ("cat", "dog"):
        put(tmp_path / name / "train", 4)
        put(tmp_path / name / "test", 2, start=50)
    if odd == "masks":
        put(tmp_path / "dog" / "masks", 1)
    elif odd == "a stray image":
        put(tmp_path / "dog", 1)
    else:
        put(tmp_path / "fox" / "test", 2, start=50)
    for split in ("train", "test"):
        with pytest.raises(DapError, match="read in two ways: .*hold splits, as cat/ does, or all .*--split train=."):
            opened(tmp_path, split)
    assert opened(tmp_path, chosen={"train": "."}).count(0) == 6


def test_folders_of_a_class_that_are_called_by_chance_are_no_doubt(tmp_path: Path) -> None:
    for name in ("car", "ship", "plane", "bike"):
        put(tmp_path / name / "old", 2)
    put(tmp_path / "rail" / "train", 2)
    put(tmp_path / "rail" / "test", 2)
    assert opened(tmp_path).told("train").startswith("train: 5 classes, 12 images")


@pytest.mark.parametrize("inner", ["", "x y"])
def test_languages_are_classes_or_splits(inner: str, tmp_path: Path) -> None:
    """Before, en and fr were dropped with a note, or the message named one reading alone."""
    for name in ("en", "fr", "te", "tr"):
        for below in inner.split() or [""]:
            put(tmp_path / name / below, 3)
    for split in ("train", "test"):
        with pytest.raises(
            DapError, match="read in two ways.*--split train=tr,test=te.*classes en, fr, te, tr.*--split train=."
        ):
            opened(tmp_path, split)
    assert opened(tmp_path, chosen={"train": "."}).class_names == ("en", "fr", "te", "tr")
    if inner:
        assert opened(tmp_path, chosen={"train": "tr", "test": "te"}).class_names == ("x", "y")


def test_several_unsorted_folders_called_as_splits_beside_others_may_be_classes(tmp_path: Path) -> None:
    for name in ("bus", "test", "train"):
        put(tmp_path / name, 3)
    with pytest.raises(
        DapError, match="train holds 3 images .* If its classes are bus, test, train, give --split train=."
    ):
        opened(tmp_path)
    assert opened(tmp_path, chosen={"train": "."}).class_names == ("bus", "test", "train")
