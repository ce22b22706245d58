"""Measures of one's own: what they are given, what is kept of them, and that their mistakes cost nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from dap.base.errors import DapError
from dap.cli.main import main
from dap.data.real.sources import open_source
from dap.data.sets.distilled import DistilledSet
from dap.evaluation.measures.embedding import embedding
from dap.evaluation.measures.inspection import Inspector
from dap.evaluation.measures.own import own_measures
from dap.evaluation.report.page import write_report
from dap.verbs.options import Judging
from reported import Outline

DOCS = Path(__file__).parents[3] / "docs" / "extending.md"

GOOD = '''
def seen(subject):
    """What it was given."""
    assert subject.images.dtype.is_floating_point and 0 <= subject.images.min() and subject.images.max() <= 1
    names = subject.class_names
    yield "mine_count", len(subject.images)
    yield "mine_features", subject.features(subject.images).shape[1]
    yield "mine_real", sum(subject.real.count(label) for label in range(len(names)))
    # The first image's class is the brightest channel's: red, green or blue.
    yield "mine_class", names[subject.labels[0]] == ("red", "green", "blue")[subject.images[0].mean((1, 2)).argmax()]


seen.better = {"mine_count": "lower"}
'''


@pytest.fixture
def made(tmp_path):
    made = DistilledSet.create(tmp_path / "set", ("red", "green", "blue"), 2, {"method": "mine"})
    for label in range(3):
        for slot in range(2):
            image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(7 * label + slot)) * 0.3
            image[label] += 0.6
            made.add(label, slot, image)
    return DistilledSet.open(made.path)


@pytest.fixture
def inspect(colours, made):
    """Measures the set with some measures of one's own, as a judge does."""
    train, test = (open_source(colours, split, size=8) for split in ("train", "test"))
    images, labels = made.tensors(8)
    order = torch.tensor([train.class_names.index(name) for name in made.class_names])

    def run(*names: str, key: str = "k") -> dict:
        inspector = Inspector(train, test.tensors(), embedding("colours", 8), own=own_measures(names))
        if not inspector.done(made, key):
            inspector(made, images, order[labels], key)
        return made.noted("measures.json")

    return run


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_it_gets_the_set_and_the_real_data_and_the_report_shows_it(inspect, made, tmp_path):
    mine = write(tmp_path / "mine.py", GOOD)
    found = inspect(f"{mine}:seen")
    values = found["own"][f"{mine}:seen"]["values"]
    assert values["mine_count"] == 6 and values["mine_class"] == 1 and values["mine_real"] > 6
    assert "mine_count" not in found, "built-in numbers and others stay apart in the file"
    page = write_report([made.path], tmp_path / "out", title="T").read_text()
    heads = {a.get("title"): a for tag, a in Outline(page).tags if tag == "th" and a.get("title")}
    assert heads[f"What it was given ({mine}:seen); lower is better"]["data-better"] == "lower"
    assert "data-better" not in heads[f"What it was given ({mine}:seen)"]
    assert "mine_count" in (tmp_path / "out" / "report-measures.csv").read_text().splitlines()[0]


def test_an_edited_file_is_computed_anew_and_nothing_else(inspect, made, tmp_path):
    counted = (
        "def mine(subject):\n    with open({log!r}, 'a') as log:\n        log.write('x')\n    return {{'mine': {n}}}\n"
    )
    log = tmp_path / "log"
    mine = write(tmp_path / "mine.py", counted.format(log=str(log), n=1))
    assert inspect(f"{mine}:mine")["own"][f"{mine}:mine"]["values"] == {"mine": 1}
    before = {name: (made.path / name).stat().st_mtime_ns for name in ("images.json", "map.npz")}
    inspect(f"{mine}:mine")
    assert log.read_text() == "x"
    write(mine, counted.format(log=str(log), n=2))
    assert inspect(f"{mine}:mine")["own"][f"{mine}:mine"]["values"] == {"mine": 2} and log.read_text() == "xx"
    assert before == {name: (made.path / name).stat().st_mtime_ns for name in before}
    inspect()
    assert made.noted("measures.json")["own"], "an evaluation without the measure leaves its numbers"
    assert "own" not in inspect(key="other images"), "they were of other images"


