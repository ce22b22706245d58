"""Weights of images and soft labels travel in every layout, and an import gives them back."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from dap.base.errors import DapError
from dap.cli.main import main
from dap.data.sets.beside import KEPT, SOFT
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.export import LAYOUTS, export
from dap.data.sets.imports import import_set
from dap.evaluation.image_labels import image_labels as labels_by
from dap.evaluation.image_labels import open_image_labels, write_image_labels
from dap.evaluation.labelling import image_hashes
from dap.verbs.exchange.soft import logits_of

NAMES = ("zebra", "a/b", "ox")


@pytest.fixture(scope="module")
def weighed(tmp_path_factory) -> DistilledSet:
    made = DistilledSet.create(tmp_path_factory.mktemp("weighed") / "set", NAMES, 2, {"method": "x"})
    generator = torch.Generator().manual_seed(0)
    for label, slot in made.missing():
        image = torch.rand(3, 8, 8, generator=generator)
        made.add(label, slot, image, seed=1, weight=[0.75 - label / 8, 1.25 + label / 8][slot])
    return made


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)


def weights(made: DistilledSet) -> list[object]:
    return [line.get("weight") for line in made.records]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_and_back(weighed, logits, tmp_path, layout):
    export(weighed, tmp_path / "there", layout, logits=logits)
    back = import_set(tmp_path / "there", tmp_path / "back")
    assert weights(back) == weights(weighed) and image_hashes(back) == image_hashes(weighed) and back.verify() == []
    assert np.array_equal(logits_of(back, back.path / KEPT), logits)
    front, text = (tmp_path / "there" / "README.md").read_text().split("---\n\n", 1)
    assert "logits" in text and front
    notes = " ".join(back.noted("import.json")["notes"])
    assert "Each image has a weight" in notes and f"--teacher SET/{KEPT}" in notes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_set_without_them_is_exported_as_before(weighed, tmp_path, layout):
    """No file, column or key for what is not there."""
    plain = DistilledSet.create(tmp_path / "set", NAMES, 1, {"method": "x"})
    for label, slot in plain.missing():
        plain.add(label, slot, torch.full((3, 8, 8), label / 3), seed=1)
    said = export(plain, tmp_path / "there", layout)
    assert "logits" not in said and SOFT not in said["files"]
    back = import_set(tmp_path / "there", tmp_path / "back")
    assert weights(back) == [None] * 3 and not (back.path / KEPT).exists()


@pytest.mark.parametrize("layout", ["imagefolder", "parquet", "pt", "webdataset", "fiftyone"])
def test_a_choice_of_classes_in_another_order_takes_its_columns_along(weighed, logits, tmp_path, layout):
    export(weighed, tmp_path / "there", layout, logits=logits)
    back = import_set(tmp_path / "there", tmp_path / "back", class_names=["ox", "zebra"], ipc=1)
    assert np.array_equal(logits_of(back, back.path / KEPT), logits[[4, 0]][:, [2, 0]])
    assert weights(back) == [1.0, 1.0], "the only image of a class stands for all of it"


def test_a_set_of_ours_keeps_its_weights(weighed, tmp_path):
    assert weights(import_set(weighed.path, tmp_path / "copy")) == weights(weighed)


@pytest.mark.parametrize("layout", ["set", *LAYOUTS])
def test_the_weights_of_a_part_of_a_class_have_the_mean_1(weighed, tmp_path, layout):
    """They were copied as they are, 0.75 in each class of the first images."""
    if layout != "set":
        export(weighed, tmp_path / "out", layout)
    source = weighed.path if layout == "set" else tmp_path / "out"
    assert weights(import_set(source, tmp_path / "one", ipc=1)) == [1.0] * 3
    made = DistilledSet.blank(tmp_path / "three", ["a", "b"], 3)
    for label, slot in itertools.product(range(2), range(3)):
        made.add(label, slot, torch.rand(3, 4, 4), weight=[0.4, 0.8, 1.8][slot] + label / 10)
    two = weights(import_set(made.path, tmp_path / "two", ipc=2))
    assert two == pytest.approx([0.4 / 0.6, 0.8 / 0.6, 0.5 / 0.7, 0.9 / 0.7])


def test_an_import_with_other_weights_is_another_import(weighed, tmp_path):
    source = Path(shutil.copytree(weighed.path, tmp_path / "set"))
    import_set(source, tmp_path / "again")
    assert weights(import_set(source, tmp_path / "again")) == weights(weighed)
    file = source / "manifest.jsonl"
    file.write_text(file.read_text().replace("0.75", "0.5"))
    with pytest.raises(DapError, match="What changed: the weights of 1 of 6 images"):
        import_set(source, tmp_path / "again")


def test_the_verb_takes_a_folder_of_labels(weighed, logits, tmp_path, capsys):
    labels = labels_by("somebody", NAMES, torch.from_numpy(logits))
    write_image_labels(tmp_path / "labels", labels, image_hashes(weighed), {"by": "hand"})
    out = ["--layout", "parquet", "--labels", str(tmp_path / "labels"), "--out", str(tmp_path / "hub")]
    assert main(["export", str(weighed.path), *out]) == 0
    rows = pq.read_table(tmp_path / "hub" / "data")
    assert rows["logits"].to_pylist() == logits.tolist() and rows["weight"].to_pylist() == weights(weighed)
    assert main(["import", str(tmp_path / "hub"), "--out", str(tmp_path / "back")]) == 0
    assert "Each image has soft labels" in capsys.readouterr().out
    found = open_image_labels(tmp_path / "back" / KEPT, image_hashes(weighed), NAMES)
    assert found.values.numpy().tolist() == logits.tolist()
    other = DistilledSet.create(tmp_path / "other", NAMES, 1, {"method": "x"})
    for label, slot in other.missing():
        other.add(label, slot, torch.rand(3, 8, 8), seed=1)
    assert main(["export", str(other.path), *out[:-1], str(tmp_path / "o")]) == 1
    assert "are of other images" in capsys.readouterr().err and not (tmp_path / "o").exists()


@pytest.mark.parametrize("wrong", [np.zeros((5, 3)), np.zeros((6, 2)), np.full((6, 3), np.nan)])
def test_soft_labels_of_another_set_are_refused_before_any_work(weighed, tmp_path, wrong):
    with pytest.raises(DapError, match="Soft labels are finite numbers"):
        export(weighed, tmp_path / "o", logits=wrong)
    assert list(tmp_path.iterdir()) == []


def test_an_export_with_other_soft_labels_is_another_export(weighed, logits, tmp_path):
    export(weighed, tmp_path / "o", "pt", logits=logits)
    export(weighed, tmp_path / "o", "pt", logits=logits)
    with pytest.raises(DapError, match="another export. What changed: logits"):
        export(weighed, tmp_path / "o", "pt", logits=logits + 1)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (lambda f: (f / SOFT).write_bytes(b"\x93NUMPY no"), "is no file of NumPy"),
        (lambda f: np.save(f / SOFT, np.zeros((5, 3), np.float32)), "does not fit manifest.jsonl"),
        (lambda f: np.save(f / SOFT, np.array([{}, {}]), allow_pickle=True), "is no file of NumPy"),
        (lambda f: np.save(f / SOFT, np.full((6, 3), np.inf)), "no row of finite numbers"),
        (lambda f: (f / "manifest.jsonl").write_text("{}\n" * 6), "does not fit manifest.jsonl"),
    ],
)
def test_damage_is_a_sentence_and_leaves_nothing(weighed, logits, tmp_path, fault, says):
    export(weighed, tmp_path / "there", logits=logits)
    fault(tmp_path / "there")
    with pytest.raises(DapError, match=says):
        import_set(tmp_path / "there", tmp_path / "back")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_damage_inside_files(weighed, logits, tmp_path):
    export(weighed, tmp_path / "pt", "pt", logits=logits)
    held = torch.load(tmp_path / "pt" / "images.pt", weights_only=True)
    for name, value in (("weights", torch.ones(5)), ("logits", torch.ones(6)), ("weights", -torch.ones(6))):
        torch.save(held | {name: value}, tmp_path / "pt" / "images.pt")
        with pytest.raises(DapError, match="of the shape|no positive number"):
            import_set(tmp_path / "pt", tmp_path / "back")
    export(weighed, tmp_path / "wds", "webdataset", logits=logits)
    shard = tmp_path / "wds" / "shard-000000.tar"
    shutil.unpack_archive(shard, tmp_path / "parts")
    next((tmp_path / "parts").glob("*.logits.npy")).write_bytes(b"broken")
    with tarfile.open(shard, "w") as archive:
        for part in sorted((tmp_path / "parts").iterdir()):
            archive.add(part, part.name)
    with pytest.raises(DapError, match="logits.npy is no array of NumPy"):
        import_set(tmp_path / "wds", tmp_path / "back")
    assert not (tmp_path / "back").exists()


# ---- FiftyOne's layout


def test_fiftyone_has_the_documented_form(weighed, tmp_path):
    export(weighed, tmp_path / "f", "fiftyone")
    said = json.loads((tmp_path / "f" / "labels.json").read_text())
    assert said["classes"] == list(NAMES) and len(said["labels"]) == 6
    first = weighed.records[0]
    assert said["labels"]["00000_00000"] == {
        "label": 0,
        "attributes": {name: first[name] for name in ("slot", "seed", "sha256", "weight")},
    }
    assert {path.stem for path in (tmp_path / "f" / "data").iterdir()} == set(said["labels"])


@pytest.mark.parametrize(
    "plain", [{"classes": ["a", "b"], "labels": {"x": 1, "y": 0}}, {"labels": {"x": "b", "y": "a"}}]
)
def test_fiftyone_s_simple_form_is_read(tmp_path, plain):
    (tmp_path / "f" / "data").mkdir(parents=True)
    from PIL import Image

    for i, stem in enumerate("xy"):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / "f" / "data" / f"{stem}.png")
    (tmp_path / "f" / "labels.json").write_text(json.dumps(plain))
    made = import_set(tmp_path / "f", tmp_path / "o")
    assert made.class_names == ("a", "b") and [line["source"] for line in made.records] == ["data/y.png", "data/x.png"]
    (tmp_path / "f" / "data" / "x.png").unlink()
    with pytest.raises(DapError, match="has no image x in data"):
        import_set(tmp_path / "f", tmp_path / "p")
    (tmp_path / "f" / "labels.json").write_text(json.dumps({"classes": ["a"], "labels": {"y": 3}}))
    with pytest.raises(DapError, match="a label that is none of its classes"):
        import_set(tmp_path / "f", tmp_path / "p")


def test_a_set_with_soft_labels_keeps_them_when_it_is_imported_again(weighed, logits, tmp_path):
    """They were dropped without a word, with --classes and with --ipc too."""
    export(weighed, tmp_path / "there", "parquet", logits=logits)
    first = import_set(tmp_path / "there", tmp_path / "first")
    again = import_set(first.path, tmp_path / "again")
    assert np.array_equal(logits_of(again, again.path / KEPT), logits) and weights(again) == weights(weighed)
    turned = import_set(first.path, tmp_path / "turned", class_names=NAMES[::-1])
    assert np.array_equal(
        logits_of(turned, turned.path / KEPT), logits[::-1, ::-1].reshape(3, 2, 3)[:, ::-1].reshape(6, 3)
    )
    part = import_set(first.path, tmp_path / "part", ipc=1)
    assert np.array_equal(logits_of(part, part.path / KEPT), logits[::2])
    assert import_set(first.path, tmp_path / "part", ipc=1).path == part.path
    (first.path / KEPT / "labels.safetensors").write_bytes(b"")
    with pytest.raises(DapError, match="labels.safetensors is missing or damaged"):
        import_set(first.path, tmp_path / "damaged")


def test_an_export_that_leaves_soft_labels_behind_says_so(weighed, logits, tmp_path, capsys):
    """The advice gives them along."""
    export(weighed, tmp_path / "there", "parquet", logits=logits)
    first = import_set(tmp_path / "there", tmp_path / "first")
    for layout in LAYOUTS:
        run = ["export", str(first.path), "--layout", layout, "--out", str(tmp_path / f"without-{layout}")]
        assert main(run) == 0
        (flag,) = re.findall(r"are not in the export; (--labels \S+) adds them\.", capsys.readouterr().out)
        run[-1] = str(tmp_path / f"with-{layout}")
        assert main([*run, *flag.replace("SET", str(first.path)).split()]) == 0
        assert "soft labels" not in capsys.readouterr().out
        back = import_set(run[-1], tmp_path / f"back-{layout}")
        assert np.array_equal(logits_of(back, back.path / KEPT), logits)
    assert not any("soft labels" in note for note in export(weighed, tmp_path / "plain")["notes"])


def test_some_classes_of_a_set_have_the_columns_of_all(weighed, logits, tmp_path):
    export(weighed, tmp_path / "there", "parquet", logits=logits)
    first = import_set(tmp_path / "there", tmp_path / "first")
    some = import_set(first.path, tmp_path / "some", class_names=NAMES[:2])
    assert np.array_equal(logits_of(some, some.path / KEPT), logits[:4, :2])


def test_a_numbered_export_that_is_imported_with_names_keeps_what_goes_with_it(weighed, logits, tmp_path):
    export(weighed, tmp_path / "there", "ddranking", logits=logits)
    back = import_set(tmp_path / "there", tmp_path / "back", class_names=["x", "y", "z"])
    assert weights(back) == weights(weighed) and np.array_equal(logits_of(back, back.path / KEPT), logits)


@pytest.mark.parametrize("form", [list, tuple, np.asarray, torch.tensor])
def test_weights_and_logits_of_tensors_come_in_any_form(tmp_path, form):
    held = {"images": torch.rand(4, 3, 8, 8), "labels": [0, 0, 1, 1], "class_names": ["a", "b"]}
    rows = [[0, 1], [1, 0], [2, 3], [3, 2]]
    torch.save({**held, "weights": form([0.5, 1.5, 1.0, 1.0]), "logits": form(rows)}, tmp_path / "x.pt")
    back = import_set(tmp_path / "x.pt", tmp_path / "back")
    assert weights(back) == [0.5, 1.5, 1.0, 1.0] and logits_of(back, back.path / KEPT).tolist() == rows


@pytest.mark.parametrize(
    "beside", [{"weights": "heavy"}, {"weights": {"a": 1}}, {"logits": [[1, 2], [3]]}, {"weights": 3.0}]
)
def test_what_lies_beside_tensors_and_cannot_be_used_is_an_error(tmp_path, beside):
    held = {"images": torch.rand(4, 3, 8, 8), "labels": torch.tensor([0, 0, 1, 1]), "class_names": ["a", "b"]}
    torch.save({**held, **beside}, tmp_path / "x.pt")
    with pytest.raises(DapError, match="no numbers, one|of the shape"):
        import_set(tmp_path / "x.pt", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_columns_of_parquet_may_have_any_type_of_number(weighed, logits, tmp_path):
    import pyarrow as pa

    export(weighed, tmp_path / "there", "parquet")
    (file,) = (tmp_path / "there" / "data").glob("*.parquet")
    (tmp_path / "there" / "export.json").unlink()
    table = pq.read_table(file).drop_columns(["weight"])

    def back(number, weight, soft):
        changed = table.append_column("weight", weight).append_column("logits", soft)
        pq.write_table(changed.replace_schema_metadata(table.schema.metadata), file)
        return import_set(tmp_path / "there", tmp_path / f"back{number}")

    whole, rows = [1, 2, 3, 4, 5, 6], logits.round().astype(int).tolist()
    slots = [
        line["slot"] + 2 * line["label"] for line in weighed.records
    ]  # class by class, as the rows of the file may not be
    assert sorted(slots) == [0, 1, 2, 3, 4, 5]
    for number, soft in enumerate(
        (pa.array(rows), pa.array(rows, pa.list_(pa.float32(), 3)), pa.array(rows, pa.large_list(pa.float64())))
    ):
        made = back(number, pa.array(whole, pa.int64()), soft)
        assert sorted(weights(made)) == whole and sorted(logits_of(made, made.path / KEPT).tolist()) == sorted(rows)
    with pytest.raises(DapError, match="a column weight of string, and a number for each image is needed"):
        back(8, pa.array(list("abcdef")), pa.array(rows))
    with pytest.raises(DapError, match="a column logits of int64, and a list of numbers for each image is needed"):
        back(9, pa.array(whole), pa.array(whole))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_changed_file_of_an_export_is_refused(weighed, logits, tmp_path, layout):
    """Another image in its place got its weight and its soft labels."""
    folder = tmp_path / "there"
    export(weighed, folder, layout, logits=logits)
    (folder / "README.md").write_text("a card of one's own")
    import_set(folder, tmp_path / "back")
    pictures = sorted(folder.rglob("*.png"))
    if pictures:
        pictures[0].write_bytes(pictures[1].read_bytes())
        changed = pictures[0].relative_to(folder).as_posix()
    else:
        data = next(file for file in folder.rglob("*") if file.suffix in (".parquet", ".tar", ".pt"))
        if data.suffix == ".parquet":
            pq.write_table(pq.read_table(data), data, compression="none")
        elif data.suffix == ".pt":
            torch.save({**torch.load(data, weights_only=True), "note": "other bytes"}, data)
        else:
            data.write_bytes(data.read_bytes() + bytes(512))
        changed = data.relative_to(folder).as_posix()
    with pytest.raises(DapError, match="1 of its files are not those that were exported: ") as told:
        import_set(folder, tmp_path / "again")
    assert changed in str(told.value) and not (tmp_path / "again").exists()
