"""`--dry-run` of export, import and push: what is told is what the verb then makes, and nothing is made or fetched."""

from __future__ import annotations

import json

import pytest
import torch

from dap.base.errors import DapError
from dap.cli.main import main
from dap.data.sets.distilled import DistilledSet
from dap.evaluation.training import stored_labels
from dap.verbs.exchange.push import push
from dap.verbs.labelling.labels import store_labels
from dap.verbs.planning import exchange
from dap.verbs.planning.exchange import planned_export, planned_import, planned_labels, planned_push
from watching import Clock


@pytest.fixture
def made(tmp_path):
    """Three classes of 30 images of 16 px, all of them noise."""
    out = DistilledSet.blank(tmp_path / "set", ("red", "green", "blue"), 30)
    generator = torch.Generator().manual_seed(0)
    for label in range(3):
        for slot in range(30):
            out.add(label, slot, torch.rand(3, 16, 16, generator=generator))
    return DistilledSet.open(tmp_path / "set")


@pytest.fixture
def clock(monkeypatch):
    """Decoding an image takes a tenth of a second, and nothing else takes any time."""
    clock, really = Clock(), exchange.as_png

    def as_png(data):
        clock.now += 0.1
        return really(data)

    monkeypatch.setattr(exchange, "time", clock)
    monkeypatch.setattr(exchange, "as_png", as_png)
    return clock


