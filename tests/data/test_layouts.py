"""Layouts that people have: read as they mean it, or stopped with both readings named. Case ids are those of shared/cases."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dap.base.errors import DapError
from dap.data.real.base import Source
from dap.data.real.sources import open_source
from dap.data.sets.distilled import DistilledSet

CATS, DOGS = (200, 30, 30), (30, 30, 200)


def put(folder: Path, n: int = 3, colour: tuple[int, int, int] = CATS, start: int = 0, ext: str = "png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + n):
        Image.new("RGB", (8, 8), (colour[0], i % 250, colour[2])).save(folder / f"im{i:03d}.{ext}")


def pair(folder: Path, start: int = 0, names: tuple[str, str] = ("cat", "dog")) -> None:
    put(folder / names[0], 3, CATS, start)
    put(folder / names[1], 3, DOGS, start)


def opened(path: Path, split: str = "train", **more: Any) -> Source:
    return open_source(path, split, size=8, **more)


def contents(source: Source) -> dict[str, list[str]]:
    return {name: source.keys(k, range(source.count(k))) for k, name in enumerate(source.class_names)}


def write_parquet(file: Path, columns: dict[str, Any]) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)


def rows(n: int = 10) -> list[bytes]:
    import io

    found = []
    for i in range(n):
        out = io.BytesIO()
        Image.new("RGB", (8, 8), (i * 20, 0, 0)).save(out, "PNG")
        found.append(out.getvalue())
    return found


# ---- folders


def test_case_a1_a_wrapper_folder_is_entered_and_said(tmp_path: Path) -> None:
    pair(tmp_path / "flower_photos")
    (tmp_path / "README.txt").write_text("")
    source = opened(tmp_path)
    assert source.class_names == ("cat", "dog") and "holds nothing but flower_photos/" in source.told("train")


def test_case_a1b_splits_in_a_wrapper(tmp_path: Path) -> None:
    pair(tmp_path / "archive" / "chest" / "train")
    pair(tmp_path / "archive" / "chest" / "test", 50)
    assert contents(opened(tmp_path, "test"))["cat"] == ["cat/im050.png", "cat/im051.png", "cat/im052.png"]
    assert contents(opened(tmp_path))["cat"][0] == "cat/im000.png"


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("TRAIN_SET", "Valid"),
        ("TrainImages", "dev"),
        ("images_train", "images_eval"),
        ("train2017", "val2017"),
        ("tr", "tst"),
    ],
)
def test_cases_a2_a2b_a8_words_for_splits(train: str, test: str, tmp_path: Path) -> None:
    pair(tmp_path / train)
    pair(tmp_path / test, 50)
    assert contents(opened(tmp_path))["dog"] == ["dog/im000.png", "dog/im001.png", "dog/im002.png"]
    assert contents(opened(tmp_path, "test"))["dog"][0] == "dog/im050.png"


def test_two_folders_for_one_split_stop_and_the_flag_decides(tmp_path: Path) -> None:
    pair(tmp_path / "train_set")
    pair(tmp_path / "seg_train", 20)
    pair(tmp_path / "val", 50)
    with pytest.raises(
        DapError, match="several folders for its train split: seg_train, train_set; .*--split train=seg_train"
    ):
        opened(tmp_path)
    assert contents(opened(tmp_path, chosen={"train": "seg_train"}))["cat"][0] == "cat/im020.png"


def test_case_a3_flat_folders_with_a_csv(tmp_path: Path) -> None:
    put(tmp_path / "train", 6)
    put(tmp_path / "test", 6, start=50)
    with pytest.raises(
        DapError, match="train holds 6 images that are not sorted into class folders, and no table labels"
    ):
        opened(tmp_path)
    lines = [f"im{i:03d},{'cat' if i < 3 else 'dog'}" for i in range(6)]
    (tmp_path / "train.csv").write_text("\n".join(["id,label", *lines]))
    source = opened(tmp_path)
    assert contents(source) == {
        "cat": ["im000.png", "im001.png", "im002.png"],
        "dog": ["im003.png", "im004.png", "im005.png"],
    }
    assert "labels are those of train.csv" in source.told("train")
    with pytest.raises(DapError, match="no test split with labels: .*test holds 6 images .* --split test=FOLDER"):
        opened(tmp_path, "test")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_case_a4_metadata_beside_images(kind: str, tmp_path: Path) -> None:
    for split, start in (("train", 0), ("test", 50)):
        put(tmp_path / split / "images", 6, start=start)
        said = [
            {"file_name": f"images/im{i:03d}.png", "note": f"{i}, x", "label": "cat" if i % 2 else "dog"}
            for i in range(start, start + 6)
        ]
        file = tmp_path / split / f"metadata.{kind}"
        if kind == "jsonl":
            file.write_text("".join(json.dumps(line) + "\n" for line in said))
        elif kind == "csv":
            text = "".join(f'{line["file_name"]},"{line["note"]}",{line["label"]}\r\n' for line in said)
            file.write_bytes(b"\xef\xbb\xbffile_name,note,label\r\n" + text.encode())
        else:
            write_parquet(file, {key: [line[key] for line in said] for key in said[0]})
    assert contents(opened(tmp_path))["cat"] == [f"images/im{i:03d}.png" for i in (1, 3, 5)]
    assert contents(opened(tmp_path, "test"))["dog"] == [f"images/im{i:03d}.png" for i in (50, 52, 54)]


def test_metadata_above_the_splits_labels_each_of_them(tmp_path: Path) -> None:
    put(tmp_path / "train", 4)
    put(tmp_path / "val", 4, start=50)
    files = [f"{s}/im{i:03d}.png" for s, o in (("train", 0), ("val", 50)) for i in range(o, o + 4)]
    (tmp_path / "metadata.csv").write_text("file_name,label\n" + "".join(f"{f},{int(f[-5]) % 2}\n" for f in files))
    assert contents(opened(tmp_path)) == {
        "0": ["train/im000.png", "train/im002.png"],
        "1": ["train/im001.png", "train/im003.png"],
    }
    assert contents(opened(tmp_path, "test"))["1"] == ["val/im051.png", "val/im053.png"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("filename,label\nim000.png,cat\nim009.png,cat\n", "line 3: there is no image 'im009.png'"),
        ("filename,label\nim000.png,cat\n../im001.png,cat\n", "line 3: there is no image '../im001.png'"),
        ("filename,label\nim000.png,cat\nim000.png,dog\n", "line 3 gives 'im000.png' the label 'dog', and an earlier"),
        ("filename,label\nim000.png,\n", "line 2 gives no label"),
        ("filename,label\nim000.png,a,b\n", "line 2: there are 3 columns, and the first line has 2"),
        ("filename,x,y\nim000.png,a,b\n", "no column of labels among filename, x, y; call the right one 'label'"),
        ("filename,note\n" + "".join(f"im00{i}.png,photo {i}\n" for i in range(4)), "captions or ids and no labels"),
        ("a,b\nno,yes\n", "labels.csv names no image here"),
        ("", "labels.csv has no rows"),
    ],
)
def test_a_table_of_labels_is_read_with_bounds(text: str, said: str, tmp_path: Path) -> None:
    put(tmp_path, 4)
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DapError, match=said):
        opened(tmp_path)


def test_a_table_without_heading_and_numbers_in_their_order(tmp_path: Path) -> None:
    put(tmp_path, 6)
    (tmp_path / "labels.csv").write_text("".join(f"im00{i}.png;{(2, 10)[i % 2]}\n" for i in range(5)))
    source = opened(tmp_path)
    assert source.class_names == ("2", "10") and source.count(0) == 3
    assert "left out: 1 image that it does not name" in source.told("train")


def test_case_h1_class_folders_beside_metadata(tmp_path: Path) -> None:
    pair(tmp_path / "train")
    names = {"file_name": ["train/cat/im000.png"], "photographer": ["x"]}
    write_parquet(tmp_path / "metadata.parquet", names)
    assert opened(tmp_path).class_names == ("cat", "dog")
    (tmp_path / "train" / "metadata.csv").write_text("file_name,photographer\ncat/im000.png,x\ncat/im001.png,x\n")
    assert opened(tmp_path).class_names == ("cat", "dog")


def test_a_table_that_contradicts_class_folders_stops_and_the_flag_decides(tmp_path: Path) -> None:
    pair(tmp_path, names=("batch1", "batch2"))
    files = [f"batch{k}/im00{i}.png" for k in (1, 2) for i in range(3)]
    table = tmp_path / "labels.csv"
    table.write_text("filename,label\n" + "".join(f"{f},{'cat' if '0.png' in f else 'dog'}\n" for f in files))
    with pytest.raises(DapError, match="read in two ways: .*--split train=.*--split train=labels.csv"):
        opened(tmp_path)
    assert opened(tmp_path, chosen={"train": "labels.csv"}).class_names == ("cat", "dog")
    assert opened(tmp_path, chosen={"train": "."}).class_names == ("batch1", "batch2")
    table.write_text("filename,label\n" + "".join(f"{f},{'cat' if 'batch1' in f else 'dog'}\n" for f in files))
    assert opened(tmp_path).class_names == ("batch1", "batch2")  # the same parts under other names


def test_case_a10_and_a10b_litter_is_ignored(tmp_path: Path) -> None:
    pair(tmp_path)
    for name in (
        ".DS_Store",
        "cat/._im000.png",
        "cat/Thumbs.db",
        "__MACOSX/cat/._im000.png",
        "cat/notes.txt",
        "dog/b.heic",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\0")
    told = opened(tmp_path).told("train")
    assert "2 classes, 6 images, 8 × 8" in told
    assert "left out: 2 files that are no images (.txt 1, .heic 1), 2 hidden" in told


def test_a_folder_of_other_files_is_no_class_and_is_told(tmp_path: Path) -> None:
    pair(tmp_path)
    (tmp_path / "annotations" / "xmls").mkdir(parents=True)
    (tmp_path / "annotations" / "xmls" / "im000.xml").write_text("<a/>")
    source = opened(tmp_path)
    assert source.class_names == ("cat", "dog")
    assert source.notes == ("left out: annotations/, which holds no image",)
    with pytest.raises(DapError, match="no images in annotations of"):
        opened(tmp_path, classes=["annotations", "cat"])
    (tmp_path / "annotations" / "xmls" / "im000.heic").write_bytes(b"\0")
    with pytest.raises(DapError, match="no images in annotations of"):
        opened(tmp_path)


@pytest.mark.parametrize(("full", "bare"), [("train", "test"), ("test", "train")])
def test_a_folder_without_images_whose_twin_in_the_other_split_has_some_stops(
    full: str, bare: str, tmp_path: Path
) -> None:
    for split, start in (("train", 0), ("test", 50)):
        pair(tmp_path / split, start)
    put(tmp_path / full / "eel")
    (tmp_path / bare / "eel").mkdir()
    (tmp_path / bare / "eel" / "list.txt").write_text("lost")
    assert opened(tmp_path, full).class_names == ("cat", "dog", "eel")
    with pytest.raises(DapError, match=f"no images in eel of {tmp_path.name}; add some"):
        opened(tmp_path, bare)
    chosen = {full: "a", bare: "b"}
    for split, place in chosen.items():
        (tmp_path / split).rename(tmp_path / place)
    with pytest.raises(DapError, match="no images in eel"):
        opened(tmp_path, bare, chosen=chosen)


def test_case_a11_an_empty_class_stops(tmp_path: Path) -> None:
    pair(tmp_path)
    (tmp_path / "eel").mkdir()
    with pytest.raises(DapError, match="no images in eel"):
        opened(tmp_path)
    assert opened(tmp_path, classes=["cat", "dog"]).class_names == ("cat", "dog")


def test_case_a12_every_ending_is_read(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    for name, kind in (
        ("a.jfif", "JPEG"),
        ("b.jpe", "JPEG"),
        ("c.PPM", "PPM"),
        ("d.tga", "TGA"),
        ("e.jp2", "JPEG2000"),
    ):
        Image.new("RGB", (8, 8)).save(tmp_path / "cat" / name, kind)
    assert len(opened(tmp_path).tensors()[0]) == 5


def test_case_a16_links_are_followed_once(tmp_path: Path) -> None:
    pair(tmp_path / "store")
    (tmp_path / "data" / "train").mkdir(parents=True)
    for name in ("cat", "dog"):
        (tmp_path / "data" / "train" / name).symlink_to(tmp_path / "store" / name)
    (tmp_path / "store" / "cat" / "loop").symlink_to("../..")
    assert opened(tmp_path / "data").told("train") == "train: 2 classes, 6 images, 8 × 8"


def test_case_a17_a_latin1_folder_is_one_sentence(tmp_path: Path) -> None:
    import os

    pair(tmp_path)
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    put(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")), 1)
    with pytest.raises(DapError, match=r"class name caf\\xe9 of .* is not UTF-8; rename it") as error:
        opened(tmp_path)
    str(error.value).encode("utf-8")
    assert opened(tmp_path, classes=["dog"]).class_names == ("dog",)


def test_case_a20_a_class_called_train_stops_and_both_readings_can_be_had(tmp_path: Path) -> None:
    pair(tmp_path / "car", names=("red", "blue"))
    pair(tmp_path / "train", names=("steam", "diesel"))
    with pytest.raises(DapError) as error:
        opened(tmp_path)
    said = str(error.value)
    assert "can be read in two ways" in said and "--split train=train" in said and "--split train=." in said
    assert opened(tmp_path, chosen={"train": "train"}).class_names == ("diesel", "steam")
    assert opened(tmp_path, chosen={"train": "."}).class_names == ("car", "train")


def test_splits_beside_other_folders_are_read_and_the_others_are_named(tmp_path: Path) -> None:
    pair(tmp_path / "train")
    pair(tmp_path / "test", 50)
    put(tmp_path / "pred", 4)
    assert "pred/ in " in opened(tmp_path).told("train") and opened(tmp_path).class_names == ("cat", "dog")


def test_splits_inside_class_folders(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        put(tmp_path / name / "Train", 3)
        put(tmp_path / name / "test", 2, start=50)
    assert contents(opened(tmp_path))["cat"] == ["cat/Train/im000.png", "cat/Train/im001.png", "cat/Train/im002.png"]
    assert contents(opened(tmp_path, "test"))["dog"] == ["dog/test/im050.png", "dog/test/im051.png"]


# ---- parquet


def test_case_c3f_the_type_of_labels_is_said(tmp_path: Path) -> None:
    for name, labels, said in (
        ("f", [0.0, 1.0] * 5, "double"),
        ("b", [True, False] * 5, "bool"),
        ("l", [[0]] * 10, "list"),
    ):
        write_parquet(tmp_path / name / "train.parquet", {"image": rows(), "label": labels})
        with pytest.raises(DapError, match=f"column 'label' of .* holds {said}.*whole numbers or names"):
            opened(tmp_path / name)


def test_case_c4_paths_are_read_beside_the_file(tmp_path: Path) -> None:
    put(tmp_path / "images", 4)
    paths = [f"images/im00{i}.png" for i in range(4)]
    structs = [{"bytes": None, "path": path} for path in paths]
    write_parquet(tmp_path / "train.parquet", {"image": paths, "label": [0, 0, 1, 1]})
    assert len(opened(tmp_path).tensors()[0]) == 4
    write_parquet(tmp_path / "train.parquet", {"image": structs, "label": [0, 0, 1, 1]})
    source = opened(tmp_path)
    assert len(source.tensors()[0]) == 4
    before = source.fingerprint()
    Image.new("RGB", (8, 8), "white").save(tmp_path / paths[0])
    assert opened(tmp_path).fingerprint() != before
    write_parquet(tmp_path / "train.parquet", {"image": ["/etc/x.png", "../y.png"], "label": [0, 1]})
    with pytest.raises(DapError, match="holds paths such as '/etc/x.png', and no such file lies beside it"):
        opened(tmp_path)


def test_a_file_beside_a_parquet_file_counts_as_one_in_a_class_folder_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that cannot be opened is broken and within the limit, and one of 65 MiB is read."""
    put(tmp_path / "images", 4)
    paths = [f"images/im00{i}.png" for i in range(4)]
    os.truncate(tmp_path / paths[3], 65 * 2**20)  # Pillow reads no further than the image
    write_parquet(tmp_path / "train.parquet", {"image": [*paths, "x" * 5000], "label": [0, 0, 1, 1, 1]})
    forbidden, read = tmp_path / paths[1], Path.read_bytes

    def refusing(path: Path) -> bytes:
        if path == forbidden:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refusing)
    source = opened(tmp_path, max_bad_fraction=0.5)
    assert len(source.tensors()[0]) == 3 and len(source.sizes()) == 3
    assert source.bad[0] == ("train.parquet#1", "its file 'images/im001.png' cannot be read: permission denied")
    assert source.bad[1][1].endswith("is not beside train.parquet")
    with pytest.raises(
        DapError, match=r"2 broken images .* train.parquet#1 \(its file 'images/im001.png' cannot be read"
    ):
        opened(tmp_path).tensors()


