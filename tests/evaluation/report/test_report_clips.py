"""The report of sets of clips speaks of clips, in the page and in its tables."""

from __future__ import annotations

import re

import pytest
import torch

from dap.data.sets.distilled import DistilledSet
from dap.evaluation.report.meanings import noun_of, worded
from dap.evaluation.report.page import write_report


def made_of(path, frames, seed=0):
    data = {"path": "films", "size": 9, **({} if frames is None else {"frames": frames})}
    made = DistilledSet.create(path, ["a", "b"], 1, {"method": "random", "ipc": 1, "seed": seed, "data": data})
    for label in range(2):
        made.add(label, 0, torch.rand(3, *(() if frames is None else (frames,)), 9, 9), seed=0)
    return made


def texts(page):
    """The words of a page that a reader sees or hears, without the script, the style and the addresses."""
    plain = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    spoken = " ".join(re.findall(r'(?:aria-label|title)="([^"]*)"', plain))
    return re.sub(r"<[^>]*>", " ", plain) + spoken


@pytest.mark.parametrize(("frames", "noun", "other"), [(None, "image", "clip"), (4, "clip", "image")])
def test_a_report_names_what_the_sets_hold(frames, noun, other, tmp_path):
    made = made_of(tmp_path / "set", frames)
    file = "neighbours/0-0.png"
    near = {"key": "a/1", "label": 0, "distance": 0.1, "file": file}
    images = [
        {"label": k, "slot": 0, "path": record["path"], "copy": k == 0, "nearest": {"pixel": near, "feature": near}}
        for k, record in enumerate(made.records)
    ]
    made.note("images.json", {"features": "x", "judged": "y", "images": images, "copies": 1, "share": 0.5})
    by_class = {name: {"nearest": 1.0} for name in "ab"}
    made.note("measures.json", {"features": "x", "nearest": 1.0, "by_class": by_class, "notes": {}, "judged": "y"})
    page = write_report([made.path], tmp_path / "out", title="Sets").read_text()
    said = texts(page)
    assert f"1 of 2 {noun}s" in said and f"real training {noun}" in said and f"nearest real {noun}" in said
    assert not re.search(rf"\b{other}s?\b", said, re.IGNORECASE)
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert f"nearest real {noun}" in markdown and not re.search(rf"\b{other}s?\b", markdown, re.IGNORECASE)


def test_measures_that_no_set_has_are_not_explained(tmp_path):
    made = made_of(tmp_path / "set", 4)
    page = write_report([made.path], tmp_path / "out", title="Sets").read_text()
    assert "Representativeness" not in texts(page) and "Coverage" not in texts(page)


def test_images_and_clips_side_by_side_are_called_images(tmp_path):
    paths = [made_of(tmp_path / f"{frames}", frames).path for frames in (None, 4)]
    page = write_report(paths, tmp_path / "out", title="Sets").read_text()
    assert "<h2>Images</h2>" in page
    assert noun_of(["clip", "clip"]) == "clip" and noun_of(["clip", "image"]) == "image"


def test_words_are_exchanged_with_their_articles():
    assert worded("An image beside an image; images", "clip") == "A clip beside a clip; clips"
    assert worded("An image beside an image; images", "image") == "An image beside an image; images"
