"""The flags that say what the real data are, by every verb that reads them, and a whole judgement of images of mixed sizes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dap.cli.main import main
from dap.evaluation.training.loading import load_trained

NAMES = ("blue", "green", "red")
TINY = ["--network", "convnet1", "--set", "width=2", "--epochs", "1"]


@pytest.fixture(scope="module")
def folds(colours, tmp_path_factory) -> Path:
    """The coloured images under names that are no words for splits, with one damaged image on each side."""
    root = tmp_path_factory.mktemp("folds")
    for split, name in (("train", "fold1"), ("test", "fold2")):
        shutil.copytree(colours / split, root / name)
        for i in range(2):
            (root / name / "red" / f"{i}.png").write_bytes(b"no image")
    return root


@pytest.fixture
def data(folds) -> list[str]:
    """What has to be said of them: where they lie, that a part may be damaged, and which classes are meant."""
    places = "train=fold1,test=fold2"
    return ["--data", str(folds), "--split", places, "--max-bad-fraction", "0.5", "--classes", "red", "blue"]


def without(data: list[str], flag: str) -> list[str]:
    at = data.index(flag)
    return data[:at] + data[at + 2 :]


@pytest.fixture(scope="module")
def set_of_two(folds, tmp_path_factory) -> Path:
    """Two images each of red and blue, as folders that others made: it says nothing of its data."""
    root = tmp_path_factory.mktemp("theirs") / "set"
    for name in ("red", "blue"):
        (root / name).mkdir(parents=True)
        for i in (2, 3):
            shutil.copy(folds / "fold1" / name / f"{i}.png", root / name)
    return root


def call(capsys, *words: object) -> tuple[int, str, str]:
    status = main([str(word) for word in words])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


UNDERSTOOD = "train: 2 classes, 24 images, 8 × 8"
TESTED = "test: 2 classes, 12 images, 8 × 8"


def test_caption_takes_the_places_of_the_splits(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("dap.verbs.caption.Captioner", lambda *_, **__: Says())
    out = tmp_path / "captions.jsonl"
    status, printed, err = call(
        capsys, "caption", *data, "--out", out, "--model", "mine", "--per-class", 3, "--batch", 2
    )
    assert status == 0 and UNDERSTOOD in err, err
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert f"{len(lines)} captions added to {out}" in printed
    assert 4 <= len(lines) <= 6 and {line["path"].split("/")[0] for line in lines} == {"red", "blue"}
    assert not {"red/0.png", "red/1.png"} & {line["path"] for line in lines}, "the damaged ones get none"
    status, _, err = call(
        capsys, "caption", *without(data, "--max-bad-fraction"), "--out", tmp_path / "all", "--model", "mine"
    )
    assert status == 1 and "raise max_bad_fraction" in err and "0.png" in err
    status, _, err = call(capsys, "caption", *without(data, "--split"), "--out", tmp_path / "c", "--model", "mine")
    assert status == 1 and "unknown classes 'red', 'blue'" in err and "fold1, fold2" in err, err


class Says:
    ask = None

    def __call__(self, images, question):
        return ["a thing"] * len(images)


def test_train_teacher_takes_the_places_of_the_splits(data, tmp_path, capsys):
    out = tmp_path / "teacher.safetensors"
    status, printed, err = call(capsys, "train-teacher", *data, *TINY, "--set", "size=8", "--out", out)
    assert status == 0 and UNDERSTOOD in err and TESTED in err, err
    assert f"{out}: convnet1" in printed and "of 10 test images" in printed
    assert load_trained(out).class_names == ("red", "blue")
    other = ["train=fold2,test=fold1" if word.startswith("train=") else word for word in data]
    status, printed, err = call(
        capsys, "train-teacher", *other, *TINY, "--set", "size=8", "--out", tmp_path / "o.safetensors"
    )
    assert status == 0 and "of 22 test images" in printed, err
    status, _, err = call(capsys, "train-teacher", *without(data, "--max-bad-fraction"), *TINY, "--out", tmp_path / "p")
    assert status == 1 and "raise max_bad_fraction" in err and not (tmp_path / "p").exists()
    wrong = [*without(data, "--split"), "--split", "train=fold1,test=fold9"]
    status, _, err = call(capsys, "train-teacher", *wrong, *TINY, "--out", tmp_path / "p")
    assert status == 1 and "fold9" in err and not (tmp_path / "p").exists()


def test_classify_takes_the_places_of_the_splits(data, set_of_two, pipeline_folder, tmp_path, capsys):
    run = [
        "classify",
        set_of_two,
        "--backbone",
        pipeline_folder,
        "--times",
        2,
        "--device",
        "cpu",
        "--out",
        tmp_path / "o",
    ]
    status, printed, err = call(capsys, *run, *data)
    assert status == 0 and TESTED in err, err
    assert "of 4 images are what they are labelled" in printed and "of 10 real test images" in printed
    swapped = ["train=fold2,test=fold1" if word.startswith("train=") else word for word in data]
    status, printed, err = call(capsys, *run, *swapped)
    assert status == 0 and "of 22 real test images" in printed, err
    status, _, err = call(capsys, *run, *without(data, "--max-bad-fraction"))
    assert status == 1 and "raise max_bad_fraction" in err
    status, _, err = call(capsys, *run, *without(data, "--split"))
    assert status == 1 and "--split" in err


def test_evaluate_takes_the_places_of_the_splits(data, set_of_two, tmp_path, capsys):
    quick = ["--networks", "convnet1", "--set", "width=2", "--set", "size=8", "--epochs", 1]
    status, _, err = call(capsys, "evaluate", set_of_two, *data, *quick, "--out", tmp_path / "o")
    assert status == 0 and UNDERSTOOD in err and TESTED in err, err
    (line,) = (tmp_path / "o" / "judged" / "set" / "trials.jsonl").read_text().splitlines()
    assert json.loads(line)["n_test"] == 10


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """Images of one's own of 64 × 64 px in two colours."""
    root = tmp_path_factory.mktemp("large")
    for split, n in (("train", 6), ("test", 4)):
        for label, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (64, 64), (200, 100 * label, 0)).save(root / split / name / f"{i}.png")
    return root


