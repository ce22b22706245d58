"""`--dry-run` of train-teacher, classify and caption: trials tell the time of the whole, and nothing is made."""

from __future__ import annotations

import json

import pytest

from dap.base.errors import DapError
from dap.cli.main import main
from dap.data.real.sources import open_source
from dap.posterior import Levels
from dap.verbs.caption import caption
from dap.verbs.distill import distill
from dap.verbs.planning import networks
from dap.verbs.planning.networks import planned_caption, planned_classify, planned_teacher
from watching import Clock

CLASSES = ["Dress", "Bag"]


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(networks, "time", clock)
    return clock


def test_a_teacher_takes_one_training_on_all_images(tmp_path, monkeypatch):
    asked = []

    def told(protocol, network, images, tested, classes, device):
        asked.append((protocol.name, network, images, tested, classes))
        return 12.5

    monkeypatch.setattr("dap.verbs.planning.estimate.training_seconds", told)
    out = tmp_path / "teacher.safetensors"
    how = {"classes": CLASSES, "max_bad_fraction": None, "split": None, "protocol": "quick-hard", "changes": None}
    [found] = planned_teacher("fashion-mnist", out, network="convnet3", epochs=2, **how)
    assert found.seconds == 12.5 and (found.pieces, found.left, found.kind) == (1, 1, "trainings")
    assert [one[1:] for one in asked] == [("convnet3", 12000, 2000, 2)], "all real images, and all test images"
    assert not list(tmp_path.iterdir())
    out.write_bytes(b"x")
    with pytest.raises(DapError, match="is there already"):
        planned_teacher("fashion-mnist", out, network="convnet3", epochs=2, **how)


def test_the_real_trial_of_a_teacher_ends_in_seconds(tmp_path, capsys):
    command = ["train-teacher", "--data", "fashion-mnist", "--classes", *CLASSES, "--network", "convnet1"]
    command += ["--set", "size=16", "--set", "width=4", "--epochs", "2", "--out", str(tmp_path / "t.safetensors")]
    assert main([*command, "--dry-run", "--threads", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["seconds"] > 0 and told["work"][0]["kind"] == "trainings"
    assert not list(tmp_path.iterdir())


def test_classifying_takes_the_passes_of_all_images(tmp_path, clock, monkeypatch):
    for seed in (0, 1):
        distill(out=tmp_path / f"s{seed}", method="random", classes=CLASSES, ipc=2 + seed, seed=seed)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    def errors(backbone, latents, names, levels):
        clock.now += 7 + 0.01 * len(latents) * len(names) * levels.times  # 7: what does not grow with the work

    monkeypatch.setattr(networks, "errors", errors)
    found = planned_classify(
        [tmp_path / "s0", tmp_path / "s1"], backbone="starter", reals=5, levels=Levels(keep=(1,), times=10)
    )
    passes = 5 * 2 + 5 * 1  # five levels with both classes, five with the one that is left
    assert [(one.pieces, one.seconds) for one in found] == [
        (4, pytest.approx(4 * passes * 0.01)),
        (10, pytest.approx(10 * passes * 0.01)),  # real images once for both sets
        (6, pytest.approx(6 * passes * 0.01)),
    ]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_backbone_that_must_be_fetched_is_named(tmp_path):
    distill(out=tmp_path / "s", method="random", classes=CLASSES, ipc=1)
    [found] = planned_classify([tmp_path / "s"], backbone="nobody/nothing-like-this")
    assert found.seconds is None and "not on this machine" in found.why
    assert dict(found.downloads).keys() == {"nobody/nothing-like-this"}


def test_captions_that_are_there_do_not_count(tmp_path, clock):
    source = open_source("fashion-mnist", "train", classes=CLASSES, size=28)

    def say(images, ask):
        clock.now += 3 + 0.5 * len(images)
        return ["a garment"] * len(images)

    out = tmp_path / "captions.jsonl"
    how = {"model": "mine", "say": say, "batch": 6}
    [found] = planned_caption(source, out, per_class=10, **how)
    assert (found.pieces, found.left, found.kind) == (20, 20, "captions")
    assert found.seconds == pytest.approx(20 * (3 + 0.5 * 6) / 6) and not out.exists()
    caption(source, out, per_class=4, **how)
    written = out.read_bytes() + b'{"path": "torn'
    out.write_bytes(written)
    [found] = planned_caption(source, out, per_class=10, **how)
    assert (found.pieces, found.left) == (20, 12) and out.read_bytes() == written
    with pytest.raises(DapError, match="captions by mine"):
        planned_caption(source, out, model="another", say=say)
    [found] = planned_caption(source, tmp_path / "new.jsonl", model="nobody/nothing-like-this")
    assert found.seconds is None and dict(found.downloads).keys() == {"nobody/nothing-like-this"}
