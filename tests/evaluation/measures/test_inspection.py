"""What the judge writes beside trials: measures by class, nearest real images, predictions and a map of features."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dap.base.errors import DapError
from dap.cli.main import main
from dap.data.real.sources import open_source
from dap.data.sets.distilled import DistilledSet
from dap.evaluation.judge import judge as judge_set
from dap.evaluation.measures.embedding import embedding
from dap.evaluation.measures.inspection import MEASURING, Inspector
from dap.evaluation.plan import JudgingPlan, Loaded
from dap.evaluation.training.loading import load_trained, save_classifier
from dap.evaluation.training.protocol import load_protocol
from dap.evaluation.training.trained import train_on_tensors

NAMES = ("red", "green", "blue")
"""Another order than the data's, which is by name."""


@pytest.fixture(scope="module")
def sources(colours):
    return open_source(colours, "train", size=8), open_source(colours, "test", size=8)


@pytest.fixture(scope="module")
def protocol():
    return load_protocol(
        "quick-hard", size=8, width=4, network="convnet1", mean=[0.5], std=[0.5], epochs=1, looks=1, batch=8
    )


@pytest.fixture(scope="module")
def reference(sources, protocol, tmp_path_factory) -> Path:
    train, test = (source.tensors() for source in sources)
    longer = load_protocol(
        "reference", size=8, width=8, network="convnet2", mean=[0.5], std=[0.5], epochs=15, looks=1, batch=12
    )
    trained, trial = train_on_tensors(train, test, longer, 3, class_names=sources[0].class_names)
    assert trial.last > 0.9
    path = tmp_path_factory.mktemp("reference") / "net.safetensors"
    save_classifier(trained, path)
    return path


def opener(sources):
    """What a judge opens; the images are 8 px, whatever is asked for."""
    return lambda split, size: sources[split == "test"]


def make(path: Path, sources, copied: bool = True) -> DistilledSet:
    """Two new images a class, the first of class red being a copy of a real one; green's second looks blue."""
    made = DistilledSet.create(path, NAMES, 2, {"method": "mine"})
    generator = torch.Generator().manual_seed(5)
    for label in range(3):
        for slot in range(2):
            image = torch.rand(3, 8, 8, generator=generator) * 0.39
            image[2 if (label, slot) == (1, 1) else label] += 0.6
            if copied and (label, slot) == (0, 0):
                image = sources[0].images(sources[0].class_names.index("red"), [7])[0]
            made.add(label, slot, image)
    return DistilledSet.open(path)


@pytest.fixture(scope="module")
def judge(sources, protocol, reference):
    loaded = Loaded(JudgingPlan(protocol=protocol), opener(sources), embedding("colours", 8, reference))
    return functools.partial(judge_set, loaded=loaded)


@pytest.fixture(scope="module")
def judged(judge, sources, tmp_path_factory) -> Path:
    made = make(tmp_path_factory.mktemp("judged") / "set", sources)
    assert len(judge(made)) == 1
    return made.path


def read(path: Path, name: str) -> dict:
    return json.loads((path / name).read_text())


def test_measures_are_written_by_class_too(judged):
    found = read(judged, "measures.json")
    assert found["features"].startswith("convnet2 trained on the real data (") and found["judged"]
    for name in ("representativeness", "representativeness_rbf", "diversity", "mgd3_diversity", "coverage", "mmd2"):
        rows = [found["by_class"][class_name][name] for class_name in NAMES]
        assert found[name] == pytest.approx(np.mean(rows))
    assert "kid" in found and list(found["by_class"]) == list(NAMES)
    assert "features needs more than" in found["notes"]["frechet"]


def test_measures_say_how_they_were_taken(judged, sources, reference):
    of, network = read(judged, "measures.json")["of"], load_trained(reference)
    data = sources[0].fingerprint(sized=False)[:16]
    assert of == {"size": sources[0].size, "data": data, "version": MEASURING, "network": network.fingerprint}


