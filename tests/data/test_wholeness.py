"""What is absent is told or refused: parts of a table, files of an export, labels of images, files of the given layout."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_layouts import contents, opened, pair, put, rows, write_parquet

from dap.base.errors import DapError
from dap.cli.main import main
from dap.data.real.finding.shards import check_shards
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.export import export
from dap.data.sets.imports import import_set

# ---- parts of a table


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a-0-of-3", "a-1-of-3", "a-2-of-3"], ""),
        (["a-00001-of-00003", "a-00002-of-00003", "a-00003-of-00003"], ""),
        (["a-00000-of-00002-1f", "a-00001-of-00002-2e", "b-00000-of-00001"], ""),
        (["a-00000-of-00003", "a-00002-of-00003"], "lacks 1 of the 3 files of a: a-00001-of-00003. "),
        (["a-00000-of-00003", "a-00001-of-00003"], "lacks 1 of the 3 files of a: a-00002-of-00003. "),
        (["a-00002-of-00003", "a-00003-of-00003"], "lacks 1 of the 3 files of a: a-00001-of-00003. "),
        (["a-0-of-1", "b-1-of-9"], "lacks 8 of the 9 files of b: b-0-of-9, b-2-of-9, b-3-of-9 and 5 more. "),
        (["a-0-of-999999999"], "lacks 999,999,998 of the 999,999,999 files"),
        (["a", "b-of-3", "one-3-of-two"], ""),
    ],
)
def test_parts_of_a_table_are_counted(names: list[str], said: str) -> None:
    files = [Path("d") / f"{name}.parquet" for name in names]
    if not said:
        return check_shards(files)
    with pytest.raises(DapError, match=said):
        check_shards(files)


def test_absent_parts_of_parquet_files_are_named_wherever_they_lie(tmp_path: Path) -> None:
    """Before, a data set without its second part was read as a whole one."""
    columns = {"image": rows(), "label": [0, 1] * 5}
    for place in ("a", "a/data", "b/train"):
        for number in (0, 2):
            write_parquet(tmp_path / place / f"train-{number:05d}-of-00003.parquet", columns)
        path = tmp_path / place.partition("/")[0]
        with pytest.raises(DapError, match="lacks 1 of the 3 files of train: train-00001-of-00003. Fetch them"):
            opened(path)
        with pytest.raises(DapError, match="train-00001-of-00003"):
            import_set(path, tmp_path / "o", ipc=1, layout="parquet")
        assert opened(path, chosen={"train": "train"}).count(0) == 10, "the advice"
        shutil.rmtree(tmp_path / place)
    for number in (0, 2):
        write_parquet(tmp_path / f"train-{number:05d}-of-00003.parquet", columns)
    write_parquet(tmp_path / "test-00000-of-00001.parquet", columns)
    assert opened(tmp_path, "test").count(0) == 5  # this split is whole
    assert opened(tmp_path, chosen={"train": "train-00000-of-00003.parquet"}).count(0) == 5  # one file, and on purpose
    assert opened(tmp_path, chosen={"train": "train"}).count(0) == 10, "without the test images"


# ---- class names of several files


def named(file: Path, names: list[str] | None, colours: list[tuple[int, int, int]], labels: list[int]) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    encoded = []
    for colour in colours:
        Image.new("RGB", (8, 8), colour).save(out := io.BytesIO(), "PNG")
        encoded.append(out.getvalue())
    kinds = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    note = {"huggingface": json.dumps({"info": {"features": kinds}})} if names else None
    pq.write_table(pa.table({"image": encoded, "label": labels}).replace_schema_metadata(note), file)


def test_files_that_number_their_classes_otherwise_are_read_by_the_names(tmp_path: Path) -> None:
    """Before, the second file's blue images were of the class red."""
    red, blue = (250, 0, 0), (0, 0, 250)
    named(tmp_path / "a.parquet", ["red", "blue"], [red, blue, red], [0, 1, 0])
    named(tmp_path / "b.parquet", ["blue", "red"], [blue, red, blue], [0, 1, 0])
    source = opened(tmp_path)
    assert contents(source) == {
        "red": ["a.parquet#0", "a.parquet#2", "b.parquet#1"],
        "blue": ["a.parquet#1", "b.parquet#0", "b.parquet#2"],
    }
    images, labels = source.tensors()
    assert torch.equal(images[:, 2, 0, 0] > 0.5, labels == 1)
    same = tmp_path / "same"
    same.mkdir()
    named(same / "a.parquet", ["red", "blue"], [red, blue, red], [0, 1, 0])
    shutil.copy(tmp_path / "b.parquet", same)
    assert opened(same).fingerprint() == source.fingerprint()
    made = import_set(tmp_path, tmp_path / "o", ipc=2)
    assert [record["source"] for record in made.records if record["class_name"] == "red"] == [
        "a.parquet#0",
        "a.parquet#2",
    ]
    for names in (["blue", "green"], ["blue"], None):
        named(tmp_path / "b.parquet", names, [blue, blue], [0, 0])
        with pytest.raises(
            DapError, match="the files number different classes: .*b.parquet names .*, and .*a.parquet names red"
        ):
            opened(tmp_path)


