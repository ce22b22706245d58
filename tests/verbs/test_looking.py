"""`distill` looks at what it makes and at what is on disk: garbage is said, and success is claimed of files that are there."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
from PIL import Image

from dap.base.errors import DapError
from dap.base.watch import Watcher
from dap.cli.main import main
from dap.data.real.sources import open_source
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.looks import CONSTANT, advice_for, constant, doubts, extremes
from dap.methods import Made, Method
from dap.verbs.distill import distill
from dap.verbs.options import Machine


class Says(Watcher):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        if text.startswith("Warning: "):  # other notes say how the data were understood
            self.said.append(text)


class Diverged(Method):
    """Values far outside [0, 1], as DM gives them after a divergence."""

    def prepare(self, task):
        def make(unit):
            noise = torch.randn(len(unit.slots), 3, 8, 8, generator=torch.Generator().manual_seed(unit.label)) * 1e4
            return Made(noise.clamp(0, 1), [{"seed": 0} for _ in unit.slots])

        del task
        return make


class Grey(Method):
    """Images of one colour, which are what somebody may want."""

    def prepare(self, task):
        del task
        return lambda unit: Made(torch.full((len(unit.slots), 3, 8, 8), 0.5), [{"seed": 0} for _ in unit.slots])


@pytest.fixture
def varied(tmp_path):
    """Photographs of two classes: every pixel has its own value."""
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(3):
            values = torch.randint(20, 230, (8, 8, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
            Image.fromarray(values.numpy()).save(tmp_path / "data" / name / f"{i}.png")
    return str(tmp_path / "data")


def asked(varied, **more):
    return {"data": varied, "ipc": 2, "machine": Machine(device="cpu"), **more}


def test_saturated_images_are_said_by_class_and_slot_and_in_the_manifest(varied, tmp_path):
    watcher = Says()
    made = distill(out=tmp_path / "s", method=Diverged(), watcher=watcher, **asked(varied, size=8))
    assert all(record["doubt"].startswith("saturated: 100% of its values") for record in made.records)
    (said,) = watcher.said
    assert said.startswith("Warning: 4 of 4 images are probably no images") and "'a', slot 1: saturated" in said
    assert made.verify() == []


def test_images_of_one_colour_are_said(varied, tmp_path):
    watcher = Says()
    made = distill(out=tmp_path / "s", method=Grey(), watcher=watcher, **asked(varied, size=8))
    assert [record["doubt"] for record in made.records] == [CONSTANT] * 4 and "constant" in watcher.said[0]
    assert (
        "Warning: 4 of 4 images are the same as another one of their class ('a', slots 0, 1; 'b', slots 0, 1). The real images"
        in (watcher.said[0])
    )


def test_an_autoencoder_of_zeros_stops_before_the_first_image(varied, tmp_path, pipeline_folder, monkeypatch):
    """Constant images from an all-zero VAE."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(pipeline_folder, tmp_path / "zero")
    (weights,) = (tmp_path / "zero" / "vae").glob("*.safetensors")
    zeros = {name: torch.zeros_like(value) for name, value in load_file(weights).items()}
    save_file(zeros, weights, {"format": "pt"})
    given = asked(varied, method="vanilla", backbone=str(tmp_path / "zero"), steps=2, classes=["a", "b"])
    given |= {"data": named_like(varied, pipeline_folder, tmp_path), "classes": None}
    with pytest.raises(DapError, match=r"The autoencoder of .*zero gives an image of one colour for noise"):
        distill(out=tmp_path / "s", **given)
    monkeypatch.setattr("dap.backbones.opening.tried", lambda backbone: backbone)  # images are looked at too
    with pytest.raises(DapError, match=r"images of one colour for class .* look at it with dap check .*zero"):
        distill(out=tmp_path / "s", **given)
    assert not list((tmp_path / "s").glob("images/*/*.png"))


def named_like(varied, pipeline_folder, tmp_path):
    """The same images under names of classes that the pipeline knows."""
    import json

    names = json.loads((pipeline_folder / "classes.json").read_text())[:2]
    for ours, name in zip("ab", names, strict=True):
        shutil.copytree(f"{varied}/{ours}", tmp_path / "named" / name)
    return str(tmp_path / "named")