def test_predicted_labels_are_the_set_s_own(judged):
    measures, images = read(judged, "measures.json"), read(judged, "images.json")["images"]
    assert [image["predicted"] for image in images] == [0, 0, 1, 2, 2, 2]
    assert all(0.3 < image["probability"] <= 1 for image in images)
    assert measures["label_agreement"] == pytest.approx(5 / 6)
    assert [measures["by_class"][name]["label_agreement"] for name in NAMES] == [1, 0.5, 1]
    assert measures["confusion"] == [[2, 0, 0], [0, 1, 1], [0, 0, 2]]


def test_the_copy_is_named_and_its_original_kept(judged, sources):
    found = read(judged, "images.json")
    assert [image["copy"] for image in found["images"]] == [True, False, False, False, False, False]
    assert (found["copies"], found["share"]) == (1, pytest.approx(1 / 6))
    assert found["worst"] == ["images/red/00000.png"]
    assert found["searched"] == {"pixel": 36, "feature": 36, "of": 36} and found["rule"]["calibrated_on"] == 36
    first = found["images"][0]
    assert (first["label"], first["slot"], first["path"]) == (0, 0, "images/red/00000.png")
    key = sources[0].keys(sources[0].class_names.index("red"), [7])[0]
    for space in ("feature", "pixel", "feature_any", "pixel_any"):
        assert first["nearest"][space] == {"key": key, "label": 0, "distance": 0, "file": "neighbours/0-7.png"}
    with Image.open(judged / "neighbours/0-7.png") as original, Image.open(judged / first["path"]) as copy:
        assert np.array_equal(np.asarray(original), np.asarray(copy))
    for image in found["images"]:
        assert image["nearest"]["pixel"]["label"] == image["label"]
        assert all((judged / near["file"]).is_file() for near in image["nearest"].values())
    green = found["images"][3]["nearest"]  # it looks blue
    assert green["pixel_any"]["label"] == 2 and green["pixel_any"]["distance"] < green["pixel"]["distance"]


def test_the_map_puts_all_features_into_one_space(judged, sources):
    with np.load(judged / "map.npz", allow_pickle=False) as file:
        found = {name: file[name] for name in file.files}
    dims = found["synthetic"].shape[1]
    assert dims <= 50 and all(found[half].dtype == np.float32 for half in ("synthetic", "train", "test"))
    assert found["synthetic_label"].tolist() == [0, 0, 1, 1, 2, 2]
    assert found["train"].shape == (36, dims) and found["test"].shape == (18, dims)
    assert sorted(found["train_label"]) == [0] * 12 + [1] * 12 + [2] * 12
    red = found["train"][found["train_label"] == 0]
    assert np.linalg.norm(red - found["synthetic"][0], axis=1).min() < 1e-4, "the copy lies on its original"
    assert str(found["features"]).startswith("convnet2") and str(found["data"]) == sources[0].fingerprint()


def test_files_are_kept_until_the_images_change(judge, sources, tmp_path, monkeypatch):
    made = make(tmp_path / "set", sources)
    judge(made)
    names = ("measures.json", "images.json", "map.npz")
    before = {name: (tmp_path / "set" / name).stat().st_mtime_ns for name in names}
    judge(made)
    assert {name: (tmp_path / "set" / name).stat().st_mtime_ns for name in names} == before
    (tmp_path / "set" / "map.npz").unlink()
    judge(made)
    assert (tmp_path / "set" / "map.npz").is_file()
    (tmp_path / "set" / "neighbours" / "0-999.png").write_bytes(b"of an earlier set")
    (tmp_path / "set" / "images.json").write_text("{}")
    judge(made)
    assert not (tmp_path / "set" / "neighbours" / "0-999.png").exists()


def test_a_plain_folder_stays_a_folder_of_classes(judge, sources, colours, tmp_path):
    import shutil

    theirs = tmp_path / "theirs"
    for name in NAMES:
        shutil.copytree(colours / "test" / name, theirs / name)
    judge(DistilledSet.from_folder(theirs))
    assert {folder.name for folder in theirs.iterdir() if folder.is_dir()} == set(NAMES)
    images = read(theirs, "images.json")["images"]
    assert len(images) == 18 and all(i["nearest"]["pixel"]["file"] is None for i in images)
    assert all(i["nearest"]["pixel"]["key"] for i in images)
    again = DistilledSet.from_folder(theirs)
    assert sorted(again.class_names) == sorted(NAMES)


