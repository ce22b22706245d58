"""docs/own-folder.md: its commands, one after the other as they stand there, on a small folder of unknown classes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image

from dap.cli.main import main

PAGE = (Path(__file__).parents[2] / "docs" / "own-folder.md").read_text(encoding="utf-8")
SMALLER = {"--ipc 10": "--ipc 2", "--size 32": "--size 16", "--budget 30m": "--budget 2s", "--sets 3": "--sets 1"}
SMALLER |= {"--trials 3": "--trials 1", "--minutes 30": "--minutes 1 --steps 2 --autoencoder-steps 2"}
SMALLER |= {"--methods random,herding,auto": "--methods herding,auto"}
"""What a word of the page is in this test, so that the page runs in seconds."""
MORE = {
    "train-teacher": "--epochs 1 --set size=16 --set width=8",
    "evaluate": "--epochs 1 --set size=16 --set width=8",
    "compare": "--epochs 1 --set width=8 --steps 2 --refine-steps 1",
    "distill --backbone": "--steps 2 --refine-steps 1",
}
"""What a verb gets besides."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Three classes of 12 training and 4 test images, 20 px, in colours; some with transparency, as users' folders have them."""
    folder = tmp_path_factory.mktemp("user")
    generator = torch.Generator().manual_seed(0)
    for split, n in (("train", 12), ("test", 4)):
        for label, name in enumerate(("Food & Drink", "leaves", "sky")):
            (folder / "photos" / split / name).mkdir(parents=True)
            for i in range(n):
                pixels = torch.randint(0, 120, (20, 20, 4), generator=generator)
                pixels[..., label] += 120
                pixels[..., 3] = 255 if i % 2 else 120
                Image.fromarray(pixels.byte().numpy()).save(folder / "photos" / split / name / f"{i}.png")
    return folder


def test_the_page_runs_from_the_first_to_the_last_command(photos, monkeypatch, capsys):
    monkeypatch.chdir(photos)
    run = []
    for kind, block in re.findall(r"^```(sh|python)\n(.*?)^```", PAGE, re.M | re.S):
        if kind == "python":
            found: dict[str, object] = {}
            exec(compile(block, "own-folder.md", "exec"), found)
            images, labels = next(iter(found["loader"]))  # type: ignore[call-overload]
            assert images.shape[1:] == (3, 16, 16) and images.min() >= 0 and images.max() <= 1 and len(labels) == 6
            continue
        for line in block.replace("\\\n", " ").splitlines():
            for words, smaller in SMALLER.items():
                line = line.replace(words, smaller)
            words = shlex.split(line, comments=True)[1:]
            words += shlex.split(
                MORE.get("distill --backbone" if words[0] == "distill" and "--backbone" in words else words[0], "")
            )
            assert main(words) == 0, (line, capsys.readouterr().err)
            run.append(words[0])
    said = capsys.readouterr()
    assert "train: 3 classes, 36 images, 20 × 20" in said.out + said.err
    assert {"look", "distill", "train-teacher", "train-backbone", "evaluate", "compare", "export"} <= set(run)
    for file in (
        "runs/judged/report.html",
        "runs/compared/report.html",
        "small-photos/README.md",
        "teacher.safetensors",
    ):
        assert (photos / file).is_file(), file
    for name in ("mine", "random", "herding", "auto"):
        assert len(list((photos / "runs" / name / "images").rglob("*.png"))) == 6


def test_what_is_made_smaller_stands_on_the_page():
    """Else the test would run something in full, for an hour."""
    assert not [words for words in SMALLER if words not in PAGE]
