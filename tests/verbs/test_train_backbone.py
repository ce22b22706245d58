"""`dap train-backbone`: from a folder of images to a backbone that the other verbs take."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

import clips
import dap
from dap.base.errors import DapError
from dap.cli.main import main
from dap.cli.training import _told
from dap.pretraining.notes import read_notes
from dap.verbs.options import Machine

NAMES = ("Bar & line", "disc", "square")
FEW = {"minutes": 0.01, "steps": 4, "autoencoder_steps": 3, "size": 16, "machine": Machine(device="cpu")}
FLAGS = [
    "--minutes",
    "0.01",
    "--steps",
    "4",
    "--autoencoder-steps",
    "3",
    "--size",
    "16",
    "--device",
    "cpu",
    "--threads",
    "1",
]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """Three coloured shapes on white, 12 images each, with alpha or a palette as users have them."""
    folder = tmp_path_factory.mktemp("shapes")
    for name, colour in zip(NAMES, ("green", "red", "blue"), strict=True):
        (folder / "train" / name).mkdir(parents=True)
        for k in range(12):
            image = Image.new("RGBA", (20, 20), (255, 255, 255, 0))
            draw, box = ImageDraw.Draw(image), (k % 4, k // 4, k % 4 + 12, k // 4 + 12)
            if name == "disc":
                draw.ellipse(box, fill=colour)
            else:
                draw.rectangle(box if name == "square" else (box[0], 0, box[0] + 4, 19), fill=colour)
            (image.convert("P") if k % 3 == 0 else image).save(folder / "train" / name / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def made(shapes, tmp_path_factory):
    return dap.train_backbone(shapes, tmp_path_factory.mktemp("made") / "mine", **FEW)


def weights(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*.safetensors")}


def test_the_result_is_a_backbone_that_knows_the_classes(made):
    backbone = dap.load_backbone(str(made.folder), device="cpu")
    assert backbone.class_names == NAMES and backbone.card.size == 16 and backbone.card.name == "mine"
    assert backbone.card.layer in backbone.layers and backbone.learned_variance
    assert torch.equal(backbone.condition(["square", "disc"]), torch.tensor([2, 1]))
    images = torch.rand(2, 3, 16, 16)
    assert backbone.decode(backbone.encode(images)).shape == images.shape
    with Image.open(made.folder / "preview.png") as preview:
        assert preview.size[0] > preview.size[1] > 5 * 64
    assert not (made.folder / ".training").exists()


def test_diffusers_opens_it_as_any_pipeline(made):
    from diffusers import DiTPipeline

    pipe = DiTPipeline.from_pretrained(made.folder)
    assert pipe.get_label_ids(["disc", "Bar & line"]) == [1, 0] and pipe.vae.config.scaling_factor == 1.0
    assert "_name_or_path" not in (made.folder / "vae" / "config.json").read_text()


def test_its_notes_say_what_was_chosen_and_what_it_cost(made):
    notes = read_notes(made.folder)
    assert notes == made.notes and notes.done and notes.asked.classes == list(NAMES)
    assert notes.asked.images == 30 and notes.asked.held_out == 6
    assert notes.autoencoder.steps == 3 and notes.denoiser.steps == 4 and notes.denoiser.parameters > 1e6
    assert len(notes.denoiser.history[0]) == 3 and notes.psnr_held_out_db > 5 and notes.sizes.start == "starter"


def test_check_passes_on_it(made, capsys):
    assert main(["check", str(made.folder), "--device", "cpu"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("method", ["vanilla", "auto"])
def test_distill_takes_it(made, shapes, tmp_path, method):
    how = {"method": method, "ipc": 1, "steps": 2, "machine": Machine(device="cpu")}
    how |= {"refine_steps": 2} if method == "auto" else {}
    found = dap.distill(out=tmp_path / "set", source=shapes, backbone=made.folder, **how)
    assert found.class_names == NAMES and len(found.records) == 3


def test_made_again_it_is_there_and_with_other_wishes_it_is_refused(made, shapes):
    before = weights(made.folder)
    again = dap.train_backbone(shapes, made.folder, **FEW)
    assert again.again and weights(made.folder) == before
    with pytest.raises(DapError, match="begun with --seed 0, and now it is 1. Give the same again"):
        dap.train_backbone(shapes, made.folder, **FEW, seed=1)
    with pytest.raises(DapError, match="begun with other images"):
        Image.new("RGB", (20, 20)).save(shapes / "train" / "disc" / "99.png")
        try:
            dap.train_backbone(shapes, made.folder, **FEW)
        finally:
            (shapes / "train" / "disc" / "99.png").unlink()


@pytest.mark.parametrize("name", ["SIGKILL", pytest.param("SIGTERM", marks=pytest.mark.slow)])
def test_a_killed_command_goes_on_and_gives_the_same_bytes(name, made, shapes, tmp_path, capsys):
    out, number = tmp_path / "mine", getattr(signal, name)
    words = ["train-backbone", "--data", str(shapes), "--out", str(out), *FLAGS]
    command = [sys.executable, "-P", "-m", "dap", *words]
    kept, environment = out / ".training" / "denoiser.pt", os.environ | {"DAP_CHECKPOINT_SECONDS": "0"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 200
    while not kept.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.002)
    process.send_signal(number)
    said = process.communicate()[0]
    if name == "SIGKILL":
        assert process.returncode == -number
    else:
        assert process.returncode == 128 + number and "Traceback" not in said
        assert said.endswith("dap: interrupted. What was made is kept; run the same command to go on.\n")
    assert not (out / "model_index.json").exists()
    with pytest.raises(DapError, match="no model_index.json"):
        dap.load_backbone(str(out))
    assert main(words) == 0
    said = capsys.readouterr()
    assert f"Goes on with the training in {out}." in said.err, said.err
    assert f"Next: dap distill --data {shapes} --backbone {out}" in said.out
    assert weights(out) == weights(made.folder)


def test_the_next_command_makes_a_new_set_beside_those_that_are_there(made, shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, seed in (("runs/mine", "0"), ("runs/mine-2", "1")):
        quick = ["--method", "vanilla", "--steps", "2", "--ipc", "1", "--device", "cpu", "--seed", seed]
        line = _told(made, str(shapes)).text.splitlines()[-1]
        assert line.endswith(f"--out {name}")
        assert main([*shlex.split(line.removeprefix("Next: dap ")), *quick]) == 0
        assert dap.DistilledSet.open(name).missing() == []


def test_a_small_stable_diffusion(shapes, tmp_path):
    made = dap.train_backbone(shapes, tmp_path / "sd", kind="unet", **{**FEW, "size": 32})
    backbone = dap.load_backbone(str(made.folder), device="cpu")
    assert backbone.class_names == () and backbone.card.template == "a photo of a {}"
    rows = backbone.condition(NAMES)
    assert len(set(rows.tolist())) == 3
    eps = backbone.predict(torch.randn(3, *backbone.latent_shape), 500, rows).eps
    assert torch.isfinite(eps).all() and not torch.equal(eps[0], eps[1])


def test_clips_make_a_latte_that_distils_them(tmp_path, capsys):
    data, out = clips.folder(tmp_path / "clips", train=11, test=1), tmp_path / "latte"
    flags = ["--data", str(data), "--frames", "4", "--no-flip", *FLAGS]
    assert main(["train-backbone", *flags, "--out", str(out)]) == 0
    assert f"--backbone {out} --ipc 10 --out runs/mine --frames 4 --method dap" in capsys.readouterr().out
    notes, backbone = read_notes(out), dap.load_backbone(str(out), device="cpu")
    assert notes.asked.frames == notes.sizes.frames == 4 and notes.asked.flip is False
    assert (backbone.card.frames, backbone.card.size, backbone.class_names) == (4, 16, tuple(clips.NAMES))
    assert "a Latte of 6 blocks" in notes.reason and backbone.card.guessed
    network = backbone.denoiser
    fresh = type(network)(**network.config)
    for table in ("pos_embed", "temp_embed"):  # these do not learn; the file has half precision
        torch.testing.assert_close(getattr(network, table), getattr(fresh, table), atol=1e-3, rtol=0)
    assert network.final_layer.linear.weight.abs().sum() > 0, "the output learns, from zero"
    made = dap.distill(out=tmp_path / "set", source=data, frames=4, backbone=out, method="vanilla", ipc=1, steps=2)
    assert made.frames == 4 and made.tensors()[0].shape == (3, 3, 4, 16, 16)
    with Image.open(out / "preview.png") as preview:  # two rows of frames of clips, and a sample of each class
        assert preview.size[1] == 5 * 66
    with pytest.raises(DapError, match="begun with --flip False, and now it is True"):
        dap.train_backbone(data, out, frames=4, **FEW)
    with pytest.raises(DapError, match="A backbone of clips .--frames. is told labels, and unet makes images"):
        dap.train_backbone(data, tmp_path / "sd", frames=4, kind="unet", **FEW)


def test_the_command_says_what_it_made(made, shapes, capsys):
    assert main(["train-backbone", "--data", str(shapes), "--out", str(made.folder), *FLAGS, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["again"] is True and said["size"] == 16 and said["denoiser"]["steps"] == 4


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"kind": "gan"}, "There is no kind 'gan' of backbone to train. Known: dit, unet."),
        ({"minutes": 0}, "--minutes takes a number above 0 and up to 43,200, such as 30, not 0."),
        ({"minutes": float("nan")}, "--minutes takes a number above 0"),
        ({"size": 20}, "--size takes a multiple of 16 from 16 to 1024, such as 64, not 20."),
        ({"classes": ["disc"]}, "has one class, 'disc', and a set to train on needs at least 2"),
        ({"classes": ["disc", "square"]}, "too few images to train a backbone: there are 24 in all. At least 5 in each class"),
        ({"minutes": 0.001, "autoencoder_steps": None}, "which is too few to learn anything; give more --minutes"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_any_work(how, message, shapes, tmp_path):
    with pytest.raises(DapError) as caught:
        dap.train_backbone(shapes, tmp_path / "out", **{**FEW, **how})
    assert message in str(caught.value)
    assert not (tmp_path / "out" / "training.json").exists()


def test_folders_that_cannot_be_used_are_refused(shapes, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    with pytest.raises(
        DapError, match="holds files already, which are no training of a backbone; choose another --out"
    ):
        dap.train_backbone(shapes, tmp_path / "full", **FEW)
    with pytest.raises(DapError, match="would be read as one of its classes"):
        dap.train_backbone(shapes, shapes / "train" / "mine", **FEW)
    for name in ("a", "b"):
        (tmp_path / "small" / name).mkdir(parents=True)
        for k in range(20):
            Image.new("RGB", (12, 30), (k, 0, 0)).save(tmp_path / "small" / name / f"{k}.png")
    with pytest.raises(DapError, match="has images of 12 × 30 px; a backbone is trained on images of at least 16 px"):
        dap.train_backbone(tmp_path / "small", tmp_path / "out", **FEW)
    for file in list((tmp_path / "small" / "b").iterdir())[3:]:
        file.unlink()
    with pytest.raises(DapError, match="class 'b' has 3. At least 5 in each class and 30 in all are needed"):
        dap.train_backbone(tmp_path / "small", tmp_path / "out", **FEW)