def test_too_few_real_images_leave_the_rest(protocol, sources, colours, tmp_path, caplog):
    import shutil

    for name in NAMES:
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(4 if name == "red" else 2):
            shutil.copy(colours / "train" / name / f"{i}.png", tmp_path / "data" / name)
    few = open_source(tmp_path / "data", "train", size=8)
    made = make(tmp_path / "set", sources)
    loaded = Loaded(JudgingPlan(protocol=protocol), opener((few, sources[1])), embedding("few", 8))
    assert len(judge_set(made, loaded)) == 1
    notes = read(made.path, "measures.json")["notes"]
    assert "2 real images; 5 neighbours need at least 6" in notes["measures"]
    assert "needs at least 3" in notes["neighbours"]
    assert "No measures" in caplog.text and "No search for near-copies" in caplog.text
    found = read(made.path, "images.json")
    assert "copies" not in found and found["images"][0]["copy"] is None is found["images"][0]["predicted"]
    assert (made.path / "map.npz").is_file()


def test_a_reference_of_other_classes_is_refused_before_any_training(protocol, sources, reference, colours):
    few = [open_source(colours, split, size=8, classes=["red", "blue"]) for split in ("train", "test")]
    features = embedding("colours", 8, reference)
    Inspector(few[0], few[1].tensors(), features)  # two of its three classes, by name
    unnamed = (features[0], replace(features[1], class_names=()))
    with pytest.raises(DapError, match="knows 3 classes and the data have 2"):
        Inspector(few[0], few[1].tensors(), unnamed)
    Inspector(sources[0], sources[1].tensors(), unnamed)
    other = (features[0], replace(features[1], class_names=("a", "b", "c")))
    with pytest.raises(DapError, match="unknown class.* in the classifier"):
        Inspector(sources[0], sources[1].tensors(), other)


def test_a_choice_of_classes_is_predicted_among_these(reference, sources, colours, tmp_path):
    features = embedding("colours", 8, reference)[1]
    images, labels = open_source(colours, "test", size=8, classes=["red", "blue"]).tensors()
    found = features.select(["red", "blue"]).probabilities(images)
    assert found.shape == (12, 2) and torch.allclose(found.sum(1), torch.ones(12, dtype=found.dtype))
    assert (found.argmax(1) == labels).float().mean() > 0.8


def test_the_command_takes_a_reference_and_says_what_is_wrong_with_it(sources, colours, reference, tmp_path, capsys):
    made = make(tmp_path / "set", sources).path
    common = ["evaluate", str(made), "--data", str(colours), "--protocol", "quick-hard", "--epochs", "1"]
    common += ["--out", str(tmp_path / "r")]
    assert main([*common, "--reference", str(tmp_path / "none.safetensors")]) == 1
    assert "There is no reference classifier" in capsys.readouterr().err
    (tmp_path / "bad.safetensors").write_text("nothing")
    assert main([*common, "--reference", str(tmp_path / "bad.safetensors")]) == 1
    assert "is not a classifier of dap train-teacher" in capsys.readouterr().err
    assert not (made / "trials.jsonl").exists()
    assert main([*common, "--reference", str(reference), "--neighbours", "5"]) == 0
    results = tmp_path / "r" / "judged" / made.name
    assert read(results, "images.json")["searched"] == {"pixel": 15, "feature": 15, "of": 36}
    assert read(results, "measures.json")["label_agreement"] is not None


def test_features_of_large_images_stay_small():
    name, features = embedding("photos", 128)
    assert name == "ConvNet-5 with random weights" and features(torch.rand(1, 3, 128, 128)).shape == (1, 2048)
    assert embedding("photos", 8)[0] == "ConvNet-3 with random weights"