def test_a_teacher_for_data_of_ones_own_has_their_size_mean_and_std(large, tmp_path, capsys):
    """Kind 10: by `train-teacher`, whose protocol states those of Fashion-MNIST."""
    status, printed, err = call(capsys, "train-teacher", "--data", large, *TINY, "--out", tmp_path / "t.safetensors")
    assert status == 0 and "of 8 test images" in printed, err
    protocol = load_trained(tmp_path / "t.safetensors").protocol
    assert protocol is not None and protocol.size == 64
    assert protocol.mean == (round(200 / 255, 4), round(50 / 255, 4), 0.0)
    assert protocol.std == (0.001, round(50 / 255, 4), 0.001)
    given = ["--set", "size=16", "--set", "mean=[0.5]", "--set", "std=[0.25]"]
    status, _, err = call(capsys, "train-teacher", "--data", large, *TINY, *given, "--out", tmp_path / "u.safetensors")
    protocol = load_trained(tmp_path / "u.safetensors").protocol
    assert status == 0 and protocol is not None, err
    assert (protocol.size, set(protocol.mean), set(protocol.std)) == (16, {0.5}, {0.25}), "what the user says holds"


@pytest.fixture(scope="module")
def mixed(colours, tmp_path_factory) -> Path:
    """A folder of others whose images have three sizes, none of them square alone."""
    root = tmp_path_factory.mktemp("mixed") / "theirs"
    for name in NAMES:
        (root / name).mkdir(parents=True)
        for i, size in enumerate(((24, 24), (20, 30), (40, 18))):
            with Image.open(colours / "train" / name / f"{i}.png") as image:
                image.resize(size, Image.Resampling.NEAREST).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def teacher(colours, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    small = ["--network", "convnet2", "--set", "size=8", "--set", "width=8", "--epochs", "5", "--set", "lr=0.1"]
    assert main(["train-teacher", "--data", str(colours), *small, "--out", str(file)]) == 0
    return file


def test_case_b12_images_of_mixed_sizes_are_judged_by_rded_soft(mixed, teacher, colours, tmp_path, capsys):
    """Directly and after an import: the images are cropped and resized, and both give the same training."""
    assert main(["import", str(mixed), "--out", str(tmp_path / "imported")]) == 0
    assert "differ in size" in capsys.readouterr().out
    judged = ["--protocol", "rded-soft", "--teacher", teacher, "--networks", "convnet2", "--data", colours]
    judged += ["--set", "size=16", "--set", "width=4", "--epochs", 2, "--device", "cpu"]
    curves = []
    for source in (mixed, tmp_path / "imported"):
        out = tmp_path / f"of {source.name}"
        status, _, err = call(capsys, "evaluate", source, *judged, "--out", out)
        assert status == 0 and "Traceback" not in err, err
        (line,) = (out / "judged" / source.name / "trials.jsonl").read_text().splitlines()
        found = json.loads(line)
        assert found["protocol"].startswith("rded-soft") and (found["n_train"], found["n_test"]) == (9, 18)
        assert found["labels"] == "teacher.safetensors" and (out / "report.html").is_file()
        curves.append(found["curve"])
    assert curves[0] == curves[1]


def test_case_b10_grey_of_16_bits_is_judged_alike_directly_and_imported(colours, tmp_path, capsys):
    """Judged directly, every such image was white."""
    grey = tmp_path / "grey"
    for label, name in enumerate(NAMES):
        (grey / name).mkdir(parents=True)
        for i in range(2):
            values = np.full((8, 8), 8000 + 20000 * label + 1000 * i, np.uint16)
            Image.fromarray(values).save(grey / name / f"{i}.png")
    assert main(["import", str(grey), "--out", str(tmp_path / "imported")]) == 0
    judged = ["--data", colours, "--networks", "convnet1", "--set", "width=2", "--set", "size=8", "--epochs", 3]
    judged += ["--set", "train=[{op: normalize}]", "--set", "mean=[0.5]", "--set", "std=[0.25]"]
    curves = []
    for source in (grey, tmp_path / "imported"):
        status, _, err = call(capsys, "evaluate", source, *judged, "--out", tmp_path / f"of {source.name}")
        assert status == 0, err
        line = (tmp_path / f"of {source.name}" / "judged" / source.name / "trials.jsonl").read_text()
        curves.append((json.loads(line)["curve"], json.loads(line)["train_last"]))
    assert curves[0] == curves[1]


def test_case_b13_a_damaged_image_is_named_under_rded_soft(mixed, teacher, colours, tmp_path, capsys):
    damaged = Path(shutil.copytree(mixed, tmp_path / "damaged"))
    file = damaged / "green" / "1.png"
    file.write_bytes(file.read_bytes()[:-40])
    judged = ["--protocol", "rded-soft", "--teacher", teacher, "--networks", "convnet2", "--data", colours]
    status, _, err = call(
        capsys, "evaluate", damaged, *judged, "--set", "size=16", "--epochs", 1, "--out", tmp_path / "o"
    )
    assert status == 1 and "green/1.png" in err and "truncated" in err and "Traceback" not in err