def test_real_images_are_never_doubted(tmp_path, varied):
    """Neither Fashion-MNIST, which is half black, nor line drawings of 0 and 1."""
    source = open_source("fashion-mnist", "train", size=32)
    for label in range(10):
        images = source.images(label, range(60))
        assert doubts(images, lambda images=images: images[:16]) == [None] * 60
        assert max(extremes(images)) < 0.99 and not any(constant(images))
    drawn = (torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    assert doubts(drawn, lambda: drawn) == [None] * 20
    assert doubts(torch.zeros(2, 3, 4, 4), lambda: torch.zeros(1, 3, 4, 4)) == [None] * 2, "the real ones are so too"
    watcher = Says()
    made = distill(out=tmp_path / "s", method="random", watcher=watcher, **asked(varied, size=8))
    assert watcher.said == [] and not any("doubt" in record for record in made.records)


@pytest.mark.parametrize("when", ["emptied", "one image", "recipe"])
def test_what_is_removed_meanwhile_is_not_claimed(when, varied, tmp_path, capsys):
    """`rm -rf` of the output half-way ended with exit 0 and more images than there were."""
    out = tmp_path / "s"

    class Removes(Says):
        def images(self, name, done, total, what=""):
            del name, what
            if done == total // 2:
                if when == "emptied":
                    shutil.rmtree(out)
                elif when == "recipe":
                    (out / "recipe.json").unlink()
                else:
                    next(out.glob("images/*/*.png")).unlink()

    given = asked(varied, method="random", size=8)
    says = "lacks 1 of 4 images" if when == "one image" else "has lost its recipe.json"
    with pytest.raises(DapError, match=says):
        distill(out=out, watcher=Removes(), **given)
    if when == "recipe":
        shutil.rmtree(out)  # the advice
    assert distill(out=out, **given).verify() == []
    assert main(["verify", str(out)]) == 0
    assert "4 images" in capsys.readouterr().out


def test_a_class_folder_in_latin_1_leaves_no_half_begun_folder(varied, tmp_path):
    """Case A17."""
    os.rename(f"{varied}/a".encode(), f"{varied}/".encode() + b"caf\xe9")
    try:
        distill(out=tmp_path / "s", method="random", **asked(varied, size=8))
    except DapError as error:
        assert "UTF-8" in str(error)
        str(error).encode()
        assert not (tmp_path / "s").exists()
    else:
        assert DistilledSet.open(tmp_path / "s").verify() == []


def test_the_advice_about_no_numbers_fits_the_recipe(tmp_path):
    """Case 22: "lower the scale" under a method without scale."""
    guided = {"backbone": {"path": "p", "dtype": "float32"}, "guidance": {"scale": 0.1}}
    assert advice_for(guided).startswith("lower the guidance scale (--scale)")
    half = {"backbone": {"path": "p", "dtype": "float16"}, "guidance": None}
    assert "--dtype float32" in advice_for(half) and "scale" not in advice_for(half)
    plain = {"backbone": {"path": "a/p", "dtype": "float32"}, "guidance": None}
    assert advice_for(plain) == "look at the weights with dap check a/p"
    assert "learning rate" in advice_for({"options": {"lr": 1.0}}) and advice_for(None)
    made = DistilledSet.create(tmp_path / "s", ["a"], 1, half)
    with pytest.raises(DapError, match="non-finite pixels; use --dtype float32"):
        made.add(0, 0, torch.full((3, 4, 4), torch.nan))


def test_the_report_says_what_was_doubted(varied, tmp_path):
    """What `distill` warns of stands in the report too, near the images and in the Markdown."""
    from dap.verbs.report import report

    distill(out=tmp_path / "s" / "noise", method=Diverged(), **asked(varied, size=8))
    distill(out=tmp_path / "s" / "grey", method=Grey(), **asked(varied, size=8))
    page = report(tmp_path / "s", tmp_path / "out").read_text()
    images = page[page.index('<section id="images"') :]
    for text in (images, (tmp_path / "out" / "report.md").read_text()):
        assert text.count("4 of 4 images of ") == 2 and "saturated: 100% of its values" in text and CONSTANT in text
    assert images.count('class="mark odd" aria-hidden') == 8


def test_the_report_says_that_a_text_backbone_has_never_seen_such_images(tmp_path, caplog):
    """The starter U-Net on colourful pictures; on what it was trained on, nothing is recorded and nothing is said."""
    import json

    from dap.verbs.report import report

    generator = torch.Generator().manual_seed(0)
    for name in ("Animals", "Plants"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(5):
            small = (255 * torch.rand(6, 6, 3, generator=generator)).to(torch.uint8).numpy()
            picture = Image.fromarray(small).resize((32, 32), Image.Resampling.BICUBIC)
            picture.save(tmp_path / "data" / name / f"{i}.png")
    how = {"method": "vanilla", "backbone": "starter-unet", "ipc": 1, "steps": 2, "machine": Machine(device="cpu")}
    for place, data, classes in (
        ("strange", str(tmp_path / "data"), None),
        ("known", "fashion-mnist", ["Bag", "Dress"]),
    ):
        distill(out=tmp_path / place, data=data, classes=classes, **how)
    assert caplog.text.count("has probably never seen") == 1
    env = json.loads((tmp_path / "strange" / "env.json").read_text())
    assert env["strangeness"] > 0.8 and "strangeness" not in json.loads((tmp_path / "known" / "env.json").read_text())
    said = f"starter-unet, has probably never seen images like the real ones: it predicted their noise {env['strangeness']:.2f}"
    page = report(tmp_path / "strange", tmp_path / "out").read_text()
    assert said in page[page.index('<section id="images"') :] and said in (tmp_path / "out" / "report.md").read_text()
    assert "never seen" not in report(tmp_path / "known", tmp_path / "out").read_text()
