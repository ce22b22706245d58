"""What one of several sets lacks is told, with the name of the set, before the first training and in a dry run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

import dap
from dap.base.errors import DapError
from dap.cli.main import main
from dap.data.real.sources import open_source
from dap.evaluation.training.evaluate import _Ready
from dap.evaluation.training.networks.zoo import NotFetched
from dap.verbs.options import Judging
from dap.workshop import Workshop

SMALL = ["--set", "width=2", "--set", "size=8", "--epochs", "1"]
NETWORK = ["--networks", "convnet1"]
SOFT = ["--protocol", "quick-soft"]
WEIGHED = ["--protocol", "quick-hard", "--set", "weights=manifest"]


def call(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def made(colours, tmp_path_factory) -> Path:
    """Sets of three classes and of two; a teacher of each; stored labels and labels of the images of `a`."""
    root = tmp_path_factory.mktemp("checked")
    (root / "fewer").mkdir()
    for split in ("train", "test"):
        shutil.copytree(colours / split, root / "fewer" / split, ignore=shutil.ignore_patterns("red"))
    for name, data, seed in (("a", colours, 0), ("b", colours, 1), ("c", root / "fewer", 0)):
        distil = ["distill", "--method", "random", "--ipc", 2, "--seed", seed, "--data", data, "--size", 8]
        assert call(*distil, *(["--held-out", 0.25] if name == "a" else []), "--out", root / name) == 0
    teacher = ["train-teacher", "--data", root / "fewer", "--network", "convnet1", *SMALL]
    assert call(*teacher, "--out", root / "fewer.safetensors") == 0
    teacher[2] = colours
    assert call(*teacher, "--out", root / "all.safetensors") == 0
    export = ["export", root / "a", "--teacher", root / "all.safetensors"]
    assert call(*export, "--layout", "fkd", *SMALL, "--out", root / "stored") == 0
    assert call(*export, "--layout", "labels", "--out", root / "images") == 0
    lines = [json.loads(line) for line in (root / "a" / "manifest.jsonl").read_text().splitlines()]
    shutil.copytree(root / "a", root / "w")
    (root / "w" / "manifest.jsonl").write_text("".join(json.dumps(line | {"weight": 1.0}) + "\n" for line in lines))
    return root


@pytest.fixture
def no_training(monkeypatch) -> None:
    monkeypatch.setattr(_Ready, "trial", lambda *a: pytest.fail("a network was trained"))


FAULTS = {
    "stored labels of another set": ("a", "b", ["--protocol", "fkd-soft", "--labels", "stored"], "of them the same"),
    "labels of other images": ("a", "b", [*SOFT, "--teacher", "images"], "of 6 have none"),
    "a teacher of other classes": ("c", "a", [*SOFT, "--teacher", "fewer.safetensors"], "red"),
    "no weights": ("w", "a", WEIGHED, "have no weight"),
    "nothing held out": ("a", "b", ["--on", "validation"], "No images are held out"),
    "no backbone": ("a", "b", [*SOFT, "--teacher", "backbone:"], "without a backbone"),
    "features of other classes": ("c", "a", ["--reference", "fewer.safetensors"], "red"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_one_of_two_sets_lacks_is_told_before_the_training_of_the_other(
    fault, made, tmp_path, capsys, monkeypatch, no_training
):
    monkeypatch.chdir(made)
    whole, lacking, flags, says = FAULTS[fault]
    for order in ((whole, lacking), (lacking, whole)):
        for more in ([], ["--dry-run"]):
            capsys.readouterr()
            run = ["evaluate", *order, *flags, *SMALL, *NETWORK, "--out", tmp_path / "out", *more]
            status, err = call(*run), capsys.readouterr().err
            at_fault = order[0] if fault == "no backbone" else lacking  # neither was made by one
            assert status == 1 and says in err, err
            assert re.search(rf"The set {at_fault} cannot be judged\. | {at_fault} (have no|was made without)", err), (
                err
            )
    assert not (tmp_path / "out").exists()


def test_whatever_lacks_nothing_is_judged_as_before(made, tmp_path, monkeypatch):
    monkeypatch.chdir(made)
    for number, (whole, _, flags, _) in enumerate(FAULTS.values()):
        if "backbone:" not in flags:
            run = ["evaluate", whole, *flags, *SMALL, *NETWORK, "--out", tmp_path / str(number)]
            assert call(*run, "--dry-run") == 0 and call(*run) == 0


def test_sets_that_are_tested_on_an_object_are_all_checked_first(made, colours, tmp_path, monkeypatch, no_training):
    monkeypatch.chdir(made)
    changes = {"size": 8, "width": 2}
    judging = Judging(protocol="fkd-soft", networks=("convnet1",), epochs=1, labels=Path("stored"), changes=changes)
    with pytest.raises(dap.DapError, match=r"The set b cannot be judged\. .*of another set or protocol"):
        dap.evaluate(["a", "b"], data=open_source(colours, "test", size=8), judging=judging, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sets_of_a_grid_that_are_there_already_are_checked_before_the_first_cell(
    colours, tmp_path, capsys, no_training
):
    """`auto` writes weights and `random` none. The dry run knows it of sets that are there."""
    grid = ["compare", "--methods", "random", "--ipc", "1,2", "--sets", 1, "--data", colours, "--size", 8]
    out = tmp_path / "grid"
    made = ["distill", "--method", "random", "--ipc", 2, "--data", colours, "--size", 8]
    assert call(*made, "--out", out / "method=random_ipc=2" / "seed0") == 0
    for more in (["--dry-run"], []):
        capsys.readouterr()
        assert call(*grid, *WEIGHED, *SMALL, *NETWORK, "--out", out, *more) == 1
        err = capsys.readouterr().err
        assert "method=random_ipc=2/seed0 have no weight" in err, err
    assert not (out / "method=random_ipc=1").exists()


def test_a_grid_is_refused_in_a_dry_run_too(made, colours, tmp_path, capsys, monkeypatch, no_training):
    monkeypatch.chdir(made)
    swept = [
        "sweep",
        "--method",
        "random",
        "--ipc",
        1,
        "--sets",
        1,
        "--data",
        colours,
        "--size",
        8,
        "--out",
        tmp_path / "o",
    ]
    swept += [*SMALL, *NETWORK]
    for flags, says in (
        ([*SOFT, "--teacher", "fewer.safetensors"], "red"),
        ([*SOFT, "--teacher", "images"], "labels of one finished set"),
        (["--vary", "held-out=0.25,0", "--on", "validation"], "held_out=0/seed0 cannot be judged. No images"),
    ):
        vary = [] if "--vary" in flags else ["--vary", "ipc=1,2"]
        for more in (["--dry-run"], []):
            capsys.readouterr()
            assert call(*swept, *vary, *flags, *more) == 1
            assert says in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_dry_run_fetches_no_weights_of_a_teacher(made, tmp_path, monkeypatch):
    from dap.evaluation import plan

    asked = []

    def load(name, names, device, offline):
        asked.append(offline)
        raise NotFetched("The weights are not here.")

    monkeypatch.setattr(plan, "load_classifier", load)
    run = ["evaluate", made / "a", *SOFT, "--teacher", "torchvision:resnet18", *SMALL, *NETWORK, "--dry-run"]
    assert call(*run) == 0 and call(*run, "--offline") == 1
    assert asked == [True, True]


def test_an_unfinished_set_is_told_before_the_backbone_is_loaded(made, tmp_path, capsys, monkeypatch):
    begun = shutil.copytree(made / "b", tmp_path / "begun")
    (begun / "manifest.jsonl").write_text("")
    monkeypatch.setattr("dap.workshop.Workshop.backbone", lambda *a: pytest.fail("a backbone was loaded"))
    assert call("classify", made / "a", begun, "--backbone", "starter") == 1
    assert f"{begun} still lacks 6 images; finish it first" in capsys.readouterr().err


GRID = ["--size", 8, "--sets", 1, "--out", "new", *SMALL, "--networks"]
NAMED = {
    "evaluate": ["evaluate", "a", *SMALL, "--networks"],
    "a dry run": ["evaluate", "a", "--dry-run", *SMALL, "--networks"],
    "compare": ["compare", "--methods", "random", *GRID],
    "sweep": ["sweep", "--method", "random", "--vary", "ipc=1,2", *GRID],
    "train-teacher": ["train-teacher", "--out", "new.safetensors", *SMALL, "--network"],
    "rank": ["rank", "a", "--network"],
}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("convnet11", "Unknown network 'convnet11'. Did you mean 'convnet1'?"),
        ("torchvision:resnet81", "torchvision has no classifier 'resnet81'. Close to it:"),
    ],
)
@pytest.mark.parametrize("verb", NAMED)
def test_a_misspelt_network_is_told_before_the_data_are_read(verb, wrong, says, made, colours, capsys, monkeypatch):
    line = [*NAMED[verb]]
    line[1:1] = ["--data", colours] if verb != "rank" else []
    monkeypatch.chdir(made)
    with monkeypatch.context() as patched:
        for name in ("whole", "source"):
            patched.setattr(Workshop, name, lambda *a, **k: pytest.fail("the data are read"))
        assert call(*line, wrong, *(["--allow-code"] if verb != "rank" else [])) == 1
    said = capsys.readouterr().err
    assert says in said and not Path("new").exists(), said
    if verb == "a dry run" and (right := re.search(r"Did you mean '(.*)'[?]", said)):
        assert call(*line, right[1]) == 0, capsys.readouterr().err


def test_opened_test_images_and_trials_of_others_under_a_name_of_their_own(made, colours, tmp_path, capsys):
    test = open_source(colours, "test", size=8)
    with pytest.raises(DapError, match="Unknown network 'convnet11'"):
        dap.evaluate(made / "a", data=test, judging=Judging(networks=("convnet11",)))
    shutil.copytree(made / "a", tmp_path / "a")
    line = {"protocol": "p", "network": "ConvNet-3", "seed": 0, "best": 0.5, "last": 0.5}
    (tmp_path / "a" / "trials.jsonl").write_text(json.dumps(line) + "\n")
    assert call("rank", tmp_path / "a", "--network", "ConvNet-4") == 1
    assert "Unknown network 'ConvNet-4'" in capsys.readouterr().err
    call("rank", tmp_path / "a", "--network", "ConvNet-3")
    assert "Unknown network" not in capsys.readouterr().err


FKD = ["--protocol", "fkd-soft", *NETWORK, *SMALL, "--set", "mean=[0.5, 0.5, 0.5]"]


@pytest.mark.parametrize("case", ["its own data", "other data", "labels of another size", "labels of fewer epochs"])
def test_the_command_in_the_message_makes_the_labels_that_are_missing(
    case, made, colours, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    made_by = ["evaluate", made / "a", *FKD]
    if case == "other data":  # the import does not say of what data it is
        assert call("import", made / "a" / "images", "--out", "set") == 0
        made_by = ["evaluate", "set", "--data", colours, "--split", "test=test", *FKD]
    labels = []
    if case.startswith("labels"):
        other = ["--set", "size=16"] if "size" in case else []
        flags = [*SMALL, *FKD[-2:], *other]
        assert (
            call("export", made / "a", "--layout", "fkd", "--teacher", made / "all.safetensors", *flags, "--out", "l")
            == 0
        )
        labels = ["--labels", "l"]
        made_by += ["--epochs", 2] if "epochs" in case else []
    capsys.readouterr()
    assert call(*made_by, *labels) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert len(said) < 600
    if "size" in case:
        assert "(random_resized_crop.size: 16 -> 8)" in said
    command = re.search(r"with dap (export .*? --out DIR)", said)[1].replace("NAME", str(made / "all.safetensors"))
    assert call(*shlex.split(command.replace("DIR", "new"))) == 0, capsys.readouterr().err
    assert call(*made_by, "--labels", "new") == 0, capsys.readouterr().err
