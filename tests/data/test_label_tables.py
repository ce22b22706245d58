"""Tables beside images: which column names the images, which tables are used, and what is no label."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_layouts import contents, opened, pair, put, rows, write_parquet

from dap.base.errors import DapError


def table(file: Path, heading: str, *lines: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([*([heading] if heading else []), *lines]) + "\n")


def lists(folder: Path, *, labelled: bool, ending: str = ".csv") -> None:
    """Class folders of three images each, beside a list of the first two of each and a list of the others."""
    pair(folder)
    for split, numbers in (("train", (0, 1)), ("test", (2,))):
        names = [f"{name}/im00{i}.png" for i in numbers for name in ("cat", "dog")]
        lines = [f"{name},{name[:3]}" if labelled else name for name in names]
        table(folder / f"{split}{ending}", "file,label" if labelled else "", *lines)


# ---- which column names the images


@pytest.mark.parametrize("heading", ["id,fname,label", "id,name,label", ",Image Name,label", "image_id,picture,label"])
def test_the_numbers_of_rows_are_no_names_of_images(heading: str, tmp_path: Path) -> None:
    """Before, the numbers were taken for names without ending, so that every label was wrong."""
    put(tmp_path, 6)
    for i in range(6):
        (tmp_path / f"im00{i}.png").rename(tmp_path / f"{i}.png")
    table(tmp_path / "labels.csv", heading, *(f"{i},{5 - i}.png,{'cat' if i < 3 else 'dog'}" for i in range(6)))
    assert contents(opened(tmp_path)) == {"cat": ["3.png", "4.png", "5.png"], "dog": ["0.png", "1.png", "2.png"]}


def test_two_columns_that_name_different_images_stop_and_a_heading_decides(tmp_path: Path) -> None:
    put(tmp_path, 4)
    lines = [f"im00{i},im00{3 - i},{'cat' if i < 2 else 'dog'}" for i in range(4)]
    table(tmp_path / "labels.csv", "id,name,label", *lines)
    with pytest.raises(
        DapError, match="line 2: column 'id' names the image im000.png, and column 'name' names im003.png"
    ):
        opened(tmp_path)
    table(tmp_path / "labels.csv", "id,file_name,label", *lines)  # the advice
    assert contents(opened(tmp_path))["cat"] == ["im002.png", "im003.png"]
    table(tmp_path / "labels.csv", "mask,image,label", *lines)  # called as files are
    assert contents(opened(tmp_path))["cat"] == ["im002.png", "im003.png"]
    table(tmp_path / "labels.csv", "id,name,label", *(f"im00{i},im00{i}.png,{'ab'[i % 2]}" for i in range(4)))
    assert opened(tmp_path).class_names == ("a", "b")  # the same images


# ---- a table that could not be used


@pytest.mark.parametrize(
    ("heading", "lines", "said"),
    [
        ("file,label", [f"/home/me/images/im00{i}.png,a" for i in range(4)], "names no image here"),
        ("file,label", [f"photos/im00{i}.png,a" for i in range(4)], "names no image here"),
        ("image,MEL,NV", [f"im00{i},0.0,1.0" for i in range(4)], "no column of labels among image, MEL, NV; call"),
        ("file,text", [f"images/im00{i}.png,a cat {i}" for i in range(4)], "captions or ids and no labels"),
        ("file,label", [], "has no rows"),
    ],
)
@pytest.mark.parametrize("split", ["", "train"])
def test_one_folder_beside_a_table_that_could_not_be_used_stops(
    split: str, heading: str, lines: list[str], said: str, tmp_path: Path
) -> None:
    """Before, the folder became the one class, and nothing was said of the table."""
    put(tmp_path / split / "images", 4)
    if split:
        pair(tmp_path / "test", 50)
    table(tmp_path / split / "labels.csv", heading, *lines)
    with pytest.raises(
        DapError, match=f"all its images in images/, .*{said}.*--split train={split or '.'} where"
    ) as error:
        opened(tmp_path)
    assert opened(tmp_path, chosen={"train": split or "."}).class_names == ("images",), error.value


def test_one_folder_beside_a_table_of_an_unknown_name_stops(tmp_path: Path) -> None:
    put(tmp_path / "images", 4)
    table(tmp_path / "Data_Entry.csv", "Image,Finding,Age", *(f"im00{i}.png,{'ab'[i % 2]},{i}" for i in range(4)))
    with pytest.raises(DapError, match="may label them in its column 'Finding' .then call the right one 'label' and"):
        opened(tmp_path)
    table(tmp_path / "Data_Entry.csv", "Image,label,Age", *(f"im00{i}.png,{'ab'[i % 2]},{i}" for i in range(4)))
    with pytest.raises(DapError, match="--split train=Data_Entry.csv"):
        opened(tmp_path)
    assert opened(tmp_path, chosen={"train": "Data_Entry.csv"}).class_names == ("a", "b")


def test_links_and_deep_folders_are_looked_through(tmp_path: Path) -> None:
    put(tmp_path / "store", 4)
    data = tmp_path / "data"
    data.mkdir()
    (data / "images").symlink_to("../store")
    table(data / "labels.csv", "file,label", *(f"images/im00{i}.png,{'ab'[i % 2]}" for i in range(4)))
    assert contents(opened(data))["b"] == ["images/im001.png", "images/im003.png"]
    put(data / "p/q/r/s/t/u", 1, start=9)
    (data / "all").symlink_to("p")  # its images keep the names of their own folder
    table(data / "more.csv", "file,label", "p/q/r/s/t/u/im009.png,a", "im000,a", "im001,b")
    source = opened(data, chosen={"train": "more.csv"})
    assert contents(source)["a"] == ["images/im000.png", "p/q/r/s/t/u/im009.png"]


def test_a_name_of_two_images_is_told_as_such(tmp_path: Path) -> None:
    """Before, it was said that there is no such image."""
    put(tmp_path / "a", 2)
    put(tmp_path / "b", 3)
    table(tmp_path / "labels.csv", "file,label", "im002.png,a", "im001.png,b")
    with pytest.raises(
        DapError, match="line 3: several images have the name 'im001.png', such as a/im001.png and b/im001"
    ):
        opened(tmp_path, chosen={"train": "labels.csv"})
    table(tmp_path / "labels.csv", "file,label", "im000.png,a", "im001.png,b")
    with pytest.raises(DapError, match="by a name that is its own: several images have the name 'im000.png'"):
        opened(tmp_path, chosen={"train": "labels.csv"})


# ---- tables beside class folders


@pytest.mark.parametrize("where", ["", "HAM/"])
@pytest.mark.parametrize("column", ["dx", "type", "target", "label"])
def test_folders_that_are_parts_of_an_archive_are_no_classes(column: str, where: str, tmp_path: Path) -> None:
    """HAM10000 as it is shipped. Before, only a column called label stopped, and none above a folder that holds all."""
    data = tmp_path / where
    for k in (0, 4):
        put(data / f"images_part_{k}", 4, start=k)
    lines = [f"HAM_{i},im00{i},{'ab'[i % 2]},histo,{40 + i}" for i in range(8)]
    file = "HAM10000_metadata.csv"
    table(tmp_path / file, f"lesion_id,image_id,{column},dx_type,age", *lines)
    with pytest.raises(DapError, match=f"read in two ways: .*--split train=.*--split train={file}"):
        opened(tmp_path)
    assert opened(tmp_path, chosen={"train": "."}).class_names == ("images_part_0", "images_part_4")
    table(tmp_path / file, "lesion_id,image_id,label,dx_type,age", *lines)  # the advice
    assert opened(tmp_path, chosen={"train": file}).class_names == ("a", "b")


def test_a_table_above_the_splits_is_looked_at_too(tmp_path: Path) -> None:
    """As in Google Landmarks, whose folders 0 to f are parts."""
    for part in ("0", "1"):
        put(tmp_path / "train" / part, 3, start=3 * int(part))
        put(tmp_path / "test" / part, 3, start=50 + 3 * int(part))
    table(tmp_path / "train.csv", "id,url,landmark", *(f"im00{i},u,{i % 2}" for i in range(6)))
    with pytest.raises(DapError, match="may label them in its column 'landmark'.*--split train=train.csv"):
        opened(tmp_path)
    assert opened(tmp_path, chosen={"train": "train"}).class_names == ("0", "1")
    for file in ("train.csv", "classes.txt"):  # what follows the folders, and a list of the classes
        table(tmp_path / file, "id,url,landmark", *(f"train/{i // 3}/im00{i},u,{'ab'[i // 3]}" for i in range(6)))
        assert opened(tmp_path).class_names == opened(tmp_path, "test").class_names == ("0", "1")
        table(tmp_path / file, "", "0 a", "1 b")
    put(tmp_path / "flat/train/images", 3)
    table(tmp_path / "flat/train.csv", "id,label", "/im000.png,a")
    with pytest.raises(DapError, match="all its images in images/, .*train.csv names no image here"):
        opened(tmp_path / "flat")


@pytest.mark.parametrize(
    ("name", "heading", "cells"),
    [
        ("metadata.csv", "file,width,url", "8,u"),
        ("metadata.csv", "file,text", "a photo {i}"),
        ("metadata.csv", "file,species,breed", "animal,{name}"),
        ("images.txt", "", "{i}{name}"),
        ("some.csv", "file,label", "{name}"),
        ("train.csv", "file,label", "{name}"),
        ("README.txt", "", "of the cat and the dog"),
    ],
)
def test_tables_that_say_nothing_else_than_the_folders_are_no_doubt(
    name: str, heading: str, cells: str, tmp_path: Path
) -> None:
    pair(tmp_path)
    files = [f"{folder}/im00{i}.png" for folder in ("cat", "dog") for i in range(3)]
    lines = [f"{file},{cells.format(i=i, name=file[:3])}" for i, file in enumerate(files)]
    table(tmp_path / name, heading, *lines)
    assert opened(tmp_path).told("train").startswith("train: 2 classes, 6 images")


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("where", ["", "images/", "meta/"])
def test_lists_of_the_splits_stop_and_both_readings_work(where: str, labelled: bool, tmp_path: Path) -> None:
    """Before, the images of the test list were training images, and nothing was said."""
    ending = ".csv" if labelled else ".txt"
    folder = tmp_path / "images" if where else tmp_path
    lists(folder, labelled=labelled, ending=ending)
    if where == "meta/":  # as in Food-101
        (tmp_path / "meta").mkdir()
        for split in ("train", "test"):
            (folder / f"{split}{ending}").rename(tmp_path / "meta" / f"{split}{ending}")
    both = {split: f"{where}{split}{ending}" for split in ("train", "test")}
    for split in ("train", "test"):
        with pytest.raises(
            DapError, match=f"--split train=.\\), or .*--split train={both['train']},test={both['test']}\\)"
        ):
            opened(tmp_path, split)
    with pytest.raises(DapError, match=f"--split train={both['train']},test="):
        opened(tmp_path, chosen={"test": both["test"]})
    train, test = (opened(tmp_path, split, chosen=both) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("cat", "dog")
    assert train.count(0) == 2 and [key[-9:] for key in contents(test)["dog"]] == ["im002.png"]
    assert opened(tmp_path, chosen={"train": "."}).count(0) == 3


def test_lists_whose_names_hold_blanks_are_read(tmp_path: Path) -> None:
    pair(tmp_path, names=("big cat", "a big dog"))
    for split, i in (("train", 0), ("test", 1)):
        table(tmp_path / f"{split}.txt", "", f"big cat/im00{i}", f"a big dog/im00{i}")
    with pytest.raises(DapError, match="--split train=train.txt,test=test.txt"):
        opened(tmp_path)
    assert contents(opened(tmp_path, chosen={"train": "train.txt"}))["big cat"] == ["big cat/im000.png"]


def test_a_list_that_cannot_be_read_says_what_to_mend(tmp_path: Path) -> None:
    lists(tmp_path, labelled=True)
    table(tmp_path / "test.csv", "file,a,b", "cat/im002.png,x,y", "dog/im002.png,y,x")
    with pytest.raises(
        DapError, match="mend test.csv, because it has no column of labels among file, a, b; call the right"
    ):
        opened(tmp_path)


def test_a_list_without_a_heading_is_told_to_have_one(tmp_path: Path) -> None:
    """As in Oxford-IIIT Pet, whose images lie in one folder."""
    put(tmp_path / "images", 4)
    table(tmp_path / "annotations/trainval.txt", "", *(f"im00{i} 1 1 1" for i in range(3)))
    said = "no column of labels among column 1, .*; write a first line that names the columns, and call the right one 'label'"
    for chosen in (None, {"train": "annotations/trainval.txt"}):
        with pytest.raises(DapError, match=said):
            opened(tmp_path, chosen=chosen)
    table(tmp_path / "annotations/trainval.txt", "file label x y", *(f"im00{i} {i % 2} 1 1" for i in range(3)))
    assert opened(tmp_path, chosen={"train": "annotations/trainval.txt"}).class_names == ("0", "1")  # the advice


def test_a_table_in_a_folder_of_its_own_is_found_and_the_places_are_named(tmp_path: Path) -> None:
    """Before, a folder called as the table was looked for, and said to be missing."""
    put(tmp_path / "images", 4)
    table(tmp_path / "tables/labels.csv", "file,label", *(f"images/im00{i}.png,{'ab'[i % 2]}" for i in range(4)))
    assert opened(tmp_path, chosen={"train": "tables/labels.csv"}).class_names == ("a", "b")
    table(tmp_path / "tables/labels.csv", "file,label", *(f"photo{i}.png,{'ab'[i % 2]}" for i in range(4)))
    with pytest.raises(
        DapError, match=f"names no image here; its paths were looked for in {tmp_path}/tables, {tmp_path}$"
    ):
        opened(tmp_path, chosen={"train": "tables/labels.csv"})


# ---- what is a label


def test_a_label_below_0_is_none(tmp_path: Path) -> None:
    put(tmp_path, 6)
    splits = ["train", "train", "validation", "validation", "test", "test"]
    lines = [f"im00{i}.png,{-1 if i > 3 else i % 2},{split}" for i, split in enumerate(splits)]
    table(tmp_path / "metadata.csv", "file,label,split", *lines)
    assert contents(opened(tmp_path, "test")) == {"0": ["im002.png"], "1": ["im003.png"]}
    table(tmp_path / "metadata.csv", "file,label", *(line.rpartition(",")[0] for line in lines))
    with pytest.raises(DapError, match="line 6 gives the label -1; a label is a name, or a whole number from 0 on"):
        opened(tmp_path)


def test_a_test_folder_whose_table_has_no_labels_is_passed_over(tmp_path: Path) -> None:
    for split, label in (("train", None), ("val", None), ("test", -1)):
        put(tmp_path / split, 4)
        lines = (f"im00{i}.png,{i % 2 if label is None else label}" for i in range(4))
        table(tmp_path / split / "labels.csv", "file,label", *lines)
    source = opened(tmp_path, "test")
    assert source.class_names == ("0", "1") and source.root == (tmp_path / "val").resolve()
    assert "labels none of its images: line 2 gives the label -1" in source.told("test")


def test_labels_of_parquet_files_are_those_of_tables(tmp_path: Path) -> None:
    """Before, "cat " was a class beside "cat", and an empty text was one too."""
    write_parquet(tmp_path / "train.parquet", {"image": rows(8), "label": ["cat", "cat ", "dog", " dog"] * 2})
    assert opened(tmp_path).class_names == ("cat", "dog")
    write_parquet(tmp_path / "train.parquet", {"image": rows(8), "label": ["", "dog"] * 4})
    with pytest.raises(DapError, match="4 rows without a label"):
        opened(tmp_path)
    write_parquet(tmp_path / "validation.parquet", {"image": rows(8), "label": ["cat", "dog"] * 4})
    write_parquet(tmp_path / "test.parquet", {"image": rows(8), "label": [""] * 4 + ["-1"] * 4})
    assert "test.parquet has no labels; it is passed over for validation" in opened(tmp_path, "test").told("test")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("column", ["label", "labels", "class"])
def test_one_image_of_each_class_is_taken_and_told(column: str, kind: str, tmp_path: Path) -> None:
    """Before, the advice was to call the column as it was called."""
    names = [f"class {i}" for i in range(10)]
    if kind == "csv":
        put(tmp_path, 10)
        table(tmp_path / "labels.csv", f"file,{column}", *(f"im00{i}.png,{name}" for i, name in enumerate(names)))
    else:
        write_parquet(tmp_path / "train.parquet", {"image": rows(), column: names})
    told = opened(tmp_path).told("train")
    assert "10 classes, 10 images" in told and f"gives 10 images 10 different values in its column '{column}'" in told