def size(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("layout", ["imagefolder", "parquet", "webdataset", "ddranking", "pt", "fiftyone"])
def test_an_export_is_as_large_as_was_told(made, tmp_path, clock, layout):
    out, before = tmp_path / "there", files(tmp_path)
    [found] = planned_export(made, out, layout)
    assert (found.pieces, found.left, found.kind) == (90, 90, "images")
    assert found.seconds == pytest.approx(90 * 2 * 0.1) and found.trial == pytest.approx(40 * 2 * 0.1)
    assert files(tmp_path) == before
    assert main(["export", str(made.path), "--out", str(out), "--layout", layout, "--quiet"]) == 0
    assert found.disk == pytest.approx(size(out), rel=0.4)


def test_what_cannot_be_exported_is_told_as_by_the_export(made, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    for more in (["--layout", "pth"], ["--shard-size", "3"], ["--out", str(tmp_path / "full")]):
        words = ["export", str(made.path), "--out", str(tmp_path / "there"), *more]
        assert main(words) == 1
        said = capsys.readouterr().err
        assert main([*words, "--dry-run"]) == 1
        assert capsys.readouterr().err == said
    assert main(["export", str(made.path), "--out", str(tmp_path / "there"), "--dry-run"]) == 0
    assert "nothing was made" in capsys.readouterr().out and not (tmp_path / "there").exists()


def test_an_import_is_told_image_by_image(made, tmp_path, clock):
    source = made.path / "images"
    before = files(tmp_path)
    [found] = planned_import(source, tmp_path / "back", ipc=20)
    assert (found.pieces, found.left) == (60, 60) and found.seconds == pytest.approx(60 * 0.1)
    assert files(tmp_path) == before
    command = ["import", str(source), "--ipc", "20", "--out", str(tmp_path / "back")]
    assert main([*command, "--quiet"]) == 0
    assert found.disk == pytest.approx(size(tmp_path / "back"), rel=0.4)
    [again] = planned_import(source, tmp_path / "back", ipc=20)
    assert (again.left, again.seconds, again.disk) == (0, 0, 0)
    with pytest.raises(DapError, match="30 images, not the 31 asked for"):
        planned_import(source, tmp_path / "more", ipc=31)


def test_a_push_asks_nobody(made, tmp_path, clock):
    written, upload = planned_push(made, "ada/flowers", layout="parquet", allow_near_copies=True)
    assert written.seconds == pytest.approx(90 * 2 * 0.1) and written.disk == pytest.approx(90 * 1100, rel=0.3)
    assert upload.seconds is None and "MB go to the hub" in upload.why
    for wrong in ({"layout": "pt"}, {"to": "flowers"}, {"allow_near_copies": False}):
        how = {"to": "ada/flowers", "layout": "parquet", "allow_near_copies": True, **wrong}
        with pytest.raises(DapError) as told:
            planned_push(made, how.pop("to"), **how)
        if "to" not in wrong:  # the verb asks the hub before it looks at the name
            with pytest.raises(DapError, match=str(told.value)[:40]):
                push(made, "ada/flowers", **how)


class Teacher:
    """A teacher whose logits of a batch take a second each image."""

    def __init__(self, clock, class_names):
        self.clock, self.class_names, self.device = clock, class_names, torch.device("cpu")
        self.name, self.fingerprint, self.accuracy, self.size = "teacher", "0" * 16, None, None

    def logits(self, images):
        self.clock.now += len(images)
        return torch.zeros(len(images), len(self.class_names))


@pytest.fixture
def teacher(clock, monkeypatch):
    def load(name, class_names, device, offline):
        assert offline, "nothing is fetched"
        if name != "teacher":
            raise DapError(f"{name} is not in the cache.")
        return Teacher(clock, class_names)

    monkeypatch.setattr(exchange, "load_classifier", load)


def test_epochs_of_labels_take_what_their_images_take(made, tmp_path, teacher):
    how = {"teacher": "teacher", "protocol": "fkd-soft", "epochs": 7, "changes": {"size": 16}}
    [found] = planned_labels(made, tmp_path / "labels", "fkd", **how)
    assert (found.pieces, found.left, found.kind) == (7, 7, "epochs")
    assert found.seconds == pytest.approx(7 * 90) and not (tmp_path / "labels").exists()
    [found] = planned_labels(made, tmp_path / "labels", "labels", teacher="teacher")
    assert (found.kind, found.left, found.seconds) == ("labels", 90, pytest.approx(90))
    [found] = planned_labels(made, tmp_path / "labels", "fkd", **{**how, "teacher": "torchvision:resnet18"})
    assert found.seconds is None and dict(found.downloads) == {"torchvision:resnet18": None}
    with pytest.raises(DapError, match="not in the cache"):
        planned_labels(made, tmp_path / "labels", "fkd", **{**how, "teacher": "none.safetensors"})
    with pytest.raises(DapError, match="need a teacher"):
        planned_labels(made, tmp_path / "labels", "fkd", **{**how, "teacher": None})


def test_labels_are_as_large_as_was_told_and_epochs_that_are_there_do_not_count(made, tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(exchange, "load_classifier", lambda *a, **k: Teacher(clock, made.class_names))
    monkeypatch.setattr("dap.evaluation.labelling.load_classifier", lambda *a, **k: Teacher(clock, made.class_names))
    out = tmp_path / "labels"
    how = {"teacher": "teacher", "protocol": "fkd-soft", "epochs": 4, "changes": {"size": 16}}
    [found] = planned_labels(made, out, "fkd", **how)
    assert found.left == 4 and found.seconds is not None and found.seconds > 0
    store_labels(made, out, **how)
    epochs = list(out.glob("epoch-*"))
    assert found.disk == pytest.approx(sum(file.stat().st_size for file in epochs), rel=0.4)
    (out / stored_labels._file(2)).unlink()
    [found] = planned_labels(made, out, "fkd", **{**how, "epochs": 6})
    assert (found.pieces, found.left) == (6, 3)


def test_a_backbone_s_labels_take_a_pass_for_each_level_and_class(
    tmp_path, colours, pipeline_folder, monkeypatch, capsys
):
    out, by = tmp_path / "set", f"backbone:{pipeline_folder}"
    command = ["distill", "--method", "random", "--data", str(colours), "--ipc", "2", "--out", str(out)]
    assert main([*command, "--quiet"]) == 0
    monkeypatch.setattr(exchange, "seconds_a_pass", lambda backbone, real, names: 0.01)
    made, how = DistilledSet.open(out), {"teacher": by, "asked": exchange.Asked(reals=20)}
    before = files(tmp_path)
    [found] = planned_labels(made, tmp_path / "labels", "labels", **how)
    assert (found.pieces, found.left) == (6, 6) and found.seconds == pytest.approx(0.01 * 10 * 3 * (6 + 20))
    both = planned_labels(made, tmp_path / "labels", "fkd", **how, changes={"size": 8}, epochs=2)
    assert [one.kind for one in both] == ["labels", "epochs"]
    [found] = planned_labels(made, tmp_path / "labels", "labels", teacher="backbone:nobody/nothing-like-this")
    assert found.seconds is None and dict(found.downloads).keys() == {"nobody/nothing-like-this"}
    monkeypatch.setattr(exchange, "seconds_a_pass", lambda backbone, real, names: 1e6)
    with pytest.raises(DapError, match="the limit is 24 hours"):
        planned_labels(made, tmp_path / "labels", "labels", **how)
    assert files(tmp_path) == before
    words = ["export", str(out), "--layout", "labels", "--teacher", by, "--out", str(tmp_path / "l")]
    monkeypatch.undo()
    assert main([*words, "--reals", "4", "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["work"][0]["kind"] == "labels" and told["seconds"] > 0 and not (tmp_path / "l").exists()