# ---- exports


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> DistilledSet:
    made = DistilledSet.create(tmp_path_factory.mktemp("small") / "set", ("zebra", "ape"), 3, {"method": "x"})
    generator = torch.Generator().manual_seed(0)
    for label, slot in made.missing():
        made.add(label, slot, torch.rand(3, 8, 8, generator=generator))
    return made


@pytest.mark.parametrize("layout", ["webdataset", "parquet", "imagefolder", "pt", "fiftyone"])
def test_an_export_of_which_a_file_is_gone_is_not_imported(layout: str, small: DistilledSet, tmp_path: Path) -> None:
    """Before, a WebDataset without its second shard was imported with fewer images."""
    said = export(small, tmp_path / "e", layout, shard_size=2 if layout in ("webdataset", "parquet") else None)
    (tmp_path / "e" / "README.md").unlink()  # the card holds no data
    assert len(import_set(tmp_path / "e", tmp_path / "whole")) == 6
    files = [name for name in said["files"] if name.endswith((".tar", ".parquet", ".png", ".pt"))]
    (tmp_path / "e" / files[-1]).unlink()
    with pytest.raises(DapError, match=f"lacks {files[-1]} of the .* files that its export.json lists"):
        import_set(tmp_path / "e", tmp_path / "o")
    if layout == "imagefolder":
        with pytest.raises(DapError, match="files that its export.json lists"):
            DistilledSet.from_folder(tmp_path / "e")
    if layout == "webdataset":
        (tmp_path / "e" / "export.json").unlink()  # the advice
        assert import_set(tmp_path / "e", tmp_path / "o").ipc == 2
    assert export(
        small, tmp_path / "e" if layout != "webdataset" else tmp_path / "n", layout, shard_size=said["shard_size"]
    )


# ---- a layout that is given and not there, and what is left out


@pytest.mark.parametrize(
    ("layout", "said"),
    [("parquet", "holds no parquet files"), ("webdataset", "holds no .tar file"), ("pt", "it has none")],
)
def test_a_layout_that_is_not_there_is_a_sentence(
    layout: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before, these were traces of an IndexError and a ValueError."""
    pair(tmp_path / "d")
    assert main(["import", str(tmp_path / "d"), "--layout", layout, "--out", str(tmp_path / "o")]) == 1
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err
    assert (
        main(["import", str(tmp_path / "d" / "cat" / "im000.png"), "--layout", layout, "--out", str(tmp_path / "o")])
        == 1
    )
    assert "Traceback" not in capsys.readouterr().err


def test_images_that_no_label_names_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "f" / "data", 5)
    labels = {"classes": ["a", "b"], "labels": {"im000": 0, "im001": 1}}
    (tmp_path / "f" / "labels.json").write_text(json.dumps(labels))
    pair(tmp_path / "d")
    put(tmp_path / "d", 2)
    unnamed = "Left out: 3 images that lie in data and are not named in labels.json."
    for name, said in (("f", unnamed), ("d", "Left out: 2 images that lie in no class folder.")):
        run = ["import", str(tmp_path / name), "--out", str(tmp_path / f"{name}-o")]
        assert main(run) == 0
        assert said in (tmp_path / f"{name}-o" / "import.json").read_text()
        assert main(run) == 0  # the finished import
        noted = json.loads((tmp_path / f"{name}-o" / "import.json").read_text())
        noted["facts"] = {}  # as an earlier version wrote it
        (tmp_path / f"{name}-o" / "import.json").write_text(json.dumps(noted))
        assert main(run) == 0
    capsys.readouterr()


def test_classes_with_commas_between_them_are_told_how_to_be_given(small: DistilledSet, tmp_path: Path) -> None:
    pair(tmp_path / "d")
    hint = "spaces and not by commas, as in --classes {}$"
    with pytest.raises(DapError, match="unknown class 'cat,dgo' in .*" + hint.format("cat dgo")):
        import_set(tmp_path / "d", tmp_path / "o", class_names=["cat,dgo"])
    with pytest.raises(DapError, match=hint.format("cat")):
        opened(tmp_path / "d", classes=["cat,", "dog"])
    with pytest.raises(DapError, match=hint.format("ape zebra").replace("$", "")):
        import_set(small.path, tmp_path / "o", class_names=["ape,zebra"])
    with pytest.raises(DapError, match="unknown class 'cow'") as error:
        opened(tmp_path / "d", classes=["cow"])
    assert "spaces" not in str(error.value)