def test_a_measure_that_changes_its_images_changes_no_other_s(inspect, tmp_path):
    seen = "def m(subject):\n    return {{'{0}': subject.images.sum(), '{0}s': subject.labels.sum()}}"
    spoils = "def m(subject):\n    subject.images.zero_(), subject.labels.zero_()\n    return {'mine': 0}"
    files = [write(tmp_path / "a.py", seen.format("first")), write(tmp_path / "b.py", spoils)]
    files += [write(tmp_path / "c.py", seen.format("last"))]
    first, _, last = (one["values"] for one in inspect(*(f"{file}:m" for file in files))["own"].values())
    assert list(first.values()) == list(last.values()) and min(first.values()) > 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def m(subject):\n    raise ValueError('no\\n  such')", "failed: ValueError: no such"),
        ("def m(subject):\n    return {'mine': float('nan')}", "for 'mine'; give a finite number"),
        ("def m(subject):\n    return {'mine': 'much'}", "for 'mine'; give a finite number"),
        ("def m(subject):\n    return {'diversity': 1}", "'diversity', which is another measure's name"),
        ("def m(subject):\n    return {3: 1}", "give each number a name"),
        ("def m(subject):\n    return 5", "failed: TypeError"),
    ],
)
def test_a_mistake_is_one_sentence_and_costs_nothing_else(inspect, made, tmp_path, text, said, caplog):
    wrong, right = write(tmp_path / "wrong.py", text), write(tmp_path / "right.py", GOOD)
    found = inspect(f"{wrong}:m", f"{right}:seen")
    note = found["notes"][f"{wrong}:m"]
    assert said in note and "\n" not in note and f"{wrong}:m" in note and note in caplog.text
    assert list(found["own"]) == [f"{right}:seen"] and found["diversity"] > 0
    page = write_report([made.path], tmp_path / "out", title="T").read_text()
    assert any(note in text for text in Outline(page).texts)
    write(wrong, "def m(subject):\n    return {'mine': 1}")
    assert f"{wrong}:m" not in inspect(f"{wrong}:m")["notes"]


def test_what_cannot_be_used_is_said_before_anything_is_trained(tmp_path):
    file = write(
        tmp_path / "mine.py", "number = 3\n\n\nclass Needs:\n    def __init__(self, x): ...\n\n\ndef odd(s): ...\n"
    )
    write(tmp_path / "odd.py", "def odd(subject): ...\n\n\nodd.better = 'more'\n")
    for name, said in {
        "sharpness": "is given as file.py:Name",
        f"{tmp_path}/none.py:Mine": "No file",
        f"{file}:Mine": "has no 'Mine'",
        f"{file}:number": "cannot be called",
        f"{file}:Needs": "could not be made without arguments",
        f"{tmp_path}/odd.py:odd": "say 'higher', 'lower', or nothing",
    }.items():
        with pytest.raises(DapError, match=re.escape(said)):
            own_measures([name])
    assert Judging(measures=("a.py:A",)).measures == ("a.py:A",)


def test_the_documented_measure_is_judged_and_reported(colours, made, tmp_path, capsys):
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    (example,) = [block for block in blocks if "class Sharpness" in block]
    mine = write(tmp_path / "sharpness.py", example)
    quick = ["--protocol", "quick-hard", "--set", "size=8", "--set", "width=4", "--set", "network=convnet1"]
    run = ["evaluate", str(made.path), "--data", str(colours), *quick, "--epochs", "1", "--out", str(tmp_path / "out")]
    assert main([*run, "--measure", f"{tmp_path}/absent.py:A"]) == 1
    assert "No file" in capsys.readouterr().err and not (made.path / "trials.jsonl").exists()
    assert main([*run, "--measure", f"{mine}:Sharpness"]) == 0, capsys.readouterr().err
    kept = json.loads((tmp_path / "out" / "judged" / made.path.name / "measures.json").read_text())["own"][
        f"{mine}:Sharpness"
    ]
    assert kept["values"]["sharpness"] > 0 and kept["better"] == {"sharpness": "higher"}
    text = (tmp_path / "out" / "report.md").read_text()
    assert re.search(r"- sharpness: Mean difference of neighbouring pixels .*; higher is better\.", text)
