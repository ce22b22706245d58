"""The test split is the one with labels, the user can say which, and no folder is both splits. Cases A5-A9, C1, C2."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from test_layouts import contents, opened, pair, put, rows, write_parquet

from dap.base.errors import DapError
from dap.choices import Data
from dap.data.real.finding.splits import split_of, split_of_file
from dap.recipe import Recipe
from dap.verbs.understood import check_apart, tell_of
from dap.workshop import Workshop


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("seg_train", "train"),
        ("trainset", "train"),
        ("TRAIN-DATA", "train"),
        ("TrainImages", "train"),
        ("train2017", "train"),
        ("valid", "validation"),
        ("dev", "validation"),
        ("Validation Set", "validation"),
        ("seg_test", "test"),
        ("test1", "test"),
        ("images_testing", "test"),
        ("train_labels", None),
        ("trains", None),
        ("training shoes", None),
        ("images", None),
        ("train_test", None),
        ("latest", None),
        ("contest", None),
    ],
)
def test_words_for_splits(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_words_in_names_of_files() -> None:
    for name, split in (
        ("train-00000-of-00001-aa.parquet", "train"),
        ("training-0.parquet", "train"),
        ("cats_validation.parquet", "validation"),
        ("dev.parquet", "validation"),
        ("testing-0.parquet", "test"),
        ("data.parquet", None),
        ("train_vs_test.parquet", None),
    ):
        assert split_of_file(name) == split, name


def test_cases_a6_and_fastai_an_unlabelled_test_folder_is_passed_over(tmp_path: Path) -> None:
    pair(tmp_path / "train")
    pair(tmp_path / "val", 50)
    put(tmp_path / "test" / "unknown", 4, start=80)
    source = opened(tmp_path, "test")
    assert source.class_names == ("cat", "dog") and contents(source)["cat"][0] == "cat/im050.png"
    assert "test/ has no labels: it holds only the folder unknown; it is passed over for val/" in source.told("test")
    assert opened(tmp_path, "test", chosen={"test": "test"}).class_names == ("unknown",)


def test_case_a5_tiny_imagenet(tmp_path: Path) -> None:
    for name in ("n01", "n02"):
        put(tmp_path / "train" / name / "images", 3)
    for split in ("val", "test"):
        put(tmp_path / split / "images", 4, start=50)
    with pytest.raises(
        DapError, match="no test split with labels: .*test.*images.*; .*val.*images.*--split test=FOLDER"
    ):
        opened(tmp_path, "test")
    lines = [f"im{i:03d}.png\tn0{1 + i % 2}\t0\t0\t62\t62\n" for i in range(50, 54)]
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(lines))
    assert contents(opened(tmp_path, "test")) == {
        "n01": ["images/im050.png", "images/im052.png"],
        "n02": ["images/im051.png", "images/im053.png"],
    }


def test_case_a7_a_flat_val_is_said_and_the_advice_can_be_followed(tmp_path: Path) -> None:
    pair(tmp_path / "imagenet" / "train")
    put(tmp_path / "imagenet" / "val", 4)
    pair(tmp_path / "sorted", 50)
    with pytest.raises(DapError, match="val holds 4 images that are not sorted .*--split test=FOLDER") as error:
        opened(tmp_path / "imagenet", "test")
    assert "split 'train'" not in str(error.value)
    source = opened(tmp_path / "imagenet", "test", chosen={"test": "../sorted"})
    assert contents(source)["dog"][0] == "dog/im050.png"
    assert opened(tmp_path / "imagenet", "test", chosen={"test": str(tmp_path / "sorted")}).place == source.place


def test_the_user_says_which_split_is_the_test_split(tmp_path: Path) -> None:
    pair(tmp_path / "train")
    pair(tmp_path / "val", 50)
    pair(tmp_path / "test", 70)
    assert contents(opened(tmp_path, "test"))["cat"][0] == "cat/im070.png"
    for word in ("val", "validation"):
        assert contents(opened(tmp_path, "test", chosen={"test": word}))["cat"][0] == "cat/im050.png"
    with pytest.raises(DapError, match="does not exist|neither"):
        opened(tmp_path, "test", chosen={"test": "tset"})


def test_case_c1_labels_of_minus_one_are_no_labels(tmp_path: Path) -> None:
    for name, labels in (("train", [0, 1] * 5), ("validation", [0, 1] * 5), ("test", [-1] * 10)):
        write_parquet(tmp_path / "data" / f"{name}-00000-of-00001.parquet", {"image": rows(), "label": labels})
    source = opened(tmp_path, "test")
    assert source.keys(0, [0]) == ["validation-00000-of-00001.parquet#0"]
    assert "test-00000-of-00001.parquet has no labels; it is passed over for validation" in source.told("test")
    (tmp_path / "data" / "validation-00000-of-00001.parquet").unlink()
    with pytest.raises(DapError, match="no test split with labels: test-00000-of-00001.parquet has no labels"):
        opened(tmp_path, "test")


def test_case_c2_valid_and_dev_files(tmp_path: Path) -> None:
    for word in ("valid", "dev"):
        for name in ("train", word):
            write_parquet(tmp_path / word / f"{name}-00000-of-00001.parquet", {"image": rows(), "label": [0, 1] * 5})
        assert opened(tmp_path / word, "test").keys(0, [0])[0].startswith(word)


def test_case_a9_a_folder_called_test_is_not_both_splits(tmp_path: Path) -> None:
    pair(tmp_path / "test")
    pair(tmp_path / "other", 50)
    workshop = Workshop("cpu")
    with pytest.raises(DapError, match="--split test=FOLDER.* --split train=.,test=."):
        check_apart(workshop, Data(path=str(tmp_path / "test")))
    for split in ("train=.,test=.", "test=../other"):  # both pieces of advice
        check_apart(workshop, Data(path=str(tmp_path / "test"), split=split))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_a_test_split_that_is_a_link_to_the_training_images_is_named(kind: str, tmp_path: Path) -> None:
    """Before, it was said that the folder is called as a test split, and distill said nothing."""
    if kind == "folder":
        pair(tmp_path / "d" / "train")
        (tmp_path / "d" / "test").symlink_to("train")
        one, other = "train", "test"
    else:
        write_parquet(tmp_path / "d" / "train.parquet", {"image": rows(), "label": [0, 1] * 5})
        (tmp_path / "d" / "test.parquet").symlink_to("train.parquet")
        one, other = "train.parquet", "test.parquet"
    workshop, told, data = Workshop("cpu"), list[str](), Data(path=str(tmp_path / "d"))
    workshop.tell = told.append
    said = f"{other} and {one} are one and the same, because a link leads from one to the other"
    with pytest.raises(DapError, match=f"{said}.*--split train={one},test={one}.$"):
        check_apart(workshop, data)
    check_apart(workshop, Data(path=data.path, split=f"train={one},test={one}"))  # pyright: ignore[reportArgumentType]
    before = len(told)
    for _ in range(2):
        tell_of(workshop, data)
    assert len(told) == before + 1 and said in told[-1] and told[-1].startswith("test: the test images of")


def test_split_is_a_field_of_a_recipe_and_an_open_one_leaves_no_trace() -> None:
    recipe = Recipe.parse({"method": "random", "data": {"path": "d", "split": "train=a, test=b/c"}})
    assert recipe.data.split is not None and recipe.data.split.given() == {"train": "a", "test": "b/c"}
    again = Recipe.parse(recipe.model_dump())
    assert again.data == recipe.data and hash(again.data) == hash(recipe.data)
    assert recipe.resolved(None, None, 8).values()["data"]["split"] == {"train": "a", "test": "b/c"}
    assert "split" not in Recipe.parse({"method": "random"}).resolved(None, None, 8).values()["data"]
    for wrong in ("val=x", "train", "train="):
        with pytest.raises(DapError, match="train=FOLDER,test=FOLDER is needed"):
            Recipe.parse({"data": {"split": wrong}})


def test_what_was_understood_is_told_once_before_any_work(tmp_path: Path) -> None:
    pair(tmp_path / "train")
    pair(tmp_path / "valid", 50)
    workshop, told = Workshop("cpu"), list[str]()
    workshop.tell = told.append
    for _ in range(2):
        tell_of(workshop, Data(path=str(tmp_path)))
    assert told == ["train: 2 classes, 6 images, 8 × 8", "test: 2 classes, 6 images, 8 × 8"]
    tell_of(workshop, Data(path=str(tmp_path / "train")))
    assert told[3].startswith("test: none (") and "no test split" in told[3]


def test_case_a18_words_that_yaml_changes(tmp_path: Path) -> None:
    pair(tmp_path, names=("yes", "no"))
    with pytest.raises(DapError, match="put the names in quotes"):
        Recipe.parse({"data": {"classes": [date(2020, 1, 1)]}})
    with pytest.raises(DapError, match="put a word in quotes") as error:
        Recipe.parse({"data": {"classes": [True, False]}}, "a18.yaml")
    assert str(error.value).startswith("a18.yaml cannot be used")
    assert opened(tmp_path, classes=["yes", "no"]).class_names == ("yes", "no")
    pair(tmp_path / "b", names=("001", "010"))
    wanted = Recipe.parse({"data": {"classes": [1, 8]}}).data.classes
    with pytest.raises(DapError, match=r"YAML reads 001 and 010 as .* quote such names"):
        opened(tmp_path / "b", classes=wanted)


def test_case_a13_composed_and_decomposed_names_are_equal(tmp_path: Path) -> None:
    import unicodedata

    for split, form, start in (("train", "NFD", 0), ("test", "NFC", 50)):
        pair(tmp_path / split, start, names=(unicodedata.normalize(form, "café"), "dog"))
    assert opened(tmp_path).class_names == opened(tmp_path, "test").class_names == ("caf\u00e9", "dog")
    for name in (unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")):
        assert opened(tmp_path, classes=[name]).count(0) == 3
    pair(tmp_path / "train", names=("caf\u00e9", "dog"))
    with pytest.raises(DapError, match="café named more than once"):
        opened(tmp_path)


def test_kind_10_a_set_of_real_images_gets_their_size(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (64, 64), (i, 0, 0)).save(tmp_path / name / f"{i}.png")
    workshop, told = Workshop("cpu"), list[str]()
    workshop.tell = told.append
    task = workshop.task(Recipe.parse({"method": "random", "ipc": 1, "data": {"path": str(tmp_path)}}))[1]
    assert task.recipe.data.size == 64 and len(told) == 1
    assert (
        workshop.task(Recipe.parse({"method": "random", "ipc": 1}))[1].recipe.data.size == 32
    )  # as the starter pads it
    Image.new("RGB", (90, 100)).save(tmp_path / "cat" / "0.png")
    workshop = Workshop("cpu")
    workshop.tell = told.append
    task = workshop.task(Recipe.parse({"method": "random", "ipc": 1, "data": {"path": str(tmp_path)}}))[1]
    assert task.recipe.data.size == 64 and "the set gets images of 64 × 64 px" in told[-1] and "--size" in told[-1]