@pytest.mark.parametrize(
    "name", ["a.zip", "a.tar", "a.tar.gz", "a.bz2", "a.npz", "a.pt", "a.lmdb", "a.mat", "a.heic", "a.dcm", "a.mp4"]
)
def test_one_list_of_files_that_hold_images_and_are_not_read(name: str, tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / name).touch()
    (tmp_path / name).touch()
    with pytest.raises(DapError, match=f"holds no images, but files such as {name}, an? .*; unpack or convert them"):
        opened(tmp_path)
    with pytest.raises(DapError, match="which is not read; |not class folders"):
        DistilledSet.from_folder(tmp_path)


def test_case_c5_arrays_are_said(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", {"image": [[[[1, 2, 3]]]] * 4, "label": [0, 0, 1, 1]})
    with pytest.raises(DapError, match="column 'image' of .* holds list.*encode each image as one file"):
        opened(tmp_path)


def test_case_c6_configurations(tmp_path: Path) -> None:
    labels = [0, 1] * 5
    for name in ("default/train-00000-of-00001", "default/test-00000-of-00001"):
        write_parquet(tmp_path / "a" / f"{name}.parquet", {"image": rows(), "label": labels})
    for name in ("default/train/0000", "default/test/0000"):
        write_parquet(tmp_path / "b" / f"{name}.parquet", {"image": rows(), "label": labels})
    for name in ("a", "b"):
        assert opened(tmp_path / name).class_names == opened(tmp_path / name, "test").class_names == ("0", "1")
        assert opened(tmp_path / name).place != opened(tmp_path / name, "test").place
    write_parquet(tmp_path / "b" / "other" / "train.parquet", {"image": rows(), "label": labels})
    with pytest.raises(DapError, match="parquet files lie in default, other: give .*default"):
        opened(tmp_path / "b")


def test_case_c7_training_and_testing_files(tmp_path: Path) -> None:
    for name, labels in (("training-0", [0, 1] * 5), ("testing-0", [1, 2] * 5), ("extra-0", [0, 1] * 5)):
        write_parquet(tmp_path / f"{name}.parquet", {"image": rows(), "label": labels})
    source = opened(tmp_path)
    assert source.keys(0, [0]) == ["training-0.parquet#0"] and source.count(0) == 5
    assert "extra-0.parquet belongs to no split" in source.told("train")
    assert opened(tmp_path, "test", classes=["1", "2"]).keys(0, [0]) == ["testing-0.parquet#0"]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("text", [f"a photo number {i}" for i in range(10)]),
        ("caption", ["a cat", "a dog"] * 5),
        ("image_id", list(range(10))),
        ("title2", [f"a photo number {i}" for i in range(10)]),
    ],
)
def test_case_c8_captions_and_ids_are_no_labels(column: str, values: list[Any], tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", {"image": rows(), column: values})
    with pytest.raises(DapError, match="captions"):
        opened(tmp_path)


def test_case_c9_arrow_is_named(tmp_path: Path) -> None:
    for name in ("x/train/data-00000-of-00001.arrow", "x/dataset_dict.json", "x/train/state.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    for path in (tmp_path, tmp_path / "x", tmp_path / "x" / "train"):
        with pytest.raises(DapError, match=r"save_to_disk. Write them as parquet: datasets.load_from_disk"):
            opened(path)
