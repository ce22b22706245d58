"""A set in other people's hands: as a torch `Dataset`, and by the lines that its cards and the documentation print."""

from __future__ import annotations

import gc
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from dap.base.errors import DapError
from dap.cli.main import main
from dap.data.sets.cards import USE, read_card
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.export import LAYOUTS, export
from dap.data.sets.imports import import_set

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> DistilledSet:
    """A set that the command made, of real images, with a weight added to each."""
    path = tmp_path_factory.mktemp("made") / "set"
    assert (
        main(
            ["distill", "--method", "random", "--ipc", "2", "--classes", "Shirt", "Bag", "--out", str(path), "--quiet"]
        )
        == 0
    )
    return DistilledSet.open(path)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def run(text: str) -> dict[str, object]:
    """What the Python of a Markdown text makes, run in the current folder."""
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert blocks
    made: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "a card", "exec"), made)
    return made


def weighed(path: Path) -> DistilledSet:
    found = DistilledSet.create(path, ("ant", "bee"), 3, {"method": "x"})
    for label, slot in found.missing():
        found.add(label, slot, torch.full((3, 8, 8), (label * 3 + slot) / 6), seed=1, weight=0.5 + slot / 2)
    return found


def test_a_data_loader_gives_images_labels_weights_and_soft_labels(tmp_path):
    found, logits = weighed(tmp_path / "set"), torch.randn(6, 2)
    (batch,) = DataLoader(found.samples(v2.Resize(4), logits), batch_size=6)
    assert batch["image"].shape == (6, 3, 4, 4) and batch["image"].dtype == torch.float32
    assert batch["label"].equal(found.tensors()[1]) and batch["logits"].equal(logits)
    assert batch["weight"].tolist() == [line["weight"] for line in found.records]
    assert found.samples().weights.tolist() == batch["weight"].tolist()
    (pairs,) = DataLoader(found, batch_size=6)
    assert pairs[0].equal(found.tensors()[0]) and pairs[1].equal(found.tensors()[1])
    shuffled = next(iter(DataLoader(found.samples(logits=logits), batch_size=6, shuffle=True)))
    rows = (shuffled["image"][:, 0, 0, 0] * 6).round().long()
    assert shuffled["logits"].equal(logits[rows]) and shuffled["label"].equal(rows // 3), "they stay together"
    with pytest.raises(DapError, match="a row for each of the 6 images, not \\(5, 2\\)"):
        found.samples(logits=logits[:5])
    with pytest.raises(DapError, match="a number for each of its"):
        found.samples(logits=logits[:, :-1])


def test_a_set_without_weights_gives_none(made):
    assert made.samples().weights is None and set(made.samples()[0]) == {"image", "label"}


def test_the_card_of_a_set_runs_in_its_folder(made, monkeypatch, cache):
    monkeypatch.chdir(made.path)
    text = Path("README.md").read_text()
    assert USE in text
    held = run(text)
    assert sum(len(batch["label"]) for batch in held["batches"]) == len(held["rows"]) == len(held["train"]) == 4
    assert held["rows"].features["label"].names == held["train"].classes == ["Bag", "Shirt"]
    assert held["made"].class_names == ("Shirt", "Bag") and made.verify() == []
    assert read_card(made.path)[0]["license"] == "mit" and read_card(made.path)[0]["licence_of_data"].startswith("MIT")


def test_the_card_of_an_import_runs_in_its_folder(made, tmp_path, monkeypatch, cache):
    monkeypatch.chdir(import_set(made.path / "images", tmp_path / "back").path)
    assert len(run(Path("README.md").read_text())["rows"]) == 4


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "fiftyone"])
def test_the_card_of_an_export_runs_in_its_folder(tmp_path, monkeypatch, cache, layout):
    found = weighed(tmp_path / "set")
    found.note("README.md", f"# A set\n\n{USE}\n")
    export(found, tmp_path / "out", layout, logits=np.zeros((6, 2), np.float32))
    monkeypatch.chdir(tmp_path / "out")
    text = Path("README.md").read_text()
    assert "DistilledSet" not in text, "the lines of the set's own card are for the set's folder"
    held = run(text)
    assert len(list(held.get("train", held.get("rows")))) == 6
    if layout == "parquet":
        assert held["rows"]["weight"][:] == [line["weight"] for line in found.records]
        assert held["rows"]["logits"][:] == [[0.0, 0.0]] * 6
    gc.collect()  # webdataset leaves its shards open


def test_the_lines_of_the_documentation_run(made, tmp_path, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    Path("set").symlink_to(made.path)
    assert main(["export", "set", "--out", "exported"]) == 0
    text = (DOCS / "formats.md").read_text()
    held = run(text[text.index("## Training on a set") :])
    assert len(held["rows"]) == len(held["train"]) == len(held["made"]) == 4
    assert next(iter(held["batches"]))["image"].shape == (4, 3, 32, 32)
